//! What a run on latents needs besides its steps: encoding its clips, the cache, and decoding its samples.

use super::{Part, Phase, part};
use crate::config::{Hardware, RunConfig};
use crate::data::Decoding;
use crate::encode::fill::CHUNK;
use crate::vae::{GPU_SCRATCH, VaeConfig, VaeCost};

/// The cache of a run's clips, those that are trained on.
#[derive(Clone, Copy, Debug)]
pub struct LatentPlan {
    /// Clips to encode, each variant counted; none where the number of clips is not known.
    pub clips: Option<u64>,
    /// Bytes of the largest in the cache.
    pub bytes: u64,
    /// Bytes of all clips in the cache, and operations to encode them.
    all: Option<(u64, f64)>,
}

impl LatentPlan {
    pub(super) fn new(config: &RunConfig, vae: &VaeConfig, decoding: Option<&Decoding>) -> Self {
        let data = &config.data;
        let cost = VaeCost::of_encoder(vae).flops;
        let all = |decoding: &Decoding| {
            decoding.sizes.iter().fold((0, 0.0), |(bytes, flops), (bucket, clips)| {
                let clips = (clips * data.variants) as u64;
                let pixels = (clips * (bucket.frames * bucket.pixels()) as u64) as f64;
                (bytes + clips * 2 * latents(vae, bucket.size()), flops + pixels * cost)
            })
        };
        Self {
            clips: decoding.map(|decoding| (decoding.clips * data.variants) as u64),
            bytes: 2 * latents(vae, [data.frames, data.height, data.width]),
            all: decoding.map(all),
        }
    }

    /// Bytes of all clips in the cache.
    pub fn total(&self) -> Option<u64> {
        self.all.map(|(bytes, _)| bytes)
    }

    /// Operations to encode all clips.
    pub fn flops(&self) -> Option<f64> {
        self.all.map(|(_, flops)| flops)
    }
}

/// Elements of a clip's latents.
fn latents(vae: &VaeConfig, [frames, height, width]: [usize; 3]) -> u64 {
    let side = vae.scale_space();
    (vae.latent_frames(frames) * (height / side) * (width / side) * vae.z_dim) as u64
}

/// Adds encoding, where each rank has a clip of its own, whose `decoding` may be known, and what the decoder takes to
/// sampling, where ranks share one.
pub(super) fn add_phases(phases: &mut Vec<Phase>, config: &RunConfig, vae: &VaeConfig, decoding: Option<&Decoding>) {
    let (encoder, decoder) = (VaeCost::of_encoder(vae), VaeCost::of_decoder(vae));
    let mut parts = vec![
        part("the VAE's encoder", encoder.weight_bytes()),
        part("frames in its layers", frames(&encoder, config, 1)),
    ];
    parts.extend(scratch(config));
    if config.train.device == Hardware::Cpu {
        parts.extend(a_clip(config, vae, decoding));
    }
    phases.push(Phase { name: "encoding clips, before the first step", parts });
    let sequence = config.parallel.ranks / config.parallel.data;
    for phase in phases.iter_mut().filter(|phase| phase.name == "sampling") {
        phase.parts.push(part("the VAE's decoder", decoder.weight_bytes()));
        phase.parts.push(part("frames in its layers", frames(&decoder, config, sequence)));
        phase.parts.extend(scratch(config));
    }
}

/// The clip that a rank encodes: its decoder, where that is known, the pixels that are decoded at a time, and its
/// moments and latents in f32.
fn a_clip(config: &RunConfig, vae: &VaeConfig, decoding: Option<&Decoding>) -> [Part; 3] {
    let [frames, height, width] = [config.data.frames, config.data.height, config.data.width];
    let frame = (height * width * 3) as u64;
    let pixels = (frames as u64 * frame).min((CHUNK as u64).max(frame));
    [
        part("the file being decoded", decoding.map_or(0, |one| one.image.max(one.video))),
        part("pixels being encoded", pixels),
        part("the clip's moments and latents", 3 * 4 * latents(vae, [frames, height, width])),
    ]
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
