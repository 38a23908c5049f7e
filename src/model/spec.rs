//! Which parameters a model has: names, shapes, initial values, in the order of their unit's flat buffer.

use super::ModelConfig;

/// The parameters that travel together: the embedding with the condition network, a block, the head.
#[derive(Clone, Debug)]
pub struct UnitSpec {
    pub name: String,
    pub params: Vec<ParamSpec>,
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct ParamSpec {
    /// diffusers' name.
    pub name: String,
    pub shape: Vec<usize>,
    pub init: Init,
    /// Whether weight decay applies: to matrices, not to biases, norms, tables.
    pub decay: bool,
}

/// Initial values (Wan's).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    Zeros,
    Ones,
    /// Uniform in +-sqrt(6 / (in + out)) (Glorot and Bengio).
    Xavier,
    /// Normal with this standard deviation.
    Normal(f64),
    /// Uniform in plus or minus this.
    Uniform(f64),
}

/// The units of a model: embed, blocks, head.
pub fn units(config: &ModelConfig) -> Vec<UnitSpec> {
    let mut units = vec![embed(config)];
    units.extend((0..config.num_layers).map(|i| block(config, i)));
    units.push(head(config));
    units
}

/// How many parameters a model has, whatever its sizes.
pub fn count(config: &ModelConfig) -> u128 {
    let count = |unit: UnitSpec| -> u128 {
        unit.params.iter().map(|p| p.shape.iter().map(|&n| n as u128).product::<u128>()).sum()
    };
    count(embed(config)) + config.num_layers as u128 * count(block(config, 0)) + count(head(config))
}

fn embed(c: &ModelConfig) -> UnitSpec {
    let (d, [t, h, w]) = (c.width(), c.patch_size);
    let mut unit = Builder::new("embed", "");
    unit.add("patch_embedding.weight", &[d, c.in_channels, t, h, w], Init::Xavier, true);
    unit.add("patch_embedding.bias", &[d], Init::Zeros, false);
    unit.linear("condition_embedder.time_embedder.linear_1", c.freq_dim, d, Init::Normal(0.02));
    unit.linear("condition_embedder.time_embedder.linear_2", d, d, Init::Normal(0.02));
    unit.linear("condition_embedder.time_proj", d, 6 * d, Init::Xavier);
    if c.text_dim > 0 {
        unit.linear("condition_embedder.text_embedder.linear_1", c.text_dim, d, Init::Normal(0.02));
        unit.linear("condition_embedder.text_embedder.linear_2", d, d, Init::Normal(0.02));
    }
    if c.num_classes > 0 {
        let shape = [c.num_classes + 1, d]; // the last class is null
        // Not DiT's 0.02: classes that start further apart are told apart four times as soon (docs/quality.md).
        unit.add("condition_embedder.class_embedder.embedding_table.weight", &shape, Init::Normal(0.5), false);
    }
    unit.0
}

fn block(c: &ModelConfig, i: usize) -> UnitSpec {
    let d = c.width();
    let mut unit = Builder::new(&format!("blocks.{i}"), &format!("blocks.{i}."));
    unit.attention("attn1", d);
    if c.text_dim > 0 {
        unit.attention("attn2", d);
        if c.cross_attn_norm {
            unit.add("norm2.weight", &[d], Init::Ones, false);
            unit.add("norm2.bias", &[d], Init::Zeros, false);
        }
    }
    unit.linear("ffn.net.0.proj", d, c.ffn_dim, Init::Xavier);
    unit.linear("ffn.net.2", c.ffn_dim, d, Init::Xavier);
    unit.add("scale_shift_table", &[1, 6, d], Init::Normal((d as f64).powf(-0.5)), false);
    unit.0
}

fn head(c: &ModelConfig) -> UnitSpec {
    let d = c.width();
    let mut unit = Builder::new("head", "");
    unit.linear("proj_out", d, c.patch_out(), Init::Zeros);
    unit.add("scale_shift_table", &[1, 2, d], Init::Normal((d as f64).powf(-0.5)), false);
    unit.0
}

/// Gathers a unit's parameters under a prefix.
struct Builder(UnitSpec, String);

impl Builder {
    fn new(name: &str, prefix: &str) -> Self {
        Self(UnitSpec { name: name.into(), params: vec![] }, prefix.into())
    }

    fn add(&mut self, name: &str, shape: &[usize], init: Init, decay: bool) {
        self.0.params.push(ParamSpec { name: format!("{}{name}", self.1), shape: shape.into(), init, decay });
    }

    fn linear(&mut self, name: &str, inner: usize, out: usize, init: Init) {
        self.add(&format!("{name}.weight"), &[out, inner], init, true);
        self.add(&format!("{name}.bias"), &[out], Init::Zeros, false);
    }

    fn attention(&mut self, name: &str, d: usize) {
        for part in ["to_q", "to_k", "to_v", "to_out.0"] {
            self.linear(&format!("{name}.{part}"), d, d, Init::Xavier);
        }
        self.add(&format!("{name}.norm_q.weight"), &[d], Init::Ones, false);
        self.add(&format!("{name}.norm_k.weight"), &[d], Init::Ones, false);
    }
}
