//! How a network that longreel did not train is sampled: as the pipeline that it comes from says, or as Wan's are.

use serde_json::Value;
use std::path::{Path, PathBuf};

use crate::config::{RunConfig, SamplerKind};
use crate::files::model_folder::read_config;
use crate::model::ModelConfig;
use crate::{Result, bail};

/// Channels of the latents of Wan 2.2's TI2V-5B.
const LATENTS_22: usize = 48;

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
        let pipeline = pipeline(path);
        if model.text_dim == 0 {
            bail!(
                Checkpoint,
                "{}: is a model without state.json, so its clips' size and its prediction are not known; sampling needs \
                 a run or a checkpoint of longreel, or a network of Wan's",
                path.display()
            )
        }
        let is_22 = model.in_channels == LATENTS_22;
        let ([frames, height, width], fps, shift) =
            if is_22 { ([121, 704, 1280], 24.0, 5.0) } else { ([81, 480, 832], 16.0, 3.0) };
        let size = format!("frames = {frames}\nheight = {height}\nwidth = {width}\n");
        let text = format!("[data]\npath = \".\"\n{size}[model]\nfrom = \".\"\n");
        let mut config = RunConfig::parse(&text, path, &[])?;
        config.model.from = Some(from.to_owned());
        if pipeline.is_some() {
            config.vae.from = Some(from.to_owned());
            config.text.from = Some(from.to_owned());
        }
        let of_scheduler = pipeline.map(|dir| flow_shift(&dir)).transpose()?.flatten();
        let sample = &mut config.sample;
        (sample.sampler, sample.steps, sample.guidance, sample.count) = (SamplerKind::WanUnipc, 50, 5.0, 1);
        sample.shift = of_scheduler.unwrap_or(shift);
        Ok(Self { config, fps })
    }
}

/// The pipeline's folder that `path` is, if it is one: diffusers', or Wan's own.
fn pipeline(path: &Path) -> Option<PathBuf> {
    let has = |name: &str| path.join(name).exists();
    let wans_own = || has("config.json") && (has("Wan2.1_VAE.pth") || has("Wan2.2_VAE.pth"));
    (has("model_index.json") || (has("transformer") && has("vae")) || wans_own()).then(|| path.to_owned())
}

/// The shift that a pipeline's scheduler says.
fn flow_shift(dir: &Path) -> Result<Option<f64>> {
    let path = dir.join("scheduler").join("scheduler_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = read_config(&path)?;
    Ok(["flow_shift", "shift"].iter().find_map(|key| config.get(*key).and_then(Value::as_f64)))
}
