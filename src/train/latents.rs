//! The encoded clips of a run that trains on latents: their caches, filled before the first step, and the VAE that
//! decodes samples.

use candle_core::Device;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::config::{Compute, RunConfig};
use crate::data::{ClipRows, Crop, Dataset, FrameRegion, ReadClip, Request};
use crate::encode::cache::{Contents, LatentCache, VaeKey};
use crate::encode::fill::{Filling, fill};
use crate::encode::latents::Latents;
use crate::files::KnownHashes;
use crate::parallel::Communicator;
use crate::simd::Isa;
use crate::vae::{Arithmetic, Decoder, Encoder, VaeWeights};
use crate::{Result, bail, hub};

/// How often filling says how far it is.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// The latents of a run's clips.
pub struct RunLatents {
    weights: VaeWeights,
    /// The hashes of models that the cache's folder remembers.
    known: KnownHashes,
    arithmetic: Arithmetic,
    /// What the VAE runs on.
    device: Device,
    /// By bucket.
    trained: Vec<(Arc<Dataset>, LatentCache)>,
    heldout: Vec<(Arc<Dataset>, LatentCache)>,
    /// Loaded by the first rank that needs them, and dropped once the caches are filled.
    encoder: Mutex<Option<Encoder>>,
    decoder: Mutex<Option<Arc<Decoder>>>,
}

impl RunLatents {
    /// Opens the caches of a run's clips, if its config names a VAE, which is to run on `device`. Nothing is encoded.
    ///
    /// # Errors
    /// The VAE cannot be read, or does not fit the clips; the cache's folder cannot be used; a source cannot be read.
    pub fn open(
        config: &RunConfig,
        clips: &[Arc<Dataset>],
        heldout: &[Arc<Dataset>],
        device: &Device,
    ) -> Result<Option<Self>> {
        let Some(from) = &config.vae.from else { return Ok(None) };
        let weights = VaeWeights::open(&hub::resolve(from)?).map_err(|e| e.at("vae.from"))?;
        let bf16 = config.vae.dtype == Compute::Bf16;
        let dir = config.latent_cache().map_err(|e| e.at("vae.cache"))?;
        let known = KnownHashes::open(&dir);
        let key = VaeKey { sha256: weights.encoder_hash_known(&known).map_err(|e| e.at("vae.from"))?, bf16 };
        known.save();
        if config.data.variants == 1 && (config.data.flip || config.data.crop == Crop::Random) {
            tracing::warn!(
                "each clip is encoded once (data.variants = 1), so it is cropped and mirrored the same in every epoch; \
                 more variants take as many times the cache"
            );
        }
        if config.train.sample_every > 0 {
            weights.check_decoder().map_err(|e| e.at("vae.from"))?; // not after hours of training
        }
        let open = |dataset: &Arc<Dataset>, variants| {
            let cache = LatentCache::open(&dir, dataset, &key, &weights.config, variants);
            cache.map(|cache| (dataset.clone(), cache)).map_err(|e| e.at("vae.cache"))
        };
        let variants = Some(config.data.variants);
        let trained = clips.iter().map(|dataset| open(dataset, variants)).collect::<Result<_>>()?;
        let heldout = heldout.iter().map(|dataset| open(dataset, None)).collect::<Result<_>>()?;
        let arithmetic = Arithmetic { isa: Isa::best(), bf16 };
        Ok(Some(Self {
            weights,
            known,
            arithmetic,
            device: device.clone(),
            trained,
            heldout,
            encoder: Mutex::default(),
            decoder: Mutex::default(),
        }))
    }

    fn fill(
        &self,
        comm: &Arc<dyn Communicator>,
        verify: bool,
        stop: &AtomicBool,
        report: &dyn Fn(Filling),
    ) -> Result<bool> {
        let encoder = || {
            let mut encoder = self.encoder.lock();
            if encoder.is_none() {
                *encoder = Some(Encoder::load(&self.weights, self.arithmetic, &self.device)?);
            }
            Ok(encoder.clone().expect("it was loaded"))
        };
        let mut whole = true;
        for (dataset, cache) in self.trained.iter().chain(&self.heldout) {
            whole = whole && fill(cache, dataset, &encoder, comm, verify, stop, report)?;
        }
        if comm.rank() == 0 {
            self.known.save(); // the folder is there by now
        }
        comm.barrier()?;
        self.encoder.lock().take();
        Ok(whole)
    }

    /// Encodes what the caches miss, with a line in the log now and then: a collective of all ranks. Ends between clips
    /// once `stop` is set; whether all is there. To `verify`, what is there is read and compared with its checksums.
    ///
    /// # Errors
    /// Those of [`fill`].
    pub fn fill_and_log(&self, comm: &Arc<dyn Communicator>, verify: bool, stop: &AtomicBool) -> Result<bool> {
        let (begin, last) = (Instant::now(), Mutex::new(Instant::now()));
        self.fill(comm, verify, stop, &|Filling { frames, of }| {
            let mut last = last.lock();
            if comm.rank() == 0 && last.elapsed() > SAID_EVERY {
                *last = Instant::now();
                let left = begin.elapsed().as_secs_f64() * (of - frames) as f64 / frames as f64;
                tracing::info!("encoding: frame {frames} of {of} on this rank, {left:.0} s left");
            }
        })
    }

    /// A region of the latents of a clip that is trained on.
    ///
    /// # Errors
    /// The entry is gone or damaged.
    pub fn read(&self, request: &Request, region: &FrameRegion) -> Result<Latents> {
        let (_, cache) = &self.trained[request.bucket];
        cache.read(cache.number(request.clip, request.epoch), region)
    }

    /// What reads a region of each bucket's clips for a loader.
    pub(super) fn reader(self: &Arc<Self>, regions: Vec<FrameRegion>) -> Box<ReadClip<dyn ClipRows>> {
        let latents = self.clone();
        Box::new(move |request, _, _| {
            let rows: Arc<dyn ClipRows> = Arc::new(latents.read(request, &regions[request.bucket])?);
            Ok(rows)
        })
    }

    /// A region of the latents of a held-out clip.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn heldout(&self, bucket: usize, clip: usize, region: &FrameRegion) -> Result<Latents> {
        let Some((_, cache)) = self.heldout.get(bucket) else { bail!(Data, "there are no such held-out clips") };
        cache.read(clip, region)
    }

    /// What the caches hold of the run's clips, and what else their folder holds.
    ///
    /// # Errors
    /// The folder cannot be listed.
    pub fn contents(&self) -> Result<Contents> {
        let caches: Vec<&LatentCache> = self.trained.iter().chain(&self.heldout).map(|(_, cache)| cache).collect();
        LatentCache::contents(&caches)
    }

    /// The decoder; its weights are read once.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn decoder(&self) -> Result<Arc<Decoder>> {
        let mut decoder = self.decoder.lock();
        if decoder.is_none() {
            *decoder = Some(Arc::new(Decoder::load(&self.weights, self.arithmetic, &self.device)?));
        }
        Ok(decoder.clone().expect("it was loaded"))
    }

    /// Lets the decoder go until it is needed again: between samples its memory is the step's.
    pub fn release_decoder(&self) {
        self.decoder.lock().take();
    }
}
