//! Names and shapes of parameters: diffusers' for its configs, and those of longreel's own parts.

use super::{Helpers, normal, random, tiny};
use candle_core::DType;
use longreel::model::{Model, ModelConfig};
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::path::Path;

fn count(config: &ModelConfig) -> usize {
    Model::shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn wans_have_their_published_sizes() {
    let wan_14b = ModelConfig::default();
    let wan_1_3b = ModelConfig { num_attention_heads: 12, ffn_dim: 8960, num_layers: 30, ..ModelConfig::default() };
    assert_eq!(count(&wan_1_3b), 1_418_996_800);
    assert_eq!(count(&wan_14b), 14_288_491_584);
}

/// Every name and shape of diffusers' files, and no other.
#[test]
fn names_and_shapes_are_diffusers() {
    for case in ["batch", "bf16", "long", "shards"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join("transformer");
        let config = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let ours: BTreeMap<_, _> = Model::shapes(&ModelConfig::from_json(&config).unwrap()).into_iter().collect();
        let mut theirs = BTreeMap::new();
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|e| e == "safetensors") {
                let bytes = std::fs::read(path).unwrap();
                for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                    theirs.insert(name, view.shape().to_vec());
                }
            }
        }
        assert!(!theirs.is_empty());
        assert_eq!(ours, theirs, "{case}");
    }
}

#[test]
fn parts_that_are_off_have_no_parameters() {
    let has = |config: &ModelConfig, word: &str| Model::shapes(config).iter().any(|(name, _)| name.contains(word));
    let all = tiny();
    for word in ["attn2", "norm2", "text_embedder", "class_embedder"] {
        assert!(has(&all, word), "{word}");
    }
    let no_text = ModelConfig { text_dim: 0, ..tiny() };
    for word in ["attn2", "norm2", "text"] {
        assert!(!has(&no_text, word), "{word}");
    }
    assert!(!has(&ModelConfig { cross_attn_norm: false, ..tiny() }, "norm2"));
    assert!(!has(&ModelConfig { num_classes: 0, ..tiny() }, "class"));
    // Positions are fixed.
    assert_eq!(Model::shapes(&all), Model::shapes(&ModelConfig { pos_embed: false, ..tiny() }));
    // The null class is one more row.
    let (_, table) = Model::shapes(&all).into_iter().find(|(name, _)| name.contains("class")).unwrap();
    assert_eq!(table, [5, 24]);
}

/// A model's units hold exactly the parameters of its shapes, one after another without gaps.
#[test]
fn units_hold_every_parameter_once() {
    let model = Model::zeros(&tiny(), DType::F32, false).unwrap();
    let held: Vec<_> = model.units.iter().flat_map(|u| &u.entries).map(|e| (e.name.clone(), e.shape.clone())).collect();
    assert_eq!(held, Model::shapes(&tiny()));
    assert_eq!(model.count(), count(&tiny()));
    assert_eq!(
        model.units.iter().map(|u| u.name.as_str()).collect::<Vec<_>>(),
        ["embed", "blocks.0", "blocks.1", "head"]
    );
    for unit in &model.units {
        let mut at = 0;
        for entry in &unit.entries {
            assert_eq!((entry.range.start, entry.range.len()), (at, entry.shape.iter().product()), "{}", entry.name);
            at = entry.range.end;
        }
        assert_eq!(unit.value.elem_count(), at);
        assert_eq!(unit.grad().unwrap().elem_count(), at);
    }
}

/// Decay is for matrices: no bias, norm, table or embedding of classes.
#[test]
fn matrices_decay() {
    let model = Model::zeros(&tiny(), DType::F32, false).unwrap();
    for entry in model.units.iter().flat_map(|u| &u.entries) {
        let matrix = entry.name.ends_with(".weight") && !entry.name.contains("norm") && !entry.name.contains("class");
        assert_eq!(entry.decay, matrix, "{}", entry.name);
    }
}

#[test]
fn loading_asks_for_every_name_and_refuses_another_length() {
    let from = random(&tiny(), DType::F32);
    let read = |name: &str| Ok(from.flat(name, false).into_iter().map(|v| v as f32).collect());
    let loaded = Model::load(&tiny(), DType::F32, false, read).unwrap();
    for name in from.names() {
        assert_eq!(loaded.flat(&name, false), from.flat(&name, false), "{name}");
    }
    let short = |name: &str| Ok(if name == "proj_out.bias" { normal(1, 7) } else { read(name)? });
    let said = Model::load(&tiny(), DType::F32, false, short).err().unwrap().to_string();
    assert!(said.contains("proj_out.bias") && said.contains('7') && said.contains("[8]"), "{said}");
    let missing = |name: &str| longreel::bail!(Data, "{name} is missing");
    assert!(Model::load(&tiny(), DType::F32, false, missing).is_err());
    let unit = &from.units[0];
    let said = refusal!(Shape, unit.param("blocks.9.nothing"));
    assert!(said.contains("embed") && said.contains("blocks.9.nothing"), "{said}");
}
