//! Resolves a config into the options of the rooms below, which know nothing of sections and keys.

use super::{Data, Model, RunConfig};
use crate::data::ClipOptions;
use crate::model::ModelConfig;
use crate::model::folder::read_config;
use crate::state::StateOptions;
use crate::state::checkpoint::{Checkpoint, STATE};
use crate::state::named::NamedModel;
use crate::state::optimizer::AdamWOptions;
use crate::vae::{Space, VaeConfig, VaeWeights};
use crate::{Result, hub};

impl RunConfig {
    /// The config of the run that wrote `checkpoint`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::parse(&checkpoint.state().config, &checkpoint.dir().join(STATE), &[])
    }

    /// The network: of the sizes that the config names, or of the config.json of the folder that it names. No weights
    /// are read.
    ///
    /// # Errors
    /// The folder cannot be had, or holds no such network.
    pub fn network(&self) -> Result<ModelConfig> {
        let Some(from) = &self.model.from else { return Ok(self.model.network(self.space()?)) };
        let path = NamedModel::find(&hub::resolve(from)?)?.dir.join("config.json");
        let json = read_config(&path).map_err(|e| e.at("model.from"))?;
        ModelConfig::from_json(&json).map_err(|e| e.at(path.display()))
    }

    /// What the network's clips are made of: pixels, or latents of the VAE that the config names. No weights are read.
    ///
    /// # Errors
    /// The VAE cannot be had, or is none.
    pub fn space(&self) -> Result<Space> {
        Ok(self.vae_config()?.map_or(Space::PIXELS, |vae| vae.space()))
    }

    /// The VAE that the config names, if it names one. No weights are read.
    ///
    /// # Errors
    /// As [`space`](Self::space).
    pub fn vae_config(&self) -> Result<Option<VaeConfig>> {
        let Some(from) = &self.vae.from else { return Ok(None) };
        let weights = VaeWeights::open(&hub::resolve(from)?).map_err(|e| e.at("vae.from"))?;
        Ok(Some(weights.config))
    }

    /// How the run's state changes in a step, and where it is held.
    pub fn state(&self) -> StateOptions {
        let &super::Train { betas, eps, weight_decay, clip, ema, moments, .. } = &self.train;
        StateOptions {
            adamw: AdamWOptions { betas, eps, weight_decay },
            clip,
            ema,
            moments,
            zero: self.parallel.zero,
            scratch: self.stash.folder.clone(),
        }
    }
}

impl Model {
    /// The new network that these keys describe: on clips of `space`, without text.
    pub fn network(&self, space: Space) -> ModelConfig {
        ModelConfig {
            patch_size: self.patch_size,
            num_attention_heads: self.num_attention_heads,
            attention_head_dim: self.attention_head_dim,
            in_channels: space.channels,
            out_channels: space.channels,
            text_dim: 0,
            freq_dim: self.freq_dim,
            ffn_dim: self.ffn_dim,
            num_layers: self.num_layers,
            num_classes: self.num_classes,
            pos_embed: self.pos_embed,
            ..ModelConfig::default()
        }
    }
}

impl Data {
    /// How clips are cut.
    pub fn clips(&self) -> ClipOptions {
        let &Self { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap, .. } = self;
        ClipOptions { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap }
    }

    /// The same section for clips that are cut as `clips` say.
    pub fn cut_as(self, clips: &ClipOptions) -> Self {
        let &ClipOptions { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap } = clips;
        Self { frames, height, width, stride, fps, crop, flip, label, deinterlace, tonemap, ..self }
    }
}
