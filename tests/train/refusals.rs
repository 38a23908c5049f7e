//! Runs that cannot be: each one clear error before the first step, and nothing written.

use super::{Place, snapshot};
use longreel::files::write_tensors;
use longreel::model::folder::Folder;
use std::fs;

/// The error of a run that must not leave a trace.
fn refused(place: &Place, args: &[&str]) -> String {
    let before = snapshot(&place.path(""));
    let error = place.error("refused", args);
    assert!(snapshot(&place.path("")) == before && !place.path("refused").exists(), "something was written: {error}");
    error
}

#[test]
fn data_that_cannot_be_used() {
    let place = Place::videos();
    let set = |name: &str| format!("data.path={}", place.path(name).display());
    assert!(refused(&place, &[&set("nowhere")]).contains("nowhere: No such file"));
    fs::create_dir(place.path("empty")).unwrap();
    let error = refused(&place, &[&set("empty")]);
    assert!(error.contains("empty: no usable clips; it holds no files"), "{error}");
    fs::create_dir(place.path("bad")).unwrap();
    fs::write(place.path("bad/noise.mp4"), [7u8; 999]).unwrap();
    fs::write(place.path("bad/zero.mp4"), "").unwrap();
    let error = refused(&place, &[&set("bad")]);
    assert!(error.contains("bad: no usable clips; 2 files are skipped, the first is"), "{error}");
    assert!(error.contains("noise.mp4"), "{error}");
    let error = refused(&place, &["data.frames=12"]);
    assert!(error.contains("clips: no usable clips; 3 files are skipped") && error.contains("12"), "{error}");
    let error = refused(&place, &[&format!("data.heldout={}", place.path("bad").display())]);
    assert!(error.contains("bad: no usable clips"), "{error}");
}

#[test]
fn classes_that_do_not_fit() {
    let place = Place::pictures();
    let error = refused(&place, &["model.num_classes=2"]);
    assert!(error.contains("has 3 class folders, model.num_classes is 2; set it to 3"), "{error}");
    fs::create_dir_all(place.path("held/fox")).unwrap();
    fs::copy(place.path("clips/cat/0.png"), place.path("held/fox/0.png")).unwrap();
    let error = refused(&place, &[&format!("data.heldout={}", place.path("held").display())]);
    assert!(error.contains("\"fox\" of the held-out clips is not among the classes"), "{error}");
}

#[test]
fn more_ranks_than_heads_or_tokens() {
    let place = Place::videos();
    let error = refused(&place, &["--ranks=4", "parallel.ring=1"]);
    assert!(error.contains("4 sequence-parallel ranks cannot share 3 attention heads"), "{error}");
    let error = refused(&place, &["--ranks=4", "parallel.ring=3"]);
    assert!(error.contains("parallel.ring = 3: must divide the 4 ranks of a sequence"), "{error}");
    let error = refused(&place, &["--ranks=3", "data.height=8", "data.width=16", "data.frames=2"]);
    assert!(error.contains("3 sequence-parallel ranks cannot share a clip of 2 tokens"), "{error}");
    let error = refused(&place, &["--ranks=3", "parallel.data=2"]);
    assert!(error.contains("parallel.data = 2: must divide parallel.ranks = 3"), "{error}");
    let error = refused(&place, &["data.width=44"]);
    assert!(error.contains("8 must divide data.width = 44"), "{error}");
}

#[test]
fn a_model_that_does_not_fit() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (start, end) = (config.find("[model]").unwrap(), config.find("[train]").unwrap());
    fs::write(place.path("config.toml"), format!("{}[model]\n{}", &config[..start], &config[end..])).unwrap();
    let model = place.checkpoint("run", 1, "transformer");
    let from = |name: &str| format!("model.from={}", place.path(name).display());
    // A copy of the model with its tensors and config changed.
    type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;
    let spoil = |name: &str, edit: &dyn Fn(&mut Tensors, &mut serde_json::Value)| {
        let folder = Folder::open(&model).unwrap();
        let mut config = folder.config().clone();
        let shapes = longreel::model::Model::shapes(&longreel::model::ModelConfig::from_json(&config).unwrap());
        let mut tensors: Tensors =
            shapes.into_iter().map(|(name, shape)| (name.clone(), shape, folder.read_f32(&name).unwrap())).collect();
        edit(&mut tensors, &mut config);
        fs::create_dir(place.path(name)).unwrap();
        fs::write(place.path(name).join("config.json"), config.to_string()).unwrap();
        write_tensors(&place.path(name).join("diffusion_pytorch_model.safetensors"), tensors).unwrap();
        refused(&place, &[&from(name)])
    };
    assert!(refused(&place, &[&from("nowhere")]).contains("nowhere"));
    assert!(refused(&place, &[&from("clips")]).contains("config.json"));
    let error = spoil("fewer", &|_, config| config["num_layers"] = 1.into());
    assert!(error.contains("not known (`blocks.1"), "{error}");
    let error = spoil("more", &|_, config| config["num_layers"] = 3.into());
    assert!(error.contains("missing (`blocks.2"), "{error}");
    let error = spoil("wider", &|_, config| config["ffn_dim"] = 48.into());
    assert!(error.contains("of another shape (`blocks.0.ffn.net.0.proj"), "{error}");
    let error = spoil("latent", &|_, config| {
        config["in_channels"] = 16.into();
        config["out_channels"] = 16.into();
    });
    assert!(error.contains("takes 16 and gives 16 channels; training is on pixels"), "{error}");
    let own = format!("model.from={}", model.display());
    let error = refused(&place, &[&own, "data.frames=3"]);
    assert!(error.contains("data: frames 3 is not a multiple of the patch's 2"), "{error}");
    let error = spoil("other", &|_, config| config["_class_name"] = "FluxTransformer2DModel".into());
    assert!(error.contains("FluxTransformer2DModel"), "{error}");

    // A checkpoint of another network cannot be gone on from.
    fs::write(place.path("config.toml"), config).unwrap();
    let before = snapshot(&place.path("run"));
    for (args, expected) in [
        (["model.num_layers=1", "--resume"], "model.num_layers is 1, the network of the checkpoint of step 1 has 2"),
        (["model.ffn_dim=48", "--resume"], "model.ffn_dim is 48, the network of the checkpoint of step 1 has 40"),
        (["model.num_layers=3", "--resume"], "model.num_layers is 3, the network of the checkpoint of step 1 has 2"),
    ] {
        let error = place.error("run", &args);
        assert!(error.contains(expected), "{error}");
    }
    // Nor one that was cut short.
    let weights = place.checkpoint("run", 1, "optimizer.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 100]).unwrap();
    let error = place.error("run", &["--ranks=2", "train.steps=2", "--resume"]);
    assert!(error.contains("optimizer.safetensors: was cut short"), "{error}");
    fs::write(&weights, whole).unwrap();
    assert!(snapshot(&place.path("run")) == before, "a refused run has changed something");
}

#[test]
fn a_run_folder_that_cannot_be_written() {
    let place = Place::pictures();
    fs::write(place.path("file"), "mine").unwrap();
    for out in ["file", "file/run"] {
        let error = place.error(out, &[]);
        assert!(error.contains("file"), "{error}");
        assert_eq!(fs::read(place.path("file")).unwrap(), b"mine");
    }
    let error = place.error("x", &["run.out=/proc/nothing/run"]);
    assert!(error.contains("/proc/nothing"), "{error}");
}
