//! Names of models: a run, a checkpoint, its parts, a diffusers folder, a pipeline, a repository; each means the same
//! to every command.

use crate::cli::inputs_of;
use crate::train::{Place, fail, longreel, succeed, text};
use longreel::files::{Tensors, write_tensors};
use std::fs;
use std::path::Path;
use std::process::Command;

fn copy(from: &Path, to: &Path) {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry.unwrap();
        let target = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(target).unwrap();
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What a name leads to.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Weights {
    Average,
    /// The average, but nothing says how it was trained.
    PlainAverage,
    Trained,
}
use Weights::*;

/// The commit of a repository that is in the cache.
const SHA: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn every_command_takes_the_same_names_for_the_same_model() {
    let place = Place::videos();
    place.train("run", &["train.steps=3", "train.lr=0.1", "train.checkpoint_every=2"]);
    let at = |name: &str| place.path(name).display().to_string();
    let step = "run/checkpoints/step-00000003";
    copy(&place.path(&format!("{step}/ema")), &place.path("folder"));
    copy(&place.path("folder"), &place.path("pipeline/transformer"));
    fs::write(place.path("pipeline/model_index.json"), "{}").unwrap();
    // A repository that is in the cache, the hub being out of reach.
    let snapshot = place.path("hf/hub/models--owner--name/snapshots/0123456789abcdef0123456789abcdef01234567");
    fs::create_dir_all(place.path("hf/hub/models--owner--name/refs")).unwrap();
    fs::write(place.path("hf/hub/models--owner--name/refs/main"), SHA).unwrap();
    for (from, to) in [("run", "run"), ("folder", "folder"), ("pipeline", "pipeline")] {
        copy(&place.path(from), &snapshot.join(to));
    }
    let names = [
        (at("run"), Average),
        (at("run/"), Average),
        (at("run/checkpoints"), Average),
        (at(step), Average),
        (at(&format!("{step}/ema")), Average),
        (at(&format!("{step}/transformer")), Trained),
        (at("folder"), PlainAverage),
        (at("pipeline"), PlainAverage),
        (at("pipeline/transformer"), PlainAverage),
        ("hf://owner/name/run".to_owned(), Average),
        (format!("hf://owner/name/{step}/transformer"), Trained),
        ("hf://owner/name/folder".to_owned(), PlainAverage),
        ("hf://owner/name/pipeline".to_owned(), PlainAverage),
    ];
    let offline = |command: &mut Command| {
        command.env("HF_HOME", place.path("hf")).env("HF_ENDPOINT", "http://127.0.0.1:9").env_remove("HF_TOKEN");
    };
    let inputs = place.path("inputs.safetensors");
    write_tensors(&inputs, inputs_of([4, 16, 40])).unwrap();
    let mut results: Vec<(Weights, Vec<Vec<u8>>)> = vec![];
    for (i, (name, weights)) in names.iter().enumerate() {
        let mut forward = longreel();
        offline(forward.args(["forward", name]).arg(&inputs).arg("-o").arg(place.path(&format!("{i}.safetensors"))));
        succeed(&mut forward);
        let output = Tensors::open(&place.path(&format!("{i}.safetensors"))).unwrap().read_f32("sample").unwrap();

        let mut sample = longreel();
        let png = place.path(&format!("{i}.png"));
        offline(sample.args(["sample", name, "--count", "1", "-o"]).arg(&png));
        if *weights == PlainAverage {
            let error = fail(&mut sample);
            assert!(
                error.contains("is a model without state.json") && error.contains("a run or a checkpoint"),
                "{error}"
            );
        } else {
            succeed(&mut sample);
        }

        // A run from it begins with the weights' loss.
        let config = fs::read_to_string(place.path("config.toml")).unwrap();
        let (start, end) = (config.find("[model]").unwrap(), config.find("[train]").unwrap());
        let from = format!("{}[model]\nfrom = {name:?}\n{}", &config[..start], &config[end..]);
        fs::write(place.path("from.toml"), from).unwrap();
        let mut train = longreel();
        let out = format!("run.out={}", at(&format!("from-{i}")));
        offline(train.args([
            "train",
            &at("from.toml"),
            "--set",
            &out,
            "--set",
            "train.steps=1",
            "--set",
            "train.lr=0",
        ]));
        succeed(&mut train);
        let loss = place.metrics(&format!("from-{i}"))[0].loss;
        let mut plan = longreel();
        offline(plan.args(["plan", &at("from.toml"), "--tflops=1", "--bandwidth=1", "--json"]));
        let planned: serde_json::Value = serde_json::from_str(&text(&succeed(&mut plan).stdout)).unwrap();
        assert!(planned["parameters"].as_u64().unwrap() > 1000);

        let picture = if png.exists() { fs::read(&png).unwrap() } else { vec![] };
        let bytes = output.iter().flat_map(|x| x.to_le_bytes()).collect();
        results.push((*weights, vec![bytes, loss.to_le_bytes().to_vec(), picture]));
    }
    for (i, (weights, result)) in results.iter().enumerate() {
        for (j, (other, others)) in results.iter().enumerate() {
            let same_weights = (*weights == Trained) == (*other == Trained);
            assert_eq!(result[..2] == others[..2], same_weights, "{:?} and {:?}", names[i], names[j]);
            let same_picture = result[2] == others[2];
            assert_eq!(same_picture, weights == other, "{:?} and {:?}", names[i], names[j]);
        }
    }
}

#[test]
fn what_names_no_model_is_refused_alike() {
    let place = Place::videos();
    fs::create_dir_all(place.path("pipeline/vae")).unwrap();
    fs::write(place.path("pipeline/model_index.json"), "{}").unwrap();
    for (name, expected) in [
        ("nowhere", "nowhere: No such file or directory"),
        ("config.toml", "config.toml: is not a safetensors file"),
        ("clips", "clips: holds no checkpoint"),
        ("pipeline", "pipeline: is a pipeline without the folder transformer, so it is incomplete"),
    ] {
        let name = place.path(name);
        let mut forward = longreel();
        forward.arg("forward").arg(&name).args(["inputs", "-o"]).arg(place.path("out"));
        let mut sample = longreel();
        sample.arg("sample").arg(&name).arg("-o").arg(place.path("out.png"));
        for mut command in [forward, sample] {
            let error = fail(&mut command);
            assert!(error.contains(expected), "{error}");
        }
        let keys = ["patch_size", "num_attention_heads", "attention_head_dim", "num_layers", "ffn_dim", "freq_dim"];
        let config = fs::read_to_string(place.path("config.toml")).unwrap();
        let lines = config.lines().filter(|line| !keys.iter().any(|key| line.starts_with(key)));
        let from = lines.map(|line| format!("{line}\n")).collect::<String>();
        let from = from.replace("[model]\n", &format!("[model]\nfrom = {name:?}\n"));
        fs::write(place.path("from.toml"), from).unwrap();
        let error = fail(longreel().arg("train").arg(place.path("from.toml")));
        assert!(error.contains(expected), "{error}");
    }
}
