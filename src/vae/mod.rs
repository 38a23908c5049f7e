//! Encodes pixels to latents and decodes them, as diffusers' AutoencoderKLWan does: the VAE of Wan 2.1 and of Wan 2.2's
//! A14B, and that of TI2V-5B.
//!
//! The network is causal in time, so a clip streams through it frame by frame: each layer remembers the few frames
//! that its convolution looks back on, and memory does not grow with the clip. A frame goes through all layers before
//! the next one ([`layer`]). In space the layers see one row beyond what they hold; [`RowShards`] fetches it where
//! several processes share a frame, [`tiles`] cuts a frame for one process with little memory, and [`bands`] streams
//! short clips down their rows instead. Only the attention in the middle sees a whole frame.
//!
//! The weights are frozen: nothing here keeps what a backward pass would need.
//!
//! From below: [`frame`]; [`backend`], what computes, a CPU ([`cpu`]) or a GPU (`cuda`); on either [`conv`],
//! [`resample`], [`residual`], [`attention`]; [`spec`] lists the layers of a [`config`], [`weights`] reads them,
//! [`layer`] builds and runs them, [`direction`] is all of one direction, [`stages`] are parts of it to be measured.
//!
//! Source: <https://github.com/Wan-Video/Wan2.1>, and diffusers' `autoencoder_kl_wan.py`, by their results.

mod attention;
mod backend;
pub mod bands;
mod config;
mod conv;
mod cost;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod direction;
mod frame;
mod layer;
mod resample;
mod residual;
mod shards;
mod space;
mod spec;
mod stages;
pub mod tiles;
mod weights;
mod window;

use crate::Result;
use candle_core::Device;
use direction::Half;
use std::sync::Arc;

pub use config::VaeConfig;
pub use conv::Arithmetic;
pub use cost::{GPU_SCRATCH, VaeCost};
pub use frame::Frame;
pub use shards::{RowShards, Whole};
pub use space::Space;
pub use spec::{TensorSpec, tensors};
pub use stages::Stage;
pub use weights::VaeWeights;

/// The encoder, and its place in a clip.
#[derive(Clone)]
pub struct Encoder {
    config: Arc<VaeConfig>,
    half: Half,
}

impl Encoder {
    /// Reads the encoder's weights, for the layers to run on `device`.
    ///
    /// # Errors
    /// Those of [`VaeWeights::read`]; there is no room on the GPU.
    pub fn load(weights: &VaeWeights, arithmetic: Arithmetic, device: &Device) -> Result<Self> {
        Self::build(&weights.config, arithmetic, device, &mut |tensor| weights.read(tensor))
    }

    /// Builds an encoder of the tensors that `read` gives.
    ///
    /// # Errors
    /// Those of `read`; there is no room on the GPU.
    pub fn build(
        config: &VaeConfig,
        arithmetic: Arithmetic,
        device: &Device,
        read: &mut dyn FnMut(&TensorSpec) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let half = Half::load(&spec::encoder(config), arithmetic, device, read)?;
        Ok(Self { config: Arc::new(config.clone()), half })
    }

    /// The VAE's settings.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Takes the clip's next frame of pixels `[rows, width, 3]` in -1..1 and gives, after the first and then after
    /// every fourth, a frame of moments `[rows / 8, width / 8, 2 z]` (or / 16): means, then log variances. The size
    /// must be one that [`VaeConfig::check_size`] allows.
    ///
    /// # Errors
    /// Those of `shards`.
    pub fn push(&mut self, pixels: &Frame, shards: &dyn RowShards) -> Result<Option<Frame>> {
        let mut moments = None;
        self.half.push(self.patches(pixels), shards, &mut |frame| {
            moments = Some(frame);
            Ok(())
        })?;
        Ok(moments)
    }

    /// The means of a frame of moments, normalised: what the network sees.
    pub fn latents(&self, moments: &Frame) -> Frame {
        let (z, mean, std) = (self.config.z_dim, &self.config.latents_mean, &self.config.latents_std);
        let pixels = moments.values.chunks_exact(2 * z);
        let normalised = |pixel: &[f32]| (0..z).map(|c| (pixel[c] - mean[c]) / std[c]).collect::<Vec<f32>>();
        moments.with(z, pixels.flat_map(normalised).collect())
    }

    fn patches(&self, pixels: &Frame) -> Frame {
        match self.config.patch() {
            1 => pixels.clone(),
            side => resample::patchify(pixels, side),
        }
    }

    /// Whether a CPU computes it, which takes short clips in [`bands`].
    pub fn is_on_cpu(&self) -> bool {
        self.half.on_cpu().is_some()
    }

    /// Bytes of weights, and of the frames that layers remember now.
    pub fn bytes(&self) -> [usize; 2] {
        self.half.bytes()
    }
}

/// The decoder, and its place in a clip.
#[derive(Clone)]
pub struct Decoder {
    config: Arc<VaeConfig>,
    half: Half,
}

impl Decoder {
    /// Reads the decoder's weights, for the layers to run on `device`.
    ///
    /// # Errors
    /// Those of [`VaeWeights::read`]; there is no room on the GPU.
    pub fn load(weights: &VaeWeights, arithmetic: Arithmetic, device: &Device) -> Result<Self> {
        Self::build(&weights.config, arithmetic, device, &mut |tensor| weights.read(tensor))
    }

    /// Builds a decoder of the tensors that `read` gives.
    ///
    /// # Errors
    /// Those of `read`; there is no room on the GPU.
    pub fn build(
        config: &VaeConfig,
        arithmetic: Arithmetic,
        device: &Device,
        read: &mut dyn FnMut(&TensorSpec) -> Result<Vec<f32>>,
    ) -> Result<Self> {
        let half = Half::load(&spec::decoder(config), arithmetic, device, read)?;
        Ok(Self { config: Arc::new(config.clone()), half })
    }

    /// The VAE's settings.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Takes the clip's next frame of normalised latents `[rows, width, z]` and gives one frame of pixels in -1..1,
    /// `[8 rows, 8 width, 3]` (or 16), for the first and four for each other, to `emit`.
    ///
    /// # Errors
    /// Those of `shards` and of `emit`.
    pub fn push(
        &mut self,
        latents: &Frame,
        shards: &dyn RowShards,
        emit: &mut dyn FnMut(Frame) -> Result<()>,
    ) -> Result<()> {
        let x = self.denormalised(latents);
        let side = self.config.patch();
        self.half.push(x, shards, &mut |frame| emit(pixels(frame, side)))
    }

    fn denormalised(&self, latents: &Frame) -> Frame {
        let (mean, std) = (&self.config.latents_mean, &self.config.latents_std);
        let mut x = latents.clone();
        for pixel in x.values.chunks_exact_mut(self.config.z_dim) {
            pixel.iter_mut().zip(mean.iter().zip(std)).for_each(|(x, (mean, std))| *x = *x * std + mean);
        }
        x
    }

    /// Whether a CPU computes it, which takes short clips in [`bands`].
    pub fn is_on_cpu(&self) -> bool {
        self.half.on_cpu().is_some()
    }

    /// Bytes of weights, and of the frames that layers remember now.
    pub fn bytes(&self) -> [usize; 2] {
        self.half.bytes()
    }
}

/// The last layer's output as pixels.
fn pixels(frame: Frame, side: usize) -> Frame {
    let mut frame = if side == 1 { frame } else { resample::unpatchify(&frame, side) };
    frame.values.iter_mut().for_each(|x| *x = x.clamp(-1.0, 1.0));
    frame
}
