//! Whatever one process does or suffers, all end, soon, with what it was: nothing here may hang.

use super::*;
use crate::parallel::failures::COLLECTIVES;
use crate::parallel::{f32s, fails};
use crate::train::{Place, signal, snapshot, succeed};
use longreel::parallel::{Communicator, Reduce};
use std::fs;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// On a process: what `case` names goes wrong; what this rank saw of it, as a file of its rank.
pub fn failing(launch: &Launch, case: &str, folder: &Path) -> Result<()> {
    let Some(ranks) = launch.processes() else { bail!(Environment, "not under mpirun") };
    let (kind, detail) = case.split_once(' ').unwrap_or((case, ""));
    let work = |world: Arc<dyn Communicator>| {
        let r = world.rank();
        let outcome = match kind {
            "disagree" => disagree(&*world, r),
            "refuse" if r == 1 => world.broadcast(&f32s(&[1.0]), 9),
            "refuse" => world.barrier(),
            "stuck" => {
                let same = world.split(0, 0)?;
                if r == 0 { world.barrier() } else { same.barrier() }
            }
            _ => among_odd_and_even(world.clone(), kind, detail),
        };
        // Rank 2's own error is not of a call: it tells the others only as it ends.
        if let Err(e) = &outcome
            && (r, kind) != (2, "error")
        {
            let later = fails(world.barrier()).to_string();
            let file = folder.join(r.to_string());
            fs::write(&file, format!("{e}\n{later}")).map_err(|e| Error::io(&file, e))?;
        }
        outcome
    };
    launch.run(ranks, work).map(|_| ())
}

/// Rank 2 of 3 or more fails while the others go on calling the collective of that name, among the odd and the even
/// ranks.
fn among_odd_and_even(world: Arc<dyn Communicator>, failure: &str, collective: &str) -> Result<()> {
    let r = world.rank();
    let (_, call) = COLLECTIVES.iter().find(|(name, _)| *name == collective).expect(collective);
    let comm = world.split(r % 2, r)?;
    call(&*comm)?; // all goes well once
    world.barrier()?; // for all
    if r == 2 {
        std::thread::sleep(Duration::from_millis(30)); // the others wait already
        match failure {
            "error" => bail!(Data, "clip 17 is broken"),
            "panic" => panic!("index {} out of bounds", 17),
            _ => return Ok(()),
        }
    }
    loop {
        call(&*comm)?;
        if r == 1 {
            world.barrier()?; // alone among the odd ranks it would go on without end
        }
    }
}

fn disagree(world: &dyn Communicator, r: usize) -> Result<()> {
    match r {
        1 => world.all_reduce(&f32s(&[1.0, 2.0]), Reduce::Sum),
        _ => world.barrier(),
    }
}

/// Runs [`failing`] on three processes; the error that was reported and what each rank saw.
fn job(case: &str) -> (String, Vec<Option<String>>) {
    let folder = tempfile::tempdir().unwrap();
    let output = on_processes(3, &format!("failing {case}"), folder.path());
    assert!(!output.status.success());
    let stderr = text(&output.stderr);
    let errors: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(errors.len(), 1, "{case}: {stderr}");
    (errors[0].to_owned(), (0..3).map(|rank| fs::read_to_string(folder.path().join(rank.to_string())).ok()).collect())
}

#[test]
fn a_failing_process_stops_all_others_at_every_collective_with_its_own_error() {
    for (collective, _) in COLLECTIVES {
        let (reported, seen) = job(&format!("error {collective}"));
        assert_eq!(reported, "rank 2 failed: clip 17 is broken", "{collective}");
        for rank in [0, 1] {
            let seen = seen[rank].as_ref().unwrap_or_else(|| panic!("{collective}: rank {rank} saw nothing"));
            assert_eq!(*seen, format!("{reported}\n{reported}"), "{collective}, rank {rank}");
        }
    }
}

#[test]
fn a_process_that_panics_or_returns_stops_the_others() {
    let (reported, _) = job("panic all_to_all");
    assert_eq!(reported, "rank 2 failed: panicked: index 17 out of bounds");
    let (reported, seen) = job("return barrier");
    assert!(reported.starts_with("rank 2 failed: it returned while rank "), "{reported}");
    assert!(seen[0].is_some() && seen[1].is_some());
}

#[test]
fn disagreements_and_bad_arguments_fail_on_all_processes() {
    let (reported, seen) = job("disagree");
    let sides = "rank 0 calls barrier, rank 1 calls all_reduce Sum of F32 [2]";
    let expected = format!("ranks disagree in call 0 of ranks [0, 1, 2]: {sides}");
    assert!(reported.ends_with(&expected), "{reported}");
    for (rank, seen) in seen.iter().enumerate() {
        let mut lines = seen.as_ref().unwrap().lines();
        assert!(lines.next().unwrap().ends_with(&expected), "rank {rank}: {seen:?}");
        assert!(lines.next().unwrap().starts_with("rank 1 failed: "), "later calls fail too, rank {rank}: {seen:?}");
    }
    let (reported, seen) = job("refuse");
    assert_eq!(reported, "rank 1 failed: broadcast from rank 9, but there are only 3 ranks");
    assert!(seen[1].as_ref().unwrap().starts_with("broadcast from rank 9"), "{seen:?}");
    assert!(seen[2].as_ref().unwrap().starts_with("rank 1 failed: broadcast from rank 9"), "{seen:?}");
}

#[test]
fn processes_that_wait_for_each_other_in_different_groups_get_an_error() {
    let (reported, _) = job("stuck");
    assert!(
        reported.contains("the ranks wait for each other and none can go on: rank 0 waits in barrier"),
        "{reported}"
    );
    assert!(reported.contains("rank 2 waits in barrier (call 0 of ranks [0, 1, 2])"), "{reported}");
}

/// Starts `longreel train` on processes, without an end, and returns once it has made some steps and checkpoints.
fn training(place: &Place, ranks: usize, args: &[&str]) -> Child {
    let args = [&["train.steps=1000000", "train.heldout_every=0", "train.checkpoint_every=3"], args].concat();
    let mut command = mpirun(ranks, &place.command("run", &args));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    place.wait_for(child, "run", 8)
}

/// The process of rank `rank` below mpirun.
fn process(mpirun: &Child, rank: usize) -> u32 {
    let is_it = |pid: u32| -> Option<bool> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        Some(parent == mpirun.id() && environment.split(|&b| b == 0).any(|variable| variable == wanted.as_bytes()))
    };
    let all = fs::read_dir("/proc").unwrap();
    let pids = all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.into_iter().find(|&pid| is_it(pid) == Some(true)).expect("the rank's process")
}

/// A process has ended, or does so in a moment.
fn has_ended(pid: u32) {
    let state = || fs::read_to_string(format!("/proc/{pid}/stat")).ok()?.rsplit_once(") ")?.1.chars().next();
    let deadline = Instant::now() + Duration::from_secs(5);
    while state().is_some_and(|state| state != 'Z') {
        assert!(Instant::now() < deadline, "process {pid} lives on");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The last checkpoint of a run that was ended is whole: the run goes on from it, as if it had not been.
fn goes_on(place: &Place) {
    let checkpoints = longreel::state::checkpoint::RunFolder::new(place.path("run")).checkpoints().unwrap();
    let steps = format!("train.steps={}", checkpoints.last().unwrap().0 + 2);
    let args = ["train.heldout_every=0", "train.checkpoint_every=3", "--ranks=2", &steps];
    let resumed = place.train("run", &[&args[..], &["--resume"]].concat());
    assert_eq!(crate::train::numbers(&resumed), crate::train::numbers(&place.train("straight", &args)));
}

#[test]
fn a_process_that_is_killed_stops_the_others_and_the_run_goes_on_from_its_checkpoint() {
    let place = Place::videos();
    let child = training(&place, 2, &[]);
    let other = process(&child, 0);
    signal(process(&child, 1), "KILL");
    let output = finish(child);
    let stderr = text(&output.stderr);
    assert!(!output.status.success() && stderr.contains("rank 1"), "{stderr}");
    has_ended(other);
    goes_on(&place);
}

#[test]
fn a_process_that_nothing_is_heard_from_stops_the_others_within_a_minute() {
    let place = Place::videos();
    let child = training(&place, 2, &[]);
    let (pid, other) = (process(&child, 1), process(&child, 0));
    signal(pid, "STOP"); // as a host that hangs, or is cut off: nobody is told
    let output = finish(child); // a minute at most
    let error = error_of(&output);
    assert!(error.starts_with("rank 1 failed: nothing was heard from it for 2"), "{error}");
    assert!(error.contains(&format!("(process {pid} on ")) && error.contains("cut off"), "{error}");
    has_ended(other);
    goes_on(&place);
}

/// A program that mpirun starts as a rank, and that never comes to join the others.
const HANGS: [&str; 3] = ["sh", "-c", "sleep 600; exit"];

#[test]
fn a_process_that_never_joins_is_named_within_the_limit() {
    let place = Place::videos();
    for (hangs, expected) in [
        (vec![1], "rank 1 failed: it has not joined the others within 4 s (process "),
        (vec![0, 2], "rank 0 failed: it has not joined the others within 4 s (process "),
    ] {
        let mut command = Command::new("mpirun");
        command.envs(ENVIRONMENT).env("LONGREEL_JOIN_SECONDS", "4");
        for rank in 0..3 {
            let longreel = place.command("run", &[]);
            command.args(if rank > 0 { &[":", "-n", "1"][..] } else { &["-n", "1"] });
            match hangs.contains(&rank) {
                true => command.args(HANGS),
                false => command.arg(longreel.get_program()).args(longreel.get_args()),
            };
        }
        let began = Instant::now();
        let output = run(&mut command);
        let took = began.elapsed();
        let error = error_of(&output);
        assert!(error.starts_with(expected) && error.contains("LONGREEL_JOIN_SECONDS"), "{error}");
        assert_eq!(error.contains("; nor have ranks 2: "), hangs.len() == 2, "{error}");
        assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(20), "{took:?}");
        assert!(!place.path("run").exists());
    }
}

#[test]
fn a_clip_that_breaks_on_one_process_stops_all_with_its_name() {
    let place = Place::videos();
    fs::create_dir(place.path("own")).unwrap();
    for (path, bytes) in snapshot(&place.path("clips")) {
        fs::write(place.path("own").join(path.file_name().unwrap()), bytes).unwrap();
    }
    // Rank 1 has clips of its own, as on a host of its own.
    let args = ["train.steps=1000000", "train.heldout_every=0", "train.checkpoint_every=3"];
    let own = format!("data.path={}", place.path("own").display());
    let mut command = mpirun(1, &place.command("run", &args));
    let second = place.command("run", &[&args[..], &[&own]].concat());
    command.args([":", "-n", "1"]).arg(second.get_program()).args(second.get_args());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let child = place.wait_for(child, "run", 4);
    let file = place.path("own/b.mp4");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 3]).unwrap();
    let error = error_of(&finish(child));
    assert!(error.starts_with("rank 1 failed: ") && error.contains("own/b.mp4, clip "), "{error}");
    goes_on(&place);
}

#[test]
fn what_only_one_process_cannot_open_stops_all_before_anything_is_written() {
    let place = Place::videos();
    let mut command = mpirun(1, &place.command("run", &[]));
    let second = place.command("run", &["data.path=/nowhere/at/all"]);
    command.args([":", "-n", "1"]).arg(second.get_program()).args(second.get_args());
    let error = error_of(&run(&mut command));
    assert!(error.starts_with("rank 1 failed: ") && error.contains("/nowhere/at/all"), "{error}");
    assert!(!place.path("run").exists());
    // What another rank says reaches the terminal in one line, without its control characters.
    let mut command = mpirun(1, &place.command("run", &[]));
    let second = place.command("run", &["data.path='/nowhere/\u{9b}31m\u{202e}at/all'"]);
    command.args([":", "-n", "1"]).arg(second.get_program()).args(second.get_args());
    let error = error_of(&run(&mut command));
    assert!(error.starts_with("rank 1 failed: ") && error.contains(r"/nowhere/\x9b31m\u{202e}at/all"), "{error:?}");
    // Nor may they be told different things.
    let mut command = mpirun(1, &place.command("run", &[]));
    let second = place.command("run", &["train.lr=0.5"]);
    command.args([":", "-n", "1"]).arg(second.get_program()).args(second.get_args());
    let error = error_of(&run(&mut command));
    assert!(error.contains("ranks disagree on the configuration: rank 0 has "), "{error}");
    assert!(!place.path("run").exists());
}

#[test]
fn a_signal_to_any_process_saves_and_ends_all() {
    let place = Place::videos();
    let child = training(&place, 3, &["train.batch=2"]);
    signal(process(&child, 2), "TERM");
    let output = finish(child);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let done = place.metrics("run").len() as u64;
    assert!(stderr.contains(&format!("stopped after step {done} as asked; go on with --resume")), "{stderr}");
    let checkpoints = longreel::state::checkpoint::RunFolder::new(place.path("run")).checkpoints().unwrap();
    assert_eq!(checkpoints.last().unwrap().0, done, "all that was done is saved");
    succeed(&mut mpirun(
        3,
        &place.command("run", &["--resume", &format!("train.steps={}", done + 1), "train.batch=2"]),
    ));
}
