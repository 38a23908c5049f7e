//! The training loop of one rank, readable from top to bottom.
//!
//! Every rank runs it. Clips are numbered through the run and a step's global batch is cut over data ranks, each clip's tokens over
//! the ranks of a sequence; whatever is drawn for clip g of a step depends on (seed, step, g) alone. The loss is a sum over this
//! rank's tokens divided by the global count, so that sums over all ranks are the loss and the gradients of the whole batch.

use candle_core::{Device, Tensor};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::checkpoint::{DataCounts, State};
use super::clips::{NoisyClip, NoisyClips, upload};
use super::device;
use super::heldout::Heldout;
use super::job::{Job, Start};
use super::pace::minding;
use super::progress::Progress;
use super::rehearsal::{Phases, Rehearsal, Seen};
use super::report::{Report, Step};
use super::run_lock::RunLock;
use super::sampling::{self, ClipSampler, ClipSpec, Request};
use super::schedule::LearningRate;
use super::summary;
use super::weights::Weights;
use crate::config::{Label, RunConfig};
use crate::data::{self, Decoding, Loader, Sample};
use crate::diffusion::{LabelDropout, Objective, SigmaDistribution, timestep, training_key};
use crate::engine::Engine;
use crate::engine::stash::{self, Stash};
use crate::parallel::{Communicator, Launch, Mesh, Reduce, Watched, agree, is_first};
use crate::plan::Plan;
use crate::watch::{Part, Spent, Watch};
use crate::{Error, Result};

/// Trains as `config` says, on ranks that `launch` runs, until its last step or until `interrupted` is set, on any of them; either way a
/// checkpoint is saved at the end. It begins where `start` says. Meanwhile no other process may train in the run's folder.
///
/// # Errors
/// One does already; or
/// [`Error::Abandoned`] if the running step would have gone on for more than ten seconds after `interrupted` was set: it is left at
/// once, and the checkpoint is that of the step before.
pub fn run(config: RunConfig, start: Start, launch: &Launch, interrupted: &AtomicBool) -> Result<()> {
    let ranks = config.parallel.ranks;
    let _lock = launch.rank0_first(|| is_first().then(|| RunLock::take(&config.run.out)).transpose())?;
    launch.rank0_first(|| Job::fetch(&config))?;
    let job = Job::open(config, start, launch)?;
    if let Some(done) = job.resume.as_ref().map(|checkpoint| checkpoint.state().step)
        && done >= job.config.train.steps
    {
        tracing::info!("nothing to do: step {done} of {}; raise train.steps", job.config.train.steps);
        // A kill or a disk's error behind the last checkpoint leaves something, too.
        if is_first() {
            job.folder.remove_leftovers()?;
            job.folder.remove_older(done, job.config.train.keep)?;
        }
        return Ok(());
    }
    // Each machine has its own scratch folder, for its own ranks.
    let blocks = (job.model.num_layers * launch.ranks_here(ranks)).div_ceil(ranks);
    stash::check_room(&job.config.stash, blocks, &job.stashed()?)?;
    // Of the ranks of this process, which are all or one.
    let watches: Vec<Arc<Watch>> = (0..launch.processes().map_or(ranks, |_| 1)).map(|_| Arc::default()).collect();
    let done = job.resume.as_ref().map_or(0, |checkpoint| checkpoint.state().step);
    let progress = Progress::new(job.config.train.steps, done);
    let train = |comm: Arc<dyn Communicator>| {
        let watch = watches[comm.rank() % watches.len()].clone();
        Rank::new(&job, comm, watch)?.train(&progress, interrupted)
    };
    let run = || launch.run(ranks, train);
    let abandoned = minding(&watches, job.model.num_layers, &progress, interrupted, run)?;
    abandoned.into_iter().flatten().next().map_or(Ok(()), |step| Err(Error::Abandoned { step }))
}

/// Steps of a rehearsal, unless the run has fewer: what the first one leaves behind, the second one finds.
pub(crate) const REHEARSED: u64 = 2;

/// Runs steps as `config` says but for attention's arithmetic, which is left out: memory, messages and stash are as ever, numbers
/// mean nothing. Saves nothing.
pub fn rehearse(mut config: RunConfig, launch: &Launch) -> Result<Rehearsal> {
    config.run.out.push("rehearsal"); // never made; a run that is there already is no hindrance
    let job = Job::open(config, Start::New, launch)?;
    let plan = Plan::with_decoding(&job.config, &job.model, true, Some(&Decoding::of(&job.dataset)))?;
    stash::check_room(&job.config.stash, job.model.num_layers, &job.stashed()?)?;
    let done = launch.run(job.config.parallel.ranks, |comm| Rank::new(&job, comm, Arc::default())?.rehearse())?;
    let (spent, seen): (Vec<Spent>, Vec<Seen>) = done.into_iter().unzip();
    let (steps, tokens) = (REHEARSED.min(job.config.train.steps), job.tokens()?);
    tracing::info!("{}", summary::table(&spent[0], steps, tokens));
    Ok(Rehearsal::new(&plan, &seen))
}

/// One rank of a run.
struct Rank<'a> {
    job: &'a Job,
    mesh: Mesh,
    watch: Arc<Watch>,
    weights: Weights,
    objective: Objective,
    sigmas: SigmaDistribution,
    dropout: LabelDropout,
    grid: [usize; 3],
}

impl<'a> Rank<'a> {
    fn new(job: &'a Job, comm: Arc<dyn Communicator>, watch: Arc<Watch>) -> Result<Self> {
        let comm = Arc::new(Watched::new(comm, watch.clone()));
        let config = &job.config;
        let data = &config.data;
        let grid = job.model.grid([data.frames, data.height, data.width])?;
        agree(comm.as_ref(), "the configuration", config.fingerprint()?)?;
        let mesh = Mesh::new(comm, config.parallel.data, job.model.num_attention_heads, config.parallel.ring)?;
        let weights = Weights::new(
            job.initial()?,
            &config.train,
            mesh.world.clone(),
            config.parallel.zero,
            config.stash.folder.as_deref(),
        )?;
        let world = mesh.world.as_ref();
        agree(world, "the step to start from", job.resume.as_ref().map_or(0, |c| c.state().step))?;
        if let Some(checkpoint) = &job.resume {
            agree(world, "the checksum of the checkpoint's state.json", checkpoint.sum())?;
            weights.load(checkpoint)?;
        }
        Ok(Self {
            job,
            mesh,
            watch,
            weights,
            objective: Objective::new(&config.diffusion)?,
            sigmas: SigmaDistribution::new(&config.diffusion, grid.iter().product())?,
            dropout: LabelDropout::new(&config.diffusion)?,
            grid,
        })
    }

    /// Returns the step that was abandoned, if one was.
    fn train(&self, progress: &Progress, interrupted: &AtomicBool) -> Result<Option<u64>> {
        let train = &self.job.config.train;
        let engine = self.engine()?;
        let rates = LearningRate::new(train)?;
        let heldout = Heldout::new(self.job, &self.mesh, &self.objective, &self.sigmas)?;
        let (first, position) = self.job.resume.as_ref().map_or((0, 0), |c| (c.state().step, c.state().position));

        agree(self.mesh.world.as_ref(), "how many clips there are", self.job.dataset.len() as u64)?;

        let batch = self.global_batch();
        let mut loader = self.loader(&engine, position, train.steps.saturating_sub(first))?;
        let tokens = self.job.tokens()?;
        let mut report = Report::start(self.job, &self.mesh, &self.weights, progress, tokens, first)?;
        let mut step = first;
        let mut stop = step >= train.steps;
        let mut abandoned = None;
        let mut saved = self.job.resume.is_some().then_some(first);
        while !stop {
            let (start, waited) = (Instant::now(), loader.waited());
            let loss = self.gradients(&engine, &mut loader, step)?;
            // Every rank must stop at the same step, so the flags travel with the loss.
            let flags =
                [interrupted.load(Ordering::SeqCst), self.watch.skipped()].map(|flag| f64::from(u8::from(flag)));
            let [loss, asked, skipped] = self.sum([loss, flags[0], flags[1]])?;
            if skipped > 0.0 {
                abandoned = Some(step + 1);
                break;
            }
            let lr = rates.at(step);
            let norm = self.watch.during(Part::Optimizer, || self.update(step, loss, lr))?;
            step += 1;
            stop = step == train.steps || asked > 0.0;

            let (seconds, waited, spent) = (start.elapsed(), loader.waited() - waited, self.watch.end());
            let mut losses = vec![];
            if let Some(heldout) = &heldout
                && train.heldout_every > 0
                && (stop || step.is_multiple_of(train.heldout_every))
            {
                losses = self.weights.averaged(|model| heldout.losses(model))?;
            }
            let epoch = (position + (step - first) * batch) as f64 / self.job.dataset.len() as f64;
            report.step(&Step { step, epoch, loss, norm, lr, seconds, waited, spent, heldout: losses })?;
            if due(step, train.sample_every) {
                self.sample(step, &mut report)?;
            }
            if due(step, train.checkpoint_every) {
                self.save(step, position + (step - first) * batch, &mut report)?;
                saved = Some(step);
            }
        }
        self.watch.end();
        if saved != Some(step) {
            self.save(step, position + (step - first) * batch, &mut report)?; // after no steps at all, the initial weights
        }
        report.finish(step, abandoned.is_none() && step < train.steps)?;
        Ok(abandoned)
    }

    /// Ends a step: weights by the sum of all ranks' gradients, whose norm it returns.
    fn update(&self, step: u64, loss: f64, lr: f64) -> Result<f64> {
        self.weights.sum_gradients()?;
        let norm = self.weights.gradient_norm(step + 1)?;
        if !loss.is_finite() {
            return Err(Error::NonFinite { step: step + 1, tensor: "the loss".into(), value: loss });
        }
        self.weights.update(step, lr, norm)?;
        device::check(self.job.device())?;
        Ok(norm)
    }

    /// Two steps without attention's arithmetic; where their time went, and what memory they had in use.
    fn rehearse(&self) -> Result<(Spent, Seen)> {
        let phases = Phases::default();
        let enter = |phase| phases.enter(phase);
        let engine = self.engine()?.with_watcher(&enter).rehearsing();
        let steps = REHEARSED.min(self.job.config.train.steps);
        let mut loader = self.loader(&engine, 0, steps)?;
        let mut spent = Spent::default();
        for step in 0..steps {
            let loss = self.gradients(&engine, &mut loader, step)?;
            self.watch.during(Part::Optimizer, || self.update(step, loss, 0.0))?;
            spent.add(&self.watch.end());
        }
        drop((engine, loader));
        Ok((spent, phases.finish()))
    }

    /// The engine of the run's clips, with the run's stash.
    fn engine(&self) -> Result<Engine<'_>> {
        let config = &self.job.config;
        let stash = Arc::new(Mutex::new(Stash::open(&config.stash, self.mesh.world.rank(), self.job.device())?));
        let (train, sequence) = (&config.train, &self.mesh.sequence);
        let engine = Engine::new(&self.weights.model, sequence, self.grid, train.batch, train.tile)?;
        Ok(engine
            .in_head_groups(config.parallel.head_groups)?
            .with_stash(stash)
            .with_watch(self.watch.clone())
            .with_keeper(&self.weights))
    }

    /// Loss and gradients of a step: this rank's share.
    fn gradients(&self, engine: &Engine, loader: &mut Loader, step: u64) -> Result<f64> {
        let micro_batches = 0..self.job.config.train.accumulate;
        self.watch.begin(micro_batches.len() as u64 * engine.operations());
        self.weights.zero_gradients()?;
        micro_batches.map(|micro| self.micro_batch(engine, loader, step, micro)).sum()
    }

    /// Clips of a step over all data ranks and micro-batches.
    fn global_batch(&self) -> u64 {
        let train = &self.job.config.train;
        (train.batch * train.accumulate * self.mesh.data.size()) as u64
    }

    /// The number in the global batch of clip `i` of a micro-batch of this data rank.
    fn clip_number(&self, micro: usize, i: usize) -> u64 {
        let batch = self.job.config.train.batch;
        ((micro * self.mesh.data.size() + self.mesh.data.rank()) * batch + i) as u64
    }

    /// Decodes what this rank's tokens lie in, of its clips of `steps` steps from `position` on, in order.
    fn loader(&self, engine: &Engine, position: u64, steps: u64) -> Result<Loader> {
        let train = &self.job.config.train;
        let (dataset, seed) = (self.job.dataset.clone(), self.job.config.run.seed);
        let numbers: Vec<u64> = (0..train.accumulate)
            .flat_map(|m| (0..train.batch).map(move |i| (m, i)))
            .map(|(m, i)| self.clip_number(m, i))
            .collect();
        let part = data::Part::of_tokens(engine.local_tokens(), self.grid, self.job.model.patch_size);
        let batch = self.global_batch();
        let positions = (0..steps).flat_map(move |step| {
            let numbers = numbers.clone();
            (0..numbers.len()).map(move |i| position + step * batch + numbers[i])
        });
        let requests = positions.map(move |position| dataset.training(seed, position));
        // A step's clips decode while the step before runs, and one more.
        let ahead = self.job.config.data.prefetch.max(train.batch);
        Loader::new(self.job.dataset.clone(), part, ahead, requests)
    }

    /// Forward and backward of one micro-batch: this rank's share of the loss.
    fn micro_batch(&self, engine: &Engine, loader: &mut Loader, step: u64, micro: usize) -> Result<f64> {
        let (seed, train) = (self.job.config.run.seed, &self.job.config.train);
        let (mut clips, mut labels) = (vec![], vec![]);
        for i in 0..train.batch {
            let Some(sample) = self.watch.during(Part::Data, || loader.next()) else {
                return Err(Error::Invalid("the loader has stopped".into()));
            };
            let Sample { clip, frames, .. } = sample?;
            let number = self.clip_number(micro, i);
            let dropped = self.job.config.data.label == Label::None || self.dropout.drops(seed, step, number);
            labels.push(if dropped { None } else { clip.class });
            let sigma = self.sigmas.draw(seed, step, number);
            let (pixels, noise) = (upload(&frames, self.job.device())?, training_key(seed, step, number));
            clips.push(NoisyClip { frames: Arc::new(frames), pixels, sigma, noise });
        }
        let timesteps: Vec<f64> = clips.iter().map(|clip| timestep(clip.sigma)).collect();
        let prompt = sampling::prompt(&self.weights.model, &timesteps, &labels)?;
        let tokens: usize = self.grid.iter().product();
        let elements = self.global_batch() as usize * tokens * self.job.model.patch_out();
        let clips = NoisyClips {
            clips: &clips,
            objective: &self.objective,
            tokens: engine.local_tokens(),
            patch: self.job.model.patch_size,
            weight: 1.0 / elements as f64,
        };
        engine.loss_and_gradients(&prompt, &clips)
    }

    /// Each number's sum over all ranks.
    fn sum<const N: usize>(&self, values: [f64; N]) -> Result<[f64; N]> {
        let sums = Tensor::from_slice(&values, N, &Device::Cpu)?;
        self.mesh.world.all_reduce(&sums, Reduce::Sum)?;
        let sums = sums.to_vec1::<f64>()?;
        Ok(std::array::from_fn(|i| sums[i]))
    }

    /// Samples `[sample] count` clips from the averaged weights; every sequence group does so, the first one reports. A batch of them has
    /// no more clips than one of training, whose memory it then does with.
    fn sample(&self, step: u64, report: &mut Report) -> Result<()> {
        let config = &self.job.config;
        let (request, sequence) = (&Request::from_config(config)?, &self.mesh.sequence);
        let classes = self.job.dataset.classes().len().max(1);
        let label = |index| (self.job.model.num_classes > 0).then_some(index % classes);
        let clips = ClipSpec::numbered((0..config.sample.count).map(label));
        self.weights.averaged(|model| {
            let sampler = ClipSampler { model, objective: &self.objective, sequence, request, tile: config.train.tile };
            let most = config.train.batch.min(sampler.most_at_once()?);
            sampler.sample_all(&clips, most, &|_| {}, |index, clip| {
                report.sample(step, index, &clip, sequence.all.as_ref())
            })
        })
    }

    /// Rank 0 writes a checkpoint, of what all hand to it; all wait for it.
    fn save(&self, step: u64, position: u64, report: &mut Report) -> Result<()> {
        self.weights.check_finite(step)?;
        let recorded = report.sync(); // first, so that no checkpoint counts steps that a crash takes from the metrics
        let writes = self.mesh.world.rank() == 0;
        let saving = if writes { Some(self.job.folder.begin(step)?) } else { None };
        self.weights.save(saving.as_ref())?;
        if let Some(saving) = saving {
            let mut state = State::new(&self.job.config, step, position)?;
            state.run = Some(self.job.name.clone());
            state.fps = self.job.fps();
            state.data = Some(DataCounts::of(&self.job.dataset));
            state.classes = self.job.dataset.classes().to_vec();
            let path = saving.finish(&state, self.job.config.train.keep)?;
            tracing::info!("saved {}", path.display());
        }
        recorded?; // weights are worth more than their record: they are saved all the same
        self.mesh.world.barrier()
    }
}

/// Whether something done every `every` steps is due after `step` steps; 0: never.
fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
