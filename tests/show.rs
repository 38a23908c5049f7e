//! `longreel show`: what each kind of file and folder is said to be, what is missing, and what is refused.

use crate::train::{Place, fail, longreel, succeed};
use longreel::files::write_tensors;
use longreel::model::names::original_parameter;
use longreel::model::{Model, ModelConfig};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// What is said of `path`, all of it on stdout.
fn shown(path: &Path) -> String {
    let output = succeed(longreel().arg("show").arg(path));
    String::from_utf8(output.stdout).unwrap()
}

fn has(text: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(text.contains(word), "no {word:?} in:\n{text}"));
}

/// Copies a folder's files.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Zeros of these names and shapes.
fn zeros(path: &Path, shapes: Vec<(String, Vec<usize>)>) {
    let with_values = |(name, shape): (String, Vec<usize>)| {
        let values = vec![0f32; shape.iter().product()];
        (name, shape, values)
    };
    write_tensors(path, shapes.into_iter().map(with_values)).unwrap();
}

#[test]
fn a_transformer_in_each_layout() {
    let path = golden("tokens/transformer");
    let said = shown(&path);
    has(&said, &["a transformer of Wan's kind, 32 wide", "diffusers' names, sizes in config.json"]);
    has(&said, &["32 wide, 2 heads of 16, 2 blocks, MLP 40, text 16; patches of 1 x 2 x 2 with 4 channels"]);
    has(&said, &["parameters in f32", "[model] from", "longreel forward", "longreel lora merge"]);
    assert!(!said.contains("lacks") && !said.contains(" but "), "{said}");
    has(&shown(&golden("channels/transformer")), &["12 channels in, 4 out", "but", "an image's latents", "(I2V)"]);
    let said = shown(&golden("lora/i2v/transformer"));
    has(&said, &["tokens of an image encoder"]);
    assert!(!said.contains("lacks") && !said.contains("longreel can"), "{said}");
    // A single file of the 1.3B's widths, cut to one block: what is missing is counted.
    let dir = TempDir::new().unwrap();
    let config =
        ModelConfig { num_attention_heads: 1, ffn_dim: 8, num_layers: 2, text_dim: 4, ..ModelConfig::default() };
    let named = |(name, shape): (String, Vec<usize>)| {
        (format!("model.diffusion_model.{}", original_parameter(&name).unwrap()), shape)
    };
    let mut shapes: Vec<_> = Model::shapes(&config).into_iter().map(named).collect();
    shapes.retain(|(name, _)| !name.contains("blocks.1.ffn.2"));
    zeros(&dir.path().join("comfy.safetensors"), shapes);
    let said = shown(&dir.path().join("comfy.safetensors"));
    has(&said, &["Wan's own names after `model.diffusion_model.`", "no config.json: sizes are those of its tensors"]);
    has(&said, &["lacks", "2 missing (`blocks.1.ffn.net.2.bias`, `blocks.1.ffn.net.2.weight`)"]);
}

#[test]
fn vaes_and_text_encoders() {
    let words = ["a VAE of Wan's kind", "3 channels, 8 x 8 pixels each, 4 frames to 1", "[vae] from"];
    has(&shown(&golden("vae/vae21/vae")), &words);
    let pickle = TempDir::new().unwrap();
    fs::copy(golden("vae/vae21/original.pth"), pickle.path().join("some.pth")).unwrap();
    assert!(fail(longreel().arg("show").arg(pickle.path().join("some.pth"))).contains("3 channels"));
    fs::copy(golden("vae/vae21/vae/config.json"), pickle.path().join("config.json")).unwrap();
    has(&shown(&pickle.path().join("some.pth")), &words);
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let of = |names: &[(&str, &[usize])]| -> Vec<(String, Vec<usize>)> {
        names.iter().map(|(n, s)| ((*n).to_owned(), s.to_vec())).collect()
    };
    zeros(
        &at("hf.safetensors"),
        of(&[("shared.weight", &[40, 6]), ("encoder.block.0.layer.0.SelfAttention.q.weight", &[6, 6])]),
    );
    zeros(&at("wan.safetensors"), of(&[("token_embedding.weight", &[40, 6]), ("blocks.0.attn.q.weight", &[6, 6])]));
    let words = ["40 tokens, 6 wide, 1 layers", "276 parameters in f32", "[text] from"];
    has(&shown(&at("hf.safetensors")), &[&["a T5 or UMT5 encoder"][..], &words].concat());
    has(&shown(&at("wan.safetensors")), &[&["a UMT5 encoder under Wan's names"][..], &words].concat());
    fs::create_dir(at("encoder")).unwrap();
    fs::write(at("encoder/config.json"), r#"{"model_type": "umt5"}"#).unwrap();
    assert!(fail(longreel().arg("show").arg(at("encoder"))).contains("without model.safetensors"));
    fs::copy(at("hf.safetensors"), at("encoder/model.safetensors")).unwrap();
    has(&shown(&at("encoder")), &words);
}

#[test]
fn pipelines_part_by_part() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let index =
        r#"{"_class_name": "WanPipeline", "vae": ["diffusers", "AutoencoderKLWan"], "image_encoder": [null, null]}"#;
    copy(&golden("tokens/transformer"), &at("pipeline/transformer"));
    copy(&golden("vae/vae21/vae"), &at("pipeline/vae"));
    fs::write(at("pipeline/model_index.json"), index).unwrap();
    fs::create_dir(at("pipeline/scheduler")).unwrap();
    let scheduler = r#"{"_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0}"#;
    fs::write(at("pipeline/scheduler/scheduler_config.json"), scheduler).unwrap();
    let said = shown(&at("pipeline"));
    has(
        &said,
        &["a pipeline of diffusers, WanPipeline", "a transformer of Wan's kind, 32 wide; ", "a VAE of Wan's kind"],
    );
    has(&said, &["UniPCMultistepScheduler, shift 3.0", "missing", "text_encoder, tokenizer", "longreel encode"]);
    assert!(!said.contains("image_encoder"), "{said}");
    fs::write(at("pipeline/vae/config.json"), "{").unwrap();
    has(&shown(&at("pipeline")), &["vae", "cannot be read: "]);
    copy(&golden("tokens/transformer"), &at("pipeline/transformer_2"));
    has(&shown(&at("pipeline")), &["two experts", "pipeline/transformer_2 (low noise)"]);
    // Wan's own folder.
    fs::create_dir(at("wan")).unwrap();
    fs::write(
        at("wan/config.json"),
        r#"{"model_type": "t2v", "dim": 32, "num_heads": 2, "num_layers": 2, "ffn_dim": 40, "freq_dim": 16,
            "in_dim": 4, "out_dim": 4, "text_dim": 16}"#,
    )
    .unwrap();
    let file =
        longreel::files::Tensors::open(&golden("tokens/transformer/diffusion_pytorch_model.safetensors")).unwrap();
    let tensors = file.shapes().into_iter().map(|(name, shape)| {
        let values = file.read_f32(&name).unwrap();
        (original_parameter(&name).unwrap(), shape, values)
    });
    write_tensors(&at("wan/diffusion_pytorch_model.safetensors"), tensors).unwrap();
    has(&shown(&at("wan")), &["a transformer of Wan's kind, 32 wide", "Wan's own names"]);
    fs::copy(golden("vae/vae21/original.pth"), at("wan/Wan2.1_VAE.pth")).unwrap();
    let said = shown(&at("wan"));
    has(
        &said,
        &[
            "a model in Wan's own layout",
            "its latents have 3 channels",
            "text encoder  missing",
            "tokenizer     missing",
        ],
    );
}

#[test]
fn what_is_nothing_of_the_kind_is_refused() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    zeros(&at("other.safetensors"), vec![("a.b".into(), vec![1]), ("c".into(), vec![2])]);
    fs::write(at("model.gguf"), b"GGUF\x03\0\0\0\0\0\0\0").unwrap();
    fs::write(at("text.txt"), "hello, this is no model").unwrap();
    fs::create_dir(at("empty")).unwrap();
    for (name, word) in [
        ("other.safetensors", "none of a LoRA, a transformer, a VAE or a text encoder"),
        ("model.gguf", "GGUF"),
        ("text.txt", "not a safetensors file"),
        ("empty", "holds no checkpoint"),
        ("nowhere", "No such file"),
    ] {
        let said = fail(longreel().arg("show").arg(at(name)));
        assert!(said.contains(word) && said.contains(name), "{name}: {said}");
    }
}

#[test]
fn a_run_is_shown_by_its_checkpoint() {
    let place = Place::videos();
    place.train("run", &["train.steps=2", "train.checkpoint_every=2"]);
    has(&shown(&place.path("run")), &["longreel's checkpoint of step 2", "parameters in f32", "longreel sample"]);
}
