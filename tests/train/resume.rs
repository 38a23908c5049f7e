//! A run that stops and goes on equals one that does not, to the bit; whatever stops it.

use super::{Place, difference, finish, numbers, signal, snapshot, text};
use std::fs;
use std::path::Path;

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in snapshot(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// A copy of a run as it was when its checkpoint of `step` was its last; its metrics go on, as after a kill.
pub(super) fn until(place: &Place, from: &str, to: &str, step: u64) {
    copy(&place.path(from), &place.path(to));
    for later in place.checkpoints(to).into_iter().filter(|&s| s > step) {
        fs::remove_dir_all(place.checkpoint(to, later, "")).unwrap();
    }
}

/// Weights, average and moments of two runs at a step, to the byte.
pub(super) fn same_weights(place: &Place, a: &str, b: &str, step: u64) {
    let model = "diffusion_pytorch_model.safetensors";
    for part in [format!("transformer/{model}"), format!("ema/{model}"), "optimizer.safetensors".to_owned()] {
        let [a, b] = [a, b].map(|run| fs::read(place.checkpoint(run, step, &part)).unwrap());
        assert!(a == b, "{part} differs");
    }
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_to_the_bit() {
    let place = Place::videos();
    let common = ["train.steps=6", "train.checkpoint_every=3", "train.schedule=cosine", "train.accumulate=2"];
    for (mesh, args) in [
        ("one", &[][..]),
        ("three", &["--ranks=3", "train.batch=2"]),
        ("mesh", &["--ranks=4", "parallel.data=2", "train.batch=1"]),
    ] {
        let args = [&common, args].concat();
        let straight = place.train(mesh, &args);
        assert_eq!(place.checkpoints(mesh), [3, 6]);
        let again = format!("{mesh} again");
        until(&place, mesh, &again, 3);
        let resumed = place.train(&again, &[&args[..], &["--resume"]].concat());
        assert_eq!(numbers(&resumed), numbers(&straight), "{mesh}");
        same_weights(&place, mesh, &again, 6);
        assert_eq!(place.checkpoints(&again), [3, 6]);
    }
    // Other ranks than before: the same but for rounding.
    let batch = ["--resume", "--ranks=2"];
    until(&place, "one", "other ranks", 3);
    let resumed = place.train("other ranks", &[&common[..], &batch].concat());
    let straight = place.metrics("one");
    assert!(difference(&resumed, &straight) < 1e-5);
    assert_ne!(numbers(&resumed)[..], numbers(&straight)[..], "it was computed anew");
    // A run that is complete has nothing left to do, and stays as it is.
    let before = snapshot(&place.path("one/checkpoints"));
    place.train("one", &[&common[..], &["--resume"]].concat());
    assert_eq!(numbers(&place.metrics("one")), numbers(&straight));
    assert!(snapshot(&place.path("one/checkpoints")) == before);
    // A longer one goes on where it was.
    let longer = place.train("one", &["train.steps=7", "train.accumulate=2", "--resume"]);
    assert_eq!(longer.len(), 7);
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint() {
    let place = Place::videos();
    let args = ["train.checkpoint_every=3", "train.keep=2", "parallel.ranks=2"];
    let child = place.start("run", &args, 8);
    signal(child.id(), "KILL");
    assert_eq!(finish(child).status.code(), None);
    // A line torn by the kill and a half-written checkpoint, for a kill at the worst moments.
    let metrics = place.path("run/metrics.jsonl");
    let mut lines = fs::read_to_string(&metrics).unwrap();
    lines.push_str("{\"step\": 9999, \"lo");
    fs::write(&metrics, lines).unwrap();
    fs::create_dir_all(place.path("run/checkpoints/.step-00009999-x.longreel-tmp/transformer")).unwrap();

    let checkpoints = longreel::state::checkpoint::RunFolder::new(place.path("run")).checkpoints().unwrap();
    assert!(checkpoints.len() <= 2, "{checkpoints:?}");
    let steps = format!("train.steps={}", checkpoints.last().unwrap().0 + 4);
    let args = [&args[..], &[&steps]].concat();
    let resumed = place.train("run", &[&args[..], &["--resume"]].concat());
    let straight = place.train("straight", &args);
    assert_eq!(numbers(&resumed), numbers(&straight));
    let last = straight.len() as u64;
    assert_eq!(place.checkpoints("run"), [last - 1, last]);
    assert_eq!(place.checkpoints("straight"), [last - 1, last]);
    same_weights(&place, "run", "straight", last);
}

#[test]
fn ctrl_c_saves_a_checkpoint_and_ends_well() {
    let place = Place::videos();
    let args = ["train.checkpoint_every=0", "train.heldout_every=0", "parallel.ranks=2"];
    for (run, name) in [("int", "INT"), ("term", "TERM")] {
        let child = place.start(run, &args, 2);
        signal(child.id(), name);
        let output = finish(child);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert_eq!(stderr.matches("stopping after this step").count(), 1, "{stderr}");
        let done = place.metrics(run).len() as u64;
        assert!(stderr.contains(&format!("stopped after step {done} as asked; go on with --resume")), "{stderr}");
        assert_eq!(place.checkpoints(run), [done], "all that was done is saved");
        assert!(place.path(run).join("loss.png").is_file());
    }
    let steps = format!("train.steps={}", place.metrics("int").len() + 2);
    let args = [&args[..], &[&steps]].concat();
    let resumed = place.train("int", &[&args[..], &["--resume"]].concat());
    let straight = place.train("straight", &args);
    let losses = |records: &[longreel::observe::metrics::Record]| -> Vec<u64> {
        records.iter().map(|record| record.loss.to_bits()).collect()
    };
    assert_eq!(losses(&resumed), losses(&straight));
    same_weights(&place, "int", "straight", straight.len() as u64);
}

#[test]
fn the_last_checkpoints_are_kept() {
    let place = Place::pictures();
    place.train("run", &["train.steps=5", "train.checkpoint_every=1", "train.keep=2"]);
    assert_eq!(place.checkpoints("run"), [4, 5]);
    place.train("end", &["train.steps=5", "train.checkpoint_every=0"]);
    assert_eq!(place.checkpoints("end"), [5]);
    place.train("no average", &["train.steps=1", "train.ema=0"]);
    assert!(!place.checkpoint("no average", 1, "ema").exists());
    place.train("no average", &["train.steps=2", "train.ema=0", "--resume"]);
    // Averaging may begin later: from the weights as they are then.
    place.train("no average", &["train.steps=3", "train.ema=0.5", "--resume"]);
    assert!(place.checkpoint("no average", 3, "ema/config.json").is_file());
}

#[test]
fn runs_do_not_mix() {
    let place = Place::pictures();
    place.train("run", &["train.steps=2"]);
    let before = snapshot(&place.path("run"));
    let error = place.error("run", &["train.steps=4", "train.lr=1"]);
    assert!(
        error.contains("step-00000002 exists: continue that run with --resume, or choose another run.out"),
        "{error}"
    );
    let error = place.error("run", &["train.steps=4", "run.seed=6", "--resume"]);
    assert!(error.contains("run.seed is 6, the checkpoint's run has seed 5"), "{error}");
    assert!(snapshot(&place.path("run")) == before, "a refused run has changed something");
}

#[test]
fn a_run_goes_on_in_the_dtype_it_was_begun_in() {
    let place = Place::videos();
    let common = ["train.steps=4", "train.checkpoint_every=2"];
    let straight = place.train("bf16", &[&common[..], &["train.dtype=bf16"]].concat());
    ["kept", "given"].into_iter().for_each(|run| until(&place, "bf16", run, 2));
    let kept = place.train("kept", &[&common[..], &["--resume"]].concat());
    assert_eq!(numbers(&kept), numbers(&straight));
    same_weights(&place, "bf16", "kept", 4);
    let config = fs::read_to_string(place.path("kept/config.toml")).unwrap();
    assert!(config.lines().any(|line| line == "dtype = \"bf16\""), "{config}");
    let given = place.train("given", &[&common[..], &["--resume", "train.dtype=f32"]].concat());
    assert_ne!(numbers(&given), numbers(&straight));
}
