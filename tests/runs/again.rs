//! Runs that ended before their first checkpoint: queued again as they are, they start again, and what the dead one
//! left is kept.

use super::*;
use crate::train::{numbers, succeed, text};

#[test]
fn a_run_killed_before_its_first_checkpoint_starts_again() {
    let place = Place::pictures();
    let args = ["train.steps=4", "train.sample_every=2"];
    let straight = place.train("straight", &args);
    for (run, flag) in [("queued", Some("--resume")), ("anew", None)] {
        killed_early(&place, run, 3);
        let left = place.metrics(run).len();
        // What a kill at the worst moments leaves, and files of the user's own.
        for (folder, name) in [
            ("", ".loss.png-AbCdEf"),
            ("samples", ".step-00000002-0.png-AbCdEf"),
            ("checkpoints", ".step-00000003-AbCdEf"),
        ] {
            fs::create_dir_all(place.path(run).join(folder)).unwrap();
            fs::write(place.path(run).join(folder).join(format!("{name}.longreel-tmp")), "half").unwrap();
        }
        fs::write(place.path(run).join("notes.txt"), "mine").unwrap();
        fs::write(place.path(run).join(".mine.longreel"), "mine").unwrap();
        let output = succeed(&mut place.command(run, &[&args[..], flag.as_slice()].concat()));
        let stderr = text(&output.stderr);
        assert!(
            stderr.contains("a run ended here before its first checkpoint; this one starts from the beginning"),
            "{stderr}"
        );
        assert_eq!(
            stderr.contains("no checkpoint to resume from: starting from the beginning"),
            flag.is_some(),
            "{stderr}"
        );
        assert_eq!(numbers(&place.metrics(run)), numbers(&straight));
        assert_eq!(place.checkpoints(run), [4]);
        let kept = longreel::observe::metrics::read(&place.path(run).join("earlier-1/metrics.jsonl")).unwrap();
        assert!(kept.len() >= left && place.path(run).join("earlier-1/config.toml").is_file());
        let there = [
            ".mine.longreel",
            "checkpoints",
            "config.toml",
            "data.json",
            "data.png",
            "earlier-1",
            "loss.png",
            "metrics.jsonl",
            "notes.txt",
            "plan.json",
            "samples",
            "tensorboard",
            "warnings.jsonl",
        ];
        assert_eq!(entries(&place.path(run)), there);
        let samples = entries(&place.path(run).join("samples"));
        assert_eq!(samples, ["step-00000002-0.png", "step-00000004-0.png"]);
    }
}

#[test]
fn resuming_where_nothing_is_starts() {
    let place = Place::pictures();
    for run in ["nowhere", "empty"] {
        if run == "empty" {
            fs::create_dir_all(place.path("empty/checkpoints")).unwrap();
        }
        let output = succeed(&mut place.command(run, &["train.steps=2", "--resume"]));
        let stderr = text(&output.stderr);
        assert_eq!(stderr.matches("no checkpoint to resume from: starting from the beginning").count(), 1, "{stderr}");
        assert_eq!(place.metrics(run).len(), 2);
        assert!(!place.path(run).join("earlier-1").exists());
    }
    // But a step that was asked for must be there.
    let error = place.error("other", &["--resume", "--step=7"]);
    assert!(error.contains("other: no checkpoint of step 7; there is none"), "{error}");
    assert!(!place.path("other").exists());
}

/// A job that is killed early again and again: each time what the one before left is kept.
#[test]
fn what_dead_runs_left_is_kept_run_by_run() {
    let place = Place::pictures();
    for n in 1..=3 {
        let mut command = place.command("run", &["train.steps=1000000", "train.checkpoint_every=0", "--resume"]);
        let child = spawn(&mut command);
        let before = place.path(&format!("run/earlier-{}/metrics.jsonl", n - 1));
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while n > 1 && !before.is_file() {
            assert!(std::time::Instant::now() < deadline, "{} does not come", before.display());
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let child = place.wait_for(child, "run", 1);
        signal(child.id(), "KILL");
        finish(child);
        assert!(!place.path(&format!("run/earlier-{n}")).exists());
    }
    assert!(place.path("run/earlier-1/config.toml").is_file() && place.path("run/earlier-2/config.toml").is_file());
}
