//! How long a run will take: a step, all steps, held-out losses, samples and checkpoints.

use super::*;

/// 1 TFLOP/s a rank, so that seconds are TFLOP.
fn seconds(place: &Place, more: &[&str], what: &str) -> f64 {
    planned(place, &[MEDIUM, more].concat())["seconds_of_run"][what].as_f64().unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a / b - 1.0).abs() < 1e-9
}

#[test]
fn a_run_is_its_steps_losses_samples_and_checkpoints() {
    let place = large_clips();
    let slow = ["train.steps=10", "train.heldout_every=4", "train.checkpoint_every=3", "train.sample_every=5"];
    let plan = planned(&place, &[MEDIUM, &slow].concat());
    let (step, run) = (plan["seconds"].as_f64().unwrap(), &plan["seconds_of_run"]);
    let of = |what: &str| run[what].as_f64().unwrap();
    let decoding = plan["seconds_of_decoding"].as_f64().unwrap();
    assert!(near(of("steps"), 10.0 * step.max(decoding)), "{run}");
    // A forward pass of 8192 tokens of width 128 through 4 blocks without text, and its ends of 4 x 4 x 3 numbers a
    // token.
    let (n, d) = (8192.0f64, 128.0);
    let forward = 4.0 * (4.0 * n * n * d + 4.0 * 2.0 * n * d * d + 2.0 * 2.0 * n * d * 512.0) + 2.0 * n * 96.0 * d;
    // After steps 4, 8 and 10, of the one held-out clip that is large enough, at 4 noise levels.
    assert!(near(of("heldout"), 3.0 * 4.0 * forward / 1e12), "{run}");
    // After steps 5 and 10, one clip of two steps of Euler.
    assert!(near(of("samples"), 2.0 * 2.0 * forward / 1e12), "{run}");
    // After steps 3, 6, 9 and 10: parameters, average and moments.
    let parameters = plan["parameters"].as_f64().unwrap();
    assert!(near(of("checkpoints"), 4.0 * 16.0 * parameters / 500e6), "{run}");
    let sum: f64 = ["steps", "heldout", "samples", "checkpoints"].into_iter().map(of).sum();
    assert!(near(of("all"), sum), "{run}");
}

#[test]
fn samplers_and_guidance_cost_what_they_call() {
    let place = Place::videos();
    let base = ["train.sample_every=1", "train.steps=1", "sample.steps=4", "sample.shift=1"];
    let with = |more: &[&str]| seconds(&place, &[&base, more].concat(), "samples");
    let euler = with(&["sample.sampler=euler"]);
    assert!(near(with(&["sample.sampler=heun"]), euler * 7.0 / 4.0));
    assert!(near(with(&["sample.sampler=euler", "sample.guidance=2"]), 2.0 * euler));
    // Of sigmas 1, 0.75, 0.5, 0.25 two are in the interval.
    let some = ["sample.sampler=euler", "sample.guidance=2", "sample.guidance_interval=[0.4, 0.8]"];
    assert!(near(with(&some), 1.5 * euler));
    assert!(near(with(&["sample.sampler=euler", "sample.count=3"]), 3.0 * euler));
}

#[test]
fn long_times_are_told_in_days_and_hours() {
    let place = Place::videos();
    fs::remove_dir_all(place.path("heldout")).unwrap();
    let mut command = longreel();
    command.arg("plan").arg(place.path("config.toml")).args(["--tflops", "0.000001", "--bandwidth", "10"]);
    let words = text(&succeed(&mut command).stdout);
    let run = words.split("\nthe run\n").nth(1).expect("a table of the run").to_owned();
    assert!(
        run.contains(" 4 steps ") && run.contains("held-out losses, of unknown clips") && run.contains("not counted"),
        "{run}"
    );
    let mut command = plan(&place, &[MEDIUM, &["train.steps=1000000000"]].concat());
    let words = text(&succeed(&mut command).stdout);
    let run = words.split("\nthe run\n").nth(1).unwrap();
    let steps = run.lines().next().unwrap();
    assert!(steps.contains(" d ") && steps.trim_end().ends_with(" h"), "{steps}");
}
