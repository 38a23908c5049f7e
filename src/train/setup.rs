//! Opens and checks what a training run needs before its first step (clips, network, folder), once, for all its ranks.

use candle_core::{DType, Device};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use super::device::device;
use super::lineage;
use crate::config::{Compute, Label, RunConfig};
use crate::data::{Apart, Clips, Dataset, Overlaps, refuse_own_output};
use crate::engine::precision::check_on_gpu;
use crate::engine::stash::Shapes;
use crate::model::folder::Folder;
use crate::model::{Model, ModelConfig};
use crate::parallel::{Launch, Sequence, Split, is_first};
use crate::sample::check_guidance;
use crate::state::checkpoint::{Checkpoint, RunFolder};
use crate::state::named::NamedModel;
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
    pub dataset: Arc<Dataset>,
    /// What names of files are shown below.
    pub data_root: PathBuf,
    pub heldout: Option<Arc<Dataset>>,
    pub model: ModelConfig,
    /// Where initial weights come from, if not from the seed.
    from: Option<Folder>,
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
        let data = (!own_clips).then_some(&config.data.path);
        let names = [config.model.from.as_ref(), data, config.data.heldout.as_ref()];
        names.into_iter().flatten().try_for_each(|name| hub::resolve(name).map(drop))
    }

    /// Opens everything `config` names, and the checkpoint that `start` asks for.
    ///
    /// # Errors
    /// Whatever cannot be opened or does not fit together. Nothing has been written then.
    pub fn open(config: RunConfig, start: Start, launch: &Launch, own: Option<Arc<dyn Clips>>) -> Result<Self> {
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
        let from = match &config.model.from {
            Some(spec) => Some(NamedModel::opened(&hub::resolve(spec)?)?.1),
            None => None,
        };
        let model = match &from {
            Some(folder) => ModelConfig::of(folder)?,
            None => config.model.network(),
        };
        model.check()?;
        if device.is_cuda() {
            let (parallel, train, data) = (&config.parallel, &config.train, &config.data);
            let tokens = model.grid([data.frames, data.height, data.width]).map_err(|e| e.at("data"))?.iter().product();
            let sequence = parallel.ranks / parallel.data;
            let [_, ring] = Sequence::degrees(sequence, model.num_attention_heads, parallel.ring)?;
            let tokens = Split::new(tokens, ring).count(0);
            check_on_gpu(train.dtype == Compute::Bf16, model.attention_head_dim, tokens)?;
        }
        check_guidance("sample.guidance", config.sample.guidance, &model)?;
        if let Some(checkpoint) = &resume {
            lineage::check_network(checkpoint, &config, &model)?;
        }
        if model.in_channels != 3 || model.out_channels != 3 {
            let (i, o) = (model.in_channels, model.out_channels);
            bail!(
                Shape,
                "model.from: the network takes {i} and gives {o} channels; training is on pixels, which have 3"
            )
        }
        if model.text_dim > 0 {
            tracing::warn!("the network has text: it is trained with one empty token, captions are not encoded");
        }
        if let Some(folder) = &from {
            folder.check(&Model::shapes(&model))?;
        }
        if !config.data.has_one_size() {
            bail!(Config, "data: clips of several sizes are not trained on yet, only scanned")
        }
        let data = &config.data;
        model.grid([data.frames, data.height, data.width]).map_err(|e| e.at("data"))?;
        let path = if own.is_some() { PathBuf::from(&data.path) } else { hub::resolve(&data.path)? };
        let held_out = data.heldout.as_ref().map(|path| hub::resolve(path)).transpose()?;
        let places = [("data.path", own.is_none().then_some(&path)), ("data.heldout", held_out.as_ref())];
        places
            .iter()
            .try_for_each(|(key, path)| path.map_or(Ok(()), |path| refuse_own_output(key, path, &config.run.out)))?;
        let mut dataset = match &own {
            Some(clips) => Dataset::of_clips(&data.clips(), clips)?,
            None => Dataset::open_without(&data.clips(), &path, &Apart::of_run(&config.run.out, held_out.as_deref()))?,
        };
        if data.label == Label::Folder && dataset.classes().len() > model.num_classes {
            let (have, named) = (dataset.classes().len(), model.num_classes);
            bail!(Config, "{} has {have} class folders, model.num_classes is {named}; set it to {have}", data.path)
        }
        if data.label == Label::None && model.num_classes > 0 {
            bail!(
                Config,
                "model.num_classes is {}, but the clips have no classes: set data.label = \"folder\"",
                model.num_classes
            )
        }
        match &resume {
            Some(checkpoint) => {
                lineage::number_classes(checkpoint, &mut dataset)?;
                lineage::log_differences(checkpoint, &config, &dataset)?;
            }
            None => lineage::inherit_classes(&config, &mut dataset)?,
        }
        let heldout = match &held_out {
            None => None,
            Some(held_out) => {
                let apart = Apart::of_run(&config.run.out, None);
                let apart = match own {
                    Some(_) => apart,
                    None => apart.with(&path, "it is trained on (data.path)"),
                };
                let mut heldout = Dataset::open_without(&data.clips(), held_out, &apart)?;
                if data.label == Label::Folder {
                    heldout.number_classes_as(dataset.classes())?;
                }
                Some(Arc::new(heldout))
            }
        };
        let dataset = Arc::new(dataset);
        if is_first() && own.is_none() {
            Overlaps::find(std::slice::from_ref(&dataset), heldout.as_slice()).log();
        }
        let name = match resume.as_ref().and_then(|checkpoint| checkpoint.state().run.clone()) {
            Some(name) => name,
            None => random_name()?,
        };
        Ok(Self { dataset, data_root: path, heldout, model, from, folder, device, resume, name, config })
    }

    /// What its ranks compute on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Frames per second of the clips, and so of samples; none for images.
    pub fn fps(&self) -> Option<f64> {
        self.dataset.rate()
    }

    /// Tokens of a step, over all ranks.
    pub fn tokens(&self) -> Result<u64> {
        let (data, train) = (&self.config.data, &self.config.train);
        let tokens: usize = self.model.grid([data.frames, data.height, data.width])?.iter().product();
        Ok((tokens * train.batch * train.accumulate * self.config.parallel.data) as u64)
    }

    /// What each block puts into the stash, on all ranks together.
    pub fn stashed(&self) -> Result<Shapes> {
        let (model, data) = (&self.model, &self.config.data);
        let tokens = model.grid([data.frames, data.height, data.width])?.iter().product();
        let clips = self.config.train.batch.saturating_mul(self.config.parallel.data);
        let compute = if self.config.train.dtype == Compute::Bf16 { DType::BF16 } else { DType::F32 };
        let lse = [clips, model.num_attention_heads, tokens];
        Ok(Shapes::new(clips.saturating_mul(tokens), model.width(), lse, DType::F32, compute))
    }

    /// A model with the run's initial weights.
    pub fn initial(&self) -> Result<Model> {
        let bf16 = self.config.train.dtype == Compute::Bf16;
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

/// 128 random bits, in hexadecimal digits.
fn random_name() -> Result<String> {
    let (source, mut bits) = ("/dev/urandom", [0; 16]);
    File::open(source).and_then(|mut file| file.read_exact(&mut bits)).map_err(|e| Error::io(source, e))?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}
