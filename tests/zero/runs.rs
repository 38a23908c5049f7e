//! Whole runs: the same in every stage of ZeRO, and each goes on from a checkpoint on any other number of ranks, in any
//! other stage.

use longreel::model::folder::Folder;
use longreel::observe::metrics::Record;

use crate::train::{Place, numbers, snapshot};

pub(super) const PARTS: [&str; 3] = [
    "transformer/diffusion_pytorch_model.safetensors",
    "ema/diffusion_pytorch_model.safetensors",
    "optimizer.safetensors",
];

/// The largest relative difference of losses, held-out losses and norms.
fn difference(a: &[Record], b: &[Record]) -> f64 {
    assert_eq!(a.len(), b.len());
    let relative = |a: f64, b: f64| ((a - b) / b).abs();
    let each = a.iter().zip(b).flat_map(|(a, b)| {
        assert_eq!(a.heldout.is_some(), b.heldout.is_some());
        let heldout = relative(a.heldout.unwrap_or(1.0), b.heldout.unwrap_or(1.0));
        [relative(a.loss, b.loss), relative(a.grad_norm, b.grad_norm), heldout]
    });
    each.fold(0.0, f64::max)
}

/// A mesh and a stage, as arguments of `longreel train`; 4 clips a step in all of them.
fn how(data: usize, sequence: usize, zero: usize) -> Vec<String> {
    vec![
        format!("parallel.ranks={}", data * sequence),
        format!("parallel.data={data}"),
        format!("train.batch={}", 2 / data),
        "train.accumulate=2".into(),
        format!("parallel.zero={zero}"),
    ]
}

fn train(place: &Place, out: &str, how: &[String], args: &[&str]) -> Vec<Record> {
    let how: Vec<&str> = how.iter().map(String::as_str).collect();
    place.train(out, &[&how[..], args].concat())
}

fn copy(place: &Place, from: &str, to: &str) {
    for (path, bytes) in snapshot(&place.path(from)) {
        let path = place.path(to).join(path.strip_prefix(place.path(from)).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

#[test]
fn a_run_goes_on_on_any_ranks_and_in_any_stage() {
    let place = Place::videos();
    let meshes = [how(1, 1, 0), how(1, 2, 3), how(2, 2, 2), how(1, 3, 1)];
    let straight = train(&place, "straight", &meshes[0], &["train.steps=6"]);
    for (i, first) in meshes.iter().enumerate() {
        let half = format!("half {i}");
        train(&place, &half, first, &["train.steps=3"]);
        let whole = train(&place, &format!("whole {i}"), first, &["train.steps=6", "train.checkpoint_every=3"]);
        assert!(difference(&whole, &straight) < 1e-5, "{first:?}: {}", difference(&whole, &straight));
        for (j, second) in meshes.iter().enumerate() {
            let run = format!("{i} to {j}");
            copy(&place, &half, &run);
            let resumed = train(&place, &run, second, &["train.steps=6", "--resume"]);
            // The step that the half ended with measured the held-out loss, which the others did not.
            let apart = difference(&resumed[3..], &straight[3..]);
            assert!(apart < 1e-5, "{first:?} then {second:?}: losses differ by {apart}");
            if i == j {
                assert_eq!(numbers(&resumed[3..]), numbers(&whole[3..]), "{first:?}");
                for part in PARTS {
                    let [a, b] =
                        [&run, &format!("whole {i}")].map(|run| std::fs::read(place.checkpoint(run, 6, part)).unwrap());
                    assert!(a == b, "{first:?}: {part} differs");
                }
            }
        }
    }
}

#[test]
fn checkpoints_and_samples_have_the_same_bits_in_every_stage() {
    let place = Place::videos();
    let args = ["train.steps=3", "train.sample_every=3", "train.accumulate=1"];
    for zero in 0..=3 {
        train(&place, &zero.to_string(), &how(2, 2, zero), &args);
    }
    let samples = |run: &str| {
        let files = snapshot(&place.path(run).join("samples")).into_values().collect::<Vec<_>>();
        assert_eq!(files.len(), 1);
        files
    };
    for zero in ["1", "2", "3"] {
        assert_eq!(numbers(&place.metrics(zero)), numbers(&place.metrics("0")), "stage {zero}");
        for part in PARTS {
            let [a, b] = ["0", zero].map(|run| std::fs::read(place.checkpoint(run, 3, part)).unwrap());
            assert!(a == b, "stage {zero}: {part} differs");
        }
        assert!(samples(zero) == samples("0"), "stage {zero}: other samples");
    }
    // The average that was saved is one: not the weights.
    let [ema, weights] = ["ema", "transformer"].map(|part| Folder::open(&place.checkpoint("3", 3, part)).unwrap());
    let name = "proj_out.weight";
    assert!(ema.read_f32(name).unwrap() != weights.read_f32(name).unwrap());
}

#[test]
fn moments_on_disk_change_no_bit() {
    let place = Place::videos();
    let disk = ["train.moments=\"disk\"", "train.sample_every=2"];
    for (data, sequence, zero) in [(1, 1, 0), (1, 2, 1), (2, 2, 3)] {
        let how = how(data, sequence, zero);
        let [memory, file, resumed] = ["memory", "disk", "resumed"].map(|name| format!("{name} {zero}"));
        train(&place, &memory, &how, &["train.steps=4", "train.checkpoint_every=2", "train.sample_every=2"]);
        train(&place, &file, &how, &[&disk[..], &["train.steps=4", "train.checkpoint_every=2"]].concat());
        train(&place, &resumed, &how, &[&disk[..], &["train.steps=2"]].concat());
        train(&place, &resumed, &how, &[&disk[..], &["train.steps=4", "--resume"]].concat());
        assert_eq!(numbers(&place.metrics(&file)), numbers(&place.metrics(&memory)), "stage {zero}");
        for part in PARTS {
            for (run, step) in [(&file, 2), (&file, 4), (&resumed, 4)] {
                let [a, b] = [&memory, run].map(|run| std::fs::read(place.checkpoint(run, step, part)).unwrap());
                assert!(a == b, "stage {zero}, {run}, step {step}: {part} differs");
            }
        }
        let [a, b] =
            [&memory, &file].map(|run| snapshot(&place.path(run).join("samples")).into_values().collect::<Vec<_>>());
        assert!(a.len() == 2 && a == b, "stage {zero}: other samples");
    }
}

#[test]
fn moments_on_a_disk_that_is_not_there_are_refused() {
    let place = Place::videos();
    let args = ["train.moments=\"disk\"", "stash.folder=\"/no/such/folder\"", "train.steps=1"];
    let message = place.error("nowhere", &args);
    assert!(message.contains("stash.folder: no scratch file can be made in /no/such/folder: "), "{message}");
    assert!(!place.path("nowhere").exists());
}
