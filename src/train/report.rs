//! Reports a run while it trains: metrics, TensorBoard events, the progress line, samples. Only world rank 0 reports;
//! on other ranks every call does nothing. A failure of what only shows the run never ends it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::about;
use super::device;
use super::heldout::HeldoutLosses;
use super::lineage;
use super::plot::loss_curve;
use super::progress::Progress;
use super::setup::RunSetup;
use crate::Result;
use crate::data::write::{PREVIEW_PIXELS, Preview, write_video};
use crate::files::{create_folders, gib};
use crate::observe::meter::StepTimes;
use crate::observe::metrics::{EPOCH, MetricsLog, Record};
use crate::observe::process::memory;
use crate::observe::tensorboard::{EventWriter, tag};
use crate::observe::warnings::{Keeping, keep_in};
use crate::parallel::{Communicator, Mesh};
use crate::plan::Plan;
use crate::sample::{FPS_OF_IMAGES, Sampled};
use crate::state::weights::TrainState;
use crate::terminal::counted;

/// What one optimizer step measured.
pub struct Step {
    /// Steps done, this one counted.
    pub step: u64,
    /// Its tokens over all ranks.
    pub tokens: u64,
    /// How often the clips have been gone through by its end.
    pub epoch: f64,
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub norm: f64,
    pub lr: f64,
    pub seconds: Duration,
    /// Of which the loader was waited for.
    pub waited: Duration,
    /// Where the time went.
    pub spent: StepTimes,
    /// Held-out losses, on steps that measure them.
    pub heldout: HeldoutLosses,
}

/// What could not be written, and has been said to be so.
#[derive(Default)]
struct Warned {
    metrics: bool,
    samples: bool,
}

/// The run's voice.
pub struct Report<'a>(Option<Voice<'a>>);

struct Voice<'a> {
    setup: &'a RunSetup,
    metrics: MetricsLog,
    /// None once they could not be written: they are a copy of the metrics, for which no run ends.
    events: Option<EventWriter>,
    warned: Warned,
    /// None where warnings cannot be kept; the log has them.
    _warnings: Option<Keeping>,
    progress: &'a Progress,
    /// Bytes of memory that all ranks were planned to take.
    planned: u64,
    /// Tokens of this process's steps.
    done: u64,
    /// Of this process's steps.
    steps: u64,
    waited: Duration,
    seconds: Duration,
    spent: StepTimes,
}

impl<'a> Report<'a> {
    /// Opens the files of a run that has `done` steps behind it, or makes the folder of a new one; a step is `tokens`
    /// tokens over all ranks. Nothing is written before: what cannot be trained leaves no trace.
    pub fn start(
        setup: &'a RunSetup,
        mesh: &Mesh,
        weights: &TrainState,
        progress: &'a Progress,
        tokens: u64,
        done: u64,
    ) -> Result<Self> {
        if mesh.world.rank() != 0 {
            return Ok(Self(None));
        }
        let resumed = setup.resume.is_some();
        setup.folder.remove_leftovers()?;
        if resumed {
            setup.folder.set_newer_aside(done)?;
            lineage::rewrite_config(&setup.folder, &setup.config, done)?;
        } else {
            setup.folder.create(&setup.config.to_toml()?)?;
        }
        let warnings = keep_in(&setup.folder.warnings());
        let plan = Plan::with_decoding(&setup.largest_config()?, &setup.model, false, Some(&setup.decoding()))?;
        about::record(setup, &plan);
        let path = setup.folder.metrics();
        let metrics = if resumed { MetricsLog::resume(&path, done)? } else { MetricsLog::create(&path)? };
        let events = EventWriter::create(&setup.folder.root().join("tensorboard"), resumed.then_some(done));
        let (ranks, sequence, data) = (mesh.world.size(), mesh.sequence.all.size(), mesh.data.size());
        let ring = match mesh.sequence.ring.size() {
            1 => String::new(),
            ring => format!(", in rings of {ring}"),
        };
        let bytes = weights.state_bytes();
        let state = gib((bytes.parameters + bytes.gradients + bytes.moments + bytes.average) as u64);
        let (train, clips) = (&setup.config.train, setup.clips.clips_of_an_epoch().iter().sum::<u64>());
        let epochs = train.steps as f64 * (train.batch * train.accumulate * data) as f64 / clips as f64;
        let clips = counted(clips as usize, "clip", "clips");
        let trained = match &weights.model.lora {
            Some(lora) => format!(" ({} in adapters, which are trained)", lora.count()),
            None => String::new(),
        };
        tracing::info!(
            "{} parameters{trained}, {tokens} tokens a step, {} ({data} data x {sequence} sequence{ring}), steps {} to {} ({epochs:.1} epochs of \
             {clips})",
            weights.model.count(),
            counted(ranks, "rank", "ranks"),
            done + 1,
            train.steps
        );
        tracing::info!(
            "computing in {} on {}; weights, gradients and moments are f32",
            setup.config.train.dtype.name(),
            device::name(setup.device())
        );
        about::log_sigmas(setup)?;
        tracing::info!("ZeRO stage {}: {state} of model state a rank", setup.config.parallel.zero);
        let mut voice = Voice {
            setup,
            metrics,
            events: events.map_err(no_events).ok(),
            warned: Warned::default(),
            _warnings: warnings.map_err(|e| tracing::warn!("warnings are in the log only: {e}")).ok(),
            progress,
            planned: plan.total(),
            done: 0,
            steps: 0,
            waited: Duration::ZERO,
            seconds: Duration::ZERO,
            spent: StepTimes::default(),
        };
        // Markdown shows what is indented as it is.
        let config: String = setup.config.to_toml()?.lines().map(|line| format!("    {line}\n")).collect();
        voice.log_event(|events| events.text(done, "config", &config));
        Ok(Self(Some(voice)))
    }

    /// Records a step, and returns the record where it is kept.
    pub fn step(&mut self, step: &Step) -> Result<Option<Record>> {
        let Some(voice) = &mut self.0 else { return Ok(None) };
        voice.waited += step.waited;
        voice.seconds += step.seconds;
        voice.spent.add(&step.spent);
        voice.steps += 1;
        voice.done += step.tokens;
        let seconds = step.seconds.as_secs_f64();
        let mut record = Record {
            step: step.step,
            loss: step.loss,
            grad_norm: step.norm,
            lr: step.lr,
            tokens_per_s: step.tokens as f64 / seconds,
            seconds,
            waited: step.waited.as_secs_f64() / seconds,
            peak_rss: memory().peak,
            more: step.spent.values().collect(),
            ..Record::default()
        };
        record.more.insert(EPOCH.to_owned(), step.epoch);
        if let Some(mean) = step.heldout.mean() {
            let HeldoutLosses { quantiles, sizes } = &step.heldout;
            record.heldout = Some(mean);
            let named = |(i, &loss): (usize, &f64)| (format!("heldout_q{i}"), loss);
            record.more.extend(quantiles.iter().enumerate().map(named));
            record.more.extend(sizes.iter().map(|(size, loss)| (format!("heldout_{size}"), *loss)));
            tracing::info!("step {}: held-out loss {mean:.5}", step.step);
        }
        voice.record(&record)?;
        let tagged: Vec<(String, f64)> = record
            .values()
            .into_iter()
            .map(|(name, value)| {
                let (tag, factor) = tag(name);
                (tag, factor * value)
            })
            .collect();
        voice.log_event(|events| events.scalars(step.step, &tagged));
        voice.progress.update(step.step, step.epoch, step.loss, record.tokens_per_s);
        Ok(Some(record))
    }

    /// Makes the metrics durable that a checkpoint is about to count; it may be saved in any case, and the run shall
    /// end if this fails.
    pub fn sync(&mut self) -> Result<()> {
        self.0.as_mut().map_or(Ok(()), |voice| voice.metrics.sync())
    }

    /// Writes sample number `index` of a step, which `comm`'s ranks hold: each of them calls this. A sample that cannot
    /// be written is a warning: the run does without.
    pub fn sample(&mut self, step: u64, index: usize, clip: &Sampled, comm: &Arc<dyn Communicator>) -> Result<()> {
        let Some(voice) = &mut self.0 else { return clip.bands(comm, |_| Ok(())) };
        let [frames, height, width] = clip.size;
        let kind = if frames == 1 { "png" } else { "mp4" };
        let folder = voice.setup.folder.root().join("samples");
        let path = folder.join(format!("step-{step:08}-{index}.{kind}"));
        let made = create_folders(&folder);
        let written = if frames == 1 && height * width > PREVIEW_PIXELS {
            // so large a picture is never whole in memory, and has no place in TensorBoard's file
            clip.write_png(comm, &path)?
        } else if let Some(clip) = clip.collect(comm)? {
            let fps = voice.setup.fps().unwrap_or(FPS_OF_IMAGES);
            if let Ok(Preview { height, width, encoded }) = Preview::new(&clip.data, clip.height, clip.width, fps) {
                let tag = format!("samples/{index}");
                voice.log_event(|events| events.image(step, &tag, [height, width], &encoded));
            }
            write_video(&path, &clip.data, clip.height, clip.width, fps)
        } else {
            Ok(())
        };
        if let Err(e) = made.and(written)
            && !std::mem::replace(&mut voice.warned.samples, true)
        {
            tracing::warn!("a sample is not written, and others may not be: {e}");
        }
        Ok(())
    }

    /// Draws the loss curve, says what the steps were made of and how the run ended.
    pub fn finish(self, step: u64, stopped: bool) -> Result<()> {
        let Some(voice) = self.0 else { return Ok(()) };
        let peak = memory().peak; // without the curve's pixels
        let root = voice.setup.folder.root();
        let curve: PathBuf = root.join("loss.png");
        let drawn = match loss_curve(&voice.setup.folder.metrics(), &curve) {
            Ok(()) => format!("; loss curve {}", curve.display()),
            Err(e) => {
                if step > 0 {
                    tracing::warn!("the loss curve is not drawn: {e}");
                }
                String::new()
            }
        };
        voice.progress.finish();
        if voice.steps > 0 {
            tracing::info!("{}", voice.spent.table(voice.steps, voice.done / voice.steps));
            tracing::info!("memory: {} at the peak, planned {}", gib(peak), gib(voice.planned));
        }
        let share = 100.0 * voice.waited.as_secs_f64() / voice.seconds.as_secs_f64().max(1e-9);
        tracing::info!("waited for data {share:.2} % of the time{drawn}");
        if stopped {
            tracing::info!("stopped after step {step} as asked; go on with --resume");
        }
        Ok(())
    }
}

impl Voice<'_> {
    /// Adds something to TensorBoard's file, as long as that can be written.
    fn log_event(&mut self, add: impl FnOnce(&mut EventWriter) -> Result<()>) {
        if let Some(events) = &mut self.events
            && let Err(e) = add(events)
        {
            no_events(e);
            self.events = None;
        }
    }

    /// Adds a line to the metrics. One that finds no room waits for some, at most until the next checkpoint.
    fn record(&mut self, record: &Record) -> Result<()> {
        match self.metrics.write(record) {
            Ok(()) => {
                if std::mem::take(&mut self.warned.metrics) {
                    tracing::info!("{}: has all lines again", self.setup.folder.metrics().display());
                }
            }
            Err(e) if !self.metrics.waits() => return Err(e),
            Err(e) => {
                if !std::mem::replace(&mut self.warned.metrics, true) {
                    tracing::warn!(
                        "{e}; the lines are kept in memory until there is room, and must be written by the next checkpoint"
                    );
                }
            }
        }
        Ok(())
    }
}

/// Says that there will be no more events.
fn no_events(error: crate::Error) {
    tracing::warn!("TensorBoard's events end here, metrics.jsonl goes on: {error}");
}
