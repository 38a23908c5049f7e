//! How a network that longreel did not train is sampled: as the pipeline that it comes from says, or as Wan's are.

use std::path::Path;

use crate::config::{LATENTS_22, RunConfig, WAN_GUIDANCE, usual_shift};
use crate::files::model_folder::is_pipeline;
use crate::model::ModelConfig;
use crate::{Result, bail};

/// What clips of a pretrained network are sampled by.
pub(super) struct Pretrained {
    pub config: RunConfig,
    /// Frames a second.
    pub fps: f64,
}

impl Pretrained {
    /// Of the network `model` that `from` names, found at `path`: in a pipeline's folder its own VAE, text encoder and
    /// shift; sizes, steps and guidance are those that Wan's own commands have.
    ///
    /// # Errors
    /// The network has no text, so it is none of Wan's, and nothing is known of its clips; the scheduler's config
    /// cannot be read.
    pub fn new(from: &str, path: &Path, model: &ModelConfig) -> Result<Self> {
        if model.text_dim == 0 {
            bail!(
                Checkpoint,
                "{}: is a model without state.json, so its clips' size and its prediction are not known; sampling needs \
                 a run or a checkpoint of longreel, or a network of Wan's",
                path.display()
            )
        }
        let is_22 = model.in_channels == LATENTS_22;
        let ([frames, height, width], fps) = if is_22 { ([121, 704, 1280], 24.0) } else { ([81, 480, 832], 16.0) };
        let size = format!("frames = {frames}\nheight = {height}\nwidth = {width}\n");
        let text = format!("[data]\npath = \".\"\n{size}[model]\nfrom = \".\"\n");
        let mut config = RunConfig::parse(&text, path, &[])?;
        config.model.from = Some(from.to_owned());
        if has_all_parts(path) {
            config.vae.from = Some(from.to_owned());
            config.text.from = Some(from.to_owned());
        }
        // Said, so that a forgotten --prompt is an error; the rest is as of any run with text.
        (config.sample.guidance, config.sample.shift) = (Some(WAN_GUIDANCE), Some(usual_shift(path, model)?));
        Ok(Self { config, fps })
    }
}

/// Whether VAE and text encoder lie in the folder `path` too: a pipeline's of diffusers, or Wan's own.
fn has_all_parts(path: &Path) -> bool {
    let has = |name: &str| path.join(name).exists();
    let wans_own = || has("config.json") && (has("Wan2.1_VAE.pth") || has("Wan2.2_VAE.pth"));
    is_pipeline(path) || (has("transformer") && has("vae")) || wans_own()
}
