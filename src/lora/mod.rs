//! Low-rank adapters of a network's linear layers (LoRA; Hu et al. 2021): what they are, and the files that hold them.
//!
//! An adapted layer computes W x + b + (alpha / r) B A x; W and b stay as they are.

/// The adapters of a network, one for each adapted layer, in the order of the network's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    pub modules: Vec<AdapterModule>,
}

/// The adapter of one linear layer.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterModule {
    /// The layer in diffusers' names, such as `blocks.0.attn1.to_q`.
    pub name: String,
    /// r.
    pub rank: usize,
    /// The adapter's share of the output is alpha / r.
    pub alpha: f64,
    /// Features of the layer's input.
    pub inner: usize,
    /// Features of its output.
    pub out: usize,
    /// A `[r, inner]`, row by row.
    pub a: Vec<f32>,
    /// B `[out, r]`, row by row.
    pub b: Vec<f32>,
}

impl AdapterModule {
    /// alpha / r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}
