//! Resolves a config into the options of the rooms below, which know nothing of sections and keys.

use super::{CACHE, Model, RunConfig, TEXT_CACHE};
#[cfg(feature = "media")]
use crate::data::{Apart, Source};
use crate::data::{Bucket, ClipGrid};
use crate::files::expand_home;
use crate::model::ModelConfig;
use crate::state::StateOptions;
use crate::state::checkpoint::{Checkpoint, STATE};
use crate::state::named::NamedModel;
use crate::state::optimizer::AdamWOptions;
use crate::text::{TextConfig, TextModel};
use crate::vae::{Space, VaeConfig, VaeWeights};
use crate::{Error, Result, bail, hub};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a name has been found to be, looked up once for a config and all its copies: `plan` asks for it with each size
/// that it tries, and a name may be a hub's.
#[derive(Clone, Debug)]
pub struct Known<T>(Arc<Mutex<Option<(String, T)>>>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> PartialEq for Known<T> {
    /// What is known already is no part of a config.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T: Clone> Known<T> {
    /// What `name` is, by `find` if that is not known.
    fn get(&self, name: &str, find: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut known = self.0.lock();
        match &*known {
            Some((of, found)) if of == name => Ok(found.clone()),
            _ => {
                let found = find()?;
                *known = Some((name.to_owned(), found.clone()));
                Ok(found)
            }
        }
    }
}

impl RunConfig {
    /// The config of the run that wrote `checkpoint`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        Self::parse(&checkpoint.state().config, &checkpoint.dir().join(STATE), &[])
    }

    /// The network: of the sizes that the config names, or of the model that it names. No weights are read.
    ///
    /// # Errors
    /// The folder cannot be had, or holds no such network.
    pub fn network(&self) -> Result<ModelConfig> {
        let Some(from) = &self.model.from else {
            let text_dim = self.text_config()?.map_or(0, |text| text.width);
            return Ok(self.model.network(self.space()?, text_dim));
        };
        NamedModel::find(&hub::resolve(from)?).and_then(|named| named.config()).map_err(|e| e.at("model.from"))
    }

    /// The sizes of clips, in pixels, that `model` takes.
    ///
    /// # Errors
    /// As [`space`](Self::space).
    pub fn clip_grid(&self, model: &ModelConfig) -> Result<ClipGrid> {
        let Space { time, side, .. } = self.space()?;
        Ok(ClipGrid::of_latents(model.patch_size, [time, side, side]))
    }

    /// Refuses sizes of clips that `model` does not take.
    ///
    /// # Errors
    /// A section's sizes are not on the network's grid; names the nearest.
    pub fn check_sizes(&self, model: &ModelConfig) -> Result<()> {
        let grid = self.clip_grid(model)?;
        let refused = self.data.iter().find_map(|section| section.off_grid(&grid));
        refused.map_or(Ok(()), |(key, why)| Err(Error::Config(format!("{key}: {why}"))))
    }

    /// Refuses a network whose channels are not those of the run's pixels or latents.
    ///
    /// # Errors
    /// As [`space`](Self::space); the channels are others.
    pub fn check_channels(&self, model: &ModelConfig) -> Result<()> {
        let space = self.space()?;
        let ([i, o], c) = ([model.in_channels, model.out_channels], space.channels);
        if [i, o] != [c; 2] {
            let clips = if space.is_latent() { "latents of vae.from" } else { "pixels, since no vae.from is named" };
            bail!(
                Shape,
                "model.from: the network takes {i} and gives {o} channels; training is on {clips}, which have {c}"
            )
        }
        Ok(())
    }

    /// The folders of the run's clips, fetched if need be, for a network of `grid`: what is held out, and the run's own
    /// folder, is apart.
    ///
    /// # Errors
    /// A folder cannot be had.
    #[cfg(feature = "media")]
    pub fn sources(&self, grid: &ClipGrid) -> Result<Vec<Source>> {
        let held_out = self.data.iter().filter_map(|section| section.heldout.as_ref());
        let held_out = held_out.map(|path| hub::resolve(path)).collect::<Result<Vec<_>>>()?;
        let own = Apart::of_run(&self.run.out, None);
        let apart = held_out.iter().fold(own, |apart, path| apart.with(path, "it is held out (data.heldout)"));
        let sources = self.data.iter().map(|section| {
            Ok(Source { path: hub::resolve(&section.path)?, options: section.source(grid), apart: apart.clone() })
        });
        sources.collect()
    }

    /// The folders of the run's held-out clips, as [`sources`](Self::sources); `trained` are those of what is trained
    /// on.
    ///
    /// # Errors
    /// A folder cannot be had.
    #[cfg(feature = "media")]
    pub fn heldout_sources(&self, grid: &ClipGrid, trained: &[Source]) -> Result<Vec<Source>> {
        let own = Apart::of_run(&self.run.out, None);
        let apart = trained.iter().fold(own, |apart, source| apart.with(&source.path, "it is trained on (data.path)"));
        let named = self.data.iter().filter_map(|section| Some((section, section.heldout.as_ref()?)));
        let sources = named.map(|(section, path)| {
            let mut options = section.source(grid);
            (options.repeats, options.by_hand) = (1, false);
            Ok(Source { path: hub::resolve(path)?, options, apart: apart.clone() })
        });
        sources.collect()
    }

    /// Frames, height and width in pixels of the clips that are sampled: the first size by hand, or of the first area
    /// the squarest with the most frames.
    ///
    /// # Errors
    /// As [`network`](Self::network), for sizes by area.
    pub fn sample_size(&self) -> Result<Bucket> {
        let data = &self.data;
        let grid = match data.resolutions.is_empty() {
            true => ClipGrid::of_patches([1; 3]),
            false => self.clip_grid(&self.network()?)?,
        };
        let first = data.groups(&grid).swap_remove(0);
        let by_area = !data.resolutions.is_empty();
        let square = |bucket: &Bucket| (bucket.width as f64 / bucket.height as f64).ln().abs();
        let best = first
            .iter()
            .copied()
            .filter(|_| by_area)
            .min_by(|a, b| square(a).total_cmp(&square(b)).then(b.frames.cmp(&a.frames)));
        Ok(best.unwrap_or(first[0]))
    }

    /// The config as it were if all clips had the size of `bucket`.
    #[must_use]
    pub fn of_size(&self, bucket: Bucket) -> Self {
        Self { data: self.data.of_size(bucket), ..self.clone() }
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
        let open = || VaeWeights::open(&existing(from)?);
        let find = || open().map(|weights| weights.config).map_err(|e| e.at("vae.from"));
        self.vae.known.get(from, find).map(Some)
    }

    /// The text encoder that the config names, if it names one. No weights are read.
    ///
    /// # Errors
    /// The encoder cannot be had, or is none.
    pub fn text_config(&self) -> Result<Option<TextConfig>> {
        let Some(from) = &self.text.from else { return Ok(None) };
        let open = || TextModel::open(&existing(from)?);
        let find = || open().map(|model| model.config().clone()).map_err(|e| e.at("text.from"));
        self.text.known.get(from, find).map(Some)
    }

    /// The folder of embedded texts.
    ///
    /// # Errors
    /// The config names none, and there is no home folder.
    pub fn text_cache(&self) -> Result<PathBuf> {
        self.text.cache.clone().map_or_else(|| expand_home(Path::new(TEXT_CACHE)), Ok)
    }

    /// The folder of encoded clips.
    ///
    /// # Errors
    /// The config names none, and there is no home folder.
    pub fn latent_cache(&self) -> Result<PathBuf> {
        self.vae.cache.clone().map_or_else(|| expand_home(Path::new(CACHE)), Ok)
    }

    /// How the run's state changes in a step, and where it is held.
    pub fn state(&self) -> StateOptions {
        let &super::Train { optimizer, betas, eps, momentum, weight_decay, clip, ema, moments, .. } = &self.train;
        StateOptions {
            optimizer,
            adamw: AdamWOptions { betas, eps, weight_decay },
            momentum,
            clip,
            ema,
            moments,
            zero: self.parallel.zero,
            scratch: self.stash.folder.clone(),
            shared: false,
        }
    }
}

/// Where the model that a key names is: in the hub's cache, or as it is named.
fn existing(from: &str) -> Result<PathBuf> {
    let path = hub::resolve(from)?;
    if !path.exists() {
        bail!(Config, "{}: there is no such file or folder", path.display());
    }
    Ok(path)
}

impl Model {
    /// The new network that these keys describe: on clips of `space`, with text tokens of `text_dim` features, or none.
    pub fn network(&self, space: Space, text_dim: usize) -> ModelConfig {
        ModelConfig {
            patch_size: self.patch_size,
            num_attention_heads: self.num_attention_heads,
            attention_head_dim: self.attention_head_dim,
            in_channels: space.channels,
            out_channels: space.channels,
            text_dim,
            freq_dim: self.freq_dim,
            ffn_dim: self.ffn_dim,
            num_layers: self.num_layers,
            num_classes: self.num_classes,
            pos_embed: self.pos_embed,
            ..ModelConfig::default()
        }
    }
}
