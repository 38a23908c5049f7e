//! What a run encodes before its first step: its clips to latents, its texts to embeddings.

use candle_core::Device;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::latents::RunLatents;
use crate::Result;
use crate::config::RunConfig;
use crate::data::{ClipSets, Dataset};
use crate::model::ModelConfig;
use crate::parallel::Communicator;
use crate::sample::Texts;

/// The caches of a run.
pub struct Caches {
    /// Captions and prompts, of a network with text.
    pub texts: Option<Arc<Texts>>,
    /// The clips' latents, of a run that trains on those.
    pub latents: Option<Arc<RunLatents>>,
}

impl Caches {
    /// Opens the caches of a run's clips, whose network is `model`; the VAE is to run on `device`. Nothing is encoded.
    ///
    /// # Errors
    /// An encoder cannot be read, or does not fit the clips or the network; a cache's folder cannot be used; a source
    /// cannot be read.
    pub fn open(
        config: &RunConfig,
        model: &ModelConfig,
        clips: &[Arc<Dataset>],
        heldout: &[Arc<Dataset>],
        device: &Device,
    ) -> Result<Self> {
        let captions = clips.iter().chain(heldout).flat_map(|dataset| dataset.captions());
        Ok(Self {
            texts: Texts::open(config, model, captions)?.map(Arc::new),
            latents: RunLatents::open(config, clips, heldout, device)?.map(Arc::new),
        })
    }

    /// The caches of what a config names, for a command that does not train.
    ///
    /// # Errors
    /// As [`open`](Self::open); the network does not fit the VAE or the clips; the clips cannot be opened.
    pub fn of_config(config: &RunConfig, device: &Device) -> Result<Self> {
        let model = config.network()?;
        config.check_channels(&model)?;
        config.check_sizes(&model)?;
        let grid = config.clip_grid(&model)?;
        let sources = config.sources(&grid)?;
        let clips = ClipSets::open(&sources)?;
        let heldout = config.heldout_sources(&grid, &sources)?;
        let heldout = if heldout.is_empty() { None } else { Some(ClipSets::open(&heldout)?) };
        let heldout = heldout.as_ref().map_or(&[][..], |clips| clips.buckets());
        Self::open(config, &model, clips.buckets(), heldout, device)
    }

    /// Encodes what the caches miss, with a line in the log now and then: a collective of all ranks, after which the
    /// encoders are gone. Ends early once `stop` is set; whether all is there. To `verify`, latents that are there are
    /// read and compared with their checksums.
    ///
    /// # Errors
    /// What cannot be read, encoded or written.
    pub fn fill_and_log(&self, comm: &Arc<dyn Communicator>, verify: bool, stop: &AtomicBool) -> Result<bool> {
        let texts = self.texts.as_ref().map_or(Ok(true), |texts| texts.fill_and_log(comm, stop))?;
        let encode = |latents: &Arc<RunLatents>| latents.fill_and_log(comm, verify, stop);
        Ok(texts && self.latents.as_ref().map_or(Ok(true), encode)?)
    }
}
