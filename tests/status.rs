//! `longreel status` of runs that go on, have ended, were stopped or killed, are damaged, or have hardly begun.

use crate::train::{Place, error_of, finish, longreel, signal, succeed, text};
use longreel::observe::lock::{Lock, look};
use longreel::observe::status::{Activity, RunStatus};
use longreel::train::run_lock::RunLock;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What the command prints of one run: its lines, and the same as JSON.
fn status(run: &Path) -> (Vec<String>, Value) {
    let shown = text(&succeed(longreel().arg("status").arg(run)).stdout);
    let json = text(&succeed(longreel().arg("status").arg(run).arg("--json")).stdout);
    assert_eq!(json.lines().count(), 1, "{json}");
    (shown.lines().map(str::to_owned).collect(), serde_json::from_str(&json).unwrap())
}

fn append(path: &Path, bytes: &[u8]) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_run_that_goes_on_is_told_with_its_process_and_when_it_ends() {
    let place = Place::pictures();
    let child = place.start("run", &["train.checkpoint_every=4"], 10);
    let (lines, json) = status(&place.path("run"));
    let pid = child.id();
    signal(pid, "TERM");
    assert!(finish(child).status.success());
    assert_eq!(lines.len(), 3, "{lines:?}");
    let run = place.path("run");
    assert!(lines[0].starts_with(&format!("{}: running (process {pid} on ", run.display())), "{}", lines[0]);
    let line = &lines[1];
    assert!(line.starts_with("  step ") && line.contains(" of 1000000  epoch ") && line.contains("  loss "), "{line}");
    assert!(line.contains(" tokens/s  ETA "), "{line}");
    assert!(
        lines[2].starts_with("  memory 0.") && lines[2].contains(" GiB at the peak  checkpoint of step "),
        "{lines:?}"
    );
    assert!(lines[2].contains(" ago  last step, "), "{}", lines[2]);
    let step = json["step"].as_u64().unwrap();
    assert!(step >= 10 && json["checkpoint"]["step"].as_u64().unwrap() <= step, "{json}");
    assert_eq!((&json["state"], &json["process"]["pid"]), (&"running".into(), &pid.into()));
    assert_eq!((&json["steps"], &json["heldout"]), (&1_000_000.into(), &Value::Null));
    // A step has two of six clips.
    let epoch = json["epoch"].as_f64().unwrap();
    assert!(
        (epoch - step as f64 / 3.0).abs() < 1e-9 && (json["epochs"].as_f64().unwrap() - 1e6 / 3.0).abs() < 1.0,
        "{json}"
    );
    let (left, pace) = (json["seconds_left"].as_f64().unwrap(), json["seconds_per_step"].as_f64().unwrap());
    assert!((left - pace * (1_000_000 - step) as f64).abs() < 1.0, "{json}");

    // Asked to end, it is stopped, and saved where it was.
    let (lines, json) = status(&run);
    let done = place.metrics("run").len();
    assert!(lines[0].ends_with(": stopped before its last step (no process is at work)"), "{lines:?}");
    assert!(lines[1].starts_with(&format!("  step {done} of 1000000  ")) && !lines[1].contains("ETA"), "{lines:?}");
    assert!(lines[2].contains(&format!("checkpoint of step {done}, ")) && !lines[2].contains("last step"), "{lines:?}");
    assert_eq!(
        (&json["state"], &json["process"], &json["seconds_left"]),
        (&"stopped".into(), &Value::Null, &Value::Null)
    );
}

#[test]
fn a_run_that_has_ended_shows_its_last_step_and_held_out_loss() {
    let place = Place::videos();
    place.train("run", &["train.heldout_every=3"]);
    let (lines, json) = status(&place.path("run"));
    let last = place.metrics("run").pop().unwrap();
    assert_eq!(lines[0], format!("{}: ended", place.path("run").display()));
    let heldout = last.heldout.unwrap();
    assert!(lines[1].starts_with("  step 4 of 4  epoch 3 of 3  "), "{lines:?}"); // 16 of 6 clips
    assert!(lines[1].contains(&format!("  loss {:.4}  held-out {heldout:.4} (step 4)  ", last.loss)), "{lines:?}");
    assert!(lines[2].contains("checkpoint of step 4, "), "{lines:?}");
    assert_eq!((json["heldout"].as_f64(), &json["heldout_step"]), (Some(heldout), &4.into()));
    assert_eq!((json["loss"].as_f64(), json["peak_rss"].as_u64()), (Some(last.loss), Some(last.peak_rss)));
    assert_eq!(json["notes"], Value::Array(vec![]));
    // Raised, it is one that has stopped.
    let config = place.path("run/config.toml");
    let longer = fs::read_to_string(&config).unwrap().replace("steps = 4\n", "steps = 9\n");
    fs::write(&config, longer).unwrap();
    assert_eq!(status(&place.path("run")).1["state"], "stopped");
}

#[test]
fn a_killed_run_and_one_without_checkpoint_or_metrics() {
    let place = Place::pictures();
    let child = place.start("run", &["train.checkpoint_every=0"], 3);
    signal(child.id(), "KILL");
    finish(child);
    let (run, steps) = (place.path("run"), place.metrics("run").len());
    let (lines, json) = status(&run);
    assert!(lines[0].ends_with(": killed (no process is at work, and none has ended the run)"), "{lines:?}");
    assert!(lines[1].starts_with(&format!("  step {steps} of 1000000  ")), "{lines:?}");
    assert!(lines[2].ends_with("at the peak  no checkpoint"), "{lines:?}");
    assert_eq!((&json["state"], &json["checkpoint"]), (&"killed".into(), &Value::Null));
    // Nothing is measured yet: while a process is at work, it starts.
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    let (lines, json) = status(&run);
    assert_eq!(lines[1..], ["  step 0 of 1000000  no step is measured yet", "  memory not known  no checkpoint"]);
    assert_eq!((&json["step"], &json["loss"]), (&0.into(), &Value::Null));
    let lock = RunLock::take(&run).unwrap();
    let starting = RunStatus::read(&run).unwrap();
    assert_eq!((starting.activity, starting.holder.unwrap().pid), (Activity::Starting, std::process::id()));
    drop(lock);
    assert_eq!(RunStatus::read(&run).unwrap().activity, Activity::Stopped);
}

#[test]
fn what_is_damaged_is_a_note_and_the_rest_is_told() {
    let place = Place::videos();
    place.train("run", &["train.checkpoint_every=2"]);
    let run = place.path("run");
    append(&run.join("metrics.jsonl"), b"nonsense\n\xff\xfe\0\n{\"step\":5,\"loss\"");
    let (lines, json) = status(&run);
    assert!(lines[1].starts_with("  step 4 of 4  "), "{lines:?}");
    assert_eq!(lines[3..], ["  note: metrics.jsonl: 2 lines are no records"]);
    assert_eq!(json["notes"][0], "metrics.jsonl: 2 lines are no records");
    // A torn end alone.
    let good = fs::read(run.join("metrics.jsonl")).unwrap();
    let good = good[..good.windows(8).position(|w| w == b"nonsense").unwrap()].to_vec();
    fs::write(run.join("metrics.jsonl"), [&good[..], b"{\"step\":5"].concat()).unwrap();
    assert_eq!(status(&run).0[3..], ["  note: metrics.jsonl: its last line is torn"]);
    fs::write(run.join("metrics.jsonl"), good).unwrap();

    fs::remove_file(place.checkpoint("run", 4, "state.json")).unwrap();
    let (lines, _) = status(&run);
    assert!(lines[0].ends_with("stopped before its last step (no process is at work)"), "{lines:?}");
    assert!(lines[2].contains("checkpoint of step 2, "), "{lines:?}");
    assert_eq!(lines[3..], ["  note: checkpoints: that of step 4 has no state.json: it is damaged"]);

    fs::write(run.join("config.toml"), "steps = \x1b[2J").unwrap();
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    fs::create_dir(run.join("metrics.jsonl")).unwrap();
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::write(run.join("checkpoints"), "").unwrap();
    let (lines, json) = status(&run);
    assert_eq!(lines[1..3], ["  step 0  no step is measured yet", "  memory not known  no checkpoint"]);
    assert_eq!(lines.len(), 6, "{lines:?}");
    for (line, part) in
        lines[3..].iter().zip(["config.toml: ", "metrics.jsonl: is no regular file", "checkpoints: Not a directory"])
    {
        assert!(line.starts_with(&format!("  note: {part}")) && !line.contains('\x1b'), "{line:?}");
    }
    assert_eq!(json["steps"], Value::Null);
    // A pipe would never end.
    fs::remove_dir(run.join("metrics.jsonl")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(run.join("metrics.jsonl")).status().unwrap().success());
    assert!(status(&run).0[4].contains("metrics.jsonl: is no regular file"));
}

#[test]
fn of_long_metrics_the_end_is_read_and_an_old_held_out_loss_found() {
    let place = Place::videos();
    place.train("run", &[]);
    let (run, mut last) = (place.path("run"), place.metrics("run").pop().unwrap());
    let heldout = last.heldout.take().unwrap();
    let path = run.join("metrics.jsonl");
    let mut lines = vec![];
    while lines.len() < 3 << 20 {
        last.step += 1;
        last.seconds = if last.step % 2 == 0 { 1.0 } else { 3.0 };
        serde_json::to_writer(&mut lines, &last).unwrap();
        lines.push(b'\n');
    }
    append(&path, &lines);
    let status = RunStatus::read(&run).unwrap();
    assert_eq!(status.last.unwrap().step, last.step);
    assert_eq!((status.heldout, status.pace), (Some((4, heldout)), Some(2.0)));
    // A line without an end that is longer than what is read is passed over, not taken into memory.
    append(&path, &vec![b'x'; 70 << 20]);
    let status = RunStatus::read(&run).unwrap();
    assert!(status.last.is_none() && status.heldout.is_none());
    assert_eq!(status.notes, ["metrics.jsonl: its last line is torn"]);
}

#[test]
fn several_runs_are_told_and_what_is_none_is_an_error_at_the_end() {
    let place = Place::pictures();
    place.train("a", &["train.steps=1"]);
    place.train("b", &["train.steps=2"]);
    let mut command = longreel();
    command.arg("status").args(["a", "clips", "nowhere", "config.toml", "b"].map(|name| place.path(name)));
    let output = command.output().unwrap();
    let error = error_of(&output);
    assert!(
        error.starts_with(&format!("{}: is not a run's folder: it has none of ", place.path("clips").display())),
        "{error}"
    );
    let all = text(&output.stderr);
    assert!(all.contains("nowhere: No such file") && all.contains("config.toml: is not a folder"), "{all}");
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().count(), 6, "{shown}");
    assert!(shown.contains("  step 1 of 1  epoch 1 of 1  ") && shown.contains("  step 2 of 2  "), "{shown}");
    let json =
        text(&succeed(longreel().arg("status").args(["a", "b"].map(|name| place.path(name))).arg("--json")).stdout);
    let steps: Vec<Value> =
        json.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone()).collect();
    assert_eq!(steps, [1, 2]);
    // Names are shown, not obeyed.
    let evil = place.path("evil\x1b[2J\nfine: ended");
    fs::rename(place.path("a"), &evil).unwrap();
    let (lines, json) = status(&evil);
    assert!(lines[0].contains(r"evil\x1b[2J\nfine: ended: ended") && lines.len() == 3, "{lines:?}");
    assert_eq!(json["run"], evil.to_str().unwrap());
}

#[test]
fn looking_at_a_lock_keeps_no_run_from_starting() {
    let temp = tempfile::tempdir().unwrap();
    let (root, done) = (temp.path().join("run"), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    look(&root);
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
        let seen = |lock: RunLock| {
            let held = matches!(look(&root), Lock::Held(Some(_)));
            drop(lock);
            held
        };
        let taken: Vec<_> = (0..200).map(|_| RunLock::take(&root).map(seen)).collect();
        done.store(true, Ordering::Relaxed);
        for held in taken {
            assert!(held.unwrap(), "a lock that is held is not seen");
        }
    });
    assert_eq!(look(&root), Lock::Free);
    fs::create_dir_all(&root).unwrap();
    fs::write(root.join("lock"), "left").unwrap();
    assert_eq!(look(&root), Lock::Left);
}
