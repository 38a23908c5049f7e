//! What a run on latents needs besides its steps: encoding its clips, the cache, and decoding its samples.

use super::{Part, Phase, part};
use crate::config::{Hardware, RunConfig};
use crate::data::Decoding;
use crate::vae::{GPU_SCRATCH, VaeConfig, VaeCost};

/// The cache of a run's clips.
#[derive(Clone, Copy, Debug)]
pub struct LatentPlan {
    /// Clips to encode, each variant counted; none where the number of clips is not known.
    pub clips: Option<u64>,
    /// Bytes of each in the cache.
    pub bytes: u64,
    /// Operations to encode each.
    pub flops: f64,
}

impl LatentPlan {
    pub(super) fn new(config: &RunConfig, vae: &VaeConfig, decoding: Option<&Decoding>) -> Self {
        let data = &config.data;
        let side = vae.scale_space();
        let latents = vae.latent_frames(data.frames) * (data.height / side) * (data.width / side) * vae.z_dim;
        let pixels = (data.frames * data.height * data.width) as f64;
        Self {
            clips: decoding.map(|decoding| (decoding.clips * data.variants) as u64),
            bytes: 2 * latents as u64,
            flops: pixels * VaeCost::of_encoder(vae).flops,
        }
    }

    /// Bytes of all clips in the cache.
    pub fn total(&self) -> Option<u64> {
        self.clips.map(|clips| clips * self.bytes)
    }
}

/// Adds encoding, where each rank has a clip of its own, and what decoding takes to sampling, where ranks share one.
pub(super) fn add_phases(phases: &mut Vec<Phase>, config: &RunConfig, vae: &VaeConfig) {
    let (encoder, decoder) = (VaeCost::of_encoder(vae), VaeCost::of_decoder(vae));
    phases.push(Phase {
        name: "encoding clips, before the first step",
        parts: vec![
            part("the VAE's encoder", encoder.weight_bytes()),
            part("frames in its layers", frames(&encoder, config, 1)),
        ]
        .into_iter()
        .chain(scratch(config))
        .collect(),
    });
    let sequence = config.parallel.ranks / config.parallel.data;
    for phase in phases.iter_mut().filter(|phase| phase.name == "sampling") {
        phase.parts.push(part("the VAE's decoder", decoder.weight_bytes()));
        phase.parts.push(part("frames in its layers", frames(&decoder, config, sequence)));
        phase.parts.extend(scratch(config));
    }
}

/// Bytes of a clip's frames in the VAE's layers, where so many ranks share it: one on a CPU may take it down its rows.
fn frames(cost: &VaeCost, config: &RunConfig, ranks: usize) -> u64 {
    let [frames, height, width] = [config.data.frames, config.data.height, config.data.width];
    match (config.train.device, ranks) {
        (Hardware::Cpu, 1) => cost.clip_bytes([frames, height, width]),
        _ => cost.stream_bytes((height * width).div_ceil(ranks)),
    }
}

/// What a GPU's convolutions gather pixels in, and put their sums in where a frame's sides are doubled.
fn scratch(config: &RunConfig) -> Option<Part> {
    (config.train.device == Hardware::Cuda).then(|| part("pixels gathered by the VAE", 2 * GPU_SCRATCH as u64))
}
