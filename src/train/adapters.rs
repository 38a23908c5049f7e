//! Makes a run's frozen network with its adapters, and writes these in the forms that others load.

use candle_core::DType;
use std::sync::Arc;

use super::setup::RunSetup;
use crate::config::{Compute, RunConfig};
use crate::files::KnownHashes;
use crate::lora::{Adapter, Form, RunFacts};
use crate::model::folder::Folder;
use crate::model::{LoraSpec, Model};
use crate::parallel::Communicator;
use crate::state::adapters::{AdapterRecord, BaseRecord, base_sha256, fingerprint};
use crate::state::checkpoint::{Checkpoint, Saving};
use crate::state::weights::TrainState;
use crate::{Error, Result};

/// The SHA-256 of the network `folder` that a run of `config` trains adapters on, which is the one that the run was
/// begun with. The folder of the run's embeddings or latents remembers it; without either the network is read.
///
/// # Errors
/// It is another network than before; it cannot be read.
pub(super) fn identify_base(config: &RunConfig, folder: &Folder, resume: Option<&Checkpoint>) -> Result<String> {
    let dir = match (&config.text.from, &config.vae.from) {
        (Some(_), _) => Some(config.text_cache()?),
        (None, Some(_)) => Some(config.latent_cache()?),
        (None, None) => None,
    };
    let known = dir.map(|dir| KnownHashes::open(&dir));
    let sha256 = base_sha256(folder.tensors(), known.as_ref()).map_err(|e| e.at("model.from"))?;
    if let Some(known) = known {
        known.save();
    }
    if let Some(checkpoint) = resume {
        AdapterRecord::of(&checkpoint.adapter()?)?.check_sha256(&folder.dir().display().to_string(), &sha256)?;
    }
    Ok(sha256)
}

impl RunSetup {
    /// What a checkpoint of adapters says of them, once the network has been read; none of a run without.
    ///
    /// # Errors
    /// The folder of the network is gone.
    pub fn adapter_record(&self) -> Result<Option<AdapterRecord>> {
        let (Some((spec, _)), Some(folder)) = (&self.lora, &self.from) else { return Ok(None) };
        let named = self.config.model.from.as_deref().unwrap_or_default();
        let from = match named.starts_with("hf://") {
            true => named.to_owned(),
            false => std::fs::canonicalize(named).map_err(|e| Error::io(named, e))?.to_string_lossy().into_owned(),
        };
        let base = BaseRecord { from, weights: fingerprint(folder.tensors()), sha256: self.base_sha256.clone() };
        Ok(Some(AdapterRecord { network: self.model.to_json(), base, lora: spec.clone() }))
    }

    /// The run's state before its first step, for the ranks of `world`. A frozen network that ranks are to hold a part
    /// of is read unit by unit.
    pub(super) fn train_state(&self, world: Arc<dyn Communicator>) -> Result<TrainState> {
        let options = self.state();
        let parts = options.zero >= 3 && !options.shared && world.size() > 1;
        let (Some((spec, adapter)), Some(folder), true) = (&self.lora, &self.from, parts) else {
            return TrainState::new(self.initial()?, &options, world);
        };
        let (bf16, seed) = (self.config.train.dtype == Compute::Bf16, self.config.run.seed);
        let model = Model::adapted_on(&self.model, DType::F32, bf16, spec, seed, self.device(), true)?;
        if let Some(adapter) = adapter {
            adapter.fill(&model)?;
        }
        let state = TrainState::loading(model, &options, world, |unit| unit.load(|name| folder.read_f32(name)))?;
        folder.tensors().check_read()?;
        self.check_base(folder)?;
        Ok(state)
    }

    /// Refuses to go on over another network than before.
    fn check_base(&self, folder: &Folder) -> Result<()> {
        let Some(checkpoint) = &self.resume else { return Ok(()) };
        let record = AdapterRecord::of(&checkpoint.adapter()?)?;
        record.check_base(&folder.dir().display().to_string(), &fingerprint(folder.tensors()))
    }

    /// A frozen model with the run's initial adapters.
    pub(super) fn adapted(&self, spec: &LoraSpec, adapter: Option<&Adapter>, folder: &Folder) -> Result<Model> {
        let (bf16, seed) = (self.config.train.dtype == Compute::Bf16, self.config.run.seed);
        let model = self.frozen.take(seed, || {
            let model = Model::adapted(&self.model, DType::F32, bf16, spec, seed)?;
            model.set_base(|name| folder.read_f32(name))?;
            folder.tensors().check_read()?;
            Ok(model)
        })?;
        if let Some(adapter) = adapter {
            adapter.fill(&model)?;
        }
        self.check_base(folder)?;
        Ok(model)
    }

    /// Writes the LoRA files that the config asks for into a checkpoint of `step`.
    pub(super) fn export_adapters(&self, saving: &Saving, step: u64, record: &AdapterRecord) -> Result<()> {
        let config = &self.config;
        let toml: toml::Table =
            config.to_toml()?.parse().map_err(|e| Error::Config(format!("the config as TOML: {e}")))?;
        let facts = RunFacts {
            learning_rate: Some(config.train.lr),
            steps: Some(step),
            seed: Some(config.run.seed),
            name: config.run.out.file_name().map(|name| name.to_string_lossy().into_owned()),
            config: serde_json::to_value(toml).ok(),
            base: Some(record.base.from.clone()),
            base_sha256: record.base.sha256.clone(),
            ..RunFacts::default()
        };
        let forms: Vec<Form> = config.lora.export.iter().map(|export| export.form()).collect();
        saving.export(&record.lora, &forms, &facts.metadata())
    }
}
