//! Samples clips while a run trains, as `longreel sample` would from the checkpoint of that step.

use super::rank::Rank;
use super::report::Report;
use crate::Result;
use crate::sample::{ClipSampler, ClipSpec, Request};

/// Frames of a sample that a VAE decodes, where the config does not say: decoding costs more than many steps.
const DECODED_FRAMES: usize = 17;

impl Rank<'_> {
    /// Samples the clips that `[sample]` asks for from the averaged weights; every sequence group does so, the first
    /// one reports. A batch of them has no more clips than one of training, whose memory it then does with.
    pub fn sample(&self, step: u64, report: &mut Report) -> Result<()> {
        let config = &self.setup.config;
        let (mut request, sequence) = (Request::from_config(config)?, &self.mesh.sequence);
        request.size[0] = config.sample.frames.unwrap_or(match self.setup.caches.latents {
            Some(_) => request.size[0].min(DECODED_FRAMES),
            None => request.size[0],
        });
        let (request, decoder) =
            (&request, self.setup.caches.latents.as_ref().map(|latents| latents.decoder()).transpose()?);
        let classes = self.setup.clips.classes().len().max(1);
        let label = |index| (self.setup.model.num_classes > 0).then_some(index % classes);
        let prompts = self.setup.caches.texts.as_ref().map(|texts| texts.prompts()).transpose()?;
        let texts = prompts.as_ref().map_or(0, |prompts| prompts.texts.len());
        let clips = ClipSpec::numbered((0..config.sampling().count).map(label), texts);
        self.weights.averaged(|model| {
            let sampler = ClipSampler {
                model,
                objective: &self.objective,
                sequence,
                request,
                tile: config.train.tile,
                decoder: decoder.as_ref(),
                prompts: prompts.as_ref(),
            };
            let most = config.train.batch.min(sampler.most_at_once()?);
            sampler.sample_all(&clips, most, &|_| {}, |index, clip| report.sample(step, index, &clip, &sequence.all))
        })?;
        self.setup.caches.latents.iter().for_each(|latents| latents.release_decoder());
        Ok(())
    }
}
