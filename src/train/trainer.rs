//! Runs a training from code, with the caller's clips, ranks and hook after each step.

use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::monitor::with_monitor;
use super::progress::Progress;
use super::rank::{Ended, Rank};
use super::run_lock::RunLock;
use super::setup::{RunSetup, Start};
use crate::config::{Data, RunConfig};
use crate::data::Clips;
use crate::engine::stash;
use crate::observe::meter::StepMeter;
use crate::observe::metrics::Record;
use crate::parallel::{Communicator, Launch, is_first};
use crate::{Error, Result, bail};

/// Called after each step; see [`Trainer::on_step`].
pub(super) type Hook<'a> = dyn Fn(&Record) -> ControlFlow<()> + Sync + 'a;

/// A training to be run. It is the run that `longreel train` would do, with the same folder.
///
/// ```no_run
/// use longreel::config::RunConfig;
/// use longreel::train::Trainer;
/// use std::ops::ControlFlow;
///
/// let text = std::fs::read_to_string("configs/demo.toml")?;
/// let config = RunConfig::parse(&text, "configs/demo.toml".as_ref(), &["train.steps=100".to_owned()])?;
/// let trained = Trainer::new(config)
///     .on_step(|record| {
///         println!("step {}: loss {:.4}", record.step, record.loss);
///         if record.loss < 0.01 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
///     })
///     .run()?;
/// println!("{} steps; weights in {}", trained.step, trained.checkpoint.display());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "nothing is trained before run()"]
pub struct Trainer<'a> {
    config: RunConfig,
    start: Start,
    launch: Option<&'a Launch>,
    interrupted: Option<&'a AtomicBool>,
    clips: Option<Arc<dyn Clips>>,
    on_step: Option<Box<Hook<'a>>>,
}

/// What a training left.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trained {
    /// Steps done, those before a resume counted.
    pub step: u64,
    /// Whether all steps of the config are done.
    pub finished: bool,
    /// The last checkpoint's folder.
    pub checkpoint: PathBuf,
}

impl<'a> Trainer<'a> {
    /// Trains as `config` says, from its beginning, on ranks that are threads of this process.
    pub fn new(config: RunConfig) -> Self {
        Self { config, start: Start::New, launch: None, interrupted: None, clips: None, on_step: None }
    }

    /// Starts from a checkpoint of the run.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Takes `launch`'s ranks, which may be processes; `parallel.ranks` is then their number. Such a program runs
    /// within [`Launch::run_to_exit`], so that all processes end together and with the first error.
    pub fn launch(mut self, launch: &'a Launch) -> Self {
        self.launch = Some(launch);
        self
    }

    /// Stops after the step in which `flag` is set, by a signal handler or another thread.
    pub fn stop_when(mut self, flag: &'a AtomicBool) -> Self {
        self.interrupted = Some(flag);
        self
    }

    /// Trains on `clips` instead of the files of `data.path`, which is then only a name for messages. Their classes
    /// count if `data.label` says "folder". Held-out clips are files still.
    pub fn clips(mut self, clips: Arc<dyn Clips>) -> Self {
        self.clips = Some(clips);
        self
    }

    /// Calls `hook` on world rank 0 after each step with what it measured; `Break` stops the run after that step,
    /// without another validation. Where ranks are processes, either all have a hook or none has.
    pub fn on_step(mut self, hook: impl FnMut(&Record) -> ControlFlow<()> + Send + 'a) -> Self {
        let hook = Mutex::new(hook);
        self.on_step = Some(Box::new(move |record| hook.lock()(record)));
        self
    }

    /// Trains until the last step, or until it is told to stop. Either way a checkpoint is saved at the end. Meanwhile
    /// no other process may train in the run's folder.
    ///
    /// # Errors
    /// The config does not fit the clips, the machine or the checkpoint; another process trains there already; a file
    /// that matters cannot be written; a loss or weight is not finite; a rank fails. [`Error::Abandoned`] if the
    /// running step would have gone on for more than ten seconds after the flag of [`stop_when`](Self::stop_when) was
    /// set: it is left at once, and the checkpoint is that of the step before.
    pub fn run(self) -> Result<Trained> {
        let (threads, never) = (Launch::threads(), AtomicBool::new(false));
        let (launch, interrupted) = (self.launch.unwrap_or(&threads), self.interrupted.unwrap_or(&never));
        let mut config = self.config;
        if self.clips.is_some() {
            if !config.data.has_one_size() {
                bail!(Config, "clips of a program's own have one size: say data.frames, data.height and data.width")
            }
            let clips = config.data.clips().of_own_clips();
            config.data = Data::clone(&config.data).cut_as(&clips).into();
        }
        let ranks = config.parallel.ranks;
        // Processes that are ranks of one job share the lock of the first; others are runs of their own.
        let first = launch.processes().is_none() || is_first();
        let _lock = launch.rank0_first(|| first.then(|| RunLock::take(&config.run.out)).transpose())?;
        launch.rank0_first(|| RunSetup::fetch(&config, self.clips.is_some()))?;
        let setup = RunSetup::open(config, self.start, launch, self.clips)?;
        let steps = setup.config.train.steps;
        let done = setup.resume.as_ref().map_or(0, |checkpoint| checkpoint.state().step);
        if setup.resume.is_some() && done >= steps {
            tracing::info!("nothing to do: step {done} of {steps}; raise train.steps");
            // A kill or a disk's error behind the last checkpoint leaves something, too.
            if first {
                setup.folder.remove_leftovers()?;
                setup.folder.remove_older(done, setup.config.train.keep)?;
            }
            return Ok(Trained { step: done, finished: true, checkpoint: setup.folder.checkpoint(done) });
        }
        // Each machine has its own scratch folder, for its own ranks.
        let blocks = (setup.model.num_layers * launch.ranks_here(ranks)).div_ceil(ranks);
        stash::check_room(&setup.config.stash, blocks, &setup.stashed()?)?;
        // Of the ranks of this process, which are all or one.
        let meters: Vec<Arc<StepMeter>> =
            (0..launch.processes().map_or(ranks, |_| 1)).map(|_| Arc::default()).collect();
        let progress = Progress::new(steps, done);
        let hook = self.on_step.as_deref();
        let train = |comm: Arc<dyn Communicator>| {
            let meter = meters[comm.rank() % meters.len()].clone();
            if !setup.caches.fill_and_log(&comm, false, interrupted)? {
                return Ok(Ended { step: done, abandoned: Some(done + 1) });
            }
            Rank::new(&setup, comm, meter)?.train(&progress, interrupted, hook)
        };
        let run = || launch.run(ranks, train);
        let ended = with_monitor(&meters, setup.model.num_layers, &progress, interrupted, run)?;
        match ended.into_iter().next() {
            Some(Ended { abandoned: Some(step), .. }) => Err(Error::Abandoned { step }),
            Some(Ended { step, .. }) => {
                Ok(Trained { step, finished: step >= steps, checkpoint: setup.folder.checkpoint(step) })
            }
            None => Err(Error::Rank { rank: 0, message: "no rank has run".to_owned() }),
        }
    }
}
