//! Initial values: Wan's distributions, drawn from the seed and the parameter's name alone.

use super::{Helpers, tiny};
use candle_core::DType;
use longreel::model::{Model, ModelConfig};

fn model(config: &ModelConfig, seed: u64) -> Model {
    Model::init(config, DType::F32, false, seed).unwrap()
}

#[test]
fn values_hang_on_seed_and_name_alone() {
    let whole = model(&tiny(), 7);
    let again = {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| model(&tiny(), 7))
    };
    let other = model(&tiny(), 8);
    for name in whole.names() {
        let values = whole.flat(&name, false);
        assert_eq!(values, again.flat(&name, false), "{name}");
        let drawn = values.iter().any(|&v| v != 0.0 && v != 1.0);
        assert_eq!(values != other.flat(&name, false), drawn, "{name}: another seed");
    }
    // What else the model has, before or after, does not matter.
    let smaller = model(&ModelConfig { num_layers: 1, text_dim: 0, num_classes: 0, ..tiny() }, 7);
    for name in smaller.names() {
        assert_eq!(smaller.flat(&name, false), whole.flat(&name, false), "{name}");
    }
    // f64 holds the same numbers.
    let f64 = Model::init(&tiny(), DType::F64, false, 7).unwrap();
    assert!(whole.names().iter().all(|name| f64.flat(name, false) == whole.flat(name, false)));
}

/// No two parameters share their draws.
#[test]
fn names_draw_apart() {
    let model = model(&tiny(), 7);
    let drawn: Vec<(String, Vec<f64>)> = model
        .names()
        .into_iter()
        .map(|name| (name.clone(), model.flat(&name, false)))
        .filter(|(_, values)| values.iter().any(|&v| v != 0.0 && v != 1.0))
        .collect();
    for (i, (a, x)) in drawn.iter().enumerate() {
        for (b, y) in &drawn[..i] {
            let correlation = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            let r = correlation(x, y)
                / (correlation(&x[..x.len().min(y.len())], x) * correlation(y, &y[..x.len().min(y.len())])).sqrt();
            assert!(r.abs() < 0.6, "{a} and {b} are alike: {r:.2}");
        }
    }
}

#[test]
fn distributions_are_wans() {
    // Wide enough for the statistics to tell.
    let config = ModelConfig {
        num_attention_heads: 6,
        attention_head_dim: 16,
        text_dim: 200,
        freq_dim: 128,
        ffn_dim: 250,
        num_classes: 99,
        num_layers: 1,
        patch_size: [2, 4, 4],
        ..tiny()
    };
    let d = config.width() as f64;
    let model = model(&config, 3);
    for (name, shape) in Model::shapes(&config) {
        let values = model.flat(&name, false);
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let std = (values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n).sqrt();
        let largest = values.iter().fold(0f64, |a, v| a.max(v.abs()));
        let near = |want: f64| {
            // Four standard errors of a mean and of a deviation of normal numbers.
            assert!(mean.abs() < 4.0 * want / n.sqrt(), "{name}: mean {mean}");
            assert!((std / want - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{name}: deviation {std}, not {want}");
        };
        if name.ends_with("bias") || name == "proj_out.weight" {
            assert!(values.iter().all(|&v| v == 0.0), "{name}");
        } else if name.contains("norm") {
            assert!(values.iter().all(|&v| v == 1.0), "{name}");
        } else if ["time_embedder", "text_embedder", "class_embedder"].iter().any(|part| name.contains(part)) {
            let want = if name.contains("class_embedder") { 0.5 } else { 0.02 };
            near(want);
            assert!(largest > 2.5 * want, "{name}: {largest} is not normal");
        } else if name.ends_with("scale_shift_table") {
            near(d.powf(-0.5));
        } else {
            let bound = (6.0 / (shape[0] + shape[1..].iter().product::<usize>()) as f64).sqrt();
            near(bound / 3f64.sqrt());
            assert!((0.99 * bound..=bound * 1.000001).contains(&largest), "{name}: {largest}, not just below {bound}");
        }
    }
}
