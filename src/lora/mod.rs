//! Low-rank adapters of a network's linear layers (LoRA; Hu et al. 2021): what they are, and the files that hold them.
//!
//! An adapted layer computes W x + b + (alpha / r) B A x; W and b stay as they are.
//!
//! Trainers write four forms of files, which their keys tell apart ([`Form`]); [`AdapterFile::open`] reads each, and
//! [`write`] makes those that ComfyUI, diffusers and kohya's tools load. In memory names are diffusers'.

mod check;
mod form;
mod header;
mod merge;
mod pattern;
mod read;
mod write;

pub use check::layers;
#[cfg(feature = "cli")]
pub(crate) use check::size_name;
pub use form::{Form, is_adapter_key};
pub use header::RunFacts;
pub use merge::{Merged, add_adapters, merge};
pub use read::AdapterFile;
pub use write::write;

mod network;

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

impl Adapter {
    /// The adapter of this layer, in diffusers' name.
    pub fn module(&self, name: &str) -> Option<&AdapterModule> {
        self.modules.iter().find(|module| module.name == name)
    }

    /// How many parameters there are.
    pub fn count(&self) -> usize {
        self.modules.iter().map(|module| module.a.len() + module.b.len()).sum()
    }

    /// The same adapters with each scale alpha / r multiplied into B, so that alpha is r.
    pub fn folded(mut self) -> Self {
        for module in &mut self.modules {
            let scale = module.scale();
            if scale != 1.0 {
                module.b.iter_mut().for_each(|b| *b = (f64::from(*b) * scale) as f32);
                module.alpha = module.rank as f64;
            }
        }
        self
    }
}

impl AdapterModule {
    /// alpha / r.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}
