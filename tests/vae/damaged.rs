//! What is said of files that are no VAE of Wan's, or one that is damaged, quantised or lacks something.

use super::golden;
use longreel::vae::VaeWeights;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A copy of the 2.1 golden VAE, its config changed.
fn changed(key: &str, value: &str) -> TempDir {
    let (dir, vae) = (TempDir::new().unwrap(), golden("vae21").join("vae"));
    for entry in fs::read_dir(&vae).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    let mut json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(vae.join("config.json")).unwrap()).unwrap();
    json[key] = serde_json::from_str(value).unwrap();
    fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    dir
}

#[test]
fn folders_that_are_no_vae_are_refused_with_their_reason() {
    for (key, value, reason) in [
        ("_class_name", "\"AutoencoderKL\"", "AutoencoderKLWan"),
        ("z_dim", "0", "z_dim = 0"),
        ("base_dim", "99999999999", "base_dim"),
        ("latents_std", "[1, 2]", "latents_std has 2 values"),
        ("latents_std", "[1, 0, 1]", "not above 0"),
        ("attn_scales", "[0.5]", "attn_scales"),
        ("in_channels", "4", "in_channels"),
        ("temperal_downsample", "[true]", "temperal_downsample"),
        ("dim_mult", "[1, -2, 4, 4]", "dim_mult"),
    ] {
        let said = refusal!(Data, VaeWeights::open(changed(key, value).path()).map(drop));
        assert!(said.contains(reason), "{key} = {value}: {said}");
    }
    for (key, value, reason) in [("base_dim", "8", "another shape"), ("num_res_blocks", "3", "missing")] {
        let said = refusal!(Shape, VaeWeights::open(changed(key, value).path()).map(drop));
        assert!(said.contains(reason), "{key} = {value}: {said}");
    }
    let dir = TempDir::new().unwrap();
    assert!(refusal!(Data, VaeWeights::open(dir.path()).map(drop)).contains("config.json"));
    let transformer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/batch/transformer");
    let weights = transformer.join("diffusion_pytorch_model.safetensors");
    fs::copy(weights, dir.path().join("some.safetensors")).unwrap();
    let said = refusal!(Data, VaeWeights::open(&dir.path().join("some.safetensors")).map(drop));
    assert!(said.contains("not a VAE"), "{said}");
    for (name, keep) in [("cut.pth", 100_000), ("short.pth", 40)] {
        let bytes = fs::read(golden("vae21").join("original.pth")).unwrap();
        fs::write(dir.path().join(name), &bytes[..keep]).unwrap();
        let said = refusal!(Data, VaeWeights::open(&dir.path().join(name)).map(drop));
        assert!(said.contains(name), "{said}");
    }
}

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// A tensor: name, type, shape, bytes.
type Raw = (String, Dtype, Vec<usize>, Vec<u8>);

/// A copy of the 2.1 golden VAE, its tensors changed.
fn rewritten(change: impl FnOnce(&mut Vec<Raw>)) -> TempDir {
    let (dir, vae) = (TempDir::new().unwrap(), golden("vae21").join("vae"));
    fs::copy(vae.join("config.json"), dir.path().join("config.json")).unwrap();
    let bytes = fs::read(vae.join(WEIGHTS)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |(name, view): (String, TensorView)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec());
    let mut all: Vec<Raw> = file.tensors().into_iter().map(raw).collect();
    change(&mut all);
    let views = all.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.as_str(), view)
    });
    safetensors::serialize_to_file(views, None, &dir.path().join(WEIGHTS)).unwrap();
    dir
}

/// The first of tensors with this name.
fn named<'a>(all: &'a mut [Raw], name: &str) -> &'a mut Raw {
    all.iter_mut().find(|tensor| tensor.0 == name).unwrap()
}

#[test]
fn missing_extra_and_misshapen_tensors_are_named() {
    let said = |dir: TempDir| refusal!(Shape, VaeWeights::open(dir.path()).map(drop));
    let missing = said(rewritten(|all| all.retain(|tensor| tensor.0 != "decoder.conv_out.bias")));
    assert!(missing.contains("1 missing (`decoder.conv_out.bias`)"), "{missing}");
    let extra = |name: &str| (name.to_owned(), Dtype::F32, vec![1], vec![0; 4]);
    let said_of_extra = said(rewritten(|all| all.extend([extra("encoder.extra"), extra("loss.weight")])));
    assert!(said_of_extra.contains("2 not known (`encoder.extra`, `loss.weight`)"), "{said_of_extra}");
    let misshapen = said(rewritten(|all| {
        let (_, dtype, shape, data) = named(all, "encoder.conv_in.bias");
        (*dtype, *shape, *data) = (Dtype::F32, vec![5], vec![0; 20]);
    }));
    assert!(misshapen.contains("`encoder.conv_in.bias` is [5], not [4]"), "{misshapen}");
}

/// Whichever half they are in, and whether or not that half is needed.
#[test]
fn eight_bits_are_refused_by_name_when_a_vae_is_opened() {
    for name in ["encoder.conv_in.weight", "decoder.conv_in.weight"] {
        let dir = rewritten(|all| {
            let (_, dtype, shape, data) = named(all, name);
            (*dtype, *data) = (Dtype::F8_E4M3, vec![0; shape.iter().product()]);
        });
        let said = refusal!(Data, VaeWeights::open(dir.path()).map(drop));
        assert!(said.contains("8-bit floats") && said.contains(name), "{said}");
    }
    for name in ["scaled_fp8", "encoder.conv_in.scale_weight"] {
        let dir = rewritten(|all| all.push((name.into(), Dtype::F32, vec![1], vec![0; 4])));
        let said = refusal!(Data, VaeWeights::open(dir.path()).map(drop));
        assert!(said.contains(&format!("8-bit floats (`{name}`")), "{said}");
    }
    let dir = rewritten(|_| ());
    fs::write(dir.path().join(WEIGHTS), b"GGUF\x03\0\0\0and more").unwrap();
    assert!(refusal!(Data, VaeWeights::open(dir.path()).map(drop)).contains("GGUF"));
}

#[test]
fn checkpoints_of_other_networks_are_no_vae() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let dir = TempDir::new().unwrap();
    // By themselves, whatever they are called, since a config.json beside a file tells what it is of.
    for (from, to) in [
        ("text/models_t5_original.pth", "Wan2.1_VAE.pth"),
        ("text/text_encoder/model.safetensors", "text.safetensors"),
        ("tokens/transformer/diffusion_pytorch_model.safetensors", "transformer.safetensors"),
        ("lora/t2v/comfy.safetensors", "lora.safetensors"),
    ] {
        fs::copy(root.join(from), dir.path().join(to)).unwrap();
        let said = refusal!(Data, VaeWeights::open(&dir.path().join(to)).map(drop));
        assert!(said.contains("is not a VAE of Wan") && said.contains(to), "{from}: {said}");
    }
    // A folder like Wan's own, in which that file is taken for the VAE.
    let said = refusal!(Data, VaeWeights::open(dir.path()).map(drop));
    assert!(said.contains("Wan2.1_VAE.pth: is not a VAE of Wan"), "{said}");
    for (from, word) in [("tokens/transformer", "WanTransformer3DModel"), ("text/text_encoder", "AutoencoderKLWan")] {
        let said = refusal!(Data, VaeWeights::open(&root.join(from)).map(drop));
        assert!(said.contains("config.json: ") && said.contains(word), "{from}: {said}");
    }
}
