//! Transformers in every layout that they are published in compute the same; variants are known by their sizes; what
//! is not read is refused with what it is.

use longreel::files::Tensors;
use longreel::model::layout::Layout;
use longreel::model::variant::Variant;
use longreel::model::{Model, ModelConfig, names};
use longreel::state::named::NamedModel;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// Tensors of a file: name, type, shape, bytes.
type Raw = Vec<(String, Dtype, Vec<usize>, Vec<u8>)>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join("transformer")
}

fn raw(case: &str) -> Raw {
    let bytes = fs::read(golden(case).join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(n, v)| (n, v.dtype(), v.shape().to_vec(), v.data().to_vec())).collect()
}

fn write(path: &Path, tensors: &Raw) {
    let views = tensors.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A case's tensors under Wan's own names, after a prefix.
fn original(case: &str, prefix: &str) -> Raw {
    let mut all = raw(case);
    all.iter_mut().for_each(|(name, ..)| *name = format!("{prefix}{}", names::original_parameter(name).unwrap()));
    all
}

/// The config.json that Wan's own folder would have.
fn wans_config(case: &str) -> Value {
    let config: Value = serde_json::from_slice(&fs::read(golden(case).join("config.json")).unwrap()).unwrap();
    let heads = config["num_attention_heads"].as_u64().unwrap();
    json!({
        "_class_name": "WanModel", "_diffusers_version": "0.30.0", "model_type": "t2v", "text_len": 512,
        "dim": heads * config["attention_head_dim"].as_u64().unwrap(), "num_heads": heads,
        "ffn_dim": config["ffn_dim"], "freq_dim": config["freq_dim"], "in_dim": config["in_channels"],
        "out_dim": config["out_channels"], "num_layers": config["num_layers"], "eps": config["eps"],
        "text_dim": config["text_dim"],
    })
}

/// The parameters that a name leads to.
fn parameters(path: &Path) -> (ModelConfig, Vec<Vec<f32>>) {
    let (_, folder) = NamedModel::opened(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let config = ModelConfig::of(&folder).unwrap();
    assert_eq!(NamedModel::find(path).unwrap().config().unwrap(), config);
    folder.check(&Model::shapes(&config)).unwrap();
    let values = Model::shapes(&config).iter().map(|(name, _)| folder.read_f32(name).unwrap()).collect();
    (config, values)
}

fn refused(path: &Path) -> String {
    match NamedModel::opened(path).and_then(|(_, folder)| ModelConfig::of(&folder)) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("{} is taken", path.display()),
    }
}

#[test]
fn every_layout_gives_the_same_parameters() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let config = || fs::read(golden("tokens").join("config.json")).unwrap();
    let wanted = parameters(&golden("tokens"));
    // A pipeline.
    fs::create_dir_all(at("pipeline/transformer")).unwrap();
    fs::write(at("pipeline/model_index.json"), "{}").unwrap();
    fs::write(at("pipeline/transformer/config.json"), config()).unwrap();
    write(&at("pipeline/transformer").join(WEIGHTS), &raw("tokens"));
    // Wan's own folder, whole and in shards.
    fs::create_dir_all(at("wan")).unwrap();
    fs::write(at("wan/config.json"), wans_config("tokens").to_string()).unwrap();
    write(&at("wan").join(WEIGHTS), &original("tokens", ""));
    fs::create_dir_all(at("shards")).unwrap();
    fs::write(at("shards/config.json"), wans_config("tokens").to_string()).unwrap();
    let all = original("tokens", "");
    let (first, second) = all.split_at(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (i, part) in [first, second].into_iter().enumerate() {
        let file = format!("diffusion_pytorch_model-{:05}-of-00002.safetensors", i + 1);
        write(&at("shards").join(&file), &part.to_vec());
        map.extend(part.iter().map(|(name, ..)| (name.clone(), json!(file))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(at("shards/diffusion_pytorch_model.safetensors.index.json"), index.to_string()).unwrap();
    // Single files beside a config, with a prefix and other parts of a checkpoint.
    fs::create_dir_all(at("files")).unwrap();
    fs::write(at("files/config.json"), config()).unwrap();
    let mut single = original("tokens", "model.diffusion_model.");
    single.push(("first_stage_model.encoder.conv1.weight".into(), Dtype::F32, vec![1], vec![0; 4]));
    write(&at("files/single.safetensors"), &single);
    write(&at("files/bare.safetensors"), &original("tokens", ""));
    write(&at("files/prefixed.safetensors"), &original("tokens", "diffusion_model."));
    for name in [
        "pipeline",
        "pipeline/transformer",
        "wan",
        "shards",
        "files/single.safetensors",
        "files/bare.safetensors",
        "files/prefixed.safetensors",
        "wan/diffusion_pytorch_model.safetensors",
    ] {
        let found = parameters(&at(name));
        assert!(found == wanted, "{name} has other parameters than diffusers' folder");
    }
}

#[test]
fn every_float_type_is_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::copy(golden("tokens").join("config.json"), dir.path().join("config.json")).unwrap();
    let (_, wanted) = parameters(&golden("tokens"));
    for dtype in [Dtype::F64, Dtype::BF16, Dtype::F16] {
        let mut all = original("tokens", "");
        for (_, stored, _, bytes) in &mut all {
            let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            *bytes = match dtype {
                Dtype::F64 => values.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
                Dtype::BF16 => values.flat_map(|x| half::bf16::from_f32(x).to_le_bytes()).collect(),
                _ => values.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
            };
            *stored = dtype;
        }
        write(&path, &all);
        let (_, found) = parameters(&path);
        for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
            let rounded = match dtype {
                Dtype::F64 => *wanted,
                Dtype::BF16 => half::bf16::from_f32(*wanted).to_f32(),
                _ => half::f16::from_f32(*wanted).to_f32(),
            };
            assert_eq!(*found, rounded, "{dtype:?}");
        }
    }
    let mut all = original("tokens", "");
    let (name, stored, shape, bytes) = &mut all[3];
    (*stored, *bytes) = (Dtype::F8_E4M3, vec![0; shape.iter().product()]);
    let name = name.clone();
    write(&path, &all);
    let said = refused(&path);
    assert!(said.contains("8 bits") && said.contains(&name), "{said}");
    fs::write(&path, b"GGUF\x03\0\0\0\0\0\0\0").unwrap();
    assert!(refused(&path).contains("GGUF"));
}

#[test]
fn checkpoints_of_other_networks_are_no_transformer() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = TempDir::new().unwrap();
    // By themselves: a config.json beside a file tells what it is of.
    for (name, from, reason) in [
        ("vae.safetensors", "vae/vae21/vae/diffusion_pytorch_model.safetensors", "no `patch_embedding.weight`"),
        ("text.safetensors", "text/text_encoder/model.safetensors", "no `patch_embedding.weight`"),
        ("lora.safetensors", "lora/t2v/comfy.safetensors", "no `patch_embedding.weight`"),
        ("vae.pth", "vae/vae21/original.pth", "a PyTorch file"),
    ] {
        fs::copy(root.join(from), dir.path().join(name)).unwrap();
        let said = refused(&dir.path().join(name));
        assert!(said.contains(reason) && said.contains(name), "{said}");
    }
    let said = refused(&root.join("vae/vae21/vae"));
    assert!(said.contains("_class_name is AutoencoderKLWan"), "{said}");
}

#[test]
fn a_file_without_a_config_has_the_sizes_of_its_tensors() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("comfy.safetensors");
    // Heads of 128, as in every published model.
    let wanted = ModelConfig {
        num_attention_heads: 2,
        attention_head_dim: 128,
        in_channels: 12,
        out_channels: 4,
        text_dim: 24,
        freq_dim: 16,
        ffn_dim: 40,
        num_layers: 2,
        ..ModelConfig::default()
    };
    let zeros = |shapes: Vec<(String, Vec<usize>)>| -> Raw {
        let named = |name: &str| format!("model.diffusion_model.{}", names::original_parameter(name).unwrap());
        let bytes = |shape: &[usize]| vec![0; 2 * shape.iter().product::<usize>()];
        shapes.into_iter().map(|(name, shape)| (named(&name), Dtype::BF16, shape.clone(), bytes(&shape))).collect()
    };
    write(&path, &zeros(Model::shapes(&wanted)));
    assert_eq!(parameters(&path).0, wanted);
    // One for images is known for what it is.
    let mut config = wanted.to_json();
    config["image_dim"] = json!(20);
    config["added_kv_proj_dim"] = json!(256);
    config["pos_embed_seq_len"] = json!(10);
    let variant = Variant::of_config(&config).unwrap();
    write(&path, &zeros(variant.shapes()));
    assert!(refused(&path).contains("I2V"));
    let layout = Layout::open(&path).unwrap();
    let again = Variant::of_config(&layout.config).unwrap();
    assert_eq!((again.image, &again.config), (variant.image, &wanted));
    assert!(again.unsupported().unwrap().contains("I2V"));
    // Another width tells nothing of heads.
    write(&path, &original("tokens", ""));
    let said = refused(&path);
    assert!(said.contains("32 wide") && said.contains("config.json"), "{said}");
    let mut all = zeros(Model::shapes(&wanted));
    all.retain(|(name, ..)| !name.contains("head.head"));
    write(&path, &all);
    assert!(refused(&path).contains("proj_out.weight"));
}

#[test]
fn two_experts_and_images_are_refused_with_what_they_are() {
    let dir = TempDir::new().unwrap();
    for experts in [["transformer", "transformer_2"], ["high_noise_model", "low_noise_model"]] {
        let path = dir.path().join(experts[0].to_owned() + "s");
        for expert in experts {
            fs::create_dir_all(path.join(expert)).unwrap();
            fs::copy(golden("tokens").join("config.json"), path.join(expert).join("config.json")).unwrap();
            fs::copy(golden("tokens").join(WEIGHTS), path.join(expert).join(WEIGHTS)).unwrap();
        }
        let said = refused(&path);
        assert!(said.contains("two experts") && experts.iter().all(|expert| said.contains(expert)), "{said}");
        parameters(&path.join(experts[1]));
    }
    assert!(refused(&golden("lora/i2v")).contains("I2V"));
    fs::write(dir.path().join("config.json"), {
        let mut config = wans_config("tokens");
        config["model_type"] = json!("i2v");
        config.to_string()
    })
    .unwrap();
    write(&dir.path().join(WEIGHTS), &original("tokens", ""));
    assert!(refused(dir.path()).contains("model_type is i2v"));
}

/// diffusers' config of a published variant.
fn published(width: usize, [in_channels, out_channels]: [usize; 2], image: [Option<usize>; 3]) -> Value {
    let (ffn, layers) = match width {
        1536 => (8960, 30),
        3072 => (14336, 30),
        _ => (13824, 40),
    };
    let mut json = ModelConfig {
        num_attention_heads: width / 128,
        ffn_dim: ffn,
        num_layers: layers,
        in_channels,
        out_channels,
        ..ModelConfig::default()
    }
    .to_json();
    for (key, size) in ["image_dim", "added_kv_proj_dim", "pos_embed_seq_len"].into_iter().zip(image) {
        json[key] = json!(size);
    }
    json
}

#[test]
fn published_variants_have_their_names_and_parameters() {
    const NONE: [Option<usize>; 3] = [None; 3];
    for (json, name, count, supported) in [
        (published(1536, [16, 16], NONE), "Wan 2.1 T2V 1.3B", 1_418_996_800_u64, true),
        (published(3072, [48, 48], NONE), "Wan 2.2 TI2V 5B", 4_999_787_712, true),
        (published(5120, [16, 16], NONE), "Wan 2.1 T2V 14B", 14_288_491_584, true),
        (published(5120, [36, 16], NONE), "Wan 2.2 I2V A14B", 14_288_901_184, false),
        (published(5120, [36, 16], [Some(1280), Some(5120), None]), "Wan 2.1 I2V 14B", 16_394_878_784, false),
        (
            published(5120, [36, 16], [Some(1280), Some(5120), Some(514)]),
            "Wan 2.1 FLF2V 14B",
            16_394_878_784 + 657_920,
            false,
        ),
    ] {
        let variant = Variant::of_config(&json).unwrap();
        assert!(variant.name().contains(name), "{} is no {name}", variant.name());
        let shapes = variant.shapes();
        let elements: u64 = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        assert_eq!(elements, count, "{name}");
        assert_eq!(variant.unsupported().is_none(), supported, "{name}");
        for (key, _) in &shapes {
            let original = names::original_parameter(key).unwrap_or_else(|| panic!("{key}"));
            assert_eq!(names::parameter(&original).as_ref(), Some(key));
        }
    }
    // The image-conditioned parameters are those of diffusers' own class.
    let config = serde_json::from_slice(&fs::read(golden("lora/i2v").join("config.json")).unwrap()).unwrap();
    let file = Tensors::open(&golden("lora/i2v").join(WEIGHTS)).unwrap();
    file.check(&Variant::of_config(&config).unwrap().shapes()).unwrap();
}
