//! `longreel forward`: a model folder on given inputs, to check this implementation against another.

use crate::config::Compute;
use crate::{Result, bail};
use clap::Args;
use std::path::PathBuf;

/// Run a diffusers transformer folder on the inputs of a safetensors file.
///
/// The inputs are `hidden_states` [B, C, T, H, W], `timestep` [B] and, for a model with text, `encoder_hidden_states`
/// [B, L, text_dim]; the output is `sample`, with --grads also `loss` = mean(sample^2) and `grad.NAME` for every parameter.
#[derive(Debug, Args)]
pub struct ForwardArgs {
    /// A folder with config.json and diffusion_pytorch_model*.safetensors, or `hf://owner/name[@revision][/path]`
    #[arg(value_name = "MODEL_DIR")]
    pub model: String,
    /// The inputs
    #[arg(value_name = "INPUTS.safetensors")]
    pub inputs: PathBuf,
    /// The outputs
    #[arg(short, long, value_name = "OUT.safetensors")]
    pub output: PathBuf,
    /// Also the loss and every parameter's gradient
    #[arg(long)]
    pub grads: bool,
    /// Ranks, as threads of this process
    #[arg(long, value_name = "P", default_value = "1", value_parser = super::at_least_1)]
    pub ranks: usize,
    /// Arithmetic of linear layers and attention
    #[arg(long, default_value = "f32")]
    pub dtype: Compute,
}

/// Runs the command.
pub fn run(_args: ForwardArgs) -> Result<()> {
    bail!("`longreel forward` is not part of this build")
}
