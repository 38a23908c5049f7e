//! Fills in what `[sample]` leaves out: a run with text is sampled as Wan's networks are, by the shift of the pipeline
//! that its network is from; a run without text as small networks trained from scratch are.
//!
//! Sampling in training, `longreel sample` and `longreel plan` all ask here, so that they agree.

use serde_json::Value;
use std::path::Path;

use super::{RunConfig, SamplerKind};
use crate::files::model_folder::{is_pipeline, read_config};
use crate::model::ModelConfig;
use crate::parallel::is_first;
use crate::state::named::NamedModel;
use crate::{Result, hub};

/// Channels of the latents of Wan 2.2's TI2V-5B.
pub const LATENTS_22: usize = 48;

/// The guidance that Wan's networks are sampled with.
pub const WAN_GUIDANCE: f64 = 5.0;

/// Steps of a sample during training, which should not take long.
const STEPS: usize = 25;

/// Steps that Wan's own commands take.
const WAN_STEPS: usize = 50;

/// Clips of a run without text.
const COUNT: usize = 4;

/// The values of `[sample]`, those that the config leaves out filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Which sampler.
    pub sampler: SamplerKind,
    /// Its steps, during training.
    pub steps: usize,
    /// How many clips.
    pub count: usize,
    /// Guidance scale; 1: none.
    pub guidance: f64,
}

impl RunConfig {
    /// How clips are sampled during training, the shift apart.
    pub fn sampling(&self) -> Sampling {
        let (sample, has_text) = (&self.sample, self.text.from.is_some());
        let prompts = if has_text { sample.prompts.len() } else { 0 };
        let usual = match has_text {
            // Without a prompt there is nothing that guidance could lead to.
            true => (SamplerKind::WanUnipc, prompts.max(1), if prompts > 0 { WAN_GUIDANCE } else { 1.0 }),
            false => (SamplerKind::Heun, COUNT, 1.0),
        };
        Sampling {
            sampler: sample.sampler.unwrap_or(usual.0),
            steps: sample.steps.unwrap_or(STEPS),
            count: sample.count.unwrap_or(usual.1),
            guidance: sample.guidance.unwrap_or(usual.2),
        }
    }

    /// Steps of `longreel sample`, whose clips are meant to be looked at: with text those of Wan's own commands.
    pub fn command_steps(&self) -> usize {
        self.sample.steps.unwrap_or(if self.text.from.is_some() { WAN_STEPS } else { STEPS })
    }

    /// The shift of sigma that clips are sampled with; 0: from the token count. A run with text whose config does not
    /// say it, and whose network is from elsewhere, takes the [`usual_shift`] of that.
    ///
    /// # Errors
    /// The network of `model.from` cannot be had, or its scheduler's config not be read.
    pub fn sampling_shift(&self) -> Result<f64> {
        match (self.sample.shift, &self.model.from, &self.text.from) {
            (Some(shift), ..) => Ok(shift),
            (None, Some(from), Some(_)) => {
                usual_shift(&hub::resolve(from)?, &self.network()?).map_err(|e| e.at("model.from"))
            }
            _ => Ok(1.0),
        }
    }
}

/// The shift of sigma that the network `model`, found at `path`, is sampled with: of one of our runs that run's, of a
/// pipeline its scheduler's, else the one that Wan's own commands have for the kind.
///
/// # Errors
/// Nothing is at `path`, or the scheduler's config cannot be read.
pub fn usual_shift(path: &Path, model: &ModelConfig) -> Result<f64> {
    if let Some(checkpoint) = NamedModel::find(path)?.checkpoint
        && let Some(shift) = RunConfig::of_checkpoint(&checkpoint).ok().and_then(|config| config.sample.shift)
    {
        return Ok(shift);
    }
    // A transformer's folder may be that of a pipeline.
    for dir in [Some(path), path.parent()].into_iter().flatten() {
        if let Some(shift) = flow_shift(dir)? {
            return Ok(shift);
        }
    }
    let usual = if model.in_channels == LATENTS_22 { 5.0 } else { 3.0 };
    if is_pipeline(path) && is_first() {
        tracing::warn!(
            "{}: no scheduler/scheduler_config.json says the shift of the pipeline's samples: {usual} is taken, as \
             is usual for its network; sample.shift, or --shift of `longreel sample`, says another",
            path.display()
        );
    }
    Ok(usual)
}

/// The shift that the scheduler of the pipeline in `dir` says, if there is one that says it.
fn flow_shift(dir: &Path) -> Result<Option<f64>> {
    let path = dir.join("scheduler").join("scheduler_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let config = read_config(&path)?;
    Ok(["flow_shift", "shift"].iter().find_map(|key| config.get(*key).and_then(Value::as_f64)))
}
