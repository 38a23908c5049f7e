//! Names, shapes and initial values of parameters.

use super::*;
use longreel::model::folder::Folder;
use std::collections::BTreeMap;
use std::path::Path;

fn count(config: &ModelConfig) -> usize {
    Model::shapes(config).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

#[test]
fn names_and_shapes_are_those_of_diffusers() {
    for golden in ["batch", "bf16", "long", "shards"] {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden).join("transformer");
        let folder = Folder::open(&dir).unwrap();
        let config = ModelConfig::from_json(folder.config()).unwrap();
        let shapes = Model::shapes(&config);
        folder.check(&shapes).unwrap();
        let mut names: Vec<&str> = shapes.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, folder.names().collect::<Vec<_>>(), "{golden}");
    }
}

#[test]
fn wan_has_its_number_of_parameters() {
    let large = ModelConfig::default();
    assert_eq!(count(&large), 14_288_491_584);
    let small = ModelConfig { num_attention_heads: 12, ffn_dim: 8960, num_layers: 30, ..large };
    assert_eq!((small.width(), count(&small)), (1536, 1_418_996_800));
}

#[test]
fn parts_that_are_switched_off_have_no_parameters() {
    let names = |config: &ModelConfig| Model::shapes(config).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    let has = |config: &ModelConfig, part: &str| names(config).iter().any(|name| name.contains(part));
    let (all, without) = (everything(), no_text());
    for part in ["attn2", "norm2", "text_embedder"] {
        assert!(has(&all, part) && !has(&without, part), "{part}");
    }
    let norm = ModelConfig { cross_attn_norm: false, ..everything() };
    assert!(has(&norm, "attn2") && !has(&norm, "norm2"));
    let classes = ModelConfig { num_classes: 0, ..everything() };
    assert!(has(&all, "class_embedder") && !has(&classes, "class_embedder"));
    assert_eq!(Model::shapes(&ModelConfig { pos_embed: false, ..everything() }), Model::shapes(&all));
}

#[test]
fn units_hold_their_parameters_without_gaps() {
    let config = everything();
    let model = random_model(&config);
    let names: Vec<&str> = model.units.iter().map(|u| u.name.as_str()).collect();
    assert_eq!(names, ["embed", "blocks.0", "blocks.1", "head"]);
    let mut shapes = vec![];
    for unit in &model.units {
        let mut at = 0;
        for entry in &unit.entries {
            assert_eq!((entry.range.start, entry.range.len()), (at, entry.shape.iter().product()), "{}", entry.name);
            at = entry.range.end;
            shapes.push((entry.name.clone(), entry.shape.clone()));
            // Weight decay is for the matrices of linear maps.
            let matrix = entry.name.ends_with(".weight") && !entry.name.contains("norm");
            assert_eq!(entry.decay, matrix && !entry.name.contains("class_embedder"), "{}", entry.name);
            let param = unit.param(&entry.name).unwrap();
            assert_eq!(param.value.dims(), entry.shape);
            assert_eq!(values(&param.value), values(&unit.value)[entry.range.clone()]);
        }
        assert_eq!((unit.value.dims(), unit.grad.dims()), (&[at][..], &[at][..]));
    }
    assert_eq!(shapes, Model::shapes(&config));
    assert_eq!(model.count(), count(&config));
    let error = model.units[0].param("proj_out.weight").unwrap_err().to_string();
    assert_eq!(error, "unit embed has no parameter proj_out.weight");
}

/// Every parameter's values.
fn initial(config: &ModelConfig, dtype: DType, seed: u64) -> BTreeMap<String, Vec<f64>> {
    let model = Model::init(config, dtype, false, seed).unwrap();
    let of = |unit: &longreel::model::Unit| {
        let all = values(&unit.value);
        unit.entries.iter().map(|e| (e.name.clone(), all[e.range.clone()].to_vec())).collect::<Vec<_>>()
    };
    model.units.iter().flat_map(of).collect()
}

#[test]
fn initial_values_follow_from_the_seed_and_the_name() {
    let config = everything();
    let first = initial(&config, DType::F32, 1);
    assert_eq!(first, initial(&config, DType::F32, 1));
    assert_eq!(first, initial(&config, DType::F64, 1));
    let other = initial(&config, DType::F32, 2);
    let fixed = |name: &str| name.ends_with("bias") || name.contains("norm") || name.starts_with("proj_out");
    for (name, values) in &first {
        assert_eq!(*values == other[name], fixed(name), "{name}");
        for (second, theirs) in &first {
            assert!(fixed(name) || name == second || values != theirs, "{name} and {second} are the same");
        }
    }
    // A shallower network without text starts from the same values.
    for (name, values) in initial(&ModelConfig { num_layers: 1, ..no_text() }, DType::F32, 1) {
        assert_eq!(values, first[&name], "{name}");
    }
}

#[test]
fn initial_values_have_wans_spread() {
    let config = ModelConfig { attention_head_dim: 64, ffn_dim: 200, num_layers: 1, ..everything() };
    let d = config.width() as f64;
    let all = initial(&config, DType::F32, 1);
    for (name, shape) in Model::shapes(&config) {
        let values = &all[&name];
        if name.ends_with("bias") || name.starts_with("proj_out") {
            assert!(values.iter().all(|v| *v == 0.0), "{name}");
        } else if name.contains("norm") {
            assert!(values.iter().all(|v| *v == 1.0), "{name}");
        } else {
            let small = name.contains("time_embedder") || name.contains("text_embedder");
            let (std, bound) = if name.ends_with("scale_shift_table") {
                (d.powf(-0.5), f64::INFINITY)
            } else if small || name.contains("class_embedder") {
                (0.02, f64::INFINITY)
            } else {
                let fans = (shape[0] + shape[1..].iter().product::<usize>()) as f64;
                ((2.0 / fans).sqrt(), (6.0 / fans).sqrt()) // uniform within the bound
            };
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let spread = (values.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
            assert!(mean.abs() < 4.0 * std / n.sqrt(), "{name}: mean {mean}");
            assert!((spread / std - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{name}: {spread}, not {std}");
            assert!(values.iter().all(|v| v.abs() <= bound * 1.000001), "{name}");
        }
    }
}

#[test]
fn values_of_another_size_are_refused() {
    let config = everything();
    let result = Model::load(&config, DType::F32, false, |_| Ok(vec![0.0; 3]));
    let error = result.err().expect("refused").to_string();
    assert_eq!(error, "patch_embedding.weight: 3 values for shape [16, 2, 1, 3, 2]");
}
