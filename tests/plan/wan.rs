//! The configs for Wan fit the GPUs that they name, by `plan` on folders with the published config.json and weights
//! files that have a header and holes.

use super::*;
use longreel::vae::{VaeConfig, tensors};
use serde_json::{Map, json};
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// A safetensors file of these shapes in bf16, of holes.
fn hollow(path: &Path, shapes: &[(String, Vec<usize>)]) {
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in shapes {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        header.insert(name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = File::create(path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
}

/// A pipeline's folder: the transformer's config.json, and the VAE.
fn pipeline(place: &Place, heads: usize, ffn: usize, layers: usize, vae: &VaeConfig) -> String {
    let root = place.path("pipeline");
    fs::create_dir_all(root.join("transformer")).unwrap();
    fs::create_dir_all(root.join("vae")).unwrap();
    let network = json!({
        "_class_name": "WanTransformer3DModel", "added_kv_proj_dim": null, "attention_head_dim": 128,
        "cross_attn_norm": true, "eps": 1e-6, "ffn_dim": ffn, "freq_dim": 256, "image_dim": null,
        "in_channels": vae.z_dim, "num_attention_heads": heads, "num_layers": layers, "out_channels": vae.z_dim,
        "patch_size": [1, 2, 2], "pos_embed_seq_len": null, "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 1024, "text_dim": 4096
    });
    fs::write(root.join("model_index.json"), r#"{"_class_name": "WanPipeline"}"#).unwrap();
    fs::write(root.join("transformer/config.json"), network.to_string()).unwrap();
    let config = json!({
        "_class_name": "AutoencoderKLWan", "base_dim": vae.base_dim, "decoder_base_dim": vae.decoder_base_dim,
        "z_dim": vae.z_dim, "dim_mult": vae.dim_mult, "num_res_blocks": vae.num_res_blocks, "attn_scales": [],
        "temperal_downsample": vae.temperal_downsample, "is_residual": vae.is_residual, "in_channels": vae.in_channels,
        "out_channels": vae.out_channels, "patch_size": vae.patch_size, "latents_mean": vae.latents_mean,
        "latents_std": vae.latents_std
    });
    fs::write(root.join("vae/config.json"), config.to_string()).unwrap();
    let shapes: Vec<_> = tensors(vae).into_iter().map(|tensor| (tensor.name, tensor.shape)).collect();
    hollow(&root.join("vae/diffusion_pytorch_model.safetensors"), &shapes);
    text_encoder(&root);
    root.display().to_string()
}

/// UMT5-XXL's config.json, and its tensors.
fn text_encoder(root: &Path) {
    fs::create_dir_all(root.join("text_encoder")).unwrap();
    let config = json!({
        "architectures": ["UMT5EncoderModel"], "model_type": "umt5", "vocab_size": 256_384, "d_model": 4096, "d_kv": 64,
        "d_ff": 10_240, "num_layers": 24, "num_heads": 64, "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "feed_forward_proj": "gated-gelu",
        "eos_token_id": 1, "pad_token_id": 0
    });
    fs::write(root.join("text_encoder/config.json"), config.to_string()).unwrap();
    let mut shapes = vec![("shared.weight".to_owned(), vec![256_384, 4096])];
    for block in 0..24 {
        for (layer, name, shape) in [
            (0, "SelfAttention.q", vec![4096, 4096]),
            (0, "SelfAttention.k", vec![4096, 4096]),
            (0, "SelfAttention.v", vec![4096, 4096]),
            (0, "SelfAttention.o", vec![4096, 4096]),
            (0, "SelfAttention.relative_attention_bias", vec![32, 64]),
            (0, "layer_norm", vec![4096]),
            (1, "DenseReluDense.wi_0", vec![10_240, 4096]),
            (1, "DenseReluDense.wi_1", vec![10_240, 4096]),
            (1, "DenseReluDense.wo", vec![4096, 10_240]),
            (1, "layer_norm", vec![4096]),
        ] {
            shapes.push((format!("encoder.block.{block}.layer.{layer}.{name}.weight"), shape));
        }
    }
    shapes.push(("encoder.final_layer_norm.weight".to_owned(), vec![4096]));
    hollow(&root.join("text_encoder/model.safetensors"), &shapes);
}

/// The plan of a config on its pipeline.
fn of_config(name: &str, place: &Place, folder: &str, more: &[&str]) -> Value {
    let mut command = longreel();
    command
        .current_dir(place.path(""))
        .arg("plan")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/configs").to_owned() + "/" + name);
    command.args(["--json", "--tflops", "400", "--bandwidth", "100"]).args(more);
    for key in ["model.from", "vae.from", "text.from"] {
        command.args(["--set", &format!("{key}={folder:?}")]);
    }
    serde_json::from_slice(&succeed(&mut command).stdout).unwrap()
}

#[test]
fn configs_fit_the_gpus_that_they_name() {
    let (small, large) = (VaeConfig::default(), VaeConfig::wan22());
    // Heads, hidden width, blocks; tokens, GPUs and their memory.
    for (name, shape, vae, tokens, gpus, memory) in [
        ("wan-1.3b-lora.toml", [12, 8960, 30], &small, 32_760, 1, "24GB"),
        ("wan-14b-lora.toml", [40, 13_824, 40], &small, 32_760, 1, "80GB"),
        ("wan-5b-minute.toml", [24, 14_336, 30], &large, 317_680, 8, "80GB"),
        ("wan-1.3b-minute.toml", [12, 8960, 30], &small, 867_600, 8, "80GB"),
    ] {
        let place = Place::videos();
        let folder = pipeline(&place, shape[0], shape[1], shape[2], vae);
        let plan = of_config(name, &place, &folder, &["--memory", memory]);
        assert_eq!(plan["tokens"], tokens, "{name}");
        assert_eq!(plan["ranks"].as_array().unwrap().len(), gpus, "{name}");
        assert_eq!(plan["fits"], true, "{name}: {} GiB", plan["per_rank"].as_f64().unwrap() / (1u64 << 30) as f64);
        println!(
            "{name}: {:.1} GiB a GPU, {:.0} s a step",
            plan["per_rank"].as_f64().unwrap() / (1u64 << 30) as f64,
            plan["seconds"].as_f64().unwrap()
        );
    }
}

#[test]
fn positions_end_at_no_table() {
    let place = Place::videos();
    let folder = pipeline(&place, 12, 8960, 30, &VaeConfig::default());
    // 1,500 latent frames, more than rope_max_seq_len, and 5,400,000 tokens.
    let long = of_config("wan-1.3b-minute.toml", &place, &folder, &["--set", "data.frames=5997"]);
    assert_eq!(long["tokens"], 5_400_000);
}
