//! One rank of a run, as it is set up: its place in the mesh, its weights, and what differs for clips of each size.

use parking_lot::Mutex;
use std::sync::Arc;

use super::setup::RunSetup;
use crate::Result;
use crate::config::Weigh;
use crate::data::Dataset;
use crate::diffusion::{Dropout, Objective, SigmaDistribution};
use crate::engine::Engine;
use crate::engine::stash::Stash;
use crate::observe::meter::StepMeter;
use crate::parallel::{Communicator, Mesh, Metered, agree};
use crate::state::weights::TrainState;

/// One rank of a run.
pub(super) struct Rank<'a> {
    pub setup: &'a RunSetup,
    pub mesh: Mesh,
    pub meter: Arc<StepMeter>,
    pub weights: TrainState,
    pub objective: Objective,
    pub label_dropout: Dropout,
    pub caption_dropout: Dropout,
    pub buckets: Vec<BucketTerms>,
}

/// How a rank's steps ended.
pub(super) struct Ended {
    /// Steps done.
    pub step: u64,
    /// The step that was left unfinished, if one was.
    pub abandoned: Option<u64>,
}

/// What differs for clips of each size.
pub(super) struct BucketTerms {
    /// Patches along each axis.
    pub grid: [usize; 3],
    pub sigmas: SigmaDistribution,
    /// What a clip weighs in the loss.
    pub weight: f64,
}

impl<'a> Rank<'a> {
    pub fn new(setup: &'a RunSetup, comm: Arc<dyn Communicator>, meter: Arc<StepMeter>) -> Result<Self> {
        let comm = Arc::new(Metered::new(comm, meter.clone()));
        let config = &setup.config;
        agree(comm.as_ref(), "the configuration", config.fingerprint()?)?;
        let mesh = Mesh::new(comm, config.parallel.data, setup.model.num_attention_heads, config.parallel.ring)?;
        let weights = setup.train_state(mesh.world.clone())?;
        let world = mesh.world.as_ref();
        agree(world, "the step to start from", setup.resume.as_ref().map_or(0, |c| c.state().step))?;
        if let Some(checkpoint) = &setup.resume {
            agree(world, "the checksum of the checkpoint's state.json", checkpoint.sum())?;
            weights.load(checkpoint)?;
        }
        Ok(Self {
            setup,
            mesh,
            meter,
            weights,
            objective: Objective::new(&config.diffusion)?,
            label_dropout: Dropout::of_labels(config.diffusion.label_dropout)?,
            caption_dropout: Dropout::of_captions(config.diffusion.caption_dropout)?,
            buckets: BucketTerms::of(setup)?,
        })
    }

    /// The engine of each bucket's clips. They share the run's stash, and what memory one frees the next one uses.
    pub fn engines(&self) -> Result<Vec<Engine<'_>>> {
        let config = &self.setup.config;
        let stash = Arc::new(Mutex::new(Stash::open(&config.stash, self.mesh.world.rank(), self.setup.device())?));
        let (train, sequence) = (&config.train, &self.mesh.sequence);
        let engine = |terms: &BucketTerms| {
            let engine = Engine::new(&self.weights.model, sequence, terms.grid, train.batch, train.tile)?;
            Ok(engine
                .in_head_groups(config.parallel.head_groups)?
                .with_stash(stash.clone())
                .with_meter(self.meter.clone())
                .with_hooks(&self.weights))
        };
        self.buckets.iter().map(engine).collect()
    }

    /// Clips that each bucket has in an epoch, which must be the same on all ranks. The run goes on from `position`.
    pub fn agreed_clips(&self, position: u64) -> Result<Vec<u64>> {
        let clips = self.setup.clips.clips_of_an_epoch();
        agree(self.mesh.world.as_ref(), "how many clips there are", clips.iter().sum())?;
        let of_each = crc32c::crc32c(format!("{clips:?}").as_bytes());
        agree(self.mesh.world.as_ref(), "how many clips each bucket has", u64::from(of_each))?;
        if clips.len() > 1 && !position.is_multiple_of(self.global_batch()) {
            let was =
                "the checkpoint's steps took another number of clips: the order of clips goes on near where it was";
            tracing::warn!("{was}");
        }
        Ok(clips)
    }
}

impl BucketTerms {
    /// Those of each bucket. On average over an epoch's clips, a clip's weight is 1.
    fn of(setup: &RunSetup) -> Result<Vec<Self>> {
        let (tokens, mean) = (setup.clip_tokens()?, setup.mean_tokens()?);
        let by_token = setup.config.train.weigh == Weigh::Token && tokens.len() > 1;
        let terms = |(dataset, tokens): (&Arc<Dataset>, usize)| {
            Ok(Self {
                grid: setup.grid(dataset)?,
                sigmas: SigmaDistribution::new(&setup.config.diffusion, tokens)?,
                weight: if by_token { tokens as f64 / mean } else { 1.0 },
            })
        };
        setup.clips.buckets().iter().zip(tokens).map(terms).collect()
    }

    /// Tokens of a clip.
    pub fn tokens(&self) -> usize {
        self.grid.iter().product()
    }
}
