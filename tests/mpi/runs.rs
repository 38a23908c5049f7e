//! Whole commands on processes: what they compute and write is what they do on threads, bit for bit.

use super::*;
use crate::train::{Place, longreel, numbers, snapshot, succeed};
use std::fs;

/// Trains on processes, which must succeed.
fn train(place: &Place, ranks: usize, out: &str, args: &[&str]) -> Vec<longreel::observe::metrics::Record> {
    let output = succeed(&mut mpirun(ranks, &place.command(out, args)));
    let stderr = text(&output.stderr);
    assert_eq!(stderr.matches(" parameters, ").count(), 1, "one rank speaks for all: {stderr}");
    place.metrics(out)
}

/// All tensors of a run's checkpoints, to the byte.
fn same_checkpoints(place: &Place, a: &str, b: &str) {
    let of = |run: &str| {
        let root = place.path(run).join("checkpoints");
        let files =
            snapshot(&root).into_iter().filter(|(path, _)| path.extension().is_some_and(|e| e == "safetensors"));
        files.map(|(path, bytes)| (path.strip_prefix(&root).unwrap().to_owned(), bytes)).collect::<Vec<_>>()
    };
    assert!(of(a).len() >= 3 && of(a) == of(b), "{a} and {b} have other checkpoints");
}

#[test]
fn threads_and_processes_train_alike_to_the_bit_on_every_mesh() {
    let place = Place::videos();
    for (ranks, name, args) in [
        (2, "ulysses", &[][..]),
        (2, "ZeRO 2", &["parallel.zero=2", "train.accumulate=2", "train.batch=2"]),
        (2, "data", &["parallel.data=2", "train.batch=2"]),
        (3, "three, ZeRO 1", &["parallel.zero=1"]),
        (3, "ring", &["parallel.ring=3", "train.dtype=bf16"]),
        (4, "ring of Ulysses", &["parallel.zero=3"]),
        (4, "2 x 2", &["parallel.data=2", "train.batch=2", "parallel.zero=3", "train.sample_every=2"]),
    ] {
        let threads = format!("{name} threads");
        let count = format!("parallel.ranks={ranks}");
        let expected = place.train(&threads, &[args, &[&count]].concat());
        let got = train(&place, ranks, name, args);
        assert_eq!(numbers(&got), numbers(&expected), "{name}");
        same_checkpoints(&place, name, &threads);
    }
}

#[test]
fn a_run_goes_from_threads_to_processes_and_back() {
    let place = Place::videos();
    let common = ["train.checkpoint_every=2", "train.heldout_every=0"];
    let until =
        |steps: usize| [&common[..], &[["train.steps=2", "train.steps=4", "train.steps=6"][steps / 2 - 1]]].concat();
    let straight = place.train("straight", &[&until(6)[..], &["--ranks=2"]].concat());
    place.train("moved", &[&until(2)[..], &["--ranks=2"]].concat());
    train(&place, 2, "moved", &[&until(4)[..], &["--resume"]].concat());
    let moved = place.train("moved", &[&until(6)[..], &["--ranks=2", "--resume"]].concat());
    assert_eq!(numbers(&moved), numbers(&straight));
    same_checkpoints(&place, "moved", "straight");
}

#[test]
fn samples_and_forward_passes_are_the_same() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    for (name, ranks) in [("threads", None), ("processes", Some(3))] {
        let output = |file: &str| place.path(&format!("{name}{file}")).display().to_string();
        let run = |args: &[&str]| {
            let mut command = longreel();
            command.args(args);
            let Some(ranks) = ranks else { return succeed(command.args(["--ranks", "3"])) };
            succeed(&mut mpirun(ranks, &command))
        };
        let from = place.path("run").display().to_string();
        let printed = run(&["sample", &from, "-o", &output(".png"), "--count", "2", "--frames", "4"]);
        assert_eq!(text(&printed.stdout), format!("{}\n", output(".png")));
        run(&["sample", &from, "-o", &output(".mp4"), "--count", "1"]);
        let tensors = vec![
            (
                "hidden_states".to_owned(),
                vec![1, 3, 4, 16, 40],
                (0..7680).map(|i| (i as f32).sin()).collect::<Vec<_>>(),
            ),
            ("timestep".to_owned(), vec![1], vec![300.0]),
        ];
        longreel::files::write_tensors(&place.path("in.safetensors"), tensors).unwrap();
        let model = place.checkpoint("run", 1, "transformer").display().to_string();
        let input = place.path("in.safetensors").display().to_string();
        run(&["forward", &model, &input, "-o", &output(".safetensors"), "--grads"]);
    }
    for file in [".png", ".mp4", ".safetensors"] {
        let [a, b] = ["threads", "processes"].map(|name| fs::read(place.path(&format!("{name}{file}"))).unwrap());
        assert!(a == b, "{file} differs");
    }
}

#[test]
fn other_counts_of_ranks_than_started_are_refused() {
    let place = Place::videos();
    for (args, asked) in [("--ranks=3", 3), ("parallel.ranks=1", 1)] {
        let error = error_of(&run(&mut mpirun(2, &place.command("run", &[args]))));
        let expected = format!(
            "parallel.ranks is {asked}, but 2 processes were started, and each is a rank: start {asked}, or leave \
             parallel.ranks out"
        );
        assert_eq!(error, expected);
    }
    // A config's own count, as another machine's.
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    fs::write(place.path("config.toml"), format!("{config}[parallel]\nranks = 4\n")).unwrap();
    let error = error_of(&run(&mut mpirun(2, &place.command("run", &[]))));
    assert!(error.starts_with("parallel.ranks is 4, but 2 processes were started"), "{error}");
    // What processes cannot be divided into is said of their number.
    fs::write(place.path("config.toml"), &config).unwrap();
    let error = error_of(&run(&mut mpirun(3, &place.command("run", &["parallel.data=2"]))));
    assert!(error.contains("parallel.data = 2: must divide parallel.ranks = 3"), "{error}");
    let error = error_of(&run(&mut mpirun(2, &place.command("run", &["--rehearse"]))));
    assert!(error.contains("--rehearse measures one process's memory"), "{error}");
    let mut sample = longreel();
    sample.args(["sample", "nowhere", "-o", "x.mp4", "--ranks", "3"]);
    let error = error_of(&run(&mut mpirun(2, &sample)));
    assert!(error.starts_with("--ranks is 3, but 2 processes were started"), "{error}");
    assert!(!place.path("run").exists());
}

#[test]
fn one_process_under_mpirun_has_threads_for_ranks() {
    let place = Place::pictures();
    succeed(&mut mpirun(1, &place.command("run", &["--ranks=2", "train.steps=1"])));
    assert_eq!(place.metrics("run").len(), 1);
}
