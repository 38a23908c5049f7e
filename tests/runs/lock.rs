//! The lock of a run's folder.

use super::*;
use crate::train::{error_of, fail, longreel, succeed, text};
use longreel::train::run_lock::RunLock;

/// The error that a second process gets while `child`, which was started with `words`, is at work.
fn refused(error: &str, pid: u32, words: &str) {
    assert!(error.contains(&format!("a process is at work in this run: process {pid} on ")), "{error}");
    assert!(
        error.contains(words) && error.contains(", since 20") && error.contains(" UTC; wait until it has ended"),
        "{error}"
    );
}

#[test]
fn a_live_run_keeps_others_out_before_and_after_its_first_checkpoint() {
    let place = Place::pictures();
    let child = place.start("run", &["train.checkpoint_every=0"], 2);
    for args in [&[][..], &["--resume"], &["--resume", "--step=1"]] {
        let error = place.error("run", args);
        refused(&error, child.id(), "train.steps=1000000");
        assert!(!error.contains("ended before"), "a live run is called ended: {error}");
    }
    signal(child.id(), "TERM");
    let output = finish(child);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let done = place.metrics("run").len() as u64;
    assert_eq!(place.checkpoints("run"), [done]);
    assert!(!place.path("run/lock").exists(), "a run that ends well takes its lock away");

    let child = place.start("run", &["train.checkpoint_every=5", "run.seed=5"], 0);
    // `start` trains from the beginning, which is refused here; on from the checkpoint instead.
    finish(child);
    let steps = format!("train.steps={}", done + 1_000_000);
    let child = spawn(&mut place.command("run", &["--resume", &steps]));
    let child = place.wait_for(child, "run", done as usize + 2);
    refused(&place.error("run", &["--resume"]), child.id(), "--resume");
    signal(child.id(), "KILL");
    finish(child);
    // The lock of a run that was killed is taken over without a word.
    assert!(place.path("run/lock").exists());
    let saved = place.checkpoints("run").pop().unwrap(); // of the killed run, which may have come far
    let steps = format!("train.steps={}", saved + 1);
    let output = succeed(&mut place.command("run", &["--resume", &steps]));
    assert!(!text(&output.stderr).contains("lock"), "{}", text(&output.stderr));
    assert_eq!(place.metrics("run").len() as u64, saved + 1);
}

#[test]
fn of_two_that_start_at_once_one_trains() {
    let place = Place::pictures();
    place.train("run", &["train.steps=10", "train.checkpoint_every=5"]);
    let args = ["--resume", "train.steps=150", "train.checkpoint_every=10"];
    let both = [0, 1].map(|_| spawn(&mut place.command("run", &args)));
    let both = both.map(finish);
    let (good, bad): (Vec<_>, Vec<_>) = both.into_iter().partition(|output| output.status.success());
    assert_eq!((good.len(), bad.len()), (1, 1), "{}", bad.iter().map(|o| text(&o.stderr)).collect::<String>());
    let error = error_of(&bad[0]);
    assert!(error.contains("a process is at work in this run: process "), "{error}");
    assert_eq!(place.metrics("run").len(), 150, "a line a step");
    assert_eq!(*place.checkpoints("run").last().unwrap(), 150);
}

#[test]
fn a_run_that_is_refused_leaves_no_trace() {
    let place = Place::pictures();
    place.error("a/b/run", &["data.path=/nowhere"]);
    assert!(!place.path("a").exists());
    fs::create_dir(place.path("mine")).unwrap();
    place.error("mine", &["data.path=/nowhere"]);
    assert_eq!(entries(&place.path("mine")), Vec::<String>::new());
}

#[test]
fn a_lock_is_given_on_and_never_held_twice() {
    let temp = tempdir().unwrap();
    let root = temp.path().join("run");
    let lock = RunLock::take(&root).unwrap();
    let error = RunLock::take(&root).unwrap_err().to_string();
    refused(&error, std::process::id(), "tests");
    drop(lock);
    assert!(!root.exists());
    // Many at once: the file is made, locked and removed over and over; two never hold it together.
    let inside = std::sync::atomic::AtomicUsize::new(0);
    use std::sync::atomic::Ordering::SeqCst;
    fs::create_dir(&root).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut taken = 0;
                while taken < 20 {
                    assert!(std::time::Instant::now() < deadline, "nobody lets go of the lock");
                    let Ok(lock) = RunLock::take(&root) else { continue };
                    assert_eq!(inside.fetch_add(1, SeqCst), 0);
                    taken += 1;
                    std::thread::yield_now();
                    inside.fetch_sub(1, SeqCst);
                    drop(lock);
                }
            });
        }
    });
    // Someone else's words in it, from a process that is gone.
    fs::write(root.join("lock"), "not ours\n").unwrap();
    drop(RunLock::take(&root).unwrap());
    assert_eq!(entries(&root), Vec::<String>::new());
    std::os::unix::fs::symlink("/dev/null", root.join("lock")).unwrap();
    assert!(RunLock::take(&root).unwrap_err().to_string().contains("lock: is a symbolic link to /dev/null"));
}

/// A file system without locks, for which the system's answer stands in.
#[test]
fn where_there_are_no_locks_a_run_goes_on_with_a_warning() {
    for error in ["ENOLCK", "EOPNOTSUPP"] {
        let place = Place::pictures();
        let command = place.command("run", &["train.steps=1"]);
        let mut traced = Command::new("strace");
        traced.args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=flock",
            "-e",
            &format!("inject=flock:error={error}"),
        ]);
        traced.arg(command.get_program()).args(command.get_args()).env_remove("RUST_LOG");
        let stderr = text(&succeed(&mut traced).stderr);
        assert!(stderr.contains("run/lock: this file system has no locks ("), "{stderr}");
        assert!(stderr.contains("nothing keeps a second process out of this run"), "{stderr}");
        assert_eq!(place.metrics("run").len(), 1);
    }
}

#[cfg(feature = "mpi")]
#[test]
fn all_processes_of_a_job_end_with_the_one_error() {
    use crate::mpi::{error_of, mpirun, run};
    let place = Place::pictures();
    let child = place.start("run", &["train.checkpoint_every=0"], 1);
    for resume in [&[][..], &["--resume"]] {
        let error = error_of(&run(&mut mpirun(2, &place.command("run", resume))));
        assert!(error.contains(&format!("at work in this run: process {} on ", child.id())), "{error}");
    }
    signal(child.id(), "KILL");
    finish(child);
    // One lock for all of a job, which keeps others out; the job is two processes.
    let mut job = mpirun(2, &place.command("job", &["train.steps=1000000"]));
    let job = place.wait_for(spawn(&mut job), "job", 2);
    let error = place.error("job", &["--resume"]);
    assert!(error.contains("a process is at work in this run: process "), "{error}");
    signal(job.id(), "TERM");
    finish(job);
}

#[test]
fn a_rehearsal_beside_a_run_is_no_harm() {
    let place = Place::pictures();
    let child = place.start("run", &["train.checkpoint_every=0"], 1);
    succeed(&mut place.command("run", &["train.steps=2", "--rehearse"]));
    fail(longreel().arg("verify").arg(place.path("run")));
    signal(child.id(), "KILL");
    finish(child);
}
