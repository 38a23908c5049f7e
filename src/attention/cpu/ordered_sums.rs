//! Lets tasks add to shared sums one after another, block by block, in a fixed order and without locks.
//!
//! Each *pipeline* (a head, or a half of one) has blocks of its own, which `groups` tasks visit from first to last; a
//! task may touch a block once the task before it has left that block. Tasks follow each other a block apart, and the
//! sums' order does not depend on the threads that run them. Tasks must be started in order, each by a thread that runs
//! it to the end: then the oldest unfinished one never waits, and no wait is forever. A task's panic is passed on to
//! the tasks that wait for it; where a [`StepMeter`] says stop, no task waits any more and sums stay as they are.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::observe::meter::StepMeter;

/// The shared sums of all pipelines.
pub(super) struct OrderedSums<'a> {
    sums: *mut f32,
    /// Values in a block.
    len: usize,
    /// Each pipeline's blocks.
    pipelines: Vec<Range<usize>>,
    groups: usize,
    /// Blocks that each (pipeline, group) has left.
    left: Vec<AtomicUsize>,
    failed: AtomicBool,
    meter: &'a StepMeter,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: `visit` hands a block to one task at a time, and its counters order their accesses.
unsafe impl Sync for OrderedSums<'_> {}

impl<'a> OrderedSums<'a> {
    /// Pipelines over runs of blocks of `len` values of `sums`, in order, each visited by `groups` tasks.
    ///
    /// # Panics
    /// If pipelines share a block, or have one that is not there.
    pub fn new(
        sums: &'a mut [f32],
        len: usize,
        pipelines: Vec<Range<usize>>,
        groups: usize,
        meter: &'a StepMeter,
    ) -> Self {
        let left = (0..pipelines.len() * groups).map(|_| AtomicUsize::new(0)).collect();
        let failed = AtomicBool::new(false);
        assert!(pipelines.windows(2).all(|two| two[0].end <= two[1].start), "lanes apart");
        assert!(pipelines.iter().all(|pipeline| pipeline.end * len <= sums.len()), "blocks of lanes are there");
        Self { sums: sums.as_mut_ptr(), len, pipelines, groups, left, failed, meter, borrow: PhantomData }
    }

    /// The number of pipelines.
    pub fn count(&self) -> usize {
        self.pipelines.len()
    }

    /// The blocks of `pipeline`.
    pub fn blocks(&self, pipeline: usize) -> Range<usize> {
        self.pipelines[pipeline].clone()
    }

    /// Task number `group` of `pipeline`, to be asked for once.
    pub fn task(&self, pipeline: usize, group: usize) -> Task<'_> {
        Task { sums: self, pipeline, group }
    }
}

/// One task's way along its pipeline.
pub(super) struct Task<'a> {
    sums: &'a OrderedSums<'a>,
    pipeline: usize,
    group: usize,
}

impl Task<'_> {
    /// Whether this task comes first and finds unspecified values, which it must overwrite.
    pub fn is_first(&self) -> bool {
        self.group == 0
    }

    /// Waits for the task before to leave block `block` of the pipeline, then holds the block until the guard is
    /// dropped. Blocks are visited in order, from 0. None: the pass is to stop, and so must the task.
    pub fn visit(&mut self, block: usize) -> Option<Visit<'_>> {
        if self.sums.meter.stops() {
            return None;
        }
        let counter = self.pipeline * self.sums.groups + self.group;
        let left = &self.sums.left[counter];
        let pipeline = self.sums.blocks(self.pipeline);
        assert!(block < pipeline.len() && left.load(Ordering::Relaxed) == block, "visits go in order");
        if self.group > 0 {
            let before = &self.sums.left[counter - 1];
            let mut spins = 0u32;
            while before.load(Ordering::Acquire) <= block {
                assert!(!self.sums.failed.load(Ordering::Relaxed), "another thread of this pass panicked");
                if self.sums.meter.stops() {
                    return None;
                }
                spins += 1;
                if spins.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        }
        let start = (pipeline.start + block) * self.sums.len;
        // SAFETY: a block of this pipeline, which `new` saw to be within `sums` and in no other; the task before has
        // left the block, the one after waits until the guard's drop.
        let sums = unsafe { std::slice::from_raw_parts_mut(self.sums.sums.add(start), self.sums.len) };
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
            self.sums.failed.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;

    /// Sums that depend on the order of their terms come out the same from any number of threads.
    #[test]
    fn order_of_sums_is_the_same_for_any_number_of_threads() {
        let run = |threads: usize| {
            let (len, groups, pipelines) = (3, 7, vec![0..5, 5..8]);
            let mut sums = vec![f32::NAN; 8 * len];
            let meter = StepMeter::default();
            let shared = OrderedSums::new(&mut sums, len, pipelines, groups, &meter);
            let tasks = Mutex::new((0..groups).flat_map(|g| (0..shared.count()).map(move |l| (l, g))));
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        loop {
                            let Some((pipeline, group)) = tasks.lock().next() else { break };
                            let mut task = shared.task(pipeline, group);
                            for block in 0..shared.blocks(pipeline).len() {
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
