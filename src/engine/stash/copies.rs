//! Two threads copy blocks to a store behind forward, and from it ahead of backward, so that neither waits.
//!
//! They are told nothing: each looks for a block that waits to be written, else for the block that is wanted next, and
//! takes it. Two blocks at most wait or are being written, and one is read ahead, so what is in flight does not grow.
//! A GPU computes later than its thread asks for it, so each copy is given the [`Point`] that it may begin at.
//! Whatever goes wrong on a thread, a panic among it, is kept and returned by every later call. Nothing here knows what
//! a block looks like.

use candle_core::Device;
use parking_lot::{Condvar, Mutex, MutexGuard};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::pack::{Copier, Layout, Point, Pool};
use super::store::Store;
use super::{Copy, Hook, Residuals, Shapes, StashOptions, not_there};
use crate::parallel::thread_refused;
use crate::{Error, Result, bail};

/// Blocks that wait or are being written at a time, and threads.
pub const FLYING: usize = 2;

/// The threads' owner: dropped, it waits for them to end.
pub(super) struct Copies {
    shared: Arc<Shared>,
    options: StashOptions,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    store: Box<dyn Store>,
    rank: usize,
    hook: Hook,
    pool: Pool,
    /// No code under this lock panics half-way through a change.
    state: Mutex<State>,
    /// Rung at every change.
    bell: Condvar,
}

#[derive(Default)]
struct State {
    layout: Option<Arc<Layout>>,
    blocks: Vec<Block>,
    /// The block to read next, once it is stored, and from when on its buffers are free.
    wanted: Option<(usize, Point)>,
    failure: Option<String>,
    ends: bool,
}

/// Where a block is.
enum Block {
    /// Not put, or taken.
    Nowhere,
    /// Computed at this point.
    Waits(Residuals, Point),
    Writing,
    Element,
    Reading,
    Ready(Residuals),
}

impl Copies {
    /// For blocks of tensors on `device`.
    pub fn start(
        store: Box<dyn Store>,
        options: &StashOptions,
        rank: usize,
        device: &Device,
        hook: Hook,
    ) -> Result<Self> {
        let (pool, state) = (Pool::new(device), Mutex::default());
        let shared = Arc::new(Shared { store, rank, hook, pool, state, bell: Condvar::new() });
        let mut copies = Self { shared, options: options.clone(), threads: vec![] };
        for _ in 0..FLYING {
            let (shared, mut copier) = (copies.shared.clone(), Copier::new(device)?);
            let thread = thread::Builder::new().name(format!("stash-{rank}")).spawn(move || shared.work(&mut copier));
            copies
                .threads
                .push(thread.map_err(|e| thread_refused(&format!("a thread for the stash of rank {rank}"), &e))?);
        }
        Ok(copies)
    }

    /// Returns the bytes of a block.
    pub fn begin(&mut self, blocks: usize, shapes: &Shapes) -> Result<u64> {
        let busy = |block: &Block| matches!(block, Block::Writing | Block::Reading);
        let mut state = self.shared.state.lock();
        // A step that failed half-way leaves blocks behind.
        state.wanted = None;
        state.blocks.iter_mut().filter(|block| !busy(block)).for_each(|block| *block = Block::Nowhere);
        let mut state = self.shared.wait(state, |state| !state.blocks.iter().any(busy))?;
        let layout = Layout::new(shapes, &self.options);
        let reserved = self.shared.store.reserve(blocks, layout.size);
        reserved.map_err(|e| Error::Environment(format!("rank {}: {e}", self.shared.rank)))?;
        let size = layout.size;
        state.layout = Some(Arc::new(layout));
        state.blocks.clear();
        state.blocks.resize_with(blocks, || Block::Nowhere);
        Ok(size)
    }

    pub fn put(&mut self, i: usize, residuals: Residuals) -> Result<()> {
        let flying = |block: &&Block| matches!(block, Block::Waits(..) | Block::Writing);
        let state = self.shared.state.lock();
        let mut state = self.shared.wait(state, |state| state.blocks.iter().filter(flying).count() < FLYING)?;
        let blocks = state.blocks.len();
        let Some(layout) = &state.layout else { bail!(Shape, "stash: no step has begun") };
        let residuals = layout.stored(residuals)?;
        let now = self.shared.pool.now()?;
        match state.blocks.get_mut(i) {
            Some(block @ Block::Nowhere) => *block = Block::Waits(residuals, now.clone()),
            _ => bail!(Shape, "stash: block {i} of {blocks} was put twice, or there is no such block"),
        }
        // Backward begins with the last block.
        state.wanted = (i + 1 == blocks).then_some((i, now));
        self.shared.bell.notify_all();
        Ok(())
    }

    pub fn take(&mut self, i: usize) -> Result<Residuals> {
        let now = self.shared.pool.now()?; // all that uses the block above was asked for
        let mut state = self.shared.state.lock();
        match state.blocks.get(i) {
            None | Some(Block::Nowhere) if state.failure.is_none() => return Err(not_there(i)),
            Some(Block::Reading | Block::Ready(_)) => {}
            _ => state.wanted = Some((i, now.clone())),
        }
        self.shared.bell.notify_all();
        let mut state = self.shared.wait(state, |state| matches!(state.blocks[i], Block::Ready(_)))?;
        state.wanted = i.checked_sub(1).map(|below| (below, now));
        self.shared.bell.notify_all();
        match (std::mem::replace(&mut state.blocks[i], Block::Nowhere), &state.layout) {
            (Block::Ready(residuals), Some(layout)) => layout.widened(residuals),
            _ => Err(not_there(i)),
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.shared.state.lock().ends = true;
        self.shared.bell.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // panics are caught on the thread
        }
    }
}

impl Shared {
    /// Waits until `done`, or fails once a copy has failed.
    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        done: impl Fn(&State) -> bool,
    ) -> Result<MutexGuard<'a, State>> {
        loop {
            if let Some(message) = &state.failure {
                return Err(Error::Environment(message.clone()));
            }
            if done(&state) {
                return Ok(state);
            }
            self.bell.wait(&mut state);
        }
    }

    /// A copy thread.
    fn work(&self, copier: &mut Copier) {
        let mut state = self.state.lock();
        while !state.ends {
            let Some((i, point, waiting)) = state.next() else {
                self.bell.wait(&mut state);
                continue;
            };
            let layout = state.layout.clone();
            drop(state);
            let copy = || {
                copier.after(&point)?;
                self.copy(i, waiting, layout.as_deref(), copier)
            };
            let outcome = catch_unwind(AssertUnwindSafe(copy)).unwrap_or_else(|panic| {
                let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
                bail!(Environment, "a copy panicked: {}", text.unwrap_or("(no message)"))
            });
            state = self.state.lock();
            match outcome {
                Ok(block) => state.blocks[i] = block,
                Err(e) => {
                    state.blocks[i] = Block::Nowhere;
                    state.failure.get_or_insert(format!("rank {}, block {i}: {e}", self.rank));
                }
            }
            self.bell.notify_all();
        }
    }

    /// Writes what waited, or else reads; and where the block is then.
    fn copy(
        &self,
        i: usize,
        waiting: Option<Residuals>,
        layout: Option<&Layout>,
        copier: &mut Copier,
    ) -> Result<Block> {
        let Some(layout) = layout else { bail!(Shape, "stash: no step has begun") };
        match waiting {
            Some(residuals) => {
                (self.hook)(Copy::Write(i))?;
                layout.write(self.store.as_ref(), i, &residuals, copier)?;
                Ok(Block::Element)
            }
            None => {
                (self.hook)(Copy::Read(i))?;
                Ok(Block::Ready(layout.read(self.store.as_ref(), i, &self.pool, copier)?))
            }
        }
    }
}

impl State {
    /// The next copy, marked as begun: a block, when it may be copied, and what is to be written of it if it is not to
    /// be read.
    fn next(&mut self) -> Option<(usize, Point, Option<Residuals>)> {
        if self.failure.is_some() {
            return None;
        }
        if let Some(i) = self.blocks.iter().position(|block| matches!(block, Block::Waits(..))) {
            let block = std::mem::replace(&mut self.blocks[i], Block::Writing);
            let Block::Waits(residuals, point) = block else { return None };
            return Some((i, point, Some(residuals)));
        }
        let (i, point) = self.wanted.take_if(|(i, _)| matches!(self.blocks.get(*i), Some(Block::Element)))?;
        self.blocks[i] = Block::Reading;
        Some((i, point, None))
    }
}
