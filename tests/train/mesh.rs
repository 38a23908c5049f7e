//! The mesh of ranks is how a run is computed, not what: losses and weights are the same on every mesh.

use super::{Place, difference};
use longreel::model::folder::Folder;

/// The norm of the difference of two models' weights over the norm of how far training took them.
fn apart(place: &Place, a: &str, b: &str, start: &str, step: u64) -> f64 {
    let open = |run: &str, step: u64| Folder::open(&place.checkpoint(run, step, "transformer")).unwrap();
    let (a, b, start) = (open(a, step), open(b, step), open(start, 1));
    let names = ["patch_embedding.weight", "blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.bias", "proj_out.weight"];
    let (mut difference, mut way) = (0.0, 0.0);
    for name in names {
        let [a, b, start] = [&a, &b, &start].map(|folder| folder.read_f32(name).unwrap());
        difference += a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        way += a.iter().zip(&start).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    (difference / way).sqrt()
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_gpu_is_refused_by_a_build_without_cuda() {
    let place = Place::videos();
    let before = crate::train::snapshot(&place.path(""));
    let error = place.error("refused", &["train.device=cuda"]);
    assert!(
        error.starts_with("train.device is \"cuda\", but this longreel was built without CUDA: build it with"),
        "{error}"
    );
    assert_eq!(crate::train::snapshot(&place.path("")), before);
}

#[test]
fn every_mesh_trains_alike() {
    let place = Place::videos();
    let one = place.train("one", &["--ranks=1"]);
    assert_eq!(one.len(), 4);
    for (name, args) in [
        ("sequence 2", &["--ranks=2"][..]),
        ("sequence 3", &["--ranks=3"]),
        ("data 2", &["--ranks=2", "parallel.data=2", "train.batch=2"]),
        ("2 x 2", &["parallel.ranks=4", "parallel.data=2", "train.batch=2"]),
        ("data 4", &["--ranks=4", "parallel.data=4", "train.batch=1"]),
        ("accumulated", &["train.accumulate=2", "train.batch=2"]),
        ("2 x 1, accumulated", &["--ranks=2", "parallel.data=2", "train.accumulate=2", "train.batch=1"]),
        ("one tile", &["train.tile=0"]),
    ] {
        let other = place.train(name, args);
        let difference = difference(&one, &other);
        assert!(difference < 1e-5, "{name}: losses differ by {difference}");
    }
    // The losses are of the size that a mistake would show in: they fall, and another seed has others.
    let other = place.train("seed", &["run.seed=4", "train.steps=2"]);
    assert!(difference(&one[..2], &other) > 1e-3);
    place.train("start", &["train.steps=1"]);
    for name in ["sequence 3", "2 x 2"] {
        let apart = apart(&place, "one", name, "start", 4);
        assert!(apart < 1e-3, "{name}: weights differ by {apart}");
    }
}

#[test]
fn classes_and_their_dropout_do_not_depend_on_the_mesh() {
    let place = Place::pictures();
    let args = ["diffusion.label_dropout=0.5", "train.batch=4"];
    let one = place.train("one", &args);
    let two = place.train("two", &[&args[..], &["parallel.ranks=4", "parallel.data=2", "train.batch=2"]].concat());
    assert!(difference(&one, &two) < 1e-5, "{}", difference(&one, &two));
    let never = place.train("never", &[&args[1..], &["diffusion.label_dropout=0"]].concat());
    assert!(difference(&one, &never) > 1e-4, "labels change nothing");
}

#[test]
fn bf16_trains_alike_too() {
    let place = Place::videos();
    let f32 = place.train("f32", &[]);
    let one = place.train("one", &["train.dtype=bf16"]);
    let two = place.train("two", &["train.dtype=bf16", "--ranks=2"]);
    let (ranks, dtype) = (difference(&one, &two), difference(&f32, &one));
    assert!(ranks < 2e-2 && dtype > 1e-5 && dtype < 5e-2, "{ranks} {dtype}");
}
