//! A disk or a limit that leaves no room, and files that only show how a run goes: a clear end with the last checkpoint
//! as it was, or no end at all.

use super::{Place, finish, snapshot, succeed, text};
use std::fs;
use std::process::{Command, Output, Stdio};

/// The longest file of a run's folder, in bytes.
fn longest(place: &Place, below: &str) -> u64 {
    snapshot(&place.path(below)).values().map(|bytes| bytes.len() as u64).max().unwrap()
}

/// Trains with files limited to `blocks` of 1024 bytes.
fn limited(place: &Place, run: &str, args: &[&str], blocks: u64) -> Output {
    let command = place.command(run, args);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let mut limited = Command::new("bash");
    limited.args(["-c", &format!("ulimit -f {blocks}; exec {}", line.join(" "))]).env_remove("RUST_LOG");
    finish(limited.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_that_names_file_and_limit() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    let before = snapshot(&place.path("run/checkpoints"));
    let blocks = longest(&place, "run/checkpoints") / 1024 - 1;
    let output = limited(&place, "run", &["train.steps=2", "--resume"], blocks);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    let limit =
        format!("this process may write files of {} bytes at most: raise the limit (`ulimit -f`)", blocks * 1024);
    assert!(error.contains(".safetensors: File too large") && error.contains(&limit), "{error}");
    assert!(snapshot(&place.path("run/checkpoints")) == before, "the last checkpoint is not as it was");
    place.train("run", &["train.steps=2", "--resume"]);
}

#[test]
fn metrics_without_room_wait_and_the_checkpoint_is_saved() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    // A line of a record with much in it, as long as the longest file of a checkpoint and more.
    let metrics = place.path("run/metrics.jsonl");
    let blocks = longest(&place, "run/checkpoints") / 1024 + 8;
    let mut line: serde_json::Value = serde_json::from_str(&fs::read_to_string(&metrics).unwrap()).unwrap();
    for i in 0.. {
        line[format!("padding_{i:020}")] = 0.into();
        if i % 100 == 0 && line.to_string().len() as u64 > blocks * 1024 - 100 {
            break;
        }
    }
    let long = line.to_string() + "\n";
    fs::write(&metrics, &long).unwrap();
    assert!(long.len() < 1 << 20);

    let output = limited(&place, "run", &["train.steps=3", "--resume"], blocks);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(stderr.matches("the lines are kept in memory until there is room").count(), 1, "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("metrics.jsonl: File too large") && error.contains("raise the limit"), "{error}");
    assert_eq!(place.checkpoints("run"), [1, 3], "three steps' work is not thrown away for its record");
    // The gap is named, and the run goes on.
    let output = succeed(&mut place.command("run", &["train.steps=4", "--resume"]));
    let stderr = text(&output.stderr);
    assert!(stderr.contains("metrics.jsonl: has no line for steps 2 to 3"), "{stderr}");
    assert_eq!(fs::read_to_string(&metrics).unwrap().lines().count(), 2);
}

#[test]
fn what_only_shows_the_run_never_ends_it() {
    for (place, kind) in [(Place::videos(), "mp4"), (Place::pictures(), "png")] {
        fs::create_dir_all(place.path("run/loss.png/in the way")).unwrap();
        fs::write(place.path("run/tensorboard"), "in the way").unwrap();
        fs::write(place.path("run/samples"), "in the way").unwrap();
        let args = ["train.steps=2", "train.sample_every=1", "sample.count=2", "parallel.ranks=2"];
        let output = succeed(&mut place.command("run", &args));
        let stderr = text(&output.stderr);
        assert_eq!(place.checkpoints("run"), [2]);
        assert_eq!(place.metrics("run").len(), 2);
        for warning in ["TensorBoard's events end here", "a sample is not written", "the loss curve is not drawn"] {
            assert_eq!(stderr.matches(warning).count(), 1, "{kind}: {warning}\n{stderr}");
        }
        assert!(!stderr.contains("; loss curve"), "{stderr}");
    }
}

/// By the system's calls: what a checkpoint counts is on the disk before the checkpoint has its name.
#[test]
fn metrics_are_synced_before_a_checkpoint_appears() {
    let place = Place::pictures();
    let trace = place.path("trace");
    let train = place.command("run", &["train.steps=2", "train.checkpoint_every=1"]);
    let mut traced = Command::new("strace");
    traced.args(["-f", "-y", "-e", "trace=fdatasync,rename,renameat,renameat2", "-o"]).arg(&trace);
    traced.arg(train.get_program()).args(train.get_args());
    let Ok(child) = traced.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn() else {
        return; // no strace here
    };
    let output = finish(child);
    if !trace.exists() || fs::metadata(&trace).unwrap().len() == 0 {
        return; // no process may be traced here
    }
    assert!(output.status.success(), "{}", text(&output.stderr));
    let trace = fs::read_to_string(&trace).unwrap();
    let order: Vec<&str> = trace
        .lines()
        .filter_map(|line| {
            let synced = line.contains("fdatasync(") && line.contains("metrics.jsonl");
            let named = line.contains("rename") && line.contains("checkpoints/step-");
            if synced { Some("synced") } else { named.then_some("named") }
        })
        .collect();
    assert_eq!(order, ["synced", "named", "synced", "named"], "{trace}");
}
