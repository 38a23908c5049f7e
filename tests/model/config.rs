//! config.json: what diffusers writes is read and written back alike, what cannot be run is refused by its key.

use super::tiny;
use candle_core::DType;
use longreel::Error;
use longreel::model::{Model, ModelConfig};
use serde_json::{Value, json};
use std::path::Path;

/// One key of a valid config changed: the error names it.
fn refused(key: &str, value: Value, words: &[&str]) {
    let mut json = tiny().to_json();
    json[key] = value;
    let error = ModelConfig::from_json(&json).expect_err(key);
    assert!(matches!(error, Error::Config(_) | Error::Data(_)), "{error:?}");
    let said = error.to_string();
    for word in words.iter().chain(&[key]) {
        assert!(said.contains(word), "{key}: no {word:?} in: {said}");
    }
}

#[test]
fn what_diffusers_writes_comes_back() {
    for case in ["batch", "bf16", "long", "shards"] {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join("transformer/config.json");
        let mut theirs: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let ours = ModelConfig::from_json(&theirs).unwrap().to_json();
        theirs.as_object_mut().unwrap().remove("_name_or_path");
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn every_config_survives_the_round_trip() {
    let configs = [
        tiny(),
        ModelConfig::default(),
        ModelConfig { text_dim: 0, cross_attn_norm: false, qk_norm: None, ..tiny() },
        ModelConfig { num_classes: 0, pos_embed: false, patch_size: [4, 16, 8], eps: 1e-5, ..tiny() },
    ];
    for config in configs {
        let json = config.to_json();
        assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
        assert_eq!(
            json.get("num_classes").is_some(),
            config.num_classes > 0,
            "longreel's keys only where they are used"
        );
        assert_eq!(json.get("pos_embed").is_some(), config.pos_embed);
    }
}

#[test]
fn null_and_missing_keys_mean_what_they_mean_in_diffusers() {
    let mut json = tiny().to_json();
    json["out_channels"] = Value::Null;
    assert_eq!(ModelConfig::from_json(&json).unwrap().out_channels, 3, "as many as come in");
    json["text_dim"] = Value::Null;
    assert_eq!(ModelConfig::from_json(&json).unwrap().text_dim, 0);
    json["something_new"] = json!(1);
    assert!(ModelConfig::from_json(&json).is_ok(), "unknown keys are named in the log, not refused");
    assert_eq!(ModelConfig::from_json(&json!({})).unwrap(), ModelConfig::default());
}

#[test]
fn what_cannot_be_run_is_refused_by_its_key() {
    for key in ["num_attention_heads", "attention_head_dim", "in_channels", "ffn_dim", "num_layers", "freq_dim"] {
        refused(key, json!(0), &["0"]);
        refused(key, json!(-1), &["config.json"]);
        refused(key, json!("three"), &["config.json"]);
    }
    refused("attention_head_dim", json!(12), &["12", "multiple of 8"]);
    refused("attention_head_dim", json!(264), &["264", "256"]);
    refused("freq_dim", json!(15), &["15", "even"]);
    refused("patch_size", json!([1, 0, 2]), &[]);
    refused("patch_size", json!([2, 2]), &[]);
    refused("patch_size", json!(2), &[]);
    refused("qk_norm", json!("layer_norm"), &["layer_norm", "rms_norm_across_heads"]);
    refused("eps", json!(-1e-6), &["-0.000001"]);
    refused("_class_name", json!("HunyuanVideoTransformer3DModel"), &["HunyuanVideo", "WanTransformer3DModel"]);
    for key in ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"] {
        refused(key, json!(1280), &["I2V"]);
    }
    for json in [json!([1, 2]), json!("text"), Value::Null] {
        assert!(refusal!(Data, ModelConfig::from_json(&json)).contains("object"));
    }
    // A model is not made of a config that was never read from a file either.
    assert!(Model::zeros(&ModelConfig { out_channels: 0, ..tiny() }, DType::F32, false).is_err());
}

#[test]
fn a_clip_that_patches_do_not_divide_is_refused() {
    let config = ModelConfig { patch_size: [2, 3, 5], rope_max_seq_len: 7, ..tiny() };
    assert_eq!(config.grid([4, 9, 35]).unwrap(), [2, 3, 7]);
    assert_eq!(config.grid([16, 9, 40]).unwrap(), [8, 3, 8], "more positions than diffusers' table has");
    assert_eq!((config.patch_in(), config.patch_out(), config.width()), (90, 60, 24));
    for (size, words) in [
        ([5, 9, 35], ["frames 5", "2"]),
        ([4, 10, 35], ["height 10", "3"]),
        ([4, 9, 36], ["width 36", "5"]),
        ([0, 9, 35], ["frames 0", "2"]),
        ([4, 9, 5 * ((1 << 20) + 1)], ["width 5242885", "1048577 positions"]),
    ] {
        let said = refusal!(Shape, config.grid(size).map_err(|e| e.at("data")));
        assert!(said.starts_with("data: ") && words.iter().all(|word| said.contains(word)), "{size:?}: {said}");
    }
}
