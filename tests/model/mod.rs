//! Tests the network: its names, shapes and sizes, its config.json, patches, initial values, conditions, and the
//! gradient of the whole against finite differences.
//!
//! Not here: agreement with diffusers' numbers (`golden.rs`), single ops (`ops/`), ranks against one another
//! (`engine.rs`).

mod conditions;
mod config;
mod gradients;
mod groups;
mod init;
mod layouts;
mod pads;
mod patches;
mod shapes;

use candle_core::{DType, Device, Tensor};
use longreel::model::{Conditioning, Model, ModelConfig, TextTokens};
use longreel::rng::{Key, Purpose};

/// A small network with everything on: text, classes, positions, a normalisation before cross-attention.
fn tiny() -> ModelConfig {
    ModelConfig {
        patch_size: [1, 2, 2],
        num_attention_heads: 3,
        attention_head_dim: 8,
        in_channels: 3,
        out_channels: 2,
        text_dim: 10,
        freq_dim: 14,
        ffn_dim: 40,
        num_layers: 2,
        eps: 1e-3,
        num_classes: 4,
        pos_embed: true,
        ..ModelConfig::default()
    }
}

/// Normal numbers; `what` tells draws apart.
fn normal(what: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Key { seed: 2, purpose: Purpose::Test, step: 0, sample: what }.stream(0).fill_normal(&mut values);
    values
}

/// A model whose every parameter is random, so that no gradient is zero: initial values have a head of zeros.
fn random(config: &ModelConfig, dtype: DType) -> Model {
    let model = Model::zeros(config, dtype, false).unwrap();
    for (what, entry) in model.units.iter().flat_map(|unit| &unit.entries).enumerate() {
        let (base, scale) = match entry.shape[..] {
            [_] if entry.name.contains("norm") && entry.name.ends_with("weight") => (1.0, 0.3),
            [_] => (0.0, 0.3),
            [_, ref inner @ ..] => (0.0, (inner.iter().product::<usize>() as f32).powf(-0.5)),
            [] => unreachable!(),
        };
        let values: Vec<f32> = normal(what as u64, entry.range.len()).into_iter().map(|v| base + scale * v).collect();
        model.set_one(&entry.name, values);
    }
    model
}

/// Test helpers on a model.
trait Helpers {
    /// Overwrites one parameter.
    fn set_one(&self, name: &str, values: Vec<f32>);
    /// A parameter's value or gradient, flat, in f64.
    fn flat(&self, name: &str, gradient: bool) -> Vec<f64>;
    /// Every parameter's name.
    fn names(&self) -> Vec<String>;
}

impl Helpers for Model {
    fn set_one(&self, name: &str, values: Vec<f32>) {
        let unit = self.units.iter().find(|unit| unit.entries.iter().any(|e| e.name == name)).unwrap();
        let param = unit.param(name).unwrap();
        let values = Tensor::from_vec(values, param.value.shape(), &Device::Cpu).unwrap();
        param.value.slice_set(&values.to_dtype(param.value.dtype()).unwrap(), 0, 0).unwrap();
    }

    fn flat(&self, name: &str, gradient: bool) -> Vec<f64> {
        let unit = self.units.iter().find(|unit| unit.entries.iter().any(|e| e.name == name)).unwrap();
        let param = unit.param(name).unwrap();
        let t = if gradient { param.grad().unwrap().clone() } else { param.value };
        t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    fn names(&self) -> Vec<String> {
        self.units.iter().flat_map(|unit| &unit.entries).map(|e| e.name.clone()).collect()
    }
}

/// Conditioning of as many samples as `labels`, for whatever the model has.
fn conditioning(config: &ModelConfig, labels: &[usize], dtype: DType) -> Conditioning {
    let b = labels.len();
    let text = |sample: usize| {
        let (tokens, features) = (3 - sample % 2, config.text_dim);
        let values = normal(500 + sample as u64, tokens * features);
        let tokens = Tensor::from_vec(values, (tokens, features), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        TextTokens::padded_to(tokens, 5)
    };
    Conditioning {
        timesteps: (0..b).map(|i| 1000.0 * (i as f64 + 0.7) / (b as f64 + 0.4)).collect(),
        text: (config.text_dim > 0).then(|| (0..b).map(text).collect()),
        labels: (config.num_classes > 0).then(|| labels.to_vec()),
    }
}
