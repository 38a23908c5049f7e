//! What a run's TOML file may say: one struct a section, one documented field a key.
//!
//! Defaults are the values of `Default`; an unknown or mistyped key is an error. Values are checked in `check`; nothing
//! is resolved against files here: that is the business of the room that uses the section. A section that is a room's
//! options is that room's struct; where a key is part of a room's options, the room has its default.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

use super::choices::{Compute, Hardware, OptimizerKind, Place, SamplerKind, Schedule, Weigh};
use super::data::DataSections;
use super::lora::Lora;
use super::resolve::Known;
use crate::diffusion::DiffusionOptions;
use crate::engine::stash::StashOptions;
use crate::model::ModelConfig;
use crate::state::StateOptions;
use crate::text::TextConfig;
use crate::vae::VaeConfig;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    #[serde(default)]
    pub run: Run,
    pub data: DataSections,
    pub model: Model,
    #[serde(default)]
    pub lora: Lora,
    #[serde(default)]
    pub vae: Vae,
    #[serde(default)]
    pub text: Text,
    #[serde(default)]
    pub diffusion: DiffusionOptions,
    #[serde(default)]
    pub train: Train,
    #[serde(default)]
    pub parallel: Parallel,
    #[serde(default)]
    pub stash: StashOptions,
    #[serde(default)]
    pub sample: Sample,
}

/// `[run]`: the run's folder, and the seed of its random numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Folder for checkpoints, metrics and samples.
    pub out: PathBuf,
    /// Seed of everything random: weights, order, crops, flips, noise, timesteps, label drops.
    pub seed: u64,
}

/// Where encoded clips are unless the config says another folder.
pub const CACHE: &str = "~/.cache/longreel/latents";

/// `[vae]`: the VAE whose latents are trained on; without `from`, training is on pixels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Vae {
    /// A folder or file of an AutoencoderKLWan, a pipeline folder with one, or `hf://...`; none: pixels.
    pub from: Option<String>,
    /// Folder of encoded clips, which runs may share; none: [`CACHE`].
    pub cache: Option<PathBuf>,
    /// Arithmetic of the VAE's products.
    pub dtype: Compute,
    /// What `from` has been found to be.
    #[serde(skip)]
    #[doc(hidden)]
    pub known: Known<VaeConfig>,
}

/// Where embeddings of texts are unless the config says another folder.
pub const TEXT_CACHE: &str = "~/.cache/longreel/texts";

/// `[text]`: the encoder of captions and prompts; without `from`, there is no text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Text {
    /// A text encoder and its tokenizer: a pipeline's folder, an encoder's, Wan's own, or `hf://...`; none: no text.
    pub from: Option<String>,
    /// Folder of embedded texts, which runs may share; none: [`TEXT_CACHE`].
    pub cache: Option<PathBuf>,
    /// Operands of the encoder's products, and how embeddings are kept.
    pub dtype: Compute,
    /// What `from` has been found to be.
    #[serde(skip)]
    #[doc(hidden)]
    pub known: Known<TextConfig>,
}

/// `[model]`: the network, new or from a checkpoint.
///
/// A new one has text, by cross-attention, if `[text]` names an encoder; of one that comes from `from`, its config.json
/// says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// A diffusers transformer folder (or `hf://...`) to start from. Its config.json says the rest, so the keys below
    /// must then be left out; a new network needs all but `freq_dim` and `num_classes`.
    pub from: Option<String>,
    /// Patch size (frames, height, width) in pixels or latents; it divides the clip's.
    pub patch_size: [usize; 3],
    /// Attention heads H.
    pub num_attention_heads: usize,
    /// Head dim d, a multiple of 8 up to 256; the width D is H * d.
    pub attention_head_dim: usize,
    /// Blocks L.
    pub num_layers: usize,
    /// Hidden width of the MLP.
    pub ffn_dim: usize,
    /// Sinusoidal features of the timestep; even.
    pub freq_dim: usize,
    /// Classes; 0: no class labels. One null class is added for guidance.
    pub num_classes: usize,
    /// Add fixed sine-cosine positions to the embedded patches, beside RoPE, as DiT and JiT do. RoPE tells tokens only
    /// how far apart they are; a small network trained from scratch learns much faster where it is told where they are.
    pub pos_embed: bool,
}

/// `[train]`: the loop and the optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Train {
    /// Optimizer steps of the whole run.
    pub steps: u64,
    /// Clips a micro-batch, for each data rank.
    pub batch: usize,
    /// Micro-batches accumulated into a step.
    pub accumulate: usize,
    /// What the loss of clips of several sizes weighs: each clip the same, or each token.
    pub weigh: Weigh,
    /// Arithmetic of linear layers and attention; accumulation, gradients and master weights are f32. A file that does
    /// not say gets [`Compute::usual`], a run that goes on what it was begun in.
    pub dtype: Compute,
    /// Which optimizer.
    pub optimizer: OptimizerKind,
    /// Learning rate after warm-up.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// What follows warm-up.
    pub schedule: Schedule,
    /// With the schedule `wsd`: the share of the run's steps over which the rate falls.
    pub decay: f64,
    /// AdamW's (beta1, beta2).
    pub betas: [f64; 2],
    /// AdamW's epsilon.
    pub eps: f64,
    /// Muon's momentum.
    pub momentum: f64,
    /// Decoupled weight decay of matrices; biases, norms and tables have none.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0: never.
    pub clip: f64,
    /// Decay of the weights' moving average, after its warm-up; 0: no average.
    pub ema: f64,
    /// What computes.
    pub device: Hardware,
    /// Where the optimizer's moments and the moving average are: in memory or in a scratch file for each rank.
    pub moments: Place,
    /// Rows of a tile, tokens of all clips of the micro-batch counted together; 0: see
    /// [`tile_rows`](crate::engine::tile_rows).
    pub tile: usize,
    /// A checkpoint every this many steps, and at the end; 0: only at the end.
    pub checkpoint_every: u64,
    /// How many checkpoints are kept.
    pub keep: usize,
    /// Held-out loss every this many steps; 0: never.
    pub heldout_every: u64,
    /// Samples every this many steps; 0: never.
    pub sample_every: u64,
}

/// `[parallel]`: the mesh of ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parallel {
    /// Ranks when the command line does not say: data x sequence.
    pub ranks: usize,
    /// How many groups of ranks train on clips of their own; the rest of the ranks split each clip's sequence.
    pub data: usize,
    /// Ranks of a ring, within a sequence's; the others exchange tokens for heads. 0: as few as the number of heads
    /// allows.
    pub ring: usize,
    /// Groups of heads that attention takes one after another.
    pub head_groups: usize,
    /// ZeRO's stage, what is sharded over all ranks: 1, moments and average; 2, gradients too; 3, parameters too; 0,
    /// nothing.
    pub zero: usize,
}

/// `[sample]`: how clips are sampled, during training and by `longreel sample` where its flags do not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sample {
    /// Which sampler; none: with text Wan's own, else Heun's. What is none is filled in by
    /// [`sampling`](RunConfig::sampling).
    pub sampler: Option<SamplerKind>,
    /// Its steps; none: 25, and 50 where `longreel sample` samples a run with text.
    pub steps: Option<usize>,
    /// How many clips; none: with text one of each prompt, else 4.
    pub count: Option<usize>,
    /// Guidance scale w: v = v_null + w (v - v_null); 1: none. Left out: 5 with prompts, else 1.
    pub guidance: Option<f64>,
    /// Guidance acts only for sigma in this interval.
    pub guidance_interval: [f64; 2],
    /// Shift of sigma, as in `[diffusion]`; 1: none, 0 (in a config `"auto"`): from the token count. Left out: see
    /// [`sampling_shift`](RunConfig::sampling_shift).
    #[serde(with = "crate::diffusion::optional_shift", skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Frames of a clip sampled during training; none: as trained, on latents at most 17.
    pub frames: Option<usize>,
    /// Prompts of a network with text, which clips take in turn; none: the empty text.
    pub prompts: Vec<String>,
    /// What guidance leads away from, for a network with text; none: Wan's own for a network of Wan's text, else the
    /// empty text.
    pub negative: Option<String>,
}

impl Default for Run {
    fn default() -> Self {
        Self { out: "runs/run".into(), seed: 0 }
    }
}

impl Default for Model {
    /// A timestep of 256 features and no classes; the sizes are 0, which is not allowed: a new network must say them.
    fn default() -> Self {
        Self {
            from: None,
            patch_size: [0; 3],
            num_attention_heads: 0,
            attention_head_dim: 0,
            num_layers: 0,
            ffn_dim: 0,
            freq_dim: ModelConfig::default().freq_dim,
            num_classes: 0,
            pos_embed: false,
        }
    }
}

impl Default for Vae {
    fn default() -> Self {
        Self { from: None, cache: None, dtype: Compute::F32, known: Known::default() }
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { from: None, cache: None, dtype: Compute::Bf16, known: Known::default() }
    }
}

impl Default for Train {
    fn default() -> Self {
        let StateOptions { optimizer, adamw, momentum, clip, ema, moments, .. } = StateOptions::default();
        Self {
            steps: 1000,
            batch: 1,
            accumulate: 1,
            weigh: Weigh::Clip,
            dtype: Compute::F32,
            optimizer,
            lr: 1e-4,
            warmup: 100,
            schedule: Schedule::Constant,
            decay: 0.2,
            betas: adamw.betas,
            eps: adamw.eps,
            momentum,
            weight_decay: adamw.weight_decay,
            clip,
            ema,
            device: Hardware::Cpu,
            moments,
            tile: 0,
            checkpoint_every: 500,
            keep: 3,
            heldout_every: 100,
            sample_every: 0,
        }
    }
}

impl Default for Parallel {
    fn default() -> Self {
        Self { ranks: 1, data: 1, ring: 0, head_groups: 1, zero: StateOptions::default().zero }
    }
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            sampler: None,
            steps: None,
            count: None,
            guidance: None,
            guidance_interval: [0.0, 1.0],
            shift: None,
            frames: None,
            prompts: vec![],
            negative: None,
        }
    }
}
