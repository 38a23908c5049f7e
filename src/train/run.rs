//! Runs the training loop of one rank, readable from top to bottom.
//!
//! Every rank runs it. Clips are numbered through the run and a step's global batch is cut over data ranks, each clip's
//! tokens over the ranks of a sequence; whatever is drawn for clip g of a step depends on (seed, step, g) alone. The
//! loss is a sum over this rank's tokens divided by the global count, so that sums over all ranks are the loss and the
//! gradients of the whole batch.

use candle_core::{Device, Tensor};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::device;
use super::progress::Progress;
use super::rank::{BucketTerms, Ended, Rank};
use super::report::{Report, Step};
use super::schedule::LearningRate;
use super::trainer::Hook;
use crate::batch::{NoisyClip, NoisyClips, upload};
use crate::data::{BucketOrder, ClipRows, FrameRegion, Loader, Sample, Turn};
use crate::diffusion::{timestep, training_key};
use crate::engine::Engine;
use crate::observe::meter::Section;
use crate::ops::Draws;
use crate::parallel::{Reduce, agree};
use crate::sample::conditioning;
use crate::{Error, Result};

impl Rank<'_> {
    /// Goes through the run's steps; `hook` is called after each.
    pub fn train(&self, progress: &Progress, interrupted: &AtomicBool, hook: Option<&Hook>) -> Result<Ended> {
        let (train, resume) = (&self.setup.config.train, self.setup.resume.as_ref());
        let engines = self.engines()?;
        let rates = LearningRate::new(train)?;
        let (first, position) = resume.map_or((0, 0), |c| (c.state().step, c.state().position));
        agree(self.mesh.world.as_ref(), "whether a hook sees each step", u64::from(hook.is_some()))?;
        let clips = self.agreed_clips(position)?;

        let batch = self.global_batch();
        let position_of = move |step: u64| position + (step - first) * batch;
        let clips_of_an_epoch: u64 = clips.iter().sum();
        let order = Arc::new(BucketOrder::new(self.setup.config.run.seed, clips, batch));
        let ahead = order.clone();
        let mut loader = self.loader(&engines, (first..train.steps).map(move |step| ahead.at(position_of(step))))?;
        let mut report = Report::start(self.setup, &self.mesh, &self.weights, progress, self.setup.tokens()?, first)?;
        let mut step = first;
        let mut stop = step >= train.steps;
        let mut abandoned = None;
        let mut saved = resume.is_some().then_some(first);
        while !stop {
            let (start, waited) = (Instant::now(), loader.waited());
            let bucket = order.at(position_of(step)).bucket;
            let terms = &self.buckets[bucket];
            let loss = self.gradients(&engines[bucket], bucket, &mut loader, step)?;
            // Every rank must stop at the same step, so the flags travel with the loss.
            let flags =
                [interrupted.load(Ordering::SeqCst), self.meter.skipped()].map(|flag| f64::from(u8::from(flag)));
            let [loss, asked, skipped] = self.sum([loss, flags[0], flags[1]])?;
            // What is reported is the loss of the step's clips, whatever they weigh.
            let loss = loss / terms.weight;
            if skipped > 0.0 {
                abandoned = Some(step + 1);
                break;
            }
            let lr = rates.at(step);
            let norm = self.meter.during(Section::Optimizer, || self.update(step, loss, lr))?;
            step += 1;
            stop = step == train.steps || asked > 0.0;

            let (seconds, waited, spent) = (start.elapsed(), loader.waited() - waited, self.meter.end());
            let heldout = self.heldout_losses(step, stop)?;
            let epoch = position_of(step) as f64 / clips_of_an_epoch as f64;
            let tokens = batch * terms.tokens() as u64;
            let record = report.step(&Step { step, tokens, epoch, loss, norm, lr, seconds, waited, spent, heldout })?;
            if let Some(hook) = hook {
                let ends = record.is_some_and(|record| hook(&record).is_break());
                stop |= self.sum([f64::from(u8::from(ends))])? != [0.0];
            }
            if due(step, train.sample_every) {
                self.sample(step, &mut report)?;
            }
            if due(step, train.checkpoint_every) {
                self.save(step, position_of(step), &mut report)?;
                saved = Some(step);
            }
        }
        self.meter.end();
        if saved != Some(step) {
            // after no steps at all, the initial weights
            self.save(step, position_of(step), &mut report)?;
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
            Some(latents) => Loader::reading(datasets, latents.reader(regions), prefetch, requests),
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
        let elements = self.global_batch() as usize * terms.tokens() * self.setup.model.patch_out();
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
}

/// Whether something done every `every` steps is due after `step` steps; 0: never.
fn due(step: u64, every: u64) -> bool {
    every > 0 && step.is_multiple_of(every)
}
