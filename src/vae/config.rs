//! The VAE's settings: diffusers' `config.json` of an AutoencoderKLWan, or what the tensors of a single file tell.

use serde::Deserialize;
use std::path::Path;

use super::space::Space;
use crate::{Error, Result, bail};

/// The most channels a layer may have, and the most blocks; no VAE comes near, and it bounds what a config may claim.
const MOST: usize = 1 << 14;

/// Settings of an AutoencoderKLWan; names and defaults are diffusers'.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct VaeConfig {
    /// Channels of the encoder's first layers.
    pub base_dim: usize,
    /// Channels of the decoder's last layers; none: as the encoder.
    pub decoder_base_dim: Option<usize>,
    /// Channels of a latent.
    pub z_dim: usize,
    /// Channels of each level over the first.
    pub dim_mult: Vec<usize>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Attention within levels; no published VAE has any.
    pub attn_scales: Vec<f64>,
    /// Whether a level's frames are halved (sic).
    pub temperal_downsample: Vec<bool>,
    /// Whether shortcuts go round the levels: the 2.2 VAE.
    pub is_residual: bool,
    pub in_channels: usize,
    pub out_channels: usize,
    /// Sides of the squares of pixels that are channels of the first layer; none: 1.
    pub patch_size: Option<usize>,
    /// Mean of each latent channel, which the network's input has not.
    pub latents_mean: Vec<f32>,
    /// Standard deviation of each latent channel.
    pub latents_std: Vec<f32>,
}

impl Default for VaeConfig {
    /// The VAE of Wan 2.1 and of Wan 2.2's A14B.
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: vec![],
            temperal_downsample: vec![false, true, true],
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
            latents_mean: MEAN_21.to_vec(),
            latents_std: STD_21.to_vec(),
        }
    }
}

impl VaeConfig {
    /// The VAE of Wan 2.2's TI2V-5B.
    pub fn wan22() -> Self {
        Self {
            base_dim: 160,
            decoder_base_dim: Some(256),
            z_dim: 48,
            is_residual: true,
            in_channels: 12,
            out_channels: 12,
            patch_size: Some(2),
            latents_mean: MEAN_22.to_vec(),
            latents_std: STD_22.to_vec(),
            ..Self::default()
        }
    }

    /// Of a `config.json`'s text; `path` is for errors.
    ///
    /// # Errors
    /// It is not JSON, of another class of model, or has settings that no AutoencoderKLWan can have.
    pub fn from_json(json: &serde_json::Value, path: &Path) -> Result<Self> {
        let shown = path.display();
        match json.get("_class_name").and_then(|class| class.as_str()) {
            Some("AutoencoderKLWan") => {}
            Some(class) => bail!(Data, "{shown}: is of a {class}; the VAE must be an AutoencoderKLWan"),
            None => bail!(Data, "{shown}: has no `_class_name`; the VAE must be an AutoencoderKLWan"),
        }
        let config: Self = serde_path_to_error::deserialize(json).map_err(|e| Error::Data(format!("{shown}: {e}")))?;
        config.check().map_err(|why| Error::Data(format!("{shown}: {why}")))?;
        Ok(config)
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let levels = self.dim_mult.len();
        let sizes = [
            ("base_dim", self.base_dim),
            ("decoder_base_dim", self.decoder_base()),
            ("z_dim", self.z_dim),
            ("num_res_blocks", self.num_res_blocks),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("patch_size", self.patch()),
            ("the number of dim_mult", levels),
        ];
        for (name, value) in sizes.into_iter().chain(self.dim_mult.iter().map(|&mult| ("dim_mult", mult))) {
            if !(1..=MOST).contains(&value) {
                return Err(format!("{name} = {value}: must be from 1 to {MOST}"));
            }
        }
        let widest = self.base_dim.max(self.decoder_base()) * self.dim_mult.iter().max().expect("levels");
        if widest > MOST || levels > 8 || self.num_res_blocks > 64 || self.patch() > 8 {
            return Err("is larger than any VAE; it is damaged or of another kind".into());
        }
        if self.temperal_downsample.len() + 1 != levels {
            let found = self.temperal_downsample.len();
            return Err(format!("temperal_downsample has {found} values; {} are needed", levels - 1));
        }
        if !self.attn_scales.is_empty() {
            return Err("attn_scales is not empty, which longreel has no layers for".into());
        }
        let rgb = 3 * self.patch() * self.patch();
        if [self.in_channels, self.out_channels] != [rgb; 2] {
            return Err(format!(
                "in_channels = {} and out_channels = {}: RGB in squares of {} needs {rgb}",
                self.in_channels,
                self.out_channels,
                self.patch()
            ));
        }
        for (name, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim {
                return Err(format!("{name} has {} values for z_dim = {}", values.len(), self.z_dim));
            }
            if !values.iter().all(|x| x.is_finite()) {
                return Err(format!("{name} has a value that is not finite"));
            }
        }
        if self.latents_std.iter().any(|&std| std <= 0.0) {
            return Err("latents_std has a value that is not above 0".into());
        }
        let halved = &self.decoder_dims()[1..self.dim_mult.len()];
        if !self.is_residual && halved.iter().any(|dim| dim % 2 > 0) {
            return Err("a level of the decoder has an odd number of channels, which it cannot halve".into());
        }
        if self.is_residual && self.group_sizes().is_none() {
            return Err("a shortcut's channels do not divide each other".into());
        }
        Ok(())
    }

    /// Nothing if a shortcut's channels do not divide each other.
    fn group_sizes(&self) -> Option<()> {
        for (i, [from, to]) in pairs(&self.encoder_dims()).enumerate() {
            let times = if i + 1 < self.dim_mult.len() { 4 << usize::from(self.temperal_downsample[i]) } else { 1 };
            (from * times).is_multiple_of(to).then_some(())?;
        }
        for (i, [from, to]) in pairs(&self.decoder_dims()).enumerate().take(self.dim_mult.len() - 1) {
            let times = 4 << usize::from(self.temperal_upsample(i));
            (to * times).is_multiple_of(from).then_some(())?;
        }
        Some(())
    }

    /// Channels before each level of the encoder, and after the last.
    pub(super) fn encoder_dims(&self) -> Vec<usize> {
        let mult = self.dim_mult.iter();
        std::iter::once(&1).chain(mult).map(|mult| self.base_dim * mult).collect()
    }

    /// Channels before each level of the decoder, and after the last.
    pub(super) fn decoder_dims(&self) -> Vec<usize> {
        let mult = self.dim_mult.iter().rev();
        self.dim_mult.last().into_iter().chain(mult).map(|mult| self.decoder_base() * mult).collect()
    }

    /// Whether level `i` of the decoder doubles the frames.
    pub(super) fn temperal_upsample(&self, i: usize) -> bool {
        self.temperal_downsample[self.temperal_downsample.len() - 1 - i]
    }

    fn decoder_base(&self) -> usize {
        self.decoder_base_dim.unwrap_or(self.base_dim)
    }

    pub(super) fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// Pixels of a latent's side: 8, or 16.
    pub fn scale_space(&self) -> usize {
        self.patch() << (self.dim_mult.len() - 1)
    }

    /// Frames of a latent frame but the first: 4.
    pub fn scale_time(&self) -> usize {
        1 << self.temperal_downsample.iter().filter(|&&halved| halved).count()
    }

    /// What the network's clips are made of.
    pub fn space(&self) -> Space {
        Space { channels: self.z_dim, time: self.scale_time(), side: self.scale_space() }
    }

    /// Whether frames of `[rows, width]` pixels can be encoded. The 2.1 VAE leaves out what is beyond whole latents;
    /// the 2.2 VAE, whose shortcuts need whole squares, takes no such size.
    ///
    /// # Errors
    /// They cannot; it names the nearest size that can.
    pub fn check_size(&self, [rows, width]: [usize; 2]) -> Result<()> {
        let scale = self.scale_space();
        let whole = rows % scale + width % scale == 0;
        if rows < scale || width < scale || (self.is_residual && !whole) {
            bail!(
                Shape,
                "{width} x {rows} pixels: this VAE needs sides that are multiples of {scale}; the nearest are {} x {}",
                self.nearest(width),
                self.nearest(rows)
            );
        }
        Ok(())
    }

    /// The side in pixels, made of whole latents, that is nearest to one of `pixels`.
    pub fn nearest(&self, pixels: usize) -> usize {
        let scale = self.scale_space();
        ((pixels + scale / 2) / scale).max(1) * scale
    }

    /// Latent frames of `frames`: what is left over after the last whole group is dropped.
    pub fn latent_frames(&self, frames: usize) -> usize {
        if frames == 0 { 0 } else { 1 + (frames - 1) / self.scale_time() }
    }

    /// The release of Wan that the VAE came with: `wan2.1` or `wan2.2`.
    pub fn release(&self) -> &'static str {
        if self.is_residual { "wan2.2" } else { "wan2.1" }
    }

    /// Frames per second that the VAE's networks make: 16, of TI2V-5B 24.
    pub fn fps(&self) -> f64 {
        if self.is_residual { 24.0 } else { 16.0 }
    }

    /// Frames that `latent` frames decode to.
    pub fn pixel_frames(&self, latent: usize) -> usize {
        if latent == 0 { 0 } else { 1 + (latent - 1) * self.scale_time() }
    }
}

/// Neighbours in a list.
pub(super) fn pairs(dims: &[usize]) -> impl Iterator<Item = [usize; 2]> + '_ {
    dims.windows(2).map(|pair| [pair[0], pair[1]])
}

pub(super) const MEAN_21: [f32; 16] = [
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517, -0.3632, -0.1922,
    -0.9497, 0.2503, -0.2921,
];
pub(super) const STD_21: [f32; 16] = [
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253,
    2.8251, 1.9160,
];
pub(super) const MEAN_22: [f32; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570,
    -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322,
    0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520,
    0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];
pub(super) const STD_22: [f32; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165,
    0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917,
    0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600,
    0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];
