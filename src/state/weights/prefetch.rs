//! Prefetches the next unit's parameters from all ranks, on a thread of its own, while the engine uses the present unit
//! (ZeRO's stage 3).
//!
//! The engine takes units in a fixed order, so all ranks ask for the same ones; what was asked for and is not used
//! after all is dropped, on all ranks alike. Nothing here knows what is in a unit.

use candle_core::Tensor;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::cell::Cell;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::shards::Shards;
use crate::model::UnitId;
use crate::parallel::{Communicator, thread_refused};
use crate::{Error, Result};

/// A unit's parts over the ranks, and this rank's.
type Wanted = (Shards, Tensor);

/// What all ranks hold of a unit.
type Parts = Result<Vec<Tensor>>;

/// The thread, and what it was asked for.
pub(super) struct Prefetch {
    ask: Option<Sender<Wanted>>,
    answers: Receiver<Parts>,
    /// The communicator that only the thread calls.
    comm: Arc<dyn Communicator>,
    /// The unit that is under way, if any.
    unit: Cell<Option<UnitId>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// A thread that has nothing to do yet, for the ranks of `world`. A collective.
    pub fn new(world: &dyn Communicator) -> Result<Self> {
        let (ask, asked) = bounded::<Wanted>(1);
        let (answer, answers) = bounded(1);
        let work = move || {
            for (shards, own) in asked {
                if answer.send(shards.parts(&own)).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("gather".into()).spawn(work);
        let thread = thread.map_err(|e| thread_refused("a thread to gather parameters", &e))?;
        Ok(Self { ask: Some(ask), answers, comm: world.dup()?, unit: Cell::new(None), thread: Some(thread) })
    }

    /// Begins to fetch a unit in these parts, of which this rank has `own`.
    pub fn start(&self, unit: UnitId, shards: &Shards, own: &Tensor) -> Result<()> {
        self.forget()?;
        self.unit.set(Some(unit));
        self.comm.reserve();
        let wanted = (shards.over(self.comm.clone()), own.clone());
        self.ask.as_ref().and_then(|ask| ask.send(wanted).ok()).ok_or_else(gone)
    }

    /// All ranks' parts of `unit`, if it was begun with.
    pub fn take(&self, unit: UnitId) -> Result<Option<Vec<Tensor>>> {
        if self.unit.get() != Some(unit) {
            return Ok(None);
        }
        self.unit.set(None);
        self.answers.recv().map_err(|_| gone())?.map(Some)
    }

    /// Waits for what is under way and drops it: the parameters are about to change, or another unit is wanted.
    pub fn forget(&self) -> Result<()> {
        match self.unit.get() {
            Some(unit) => self.take(unit).map(drop),
            None => Ok(()),
        }
    }
}

fn gone() -> Error {
    Error::Environment("the thread that gathers parameters is gone".into())
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // the thread ends with what it is at: all ranks have asked for it, or this one's failure ends theirs
        self.ask = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
