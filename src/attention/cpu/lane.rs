//! Sums that tasks add to one after another, block by block, in a fixed order and without locks.
//!
//! Each *lane* (a head, or a half of one) has blocks of its own, which `groups` tasks visit from first to last; a task may touch
//! a block once the task before it has left that block. Tasks follow each other a block apart and the sums' order does not depend
//! on who runs them. Tasks must be started in order, each by a thread that runs it to the end: then the oldest unfinished one
//! never waits, and no wait is forever. A panic of one is passed on to those that wait for it; where a [`StepMeter`] says stop, nobody
//! waits any more and sums stay as they are.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::meter::StepMeter;

/// The shared sums of all lanes.
pub(super) struct Lanes<'a> {
    sums: *mut f32,
    /// Values in a block.
    len: usize,
    /// Each lane's blocks.
    lanes: Vec<Range<usize>>,
    groups: usize,
    /// Blocks that each (lane, group) has left.
    left: Vec<AtomicUsize>,
    failed: AtomicBool,
    meter: &'a StepMeter,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `visit` hands a block to one task at a time, and its counters order their accesses.
unsafe impl Sync for Lanes<'_> {}

impl<'a> Lanes<'a> {
    /// Lanes over runs of blocks of `len` values of `sums`, in order, each visited by `groups` tasks.
    ///
    /// # Panics
    /// If lanes share a block, or have one that is not there.
    pub fn new(sums: &'a mut [f32], len: usize, lanes: Vec<Range<usize>>, groups: usize, meter: &'a StepMeter) -> Self {
        let left = (0..lanes.len() * groups).map(|_| AtomicUsize::new(0)).collect();
        let failed = AtomicBool::new(false);
        assert!(lanes.windows(2).all(|two| two[0].end <= two[1].start), "lanes apart");
        assert!(lanes.iter().all(|lane| lane.end * len <= sums.len()), "blocks of lanes are there");
        Self { sums: sums.as_mut_ptr(), len, lanes, groups, left, failed, meter, borrow: PhantomData }
    }

    /// The number of lanes.
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// The blocks of `lane`.
    pub fn blocks(&self, lane: usize) -> Range<usize> {
        self.lanes[lane].clone()
    }

    /// Task number `group` of `lane`, to be asked for once.
    pub fn task(&self, lane: usize, group: usize) -> Task<'_> {
        Task { lanes: self, lane, group }
    }
}

/// One task's way along its lane.
pub(super) struct Task<'a> {
    lanes: &'a Lanes<'a>,
    lane: usize,
    group: usize,
}

impl Task<'_> {
    /// Whether this task comes first and finds unspecified values, which it must overwrite.
    pub fn is_first(&self) -> bool {
        self.group == 0
    }

    /// Waits for the task before to leave block `block` of the lane, then holds the block until the guard is dropped. Blocks are visited in
    /// order, from 0. None: the pass is to stop, and so must the task.
    pub fn visit(&mut self, block: usize) -> Option<Visit<'_>> {
        if self.lanes.meter.stops() {
            return None;
        }
        let at = self.lane * self.lanes.groups + self.group;
        let left = &self.lanes.left[at];
        let lane = self.lanes.blocks(self.lane);
        assert!(block < lane.len() && left.load(Ordering::Relaxed) == block, "visits go in order");
        if self.group > 0 {
            let before = &self.lanes.left[at - 1];
            let mut spins = 0u32;
            while before.load(Ordering::Acquire) <= block {
                assert!(!self.lanes.failed.load(Ordering::Relaxed), "another thread of this pass panicked");
                if self.lanes.meter.stops() {
                    return None;
                }
                spins += 1;
                if spins.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
        let start = (lane.start + block) * self.lanes.len;
        // SAFETY: a block of this lane, which `new` saw to be within `sums` and in no other; the task before has left the block, the one after waits until the guard's drop.
        let sums = unsafe { std::slice::from_raw_parts_mut(self.lanes.sums.add(start), self.lanes.len) };
        Some(Visit { sums, left })
    }
}

/// A block in a task's hands.
pub(super) struct Visit<'a> {
    sums: &'a mut [f32],
    left: &'a AtomicUsize,
}

impl Deref for Visit<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.sums
    }
}

impl DerefMut for Visit<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.sums
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.left.fetch_add(1, Ordering::Release);
    }
}

impl Drop for Task<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lanes.failed.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Sums that depend on the order of their terms come out the same from any number of threads.
    #[test]
    fn order_of_sums_does_not_depend_on_threads() {
        let run = |threads: usize| {
            let (len, groups, lanes) = (3, 7, vec![0..5, 5..8]);
            let mut sums = vec![f32::NAN; 8 * len];
            let meter = StepMeter::default();
            let shared = Lanes::new(&mut sums, len, lanes, groups, &meter);
            let tasks = Mutex::new((0..groups).flat_map(|g| (0..shared.count()).map(move |l| (l, g))));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        loop {
                            let Some((lane, group)) = tasks.lock().unwrap().next() else { break };
                            let mut task = shared.task(lane, group);
                            for block in 0..shared.blocks(lane).len() {
                                let first = task.is_first();
                                for x in task.visit(block).unwrap().iter_mut() {
                                    *x = if first { 0.1 } else { *x * 1.7 + group as f32 };
                                }
                            }
                        }
                    });
                }
            });
            drop(shared);
            sums
        };
        let one = run(1);
        assert!(one.iter().all(|x| x.is_finite()));
        for threads in [2, 3, 8] {
            assert_eq!(one, run(threads), "{threads} threads");
        }
    }
}
