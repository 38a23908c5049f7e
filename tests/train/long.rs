//! Long steps: what is shown of them, Ctrl-C within one, a terminal that closes; and the summary of where time and
//! bytes went.

use super::{Place, finish, numbers, picture, signal, snapshot, text};
use longreel::data::write::write_video;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Waits for something that a child does; it must live on.
fn wait_for(child: &mut Child, what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(child.try_wait().unwrap().is_none(), "it has ended before {what}");
        assert!(Instant::now() < deadline, "{what} does not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ctrl_c_within_a_long_step_abandons_it() {
    let place = Place::videos();
    // 6 x 100 x 100 tokens: tens of seconds of attention a step.
    let pixels: Vec<u8> = (0..12).flat_map(|t| picture(5, t, 800, 800)).collect();
    fs::create_dir(place.path("large")).unwrap();
    write_video(&place.path("large/e.mp4"), &pixels, 800, 800, 12.0).unwrap();
    fs::create_dir(place.path("scratch")).unwrap();
    let large = format!("data.path={}", place.path("large").display());
    let heldout = format!("data.heldout={}", place.path("large").display());
    let scratch = format!("stash.folder={}", place.path("scratch").display());
    let all = ["train.batch=1", "train.heldout_every=0", "train.checkpoint_every=0", "stash.where=disk", &scratch];
    let long = [&large, &heldout, "data.frames=12", "data.height=800", "data.width=800", "train.steps=5", "--resume"];
    for ranks in ["--ranks=1", "--ranks=2"] {
        let (run, straight) = (format!("run{ranks}"), format!("straight{ranks}"));
        let all = [&all[..], &[ranks]].concat();
        place.train(&run, &[&all[..], &["train.steps=2"]].concat());
        let before = snapshot(&place.path(&run).join("checkpoints"));
        let mut command = place.command(&run, &[&all[..], &long].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let files = || fs::read_dir(place.path(&run).join("tensorboard")).unwrap().count();
        wait_for(&mut child, "the step", || files() == 2);
        std::thread::sleep(Duration::from_secs(2));
        let asked = Instant::now();
        signal(child.id(), "INT");
        let output = finish(child);
        let (stderr, took) = (text(&output.stderr), asked.elapsed());
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        let said = "error: step 3 was abandoned as asked: nothing of it is saved; go on after step 2 with --resume";
        assert!(stderr.contains(said) && !stderr.contains("panicked"), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(took < Duration::from_secs(15), "{took:?}");
        assert!(snapshot(&place.path(&run).join("checkpoints")) == before, "the last checkpoint is another");
        assert_eq!(fs::read_dir(place.path("scratch")).unwrap().count(), 0);
        let resumed = place.train(&run, &[&all[..], &["train.steps=4", "--resume"]].concat());
        let straight = place.train(&straight, &[&all[..], &["train.steps=4"]].concat());
        assert_eq!(numbers(&resumed), numbers(&straight), "{ranks}");
    }
}

#[test]
fn what_came_before_an_abandoned_step_is_saved() {
    let place = Place::videos();
    // No checkpoint of the first, short step is due; a first step that is abandoned leaves the initial weights.
    let pixels: Vec<u8> = (0..12).flat_map(|t| picture(5, t, 800, 800)).collect();
    write_video(&place.path("clips/a.mp4"), &pixels, 800, 800, 12.0).unwrap();
    fs::remove_file(place.path("clips/b.mp4")).unwrap();
    fs::remove_file(place.path("clips/c.mp4")).unwrap();
    let heldout = format!("data.heldout={}", place.path("clips").display());
    let size = ["data.frames=12", "data.height=800", "data.width=800"];
    let args = [&size[..], &[&heldout, "train.batch=1", "train.heldout_every=0"]].concat();
    let mut child = place.command("run", &args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&mut child, "the step", || place.path("run/tensorboard").exists());
    std::thread::sleep(Duration::from_secs(1));
    signal(child.id(), "TERM");
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(place.checkpoints("run"), [0]);
    assert!(place.metrics("run").is_empty());
}

#[test]
fn a_closed_terminal_ends_a_run_unless_nohup_started_it() {
    let place = Place::videos();
    let args = ["train.steps=1000000", "train.heldout_every=0", "--ranks=2"];
    // The tests themselves may have been started by nohup, and a shell cannot undo that.
    for (run, start) in [("plain", "exec env --default-signal=HUP"), ("nohup", "trap '' HUP; exec")] {
        let command = place.command(run, &args);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{start} \"$@\""), "sh"]).arg(command.get_program()).args(command.get_args());
        let mut child = shell.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let steps = || longreel::observe::metrics::read(&place.path(run).join("metrics.jsonl")).map_or(0, |r| r.len());
        wait_for(&mut child, "a step", || steps() > 0);
        signal(child.id(), "HUP");
        if run == "nohup" {
            let done = steps();
            wait_for(&mut child, "more steps", || steps() > done + 20);
            signal(child.id(), "INT");
        }
        let output = finish(child);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{run}: {stderr}");
        assert_eq!(stderr.matches("stopping after this step").count(), 1, "{run}: {stderr}");
        assert_eq!(place.checkpoints(run), [steps() as u64], "{run}");
    }
}

#[test]
fn parts_add_up_to_the_step() {
    let place = Place::videos();
    fs::create_dir(place.path("scratch")).unwrap();
    let scratch = format!("stash.folder={}", place.path("scratch").display());
    let flags = ["--ranks=2", "train.accumulate=2", "stash.where=disk", &scratch, "train.heldout_every=0"];
    let mut command = place.command("run", &flags);
    let stderr = text(&super::succeed(&mut command).stderr);
    for record in place.metrics("run") {
        let parts = || record.more.iter().filter(|(name, _)| name.starts_with("seconds_"));
        let sum: f64 = parts().map(|(_, s)| s).sum();
        assert!(
            (sum - record.seconds).abs() < 0.002 + 0.01 * record.seconds,
            "{sum} of {}: {record:?}",
            record.seconds
        );
        for part in [
            "attention",
            "attention_backward",
            "before_attention_backward",
            "exchanges_between_ranks",
            "waiting_for_the_stash",
            "optimizer",
        ] {
            assert!(record.more.contains_key(&format!("seconds_{part}")), "{part}: {record:?}");
        }
        // Of a block of two micro-batches of four clips, rank 0 has 40 tokens (x, o) and one of three heads (lse), in
        // whole pages.
        for way in ["written", "read"] {
            assert_eq!(record.more[&format!("bytes_stash_{way}")], 2.0 * 2.0 * 3.0 * 4096.0);
        }
        // Its tokens of the other's two heads (q, k, v, do; delta), its head of the other's tokens (o, dq, dk, dv).
        let block = 4 * (7 * 8 * 80 + 80 + 4 * 8 * 40);
        assert_eq!(record.more["bytes_all_to_all"], f64::from(2 * 2 * block));
    }
    let table = &stderr[stderr.find("a step of 160 tokens: ").expect(&stderr)..];
    assert!(table.contains("on rank 0, the mean of 4 steps\n") && table.contains("attention, backward"), "{stderr}");
    assert!(table.contains("moved: all-to-all") && table.contains(" GiB at the peak, planned "), "{stderr}");
}
