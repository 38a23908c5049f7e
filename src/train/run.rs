//! Runs the training loop of one rank, readable from top to bottom.
//!
//! Every rank runs it. Clips are numbered through the run and a step's global batch is cut over data ranks, each clip's
//! tokens over the ranks of a sequence; whatever is drawn for clip g of a step depends on (seed, step, g) alone. The
//! loss is a sum over this rank's tokens divided by the global count, so that sums over all ranks are the loss and the
//! gradients of the whole batch.

use candle_core::{Device, Tensor};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::device;
use super::heldout::{Heldout, HeldoutLosses};
use super::progress::Progress;
use super::report::{Report, Step};
use super::schedule::LearningRate;
use super::setup::RunSetup;
use super::trainer::Hook;
use crate::batch::{NoisyClip, NoisyClips, upload};
use crate::config::Weigh;
use crate::data::{self, BucketOrder, ClipRows, FrameRegion, Loader, Sample, Turn};
use crate::diffusion::{Dropout, Objective, SigmaDistribution, timestep, training_key};
use crate::engine::Engine;
use crate::engine::stash::Stash;
use crate::observe::meter::{Section, StepMeter};
use crate::ops::Draws;
use crate::parallel::{Communicator, Mesh, Metered, Reduce, agree};
use crate::sample::conditioning;
use crate::state::checkpoint::{DataCounts, State};
use crate::state::weights::TrainState;
use crate::{Error, Result};

/// How a rank's steps ended.
pub(super) struct Ended {
    /// Steps done.
    pub step: u64,
    /// The step that was left unfinished, if one was.
    pub abandoned: Option<u64>,
}

/// One rank of a run.
pub(super) struct Rank<'a> {
    pub setup: &'a RunSetup,
    pub mesh: Mesh,
    pub meter: Arc<StepMeter>,
    pub weights: TrainState,
    pub objective: Objective,
    label_dropout: Dropout,
    caption_dropout: Dropout,
    buckets: Vec<BucketTerms>,
}

/// What differs for clips of each size.
struct BucketTerms {
    /// Patches along each axis.
    grid: [usize; 3],
    sigmas: SigmaDistribution,
    /// What a clip weighs in the loss.
    weight: f64,
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

    /// Goes through the run's steps; `hook` is called after each.
    pub fn train(&self, progress: &Progress, interrupted: &AtomicBool, hook: Option<&Hook>) -> Result<Ended> {
        let train = &self.setup.config.train;
        let engines = self.engines()?;
        let rates = LearningRate::new(train)?;
        let heldout = Heldout::new(self.setup, &self.mesh, &self.objective);
        let (first, position) = self.setup.resume.as_ref().map_or((0, 0), |c| (c.state().step, c.state().position));

        agree(self.mesh.world.as_ref(), "whether a hook sees each step", u64::from(hook.is_some()))?;
        let clips = self.setup.clips.clips_of_an_epoch();
        agree(self.mesh.world.as_ref(), "how many clips there are", clips.iter().sum())?;
        let of_each = crc32c::crc32c(format!("{clips:?}").as_bytes());
        agree(self.mesh.world.as_ref(), "how many clips each bucket has", u64::from(of_each))?;

        let batch = self.global_batch();
        let order = Arc::new(BucketOrder::new(self.setup.config.run.seed, clips.clone(), batch));
        if clips.len() > 1 && !position.is_multiple_of(batch) {
            let was =
                "the checkpoint's steps took another number of clips: the order of clips goes on near where it was";
            tracing::warn!("{was}");
        }
        let ahead = order.clone();
        let turns = (0..train.steps.saturating_sub(first)).map(move |step| ahead.at(position + step * batch));
        let mut loader = self.loader(&engines, turns)?;
        let tokens = self.setup.tokens()?;
        let step_tokens = (0..clips.len()).map(|bucket| self.setup.tokens_of(bucket)).collect::<Result<Vec<_>>>()?;
        let mut report = Report::start(self.setup, &self.mesh, &self.weights, progress, tokens, first)?;
        let mut step = first;
        let mut stop = step >= train.steps;
        let mut abandoned = None;
        let mut saved = self.setup.resume.is_some().then_some(first);
        while !stop {
            let (start, waited) = (Instant::now(), loader.waited());
            let bucket = order.at(position + (step - first) * batch).bucket;
            let loss = self.gradients(&engines[bucket], bucket, &mut loader, step)?;
            // Every rank must stop at the same step, so the flags travel with the loss.
            let flags =
                [interrupted.load(Ordering::SeqCst), self.meter.skipped()].map(|flag| f64::from(u8::from(flag)));
            let [loss, asked, skipped] = self.sum([loss, flags[0], flags[1]])?;
            // What is reported is the loss of the step's clips, whatever they weigh.
            let loss = loss / self.buckets[bucket].weight;
            if skipped > 0.0 {
                abandoned = Some(step + 1);
                break;
            }
            let lr = rates.at(step);
            let norm = self.meter.during(Section::Optimizer, || self.update(step, loss, lr))?;
            step += 1;
            stop = step == train.steps || asked > 0.0;

            let (seconds, waited, spent) = (start.elapsed(), loader.waited() - waited, self.meter.end());
            let mut losses = HeldoutLosses::default();
            if let Some(heldout) = &heldout
                && train.heldout_every > 0
                && (stop || step.is_multiple_of(train.heldout_every))
            {
                losses = self.weights.averaged(|model| heldout.losses(model))?;
            }
            let epoch = (position + (step - first) * batch) as f64 / clips.iter().sum::<u64>() as f64;
            let record = report.step(&Step {
                step,
                tokens: step_tokens[bucket],
                epoch,
                loss,
                norm,
                lr,
                seconds,
                waited,
                spent,
                heldout: losses,
            })?;
            if let Some(hook) = hook {
                let ends = record.is_some_and(|record| hook(&record).is_break());
                stop |= self.sum([f64::from(u8::from(ends))])? != [0.0];
            }
            if due(step, train.sample_every) {
                self.sample(step, &mut report)?;
            }
            if due(step, train.checkpoint_every) {
                self.save(step, position + (step - first) * batch, &mut report)?;
                saved = Some(step);
            }
        }
        self.meter.end();
        if saved != Some(step) {
            // after no steps at all, the initial weights
            self.save(step, position + (step - first) * batch, &mut report)?;
        }
        report.finish(step, abandoned.is_none() && step < train.steps)?;
        Ok(Ended { step, abandoned })
    }

    /// Ends a step: weights by the sum of all ranks' gradients, whose norm it returns.
    pub fn update(&self, step: u64, loss: f64, lr: f64) -> Result<f64> {
        self.weights.sum_gradients()?;
        let norm = self.weights.gradient_norm(step + 1)?;
        if !loss.is_finite() {
            return Err(Error::NonFinite { step: step + 1, tensor: "the loss".into(), value: loss });
        }
        self.weights.update(step, lr, norm)?;
        device::check(self.setup.device())?;
        Ok(norm)
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

    /// Loss and gradients of a step: this rank's share.
    pub fn gradients(
        &self,
        engine: &Engine,
        bucket: usize,
        loader: &mut Loader<dyn ClipRows>,
        step: u64,
    ) -> Result<f64> {
        let micro_batches = 0..self.setup.config.train.accumulate;
        self.meter.begin(micro_batches.len() as u64 * engine.operations());
        self.weights.zero_gradients()?;
        let terms = &self.buckets[bucket];
        micro_batches.map(|micro| self.micro_batch(engine, terms, loader, step, micro)).sum()
    }

    /// Clips of a step over all data ranks and micro-batches.
    pub fn global_batch(&self) -> u64 {
        let train = &self.setup.config.train;
        (train.batch * train.accumulate * self.mesh.data.size()) as u64
    }

    /// The number in the global batch of clip `i` of a micro-batch of this data rank.
    fn clip_number(&self, micro: usize, i: usize) -> u64 {
        let batch = self.setup.config.train.batch;
        ((micro * self.mesh.data.size() + self.mesh.data.rank()) * batch + i) as u64
    }

    /// Decodes what this rank's tokens lie in, of its clips of the steps that take `turns`, in order.
    pub fn loader(
        &self,
        engines: &[Engine],
        turns: impl Iterator<Item = Turn> + Send + 'static,
    ) -> Result<Loader<dyn ClipRows>> {
        let (train, seed) = (&self.setup.config.train, self.setup.config.run.seed);
        let datasets = self.setup.clips.buckets().to_vec();
        let numbers: Vec<u64> = (0..train.accumulate)
            .flat_map(|m| (0..train.batch).map(move |i| (m, i)))
            .map(|(m, i)| self.clip_number(m, i))
            .collect();
        let patch = self.setup.model.patch_size;
        let region =
            |(engine, terms): (&Engine, &BucketTerms)| FrameRegion::of_tokens(engine.local_tokens(), terms.grid, patch);
        let regions: Vec<FrameRegion> = engines.iter().zip(&self.buckets).map(region).collect();
        let ours = datasets.clone();
        let requests = turns.flat_map(move |Turn { bucket, position }| {
            let (dataset, numbers) = (ours[bucket].clone(), numbers.clone());
            numbers.into_iter().map(move |number| dataset.training(seed, position + number))
        });
        // A step's clips decode while the step before runs, and one more.
        let prefetch = self.setup.config.data.prefetch.max(train.batch);
        match &self.setup.caches.latents {
            Some(latents) => {
                let latents = latents.clone();
                let read = move |request: &data::Request, _: &data::Clip, _: &AtomicBool| {
                    let part: Arc<dyn ClipRows> = Arc::new(latents.read(request, &regions[request.bucket])?);
                    Ok(part)
                };
                Loader::reading(datasets, Box::new(read), prefetch, requests)
            }
            None => Loader::rows(datasets.into_iter().zip(regions).collect(), prefetch, requests),
        }
    }

    /// Forward and backward of one micro-batch: this rank's share of the loss.
    fn micro_batch(
        &self,
        engine: &Engine,
        terms: &BucketTerms,
        loader: &mut Loader<dyn ClipRows>,
        step: u64,
        micro: usize,
    ) -> Result<f64> {
        let (seed, train) = (self.setup.config.run.seed, &self.setup.config.train);
        let (mut clips, mut labels, mut texts, mut numbers) = (vec![], vec![], vec![], vec![]);
        for i in 0..train.batch {
            let Some(sample) = self.meter.during(Section::Data, || loader.next()) else {
                return Err(Error::Environment("the loader has stopped".into()));
            };
            let Sample { clip, frames, .. } = sample?;
            let number = self.clip_number(micro, i);
            numbers.push(number);
            let dropped = !self.setup.config.data.labelled() || self.label_dropout.drops(seed, step, number);
            labels.push(if dropped { None } else { clip.class });
            if let Some(all) = &self.setup.caches.texts {
                let caption = clip.caption.as_deref().filter(|_| !self.caption_dropout.drops(seed, step, number));
                texts.push(self.meter.during(Section::Data, || all.of(caption))?);
            }
            let sigma = terms.sigmas.draw(seed, step, number);
            let (pixels, noise) = (upload(frames.as_ref(), self.setup.device())?, training_key(seed, step, number));
            let weight = terms.sigmas.loss_weight(sigma);
            clips.push(NoisyClip { frames, pixels, sigma, weight, noise });
        }
        let timesteps: Vec<f64> = clips.iter().map(|clip| timestep(clip.sigma)).collect();
        let texts = self.setup.caches.texts.as_ref().map(|_| texts);
        let conditioning = conditioning(&self.weights.model, &timesteps, &labels, texts);
        let tokens: usize = terms.grid.iter().product();
        let elements = self.global_batch() as usize * tokens * self.setup.model.patch_out();
        let clips = NoisyClips {
            clips: &clips,
            objective: &self.objective,
            tokens: engine.local_tokens(),
            patch: self.setup.model.patch_size,
            channels: self.setup.model.in_channels,
            device: self.setup.device(),
            weight: terms.weight / elements as f64,
        };
        let model = &self.weights.model;
        model.draw_dropout_by(Some(Draws { seed, step, samples: numbers, first_token: engine.local_tokens().start }));
        let loss = engine.loss_and_gradients(&conditioning, &clips);
        model.draw_dropout_by(None);
        loss
    }

    /// Each number's sum over all ranks.
    fn sum<const N: usize>(&self, values: [f64; N]) -> Result<[f64; N]> {
        let sums = Tensor::from_slice(&values, N, &Device::Cpu)?;
        self.mesh.world.all_reduce(&sums, Reduce::Sum)?;
        let sums = sums.to_vec1::<f64>()?;
        Ok(std::array::from_fn(|i| sums[i]))
    }

    /// Rank 0 writes a checkpoint, of what all hand to it; all wait for it.
    fn save(&self, step: u64, position: u64, report: &mut Report) -> Result<()> {
        self.weights.check_finite(step)?;
        let recorded = report.sync(); // first, so that no checkpoint counts steps that a crash takes from the metrics
        let writes = self.mesh.world.rank() == 0;
        let saving = if writes { Some(self.setup.folder.begin(step)?) } else { None };
        let record = if writes { self.setup.adapter_record()? } else { None };
        self.weights.save(saving.as_ref(), record.as_ref())?;
        if let Some(saving) = saving {
            let config = &self.setup.config;
            if let Some(record) = &record {
                self.setup.export_adapters(&saving, step, record)?;
            }
            let mut state = State::new(config.to_toml()?, config.run.seed, step, position);
            state.run = Some(self.setup.name.clone());
            state.fps = self.setup.fps();
            state.data = Some(DataCounts::of(&self.setup.clips));
            state.classes = self.setup.clips.classes().to_vec();
            let path = saving.finish(&state, config.train.keep)?;
            tracing::info!("saved {}", path.display());
        }
        recorded?; // weights are worth more than their record: they are saved all the same
        self.mesh.world.barrier()
    }
}

impl BucketTerms {
    /// Those of each bucket. On average over an epoch's clips, a clip's weight is 1.
    fn of(setup: &RunSetup) -> Result<Vec<Self>> {
        let (tokens, mean) = (setup.clip_tokens()?, setup.mean_tokens()?);
        let by_token = setup.config.train.weigh == Weigh::Token && tokens.len() > 1;
        let terms = |(dataset, tokens): (&Arc<data::Dataset>, usize)| {
            Ok(Self {
                grid: setup.grid(dataset)?,
                sigmas: SigmaDistribution::new(&setup.config.diffusion, tokens)?,
                weight: if by_token { tokens as f64 / mean } else { 1.0 },
            })
        };
        setup.clips.buckets().iter().zip(tokens).map(terms).collect()
    }
}

/// Whether something done every `every` steps is due after `step` steps; 0: never.
fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
