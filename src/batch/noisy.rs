//! Makes input rows and the loss of a batch of noisy clips for the engine, tile by tile, from its u8 frames or
//! latents and counter-based noise.
//!
//! Nothing of the whole clip exists but those: x0, noise, x_sigma, target and prediction live for one tile.

#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{Device, Tensor};
use std::cell::Cell;
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::data::ClipRows;
use crate::diffusion::{Objective, channel_first, noise_rows, noisy};
use crate::engine;
use crate::rng::Key;

/// One clip, its noise level and noise.
pub struct NoisyClip {
    /// This rank's part of the clip; several noise levels may share it.
    pub frames: Arc<dyn ClipRows>,
    /// Its pixels on the GPU that the network is on, if it is on one: see [`upload`].
    pub pixels: Option<Tensor>,
    pub sigma: f64,
    /// What its loss weighs in the gradient, by its sigma.
    pub weight: f64,
    /// Where the noise comes from; the token is the clip's.
    pub noise: Key,
}

/// The pixels of `frames` on `device`, if that is a GPU; latents stay in memory.
pub fn upload(frames: &dyn ClipRows, device: &Device) -> Result<Option<Tensor>> {
    match (device, frames.pixels()) {
        (Device::Cpu, _) | (_, None) => Ok(None),
        (_, Some(frames)) => Ok(Some(Tensor::from_slice(&frames.data, frames.data.len(), device)?)),
    }
}

/// This rank's share of a batch of clips of one shape.
pub struct NoisyClips<'a> {
    pub clips: &'a [NoisyClip],
    pub objective: &'a Objective,
    /// The clip's tokens that this rank holds.
    pub tokens: Range<usize>,
    /// (frames, height, width) of a patch of pixels or latents.
    pub patch: [usize; 3],
    /// Channels of a pixel or latent.
    pub channels: usize,
    /// What the network is on.
    pub device: &'a Device,
    /// What each element's squared error counts in the loss, whatever its clip weighs in the gradient: 1 / elements of
    /// the global batch.
    pub weight: f64,
}

impl NoisyClips<'_> {
    /// Elements in a patch.
    fn row(&self) -> usize {
        self.channels * self.patch.iter().product::<usize>()
    }

    /// Calls `f` for each run of rows of one clip: the clip, its tokens, and where they lie in the tile, in elements.
    pub(super) fn runs(
        &self,
        rows: Range<usize>,
        mut f: impl FnMut(&NoisyClip, Range<usize>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let (tokens, row) = (self.tokens.len(), self.row());
        let mut position = rows.start;
        while position < rows.end {
            let (clip, first) = (position / tokens, position % tokens);
            let count = (tokens - first).min(rows.end - position);
            let start = self.tokens.start + first;
            let values = (position - rows.start) * row..(position - rows.start + count) * row;
            f(&self.clips[clip], start..start + count, values)?;
            position += count;
        }
        Ok(())
    }

    /// x0 and noise of `tokens` of a clip, channel-last.
    pub(super) fn clean_and_noise(&self, clip: &NoisyClip, tokens: Range<usize>) -> Result<(Vec<f32>, Vec<f32>)> {
        let mut x0 = vec![0.0; tokens.len() * self.row()];
        let mut noise = x0.clone();
        clip.frames.clean_rows(self.patch, tokens.clone(), &mut x0)?;
        noise_rows(clip.noise, tokens, self.row(), &mut noise);
        Ok((x0, noise))
    }
}

impl engine::Source for NoisyClips<'_> {
    fn input(&self, rows: Range<usize>) -> Result<Tensor> {
        #[cfg(feature = "cuda")]
        if let Some(Device::Cuda(device)) = self.clips[0].pixels.as_ref().map(Tensor::device) {
            return cuda::input(self, rows, device);
        }
        let mut input = vec![0.0; rows.len() * self.row()];
        self.runs(rows.clone(), |clip, tokens, values| {
            let (x0, noise) = self.clean_and_noise(clip, tokens)?;
            let mut x = vec![0.0; x0.len()];
            noisy(&x0, &noise, clip.sigma, &mut x);
            channel_first(&x, self.row(), self.channels, &mut input[values]);
            Ok(())
        })?;
        Ok(Tensor::from_vec(input, (rows.len(), self.row()), self.device)?)
    }
}

impl engine::Objective for NoisyClips<'_> {
    fn loss(&self, rows: Range<usize>, output: &Tensor) -> Result<(f64, Tensor)> {
        #[cfg(feature = "cuda")]
        if output.device().is_cuda() && self.clips[0].pixels.is_some() {
            return cuda::loss(self, rows, output);
        }
        let output = output.flatten_all()?.to_vec1::<f32>()?;
        let mut gradient = vec![0.0; output.len()];
        let loss = Cell::new(0.0);
        self.runs(rows.clone(), |clip, tokens, values| {
            let (x0, noise) = self.clean_and_noise(clip, tokens)?;
            let (output, gradient) = (&output[values.clone()], &mut gradient[values]);
            let sum = self.objective.loss(output, &x0, &noise, clip.sigma, self.weight * clip.weight, gradient);
            loss.set(loss.get() + self.weight * sum);
            Ok(())
        })?;
        Ok((loss.get(), Tensor::from_vec(gradient, (rows.len(), self.row()), self.device)?))
    }
}
