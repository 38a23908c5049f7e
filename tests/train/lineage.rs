//! A run goes on, or starts from others' weights: what they were trained for is known, kept, listed or refused.

use super::{Place, snapshot, succeed, text};
use longreel::config::{Prediction, RunConfig};
use std::fs;

/// What a run says that must end well.
fn said(place: &Place, run: &str, args: &[&str]) -> String {
    text(&succeed(&mut place.command(run, args)).stderr)
}

fn config(place: &Place, name: &str) -> RunConfig {
    RunConfig::load(&place.path(name), &[]).unwrap()
}

/// Leaves `[model]` empty, for `model.from`.
fn without_model(place: &Place) {
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (start, end) = (config.find("[model]").unwrap(), config.find("[train]").unwrap());
    fs::write(place.path("config.toml"), format!("{}[model]\n{}", &config[..start], &config[end..])).unwrap();
}

fn classes(place: &Place, run: &str, step: u64) -> serde_json::Value {
    let state = fs::read(place.checkpoint(run, step, "state.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&state).unwrap()["classes"].clone()
}

#[test]
fn another_objective_or_network_is_refused_on_resume() {
    let place = Place::videos();
    place.train("run", &["train.steps=2"]);
    let before = snapshot(&place.path("run"));
    for (set, expected) in [
        ("diffusion.prediction=x", "diffusion.prediction is \"x\", the checkpoint of step 2 was trained with \"v\""),
        // The weights have the same shapes.
        (
            "model.patch_size=[4,4,8]",
            "model.patch_size is [4,4,8], the network of the checkpoint of step 2 has [2,8,8]",
        ),
        ("model.pos_embed=true", "model.pos_embed is true, the network of the checkpoint of step 2 has false"),
    ] {
        let error = place.error("run", &["--resume", "train.steps=4", set]);
        assert!(error.starts_with(expected) && error.contains("set it back, or start a new run"), "{error}");
        assert!(snapshot(&place.path("run")) == before, "{set}: a refused run has changed something");
    }
}

#[test]
fn what_changed_since_the_checkpoint_is_listed_and_config_toml_written_anew() {
    let place = Place::videos();
    place.train("run", &["train.steps=2"]);
    let first = fs::read(place.path("run/config.toml")).unwrap();
    fs::remove_file(place.path("clips/b.mp4")).unwrap();
    let stderr =
        said(&place, "run", &["--resume", "train.steps=4", "train.lr=0.001", "diffusion.shift=3.0", "data.fps=12.0"]);
    let table = [
        "since the checkpoint of step 2:",
        "  data.fps         none -> 12.0",
        "  diffusion.shift  1.0 -> 3.0",
        "  train.lr         0.003 -> 0.001",
        "  train.steps      2 -> 4",
        "  the data         3 files, 6 clips -> 2 files, 4 clips",
    ];
    assert!(stderr.contains(&table.join("\n")), "{stderr}");
    let now = config(&place, "run/config.toml");
    assert_eq!((now.train.steps, now.train.lr, now.diffusion.shift), (4, 0.001, 3.0));
    assert_eq!(fs::read(place.path("run/config-until-step-00000002.toml")).unwrap(), first, "the old one is lost");

    // Once more from there, as after a kill: neither of the older ones is lost.
    let second = fs::read(place.path("run/config.toml")).unwrap();
    fs::remove_dir_all(place.checkpoint("run", 4, "")).unwrap();
    place.train("run", &["--resume", "train.steps=3"]);
    assert_eq!(fs::read(place.path("run/config-until-step-00000002.toml")).unwrap(), first);
    assert_eq!(fs::read(place.path("run/config-until-step-00000002-2.toml")).unwrap(), second);

    // The same again lists nothing, and nothing is left to do but to clear what a kill behind the last checkpoint left.
    let before = snapshot(&place.path("run"));
    for (steps, expected) in [(3, "nothing to do: step 3 of 3; raise train.steps"), (2, "nothing to do: step 3 of 2")] {
        fs::write(place.path("run/.loss.png-AbCdEf.longreel-tmp"), "half").unwrap();
        fs::create_dir_all(place.path("run/checkpoints/.step-00000001-AbCdEf.longreel-tmp/transformer")).unwrap();
        let old = place.checkpoint("run", 1, "");
        fs::create_dir(&old).unwrap();
        fs::copy(place.checkpoint("run", 2, "state.json"), old.join("state.json")).unwrap();
        let stderr = said(&place, "run", &["--resume", &format!("train.steps={steps}"), "train.keep=2"]);
        assert!(stderr.contains(expected), "{stderr}");
        assert!(snapshot(&place.path("run")) == before, "something was written, or left");
    }
}

#[test]
fn classes_keep_their_numbers() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    let names = serde_json::json!(["cat", "dog", "eel"]);
    let [dog, cow, away] = ["clips/dog", "clips/cow", "away"].map(|name| place.path(name));
    fs::rename(&dog, &cow).unwrap();
    let error = place.error("run", &["--resume", "train.steps=2"]);
    let expected =
        "class folder \"cow\" is not among the classes of the checkpoint of step 1: [\"cat\", \"dog\", \"eel\"]";
    assert!(error.contains(expected), "{error}");
    fs::rename(&cow, &away).unwrap();
    let stderr = said(&place, "run", &["--resume", "train.steps=2"]);
    assert!(stderr.contains("class \"dog\"  a folder -> no clips"), "{stderr}");
    assert_eq!(classes(&place, "run", 2), names, "eels would now be dogs");

    // A new run from these weights knows them too.
    without_model(&place);
    let from = format!("model.from={}", place.checkpoint("run", 2, "ema").display());
    let stderr = said(&place, "subset", &[&from, "train.steps=1"]);
    assert!(stderr.contains("classes are numbered as where the weights come from"), "{stderr}");
    assert_eq!(classes(&place, "subset", 1), names);
    fs::rename(&away, &cow).unwrap();
    let stderr = said(&place, "other", &[&from, "train.steps=1"]);
    assert!(
        stderr.contains("trained on other classes, which keep their numbers only: class 1 was \"dog\", is \"cow\""),
        "{stderr}"
    );
    assert_eq!(classes(&place, "other", 1), serde_json::json!(["cat", "cow", "eel"]));
}

#[test]
fn weights_bring_the_objective_that_they_were_trained_with() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1", "diffusion.prediction=x", "diffusion.shift=3.0", "diffusion.logit_mean=0.5"]);
    without_model(&place);
    let from = format!("model.from={}", place.checkpoint("run", 1, "transformer").display());
    let stderr = said(&place, "silent", &[&from, "train.steps=1", "diffusion.logit_mean=0.25"]);
    assert!(stderr.contains("were trained: prediction = \"x\", shift = 3.0"), "{stderr}");
    assert!(stderr.contains("diffusion.logit_mean is 0.25; the weights were trained with 0.5"), "{stderr}");
    let taken = config(&place, "silent/config.toml").diffusion;
    assert_eq!((taken.prediction, taken.shift, taken.logit_mean), (Prediction::X, 3.0, 0.25));
    // Resumed by the same words it is the same run.
    assert_eq!(place.train("silent", &[&from, "train.steps=2", "diffusion.logit_mean=0.25", "--resume"]).len(), 2);

    // A run's name leads to its last checkpoint.
    let from = format!("model.from={}", place.path("run").display());
    let stderr = said(&place, "loud", &[&from, "train.steps=1", "diffusion.prediction=v"]);
    assert!(stderr.contains("diffusion.prediction is \"v\", but the weights of"), "{stderr}");
    assert!(stderr.contains("were trained to predict \"x\""), "{stderr}");
    let taken = config(&place, "loud/config.toml").diffusion;
    assert_eq!((taken.prediction, taken.shift), (Prediction::V, 3.0));
}
