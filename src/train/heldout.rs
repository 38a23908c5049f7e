//! Measures the held-out loss on clips never trained on, at fixed quantiles of the timestep distribution, with fixed
//! noise. Between two calls only the weights differ, so the curve moves only as the weights do.

use candle_core::{Device, Tensor};
use std::sync::Arc;

use super::rank::Rank;
use crate::Result;
use crate::batch::{NoisyClip, NoisyClips, squared_errors, upload};
use crate::data::{Bucket, ClipRows, ClipSets, Dataset, FrameRegion};
use crate::diffusion::{QUANTILES, SigmaDistribution, heldout_key, timestep};
use crate::engine::Engine;
use crate::model::Model;
use crate::parallel::Reduce;
use crate::sample::conditioning;

/// What the held-out clips have said of the weights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeldoutLosses {
    /// The mean loss at each quantile, in ascending sigma, over all clips: each counts the same, whatever its size.
    pub quantiles: Vec<f64>,
    /// Where clips have several sizes, the mean of each size's, over quantiles and clips.
    pub sizes: Vec<(Bucket, f64)>,
}

impl HeldoutLosses {
    /// The mean over quantiles; none where nothing was measured.
    pub fn mean(&self) -> Option<f64> {
        (!self.quantiles.is_empty()).then(|| mean(&self.quantiles))
    }
}

fn mean(losses: &[f64]) -> f64 {
    losses.iter().sum::<f64>() / losses.len() as f64
}

impl Rank<'_> {
    /// The held-out losses of the averaged weights: after every `train.heldout_every` steps, and after the `last`.
    pub fn heldout_losses(&self, step: u64, last: bool) -> Result<HeldoutLosses> {
        let every = self.setup.config.train.heldout_every;
        match &self.setup.heldout {
            Some(clips) if every > 0 && (last || step.is_multiple_of(every)) => {
                self.weights.averaged(|model| self.losses_of(model, clips))
            }
            _ => Ok(HeldoutLosses::default()),
        }
    }

    /// The losses of all clips, on all ranks.
    fn losses_of(&self, model: &Model, clips: &ClipSets) -> Result<HeldoutLosses> {
        let (mut quantiles, mut sizes, mut first) = (vec![0.0; QUANTILES], vec![], 0);
        for (bucket, dataset) in clips.buckets().iter().enumerate() {
            let share = dataset.len() as f64 / clips.len() as f64;
            let of_bucket = self.bucket_losses(model, bucket, dataset, first)?;
            sizes.push((Bucket::from(dataset.options().size()), mean(&of_bucket)));
            quantiles.iter_mut().zip(of_bucket).for_each(|(sum, loss)| *sum += share * loss);
            first += dataset.len();
        }
        if let [_] = sizes[..] {
            sizes.clear();
        }
        Ok(HeldoutLosses { quantiles, sizes })
    }

    /// The mean loss at each quantile of a bucket's clips, which have the numbers from `first` on. Clips are dealt to
    /// data ranks in turn.
    fn bucket_losses(&self, model: &Model, bucket: usize, dataset: &Dataset, first: usize) -> Result<Vec<f64>> {
        let grid = self.setup.grid(dataset)?;
        let sigmas = SigmaDistribution::new(&self.setup.config.diffusion, grid.iter().product())?.heldout(QUANTILES);
        let engine = Engine::new(model, &self.mesh.sequence, grid, QUANTILES, self.setup.config.train.tile)?
            .in_head_groups(self.setup.config.parallel.head_groups)?;
        let tokens = engine.local_tokens();
        let region = FrameRegion::of_tokens(tokens.clone(), grid, model.config.patch_size);
        let mut sums = vec![0.0; QUANTILES];
        for number in (self.mesh.data.rank()..dataset.len()).step_by(self.mesh.data.size()) {
            let clip = dataset.clip(number);
            let frames: Arc<dyn ClipRows> = match &self.setup.caches.latents {
                Some(latents) => Arc::new(latents.heldout(bucket, number, &region)?),
                None => Arc::new(dataset.region(&clip, &dataset.plain(number).augment, &region)?),
            };
            let pixels = upload(frames.as_ref(), self.setup.device())?;
            let noisy = |(i, &sigma): (usize, &f64)| NoisyClip {
                frames: frames.clone(),
                pixels: pixels.clone(),
                sigma,
                weight: 1.0,
                noise: heldout_key(self.setup.config.run.seed, i as u64, (first + number) as u64),
            };
            let clips: Vec<NoisyClip> = sigmas.iter().enumerate().map(noisy).collect();
            let label = if self.setup.config.data.labelled() { clip.class } else { None };
            let timesteps: Vec<f64> = sigmas.iter().map(|&sigma| timestep(sigma)).collect();
            let text = self.setup.caches.texts.as_ref().map(|texts| texts.of(clip.caption.as_deref())).transpose()?;
            let texts = text.map(|text| vec![text; QUANTILES]);
            let conditioning = conditioning(model, &timesteps, &[label; QUANTILES], texts);
            let patch = model.config.patch_size;
            let clips = NoisyClips {
                clips: &clips,
                objective: &self.objective,
                tokens: tokens.clone(),
                patch,
                channels: model.config.in_channels,
                device: self.setup.device(),
                weight: 1.0,
            };
            engine.predict(&conditioning, &clips, |rows, output| squared_errors(&clips, rows, &output, &mut sums))?;
        }
        let elements = dataset.len() * grid.iter().product::<usize>() * model.config.patch_out();
        let sums = Tensor::from_vec(sums, QUANTILES, &Device::Cpu)?;
        self.mesh.world.all_reduce(&sums, Reduce::Sum)?;
        Ok(sums.to_vec1::<f64>()?.into_iter().map(|sum| sum / elements as f64).collect())
    }
}
