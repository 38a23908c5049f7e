//! Opens and checks what a training run needs before its first step (clips, network, folder), once, for all its ranks.

use candle_core::{DType, Device};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use super::adapters::identify_base;
use super::caches::Caches;
use super::device::device;
use super::lineage;
use crate::config::{Compute, RunConfig};
use crate::data::{Bucket, ClipSets, Clips, Dataset, Decoding, Overlaps, refuse_own_output};
use crate::engine::precision::check_on_gpu;
use crate::engine::stash::Shapes;
use crate::files::to_hex;
use crate::lora::Adapter;
use crate::model::folder::Folder;
use crate::model::{LoraSpec, Model, ModelConfig};
use crate::parallel::{Launch, Sequence, Split, is_first};
use crate::sample::check_guidance;
use crate::state::StateOptions;
use crate::state::checkpoint::{Checkpoint, RunFolder};
use crate::state::frozen::FrozenModel;
use crate::state::named::NamedModel;
use crate::terminal::counted;
use crate::vae::Space;
use crate::{Error, Result, bail, hub};

/// Where a run starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At its beginning; a folder that holds checkpoints is refused.
    New,
    /// After its last checkpoint; at its beginning where there is none, so that a job that was killed early can be
    /// queued again as it is.
    Last,
    /// After the checkpoint of this step; those after it are set aside.
    Step(u64),
}

/// A run, ready for its ranks.
pub struct RunSetup {
    pub config: RunConfig,
    /// What is trained on, a dataset for each size of clips.
    pub clips: ClipSets,
    /// What names of files are shown below.
    pub data_root: PathBuf,
    pub heldout: Option<ClipSets>,
    /// The clips' latents, and the embeddings of their captions.
    pub caches: Caches,
    /// What the network's clips are made of.
    space: Space,
    pub model: ModelConfig,
    /// Where initial weights come from, if not from the seed.
    pub(super) from: Option<Folder>,
    /// The adapters of a run that trains these, and their initial values if they are a file's.
    pub lora: Option<(LoraSpec, Option<Adapter>)>,
    /// The SHA-256 of the network below them, where checkpoints are written.
    pub(super) base_sha256: Option<String>,
    /// The frozen network below them, until all ranks of this process have it.
    pub(super) frozen: FrozenModel,
    /// Whether all ranks are threads of this process.
    threads: bool,
    pub folder: RunFolder,
    device: Device,
    /// Where to go on from.
    pub resume: Option<Checkpoint>,
    /// The run's random name, the same in all its checkpoints.
    pub name: String,
}

impl RunSetup {
    /// Fetches what `config` names on a hub, so that [`open`](Self::open) finds it on this machine.
    pub fn fetch(config: &RunConfig, own_clips: bool) -> Result<()> {
        let data = config
            .data
            .iter()
            .flat_map(|section| [Some(&section.path).filter(|_| !own_clips), section.heldout.as_ref()]);
        let named = [
            ("model.from", &config.model.from),
            ("lora.from", &config.lora.from),
            ("vae.from", &config.vae.from),
            ("text.from", &config.text.from),
        ];
        let named = named.into_iter().filter_map(|(key, from)| Some((key, from.as_ref()?)));
        named.map(|(key, from)| hub::resolve(from).map_err(|e| e.at(key))).try_for_each(|path| path.map(drop))?;
        data.flatten().try_for_each(|from| hub::resolve(from).map(drop))
    }

    /// Opens everything `config` names, and the checkpoint that `start` asks for.
    ///
    /// # Errors
    /// Whatever cannot be opened or does not fit together. Nothing has been written then.
    pub fn open(mut config: RunConfig, start: Start, launch: &Launch, own: Option<Arc<dyn Clips>>) -> Result<Self> {
        let folder = RunFolder::new(&config.run.out);
        let resume = match start {
            Start::Last => folder.to_resume(None)?,
            Start::Step(step) => folder.to_resume(Some(step))?,
            Start::New => match folder.latest()? {
                None => None,
                Some(last) => {
                    bail!(
                        Checkpoint,
                        "{} exists: continue that run with --resume, or choose another run.out",
                        last.display()
                    )
                }
            },
        };
        match &resume {
            Some(checkpoint) if !checkpoint.has_sums() => tracing::warn!(
                "{}: has no checksums (it was saved by longreel {}): that it is what was saved cannot be checked",
                checkpoint.dir().display(),
                checkpoint.state().longreel
            ),
            None if start == Start::Last => {
                tracing::info!("{}: no checkpoint to resume from: starting from the beginning", folder.root().display())
            }
            _ => {}
        }
        if let Some(checkpoint) = &resume
            && checkpoint.state().seed != config.run.seed
        {
            let (old, new) = (checkpoint.state().seed, config.run.seed);
            bail!(Config, "run.seed is {new}, the checkpoint's run has seed {old}: its order and noise would not go on")
        }
        let device = device(Some(config.train.device), "train.device", config.parallel.ranks, launch)?;
        let space = config.space()?;
        let from = match &config.model.from {
            Some(spec) => Some(NamedModel::opened(&hub::resolve(spec)?).map_err(|e| e.at("model.from"))?),
            None => None,
        };
        if let Some((named, _)) = &from
            && named.record.is_some()
        {
            bail!(
                Config,
                "model.from names a run of adapters (LoRA): name their network there, and their file in lora.from"
            )
        }
        let from = from.map(|(_, folder)| folder);
        let model = match &from {
            Some(folder) => ModelConfig::of(folder)?,
            None => config.network()?,
        };
        model.check()?;
        let lora = config.adapters(&model)?;
        if device.is_cuda() {
            let (parallel, train) = (&config.parallel, &config.train);
            let grids = possible_grids(&config, space, &model)?;
            let tokens = grids.iter().map(|grid| grid.iter().product()).max().unwrap_or(0);
            let sequence = parallel.ranks / parallel.data;
            let [_, ring] = Sequence::degrees(sequence, model.num_attention_heads, parallel.ring)?;
            let tokens = Split::new(tokens, ring).count(0);
            check_on_gpu(train.dtype == Compute::Bf16, model.attention_head_dim, tokens)?;
        }
        // Written down with the run, so that it does not depend on what becomes of the pipeline.
        config.sample.shift = Some(config.sampling_shift()?);
        check_guidance("sample.guidance", config.sampling().guidance, &model, !config.sample.prompts.is_empty())?;
        if let Some(checkpoint) = &resume {
            lineage::check_network(checkpoint, &config, &model, lora.as_ref().map(|(spec, _)| spec))?;
        }
        config.check_channels(&model)?;
        if let Some(folder) = &from {
            folder.check(&Model::shapes(&model))?;
        }
        if !config.data.has_one_size() {
            config.check_sizes(&model)?;
        }
        possible_grids(&config, space, &model)?;
        let grid = config.clip_grid(&model)?;
        let sources = if own.is_some() { vec![] } else { config.sources(&grid)? };
        let held_out = config.heldout_sources(&grid, &sources)?;
        for (key, sources) in [("data.path", &sources), ("data.heldout", &held_out)] {
            sources.iter().try_for_each(|source| refuse_own_output(key, &source.path, &config.run.out))?;
        }
        let mut clips = match &own {
            Some(clips) => Dataset::of_clips(&config.data.clips(), clips)?.into(),
            None => ClipSets::open(&sources)?,
        };
        check_classes(&config, &model, &clips)?;
        match &resume {
            Some(checkpoint) => {
                lineage::number_classes(checkpoint, &mut clips)?;
                lineage::log_differences(checkpoint, &config, &clips)?;
            }
            None => lineage::inherit_classes(&config, &mut clips)?,
        }
        let heldout = match &held_out[..] {
            [] => None,
            held_out => {
                let mut heldout = ClipSets::open(held_out)?;
                if config.data.labelled() {
                    heldout.number_classes_as(clips.classes())?;
                }
                Some(heldout)
            }
        };
        let held_out = heldout.as_ref().map_or(&[][..], |heldout| heldout.buckets());
        if is_first() && own.is_none() {
            Overlaps::find(clips.buckets(), held_out).log();
        }
        if is_first() && clips.buckets().len() > 1 {
            let train = &config.train;
            let batch = (train.batch * train.accumulate * config.parallel.data) as u64;
            clips.below_a_batch(batch).iter().for_each(|said| tracing::warn!("{said}"));
        }
        let data_root = match &sources[..] {
            [source] => source.path.clone(),
            _ if own.is_some() => PathBuf::from(&config.data.path),
            _ => PathBuf::new(),
        };
        let name = match resume.as_ref().and_then(|checkpoint| checkpoint.state().run.clone()) {
            Some(name) => name,
            None => random_name()?,
        };
        if is_first() {
            log_captions(&model, &clips);
        }
        let caches = launch.rank0_first(|| Caches::open(&config, &model, clips.buckets(), held_out, &device))?;
        let base = from.as_ref().filter(|_| lora.is_some() && is_first());
        let base_sha256 = base.map(|folder| identify_base(&config, folder, resume.as_ref())).transpose()?;
        let here = launch.processes().map_or(config.parallel.ranks, |_| 1);
        Ok(Self {
            clips,
            data_root,
            heldout,
            caches,
            space,
            model,
            from,
            lora,
            base_sha256,
            frozen: FrozenModel::new(here),
            threads: launch.processes().is_none(),
            folder,
            device,
            resume,
            name,
            config,
        })
    }

    /// What its ranks compute on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Frames per second of samples: of the clips of their size, or of others; none for images.
    pub fn fps(&self) -> Option<f64> {
        let buckets = self.clips.buckets();
        let sampled = self.config.sample_size().ok();
        let same = buckets.iter().find(|dataset| Some(dataset.options().size().into()) == sampled);
        same.map_or_else(|| buckets.iter().find_map(|dataset| dataset.rate()), |dataset| dataset.rate())
    }

    /// Patches along each axis of the clips of `dataset`.
    pub fn grid(&self, dataset: &Dataset) -> Result<[usize; 3]> {
        self.model.grid(self.space.size(dataset.options().size(), self.model.patch_size)?)
    }

    /// Tokens of a clip, of each bucket.
    pub fn clip_tokens(&self) -> Result<Vec<usize>> {
        self.clips.buckets().iter().map(|dataset| Ok(self.grid(dataset)?.iter().product())).collect()
    }

    /// The bucket whose clips have most tokens.
    pub fn largest(&self) -> Result<usize> {
        let tokens = self.clip_tokens()?;
        Ok((0..tokens.len()).max_by_key(|&bucket| (tokens[bucket], usize::MAX - bucket)).unwrap_or(0))
    }

    /// The config as if all clips had the size of the largest: what memory and time are planned for.
    pub fn largest_config(&self) -> Result<RunConfig> {
        if self.config.data.has_one_size() {
            return Ok(self.config.clone());
        }
        Ok(self.config.of_size(self.clips.buckets()[self.largest()?].options().size().into()))
    }

    /// What planning needs to know of decoding: of the worst files.
    pub fn decoding(&self) -> Decoding {
        let all = self.clips.buckets().iter().map(|dataset| Decoding::of(dataset));
        all.reduce(Decoding::and).unwrap_or_default()
    }

    /// Clips of a step, over all ranks.
    fn clips_of_a_step(&self) -> usize {
        self.config.train.batch * self.config.train.accumulate * self.config.parallel.data
    }

    /// Tokens of a step of a bucket's clips, over all ranks.
    pub fn tokens_of(&self, bucket: usize) -> Result<u64> {
        Ok((self.clip_tokens()?[bucket] * self.clips_of_a_step()) as u64)
    }

    /// Tokens of a step on average, over all ranks.
    pub fn tokens(&self) -> Result<u64> {
        Ok((self.mean_tokens()? * self.clips_of_a_step() as f64).round() as u64)
    }

    /// Tokens of a clip on average.
    pub fn mean_tokens(&self) -> Result<f64> {
        let (tokens, clips) = (self.clip_tokens()?, self.clips.clips_of_an_epoch());
        let all: u64 = tokens.iter().zip(&clips).map(|(&tokens, &clips)| tokens as u64 * clips).sum();
        Ok(all as f64 / clips.iter().sum::<u64>() as f64)
    }

    /// What each block puts into the stash, on all ranks together.
    pub fn stashed(&self) -> Result<Shapes> {
        let model = &self.model;
        let tokens = self.clip_tokens()?.into_iter().max().unwrap_or(0);
        let clips = self.config.train.batch.saturating_mul(self.config.parallel.data);
        let lse = [clips, model.num_attention_heads, tokens];
        Ok(Shapes::new(clips.saturating_mul(tokens), model.width(), lse, DType::F32, self.config.train.dtype.dtype()))
    }

    /// What the optimizer and its state are made by.
    pub fn state(&self) -> StateOptions {
        let mut options = self.config.state();
        options.shared = self.threads;
        options
    }

    /// A model with the run's initial weights.
    pub fn initial(&self) -> Result<Model> {
        let bf16 = self.config.train.dtype == Compute::Bf16;
        if let (Some((spec, adapter)), Some(folder)) = (&self.lora, &self.from) {
            return self.adapted(spec, adapter.as_ref(), folder)?.to_device(&self.device);
        }
        let model = match &self.from {
            Some(folder) => {
                let model = Model::load(&self.model, DType::F32, bf16, |name| folder.read_f32(name))?;
                folder.tensors().check_read()?;
                Ok(model)
            }
            None => Model::init(&self.model, DType::F32, bf16, self.config.run.seed),
        };
        model?.to_device(&self.device)
    }
}

/// Patches along each axis of the clips that a config may have.
fn possible_grids(config: &RunConfig, space: Space, model: &ModelConfig) -> Result<Vec<[usize; 3]>> {
    let grid = config.clip_grid(model)?;
    let buckets = config.data.iter().flat_map(|section| section.groups(&grid)).flatten();
    let of_bucket = |bucket: Bucket| space.size(bucket.size(), model.patch_size).and_then(|size| model.grid(size));
    buckets.map(|bucket| of_bucket(bucket).map_err(|e| e.at("data"))).collect()
}

/// Refuses a network of fewer classes than the clips have, or one of classes for clips without.
fn check_classes(config: &RunConfig, model: &ModelConfig, clips: &ClipSets) -> Result<()> {
    let (have, named) = (clips.classes().len(), model.num_classes);
    if config.data.labelled() && have > named {
        let (path, kind) = match config.data.iter().count() {
            1 => (config.data.path.as_str(), "class folders"),
            _ => ("the data", "classes"),
        };
        bail!(Config, "{path} has {have} {kind}, model.num_classes is {named}; set it to {have}")
    }
    if !config.data.labelled() && named > 0 {
        bail!(Config, "model.num_classes is {named}, but the clips have no classes: set data.label = \"folder\"")
    }
    Ok(())
}

/// Says how many captions are not used, or are not there.
fn log_captions(model: &ModelConfig, clips: &ClipSets) {
    let files: usize = clips.buckets().iter().map(|dataset| dataset.files().len()).sum();
    let captions: usize = clips.buckets().iter().map(|dataset| dataset.captions().count()).sum();
    if model.text_dim == 0 && captions > 0 {
        let are = counted(captions, "caption is", "captions are");
        tracing::info!("{are} not used: the network has no text (name a text encoder as text.from)");
    }
    if model.text_dim > 0 && captions < files {
        let have = counted(files - captions, "file has", "files have");
        tracing::warn!("{have} no caption: they are trained on with the empty text");
    }
}

/// 128 random bits, in hexadecimal digits.
fn random_name() -> Result<String> {
    let (source, mut bits) = ("/dev/urandom", [0; 16]);
    File::open(source).and_then(|mut file| file.read_exact(&mut bits)).map_err(|e| Error::io(source, e))?;
    Ok(to_hex(bits))
}
