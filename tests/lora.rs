//! LoRA files: every form of every golden case is read to the same adapters, what is written is read back and has the
//! same bytes again, and what cannot be understood is named and refused.
//!
//! The golden files and their story are in `golden/wan.py`.

mod command;
mod warnings;

use longreel::Error;
use longreel::files::{Tensors, write_tensors, write_tensors_with};
use longreel::lora::{self, Adapter, AdapterFile, Form, RunFacts};
use longreel::model::{ModelConfig, names};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The cases of `golden/lora`.
const CASES: [&str; 6] = ["t2v", "t2v_scaled", "t2v_mixed", "t2v_attention_only", "t2v_everything", "i2v"];

/// Values of a file: names, shapes, elements.
type Named = Vec<(String, Vec<usize>, Vec<f32>)>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/lora").join(case)
}

fn open(case: &str, form: &str) -> Result<AdapterFile, Error> {
    AdapterFile::open(&golden(case).join(format!("{form}.safetensors")))
}

/// All tensors of a file.
fn values(path: &Path) -> Named {
    let file = Tensors::open(path).unwrap();
    let value = |name: &str| (name.to_owned(), file.shape(name).unwrap().to_vec(), file.read_f32(name).unwrap());
    file.names().map(value).collect()
}

/// A copy of a golden file that `edit` has changed, in a folder of its own.
fn changed(case: &str, form: &str, edit: impl FnOnce(&mut Named)) -> (TempDir, PathBuf) {
    let mut all = values(&golden(case).join(format!("{form}.safetensors")));
    edit(&mut all);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("changed.safetensors");
    let file = Tensors::open(&golden(case).join(format!("{form}.safetensors"))).unwrap();
    let metadata = file.all_metadata();
    let metadata: Vec<_> =
        metadata.iter().filter(|(k, _)| *k != "format").map(|(k, v)| (k.as_str(), v.clone())).collect();
    write_tensors_with(&path, &metadata, all).unwrap();
    (dir, path)
}

/// Renames keys of a file.
fn renamed(case: &str, form: &str, name: impl Fn(&str) -> String) -> (TempDir, PathBuf) {
    changed(case, form, |all| all.iter_mut().for_each(|(key, ..)| *key = name(key)))
}

/// What was said of a file that is refused as damaged or not understood.
fn refused(path: &Path) -> String {
    refusal!(Data, AdapterFile::open(path))
}

/// The scales of a golden case's layers.
fn scales(case: &str) -> BTreeMap<String, f64> {
    let all = values(&golden(case).join("expected.safetensors"));
    all.into_iter().filter_map(|(k, _, v)| Some((k.strip_prefix("scale.")?.to_owned(), v[0].into()))).collect()
}

fn config(case: &str) -> ModelConfig {
    let own = golden(case).join("transformer/config.json");
    let path = if own.is_file() { own } else { golden("t2v").join("transformer/config.json") };
    ModelConfig::from_json(&serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()).unwrap()
}

/// B with its scale multiplied into it.
fn scaled_b(adapter: &Adapter) -> Vec<Vec<f32>> {
    adapter.modules.iter().map(|m| m.b.iter().map(|b| (f64::from(*b) * m.scale()) as f32).collect()).collect()
}

#[test]
fn every_form_of_every_case_is_read_exactly() {
    for case in CASES {
        let scales = scales(case);
        let file = values(&golden(case).join("diffusers.safetensors"));
        let tensor = |name: String| file.iter().find(|(n, ..)| *n == name).unwrap_or_else(|| panic!("{name}"));
        let mut order: Vec<Vec<String>> = vec![];
        for (form, wanted) in [
            ("diffusers", Form::Diffusers),
            ("comfy", Form::Comfy),
            ("comfy_alpha", Form::Comfy),
            ("kohya", Form::Kohya),
        ] {
            let read = open(case, form).unwrap_or_else(|e| panic!("{case} {form}: {e}"));
            assert_eq!(read.form, wanted, "{case} {form}");
            assert_eq!(read.adapter.modules.len(), scales.len(), "{case} {form}");
            for module in &read.adapter.modules {
                let at = format!("{case} {form} {}", module.name);
                let scale = scales[&module.name];
                let (_, a_shape, a) = tensor(format!("transformer.{}.lora_A.weight", module.name));
                let (_, b_shape, b) = tensor(format!("transformer.{}.lora_B.weight", module.name));
                assert_eq!(a_shape, &[module.rank, module.inner], "{at}");
                assert_eq!(b_shape, &[module.out, module.rank], "{at}");
                assert_eq!(&module.a, a, "{at}");
                let folded = form == "comfy";
                assert_eq!(module.scale() as f32, if folded { 1.0 } else { scale as f32 }, "{at}");
                let b: Vec<f32> = b.iter().map(|b| if folded { b * scale as f32 } else { *b }).collect();
                assert_eq!(module.b, b, "{at}");
            }
            order.push(read.adapter.modules.iter().map(|module| module.name.clone()).collect());
        }
        assert!(order.iter().all(|names| *names == order[0]), "{case}: one order whatever the form");
        if case != "i2v" {
            let layers: Vec<String> = lora::layers(&config(case)).into_iter().map(|(name, ..)| name).collect();
            let wanted: Vec<&String> = layers.iter().filter(|name| order[0].contains(name)).collect();
            assert_eq!(order[0].iter().collect::<Vec<_>>(), wanted, "{case}: the network's order");
        }
    }
}

/// Gives a key another name.
type Rename<'a> = &'a dyn Fn(&str) -> String;

#[test]
fn prefixes_of_other_trainers_are_read_alike() {
    let wanted = open("t2v", "comfy").unwrap().adapter;
    let plain = |key: &str| key.strip_prefix("diffusion_model.").unwrap().to_owned();
    let ds = |key: &str| plain(key).replace(".weight", ".default.weight");
    let renames: [(Rename, Form); 4] = [
        (&plain, Form::Plain),
        (&ds, Form::Plain),
        (&|key| format!("model.{key}"), Form::Comfy),
        (&|key| format!("base_model.model.{}", plain(key)), Form::Diffusers),
    ];
    for (rename, form) in renames {
        let (_dir, path) = renamed("t2v", "comfy", rename);
        let read = AdapterFile::open(&path).unwrap();
        assert_eq!((read.form, &read.adapter), (form, &wanted));
    }
    // peft's own folder, its settings beside the weights.
    let (dir, path) = renamed("t2v_mixed", "diffusers", |key| key.replacen("transformer.", "base_model.model.", 1));
    let all = values(&path);
    write_tensors(&dir.path().join("adapter_model.safetensors"), all).unwrap();
    let header: serde_json::Value =
        serde_json::from_str(&open("t2v_mixed", "diffusers").unwrap().metadata["lora_adapter_metadata"]).unwrap();
    let settings: serde_json::Map<_, _> =
        header.as_object().unwrap().iter().map(|(k, v)| (k.replace("transformer.", ""), v.clone())).collect();
    std::fs::write(dir.path().join("adapter_config.json"), serde_json::to_vec(&settings).unwrap()).unwrap();
    let read = AdapterFile::open(dir.path()).unwrap();
    assert_eq!(read.adapter, open("t2v_mixed", "diffusers").unwrap().adapter);
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    let without = AdapterFile::open(dir.path()).unwrap();
    assert!(without.adapter.modules.iter().all(|module| module.scale() == 1.0), "alpha is the rank");
}

#[test]
fn what_is_written_is_read_back_and_written_alike() {
    let facts = RunFacts {
        architecture: Some("wan2.1/lora".into()),
        learning_rate: Some(2e-5),
        steps: Some(400),
        seed: Some(7),
        name: Some("boats".into()),
        config: Some(serde_json::json!({"lora": {"rank": 4}})),
        ..RunFacts::default()
    };
    for case in CASES {
        let adapter = open(case, "diffusers").unwrap().adapter;
        for form in [Form::Comfy, Form::Diffusers, Form::Kohya] {
            let dir = TempDir::new().unwrap();
            let at = |name: &str| dir.path().join(name);
            let written = lora::write(&at("1"), &adapter, form, &facts.metadata());
            if form == Form::Kohya && ["t2v_attention_only", "t2v_everything"].contains(&case) {
                let said = refusal!(Config, written);
                let word = if case == "t2v_everything" { "outside" } else { "blocks.0.ffn.net.0.proj" };
                assert!(said.contains(word) && said.contains("comfy"), "{said}");
                assert!(!at("1").exists());
                continue;
            }
            written.unwrap();
            let again = AdapterFile::open(&at("1")).unwrap();
            assert_eq!(again.form, form);
            let wanted = if form == Form::Comfy { adapter.clone().folded() } else { adapter.clone() };
            assert_eq!(again.adapter, wanted, "{case} {form:?}");
            assert_eq!(scaled_b(&again.adapter), scaled_b(&adapter), "{case} {form:?}");
            assert_eq!(again.metadata["ss_learning_rate"], "0.00002");
            assert_eq!(again.metadata["longreel.config"], r#"{"lora":{"rank":4}}"#);
            assert_eq!(again.metadata["format"], "pt");
            lora::write(&at("2"), &again.adapter, form, &again.metadata).unwrap();
            assert!(std::fs::read(at("1")).unwrap() == std::fs::read(at("2")).unwrap(), "{case} {form:?}: other bytes");
        }
    }
}

#[test]
fn the_comfy_form_is_the_golden_one() {
    for case in CASES {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("comfy.safetensors");
        lora::write(&path, &open(case, "diffusers").unwrap().adapter, Form::Comfy, &BTreeMap::new()).unwrap();
        assert_eq!(values(&path), values(&golden(case).join("comfy.safetensors")), "{case}");
        let header = Tensors::open(&path).unwrap().all_metadata();
        let keys = ["format", "ss_base_model_version", "ss_network_alpha", "ss_network_dim", "ss_network_module"];
        assert_eq!(header.keys().map(String::as_str).collect::<Vec<_>>(), keys);
        assert_eq!(header["ss_network_dim"] == "Dynamic", case == "t2v_mixed");
    }
}

#[test]
fn half_precision_is_read() {
    use safetensors::{Dtype, tensor::TensorView};
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("half.safetensors");
    let key = |part: &str| format!("diffusion_model.blocks.3.ffn.0.{part}.weight");
    let (a, b) = ([half::bf16::from_f32(0.15625); 6], [half::f16::from_f32(-2.5); 8]);
    let (a, b): (&[u8], &[u8]) = (bytemuck::cast_slice(&a), bytemuck::cast_slice(&b));
    let a = TensorView::new(Dtype::BF16, vec![2, 3], a).unwrap();
    let b = TensorView::new(Dtype::F16, vec![4, 2], b).unwrap();
    safetensors::serialize_to_file([(key("lora_A"), a.clone()), (key("lora_B"), b)], None, &path).unwrap();
    let read = AdapterFile::open(&path).unwrap();
    let module = read.adapter.module("blocks.3.ffn.net.0.proj").unwrap();
    assert_eq!((module.a.clone(), module.b.clone()), (vec![0.15625; 6], vec![-2.5; 8]));
    assert_eq!(read.dtypes, [Dtype::F16, Dtype::BF16]);
    let f8 = TensorView::new(Dtype::F8_E4M3, vec![4, 2], &[0; 8]).unwrap();
    safetensors::serialize_to_file([(key("lora_A"), a), (key("lora_B"), f8)], None, &path).unwrap();
    let said = refused(&path);
    assert!(said.contains("8 bits") && said.contains("blocks.3.ffn.0.lora_B"), "{said}");
}

#[test]
fn keys_that_would_be_ignored_are_named() {
    let one = |key: &str| (key.to_owned(), vec![1], vec![1.0]);
    for (key, word) in [
        ("diffusion_model.blocks.0.norm3.diff", "whole changes"),
        ("diffusion_model.blocks.1.ffn.0.diff_b", "whole changes"),
        ("diffusion_model.blocks.0.ffn.0.dora_scale", "DoRA"),
        ("diffusion_model.blocks.0.ffn.0.lora_magnitude_vector.default.weight", "DoRA"),
        ("diffusion_model.blocks.0.ffn.0.lora_B.bias", "biases of A or B"),
        ("diffusion_model.blocks.0.ffn.0.lokr_w1", "another decomposition"),
        ("diffusion_model.blocks.0.ffn.0.hada_w1_a", "another decomposition"),
        ("transformer_2.blocks.0.attn1.to_q.lora_A.weight", "second expert"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "no layer of Wan"),
        ("diffusion_model.blocks.0.self_attn.qkv.lora_A.weight", "no layer of Wan"),
        ("diffusion_model.blocks.01.self_attn.q.lora_A.weight", "no layer of Wan"),
        ("diffusion_model.blocks.0.self_attn.norm_q.lora_A.weight", "no linear layers"),
        ("diffusion_model.patch_embedding.lora_A.weight", "no linear layers"),
        ("step", "no layer of Wan"),
    ] {
        let (_dir, path) = changed("t2v", "comfy", |all| all.push(one(key)));
        let said = refused(&path);
        assert!(said.contains(word) && said.contains(key) && said.contains("1 key"), "{key}: {said}");
    }
    let (_dir, path) = changed("t2v", "comfy", |all| {
        all.extend([one("diffusion_model.blocks.0.norm3.diff"), one("diffusion_model.blocks.1.norm3.diff"), one("x")]);
    });
    let said = refused(&path);
    for word in ["2 keys", "diffusion_model.blocks.{N}.norm3.diff (2 blocks)", "1 key", ": x"] {
        assert!(said.contains(word), "no {word} in: {said}");
    }
    let said = refused(&golden("t2v").join("transformer/diffusion_pytorch_model.safetensors"));
    assert!(said.contains("not a LoRA file"), "{said}");
}

#[test]
fn halves_and_shapes_that_do_not_fit_are_refused() {
    let key = "diffusion_model.blocks.0.ffn.0.lora_B.weight";
    let (_dir, path) = changed("t2v", "comfy", |all| all.retain(|(name, ..)| name != key));
    assert!(refused(&path).contains("blocks.0.ffn.0.lora_A.weight`, but not its B"));
    let shape = |shape: &[usize]| {
        let shape = shape.to_vec();
        changed("t2v", "comfy", move |all| {
            let b = all.iter_mut().find(|(name, ..)| name == key).unwrap();
            *b = (key.into(), shape.clone(), vec![1.0; shape.iter().product()]);
        })
    };
    for wrong in [&[36, 5][..], &[36, 4, 1, 1], &[0, 4]] {
        let (_dir, path) = shape(wrong);
        assert!(refused(&path).contains(key), "{wrong:?}");
    }
    let (_dir, path) = changed("t2v", "comfy", |all| all[3].2[1] = f32::NAN);
    assert!(refused(&path).contains("NaN"));
    let (_dir, path) =
        changed("t2v", "comfy", |all| all.push(("lora_unet_blocks_0_ffn_0.alpha".into(), vec![], vec![4.0])));
    assert!(refused(&path).contains("mixes the names of two forms"));
    let (_dir, path) = changed("t2v", "comfy_alpha", |all| {
        let key = "diffusion_model.blocks.0.ffn.0.lora_A.weight";
        all.push((key.into(), vec![4, 24], vec![1.0; 96]));
    });
    assert!(refused(&path).contains("one of them is too many"));
    let dir = TempDir::new().unwrap();
    for (bytes, word) in [(&b"GGUF\x03\0\0\0xxxx"[..], "GGUF"), (b"PK\x03\x04\0\0\0\0xxxx", "PyTorch")] {
        let path = dir.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        assert!(refused(&path).contains(word));
    }
}

#[test]
fn scales_in_unexpected_places() {
    // Two that differ are no scale at all.
    let (_dir, path) = changed("t2v_scaled", "diffusers", |all| {
        all.push(("transformer.blocks.0.attn1.to_q.alpha".into(), vec![], vec![4.0]));
    });
    let said = refused(&path);
    assert!(said.contains("blocks.0.attn1.to_q is 4 as a tensor and 6 in the header"), "{said}");
    // An alpha tensor without a header counts, here as anywhere; diffusers refuses it, which a warning says.
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("x.safetensors");
    let mut all = values(&golden("t2v_scaled").join("diffusers.safetensors"));
    all.push(("transformer.blocks.0.attn1.to_q.alpha".into(), vec![], vec![2.0]));
    write_tensors(&path, all).unwrap();
    let read = AdapterFile::open(&path).unwrap();
    let scaled: Vec<_> = read.adapter.modules.iter().filter(|module| module.scale() != 1.0).collect();
    assert_eq!((scaled.len(), scaled[0].name.as_str(), scaled[0].scale()), (1, "blocks.0.attn1.to_q", 0.5));
    // The header's numbers must fit the tensors, and be understood.
    let with = |field: &str, value: &str| {
        let mut header: serde_json::Value =
            serde_json::from_str(&open("t2v_scaled", "diffusers").unwrap().metadata["lora_adapter_metadata"]).unwrap();
        header[format!("transformer.{field}")] = serde_json::from_str(value).unwrap();
        let all = values(&golden("t2v_scaled").join("diffusers.safetensors"));
        write_tensors_with(&path, &[("lora_adapter_metadata", header.to_string())], all).unwrap();
        AdapterFile::open(&path)
    };
    assert_eq!(with("use_rslora", "true").unwrap().adapter.modules[0].scale(), 3.0, "6 / sqrt(4)");
    for (field, value, word) in [
        ("r", "8", "rank 4 in the file, and 8"),
        ("r", "\"x\"", "not a number"),
        ("use_dora", "true", "use_dora"),
        ("lora_bias", "true", "lora_bias"),
        ("bias", "\"all\"", "biases"),
        ("alpha_pattern", r#"{"blocks.[01].*": 3}"#, "not understood"),
        ("alpha_pattern", r#"{"attn1.to_q": 3, "^blocks.0.attn1.to_q": 5}"#, "two values"),
        ("rank_pattern", "[1]", "not an object"),
    ] {
        let said = refusal!(Data, with(field, value));
        assert!(said.contains(word), "{field} {value}: {said}");
    }
}

#[test]
fn a_lora_for_another_model_is_refused() {
    let adapter = open("t2v", "comfy").unwrap().adapter;
    let own = config("t2v");
    adapter.check(&own).unwrap();
    open("t2v_everything", "comfy").unwrap().adapter.check(&config("t2v_everything")).unwrap();
    let said = refusal!(Shape, adapter.check(&ModelConfig::default()));
    assert!(said.contains("24 wide") && said.contains("5120 (Wan 14B)"), "{said}");
    let said = refusal!(Shape, adapter.check(&ModelConfig { num_layers: 1, ..own.clone() }));
    assert!(said.contains("2 blocks, the model 1") && said.contains("blocks.1.attn1.to_q"), "{said}");
    let said = refusal!(Shape, adapter.check(&ModelConfig { ffn_dim: 40, ..own.clone() }));
    assert!(said.contains("ffn.net.0.proj maps 24 to 36 features, in the model 24 to 40"), "{said}");
    let said = refusal!(Shape, open("i2v", "comfy").unwrap().adapter.check(&own));
    assert!(said.contains("image-conditioned") && said.contains("blocks.0.attn2.add_k_proj"), "{said}");
}

#[test]
fn names_of_both_kinds_lead_to_each_other() {
    let full = ModelConfig::default();
    for (name, _) in longreel::model::Model::shapes(&full) {
        let original = names::original_parameter(&name).unwrap_or_else(|| panic!("{name}"));
        assert_eq!(names::parameter(&original).as_deref(), Some(name.as_str()), "{original}");
        assert!(!original.contains("attn1") && !original.contains("condition_embedder"), "{original}");
    }
    for (original, name) in [
        ("blocks.7.norm3.bias", "blocks.7.norm2.bias"),
        ("blocks.7.modulation", "blocks.7.scale_shift_table"),
        ("head.modulation", "scale_shift_table"),
        ("blocks.39.cross_attn.norm_k_img.weight", "blocks.39.attn2.norm_added_k.weight"),
        ("img_emb.proj.1.weight", "condition_embedder.image_embedder.ff.net.0.proj.weight"),
        ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ] {
        assert_eq!(names::parameter(original).as_deref(), Some(name));
        assert_eq!(names::original_parameter(name).as_deref(), Some(original));
        assert_eq!(names::is_of_images(name), original.contains("img"), "{name}");
    }
    for (layer, _, _) in lora::layers(&full) {
        let underscored = names::original_layer(&layer).unwrap().replace('.', "_");
        assert_eq!(names::layer_of_underscored(&underscored).as_deref(), Some(layer.as_str()));
    }
    for nothing in ["", "blocks", "blocks.0", "blocks.x.modulation", "blocks.0.self_attn.q", "head.head.weight.x"] {
        assert_eq!(names::parameter(nothing), None, "{nothing}");
    }
    for nothing in ["blocks.0.modulation.weight", "blocks.-1.ffn.0.weight", "blocks.00.ffn.0.weight", "ffn.0.weight"] {
        assert_eq!(names::parameter(nothing), None, "{nothing}");
    }
}
