//! config.json, read and written.

use super::*;
use serde_json::{Value, json};

#[test]
fn config_json_comes_back_as_it_was() {
    let configs = [
        ModelConfig::default(),
        everything(),
        no_text(),
        ModelConfig { cross_attn_norm: false, qk_norm: None, num_classes: 0, pos_embed: false, ..everything() },
    ];
    for config in configs {
        let json = config.to_json();
        assert_eq!(ModelConfig::from_json(&json).unwrap(), config);
        // As text too, and diffusers is shown none of longreel's keys that say nothing.
        let text = serde_json::to_string(&json).unwrap();
        assert_eq!(ModelConfig::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), config);
        assert_eq!(json.get("num_classes").is_some(), config.num_classes > 0);
        assert_eq!(json.get("pos_embed").is_some(), config.pos_embed);
        assert_eq!(json["_class_name"], "WanTransformer3DModel");
        assert_eq!((&json["image_dim"], json.get("added_kv_proj_dim")), (&Value::Null, Some(&Value::Null)));
    }
}

#[test]
fn absent_keys_have_diffusers_defaults() {
    assert_eq!(ModelConfig::from_json(&json!({})).unwrap(), ModelConfig::default());
    let config = ModelConfig::from_json(&json!({ "in_channels": 5, "out_channels": null, "text_dim": null })).unwrap();
    assert_eq!((config.in_channels, config.out_channels, config.text_dim), (5, 5, 0));
    ModelConfig::from_json(&json!({ "of_a_later_version": 1 })).unwrap();
}

#[test]
fn what_cannot_be_run_is_refused_by_its_key() {
    let refusals = [
        (json!([]), "an object wanted"),
        (json!({ "_class_name": "FluxTransformer2DModel" }), "FluxTransformer2DModel"),
        (json!({ "image_dim": 1280 }), "image_dim is set"),
        (json!({ "added_kv_proj_dim": 5120 }), "added_kv_proj_dim is set"),
        (json!({ "pos_embed_seq_len": 514 }), "pos_embed_seq_len is set"),
        (json!({ "qk_norm": "layer_norm" }), "qk_norm is layer_norm"),
        (json!({ "attention_head_dim": 12 }), "attention_head_dim is 12"),
        (json!({ "attention_head_dim": 264 }), "attention_head_dim is 264"),
        (json!({ "attention_head_dim": 0 }), "attention_head_dim is 0"),
        (json!({ "num_attention_heads": 0 }), "num_attention_heads is 0"),
        (json!({ "in_channels": 0 }), "in_channels is 0"),
        (json!({ "ffn_dim": 0 }), "ffn_dim is 0"),
        (json!({ "num_layers": 0 }), "num_layers is 0"),
        (json!({ "patch_size": [1, 0, 2] }), "patch_size is 0"),
        (json!({ "freq_dim": 0 }), "freq_dim is 0"),
        (json!({ "freq_dim": 7 }), "freq_dim is 7"),
        (json!({ "eps": 0.0 }), "eps is 0"),
        (json!({ "eps": -1e-6 }), "eps is -0.000001"),
        (json!({ "num_layers": "two" }), "config.json: num_layers: "),
        (json!({ "ffn_dim": -1 }), "config.json: ffn_dim: "),
        (json!({ "patch_size": [1, 2] }), "config.json: patch_size: "),
        (json!({ "patch_size": 2 }), "config.json: patch_size: "),
    ];
    for (json, part) in refusals {
        let error = ModelConfig::from_json(&json).expect_err(part).to_string();
        assert!(error.contains(part), "{json}: {error}");
    }
    let zero = ModelConfig { out_channels: 0, ..everything() };
    let error = Model::zeros(&zero, DType::F32, false).err().expect("refused").to_string();
    assert!(error.contains("out_channels is 0"), "{error}");
}

#[test]
fn a_clip_must_be_whole_patches_within_reach() {
    let config = ModelConfig { rope_max_seq_len: 4, ..everything() }; // patches of 1 x 3 x 2
    assert_eq!(config.grid([2, 6, 8]).unwrap(), [2, 2, 4]);
    for (size, part) in [
        ([2, 7, 8], "height 7 is not a multiple of the patch's 3"),
        ([2, 6, 9], "width 9 is not a multiple of the patch's 2"),
        ([0, 6, 8], "frames 0 is not a multiple"),
        ([2, 6, 10], "width 10 gives 5 positions, rope_max_seq_len is 4"),
        ([5, 6, 8], "frames 5 gives 5 positions"),
    ] {
        let error = config.grid(size).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}
