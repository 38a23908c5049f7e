//! Runs Muon on a unit whose elements are shared out over ranks: each matrix is put together on one rank, made
//! orthogonal there, and handed back.
//!
//! A matrix has one owner, whatever ZeRO's stage, so the ranks share the work, and each matrix is computed once, with
//! the same bits for all.

use candle_core::{Device, Tensor};
use std::ops::Range;
use std::sync::Arc;

use crate::Result;
use crate::model::Unit;
use crate::ops::read;
use crate::parallel::Communicator;
use crate::state::optimizer::muon::{self, MatrixStep};

/// A unit's matrices that are Muon's, and who owns them.
pub(super) struct Matrices {
    all: Vec<Matrix>,
    /// What each rank updates of the unit.
    ranges: Vec<Range<usize>>,
}

/// One matrix.
struct Matrix {
    /// Where it lies in the unit.
    range: Range<usize>,
    shape: [usize; 2],
    owner: usize,
}

impl Matrices {
    /// Those of `unit`, of which rank r updates `ranges[r]`.
    pub fn new(unit: &Unit, ranges: Vec<Range<usize>>) -> Self {
        let matrices = unit.entries.iter().filter(|entry| muon::takes(&entry.name, &entry.shape));
        let mut all: Vec<Matrix> = matrices
            .map(|entry| Matrix { range: entry.range.clone(), shape: [entry.shape[0], entry.shape[1]], owner: 0 })
            .collect();
        // The dearest first, each to the rank that has least to do.
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse((all[i].range.len() * all[i].shape[0].min(all[i].shape[1]), i)));
        let mut loads = vec![0; ranges.len()];
        for i in order {
            let owner = (0..loads.len()).min_by_key(|&rank| (loads[rank], rank)).unwrap_or(0);
            loads[owner] += all[i].range.len() * all[i].shape[0].min(all[i].shape[1]);
            all[i].owner = owner;
        }
        Self { all, ranges }
    }

    /// The parts of rank `rank`'s range that are AdamW's, ascending, counted from the range's start.
    pub fn others(&self, unit: &Unit, rank: usize) -> Vec<Range<usize>> {
        let others = unit.entries.iter().filter(|entry| !muon::takes(&entry.name, &entry.shape));
        let own = &self.ranges[rank];
        others
            .map(|entry| overlap(&entry.range, own))
            .filter(|part| !part.is_empty())
            .map(|part| part.start - own.start..part.end - own.start)
            .collect()
    }

    /// Where the matrices lie in rank `rank`'s range, counted from its start, each with its shape.
    fn own(&self, rank: usize) -> impl Iterator<Item = (Range<usize>, [usize; 2])> + '_ {
        let own = self.ranges[rank].clone();
        let parts = self.all.iter().map(move |matrix| (overlap(&matrix.range, &own), matrix.shape, own.start));
        parts
            .filter(|(part, ..)| !part.is_empty())
            .map(|(part, shape, start)| (part.start - start..part.end - start, shape))
    }

    /// A step of this rank's part of the unit: `params`, `grads` and `momentum` are of its range. `sharded` says
    /// whether ranks hold different parts. A collective: all ranks call it.
    pub fn update(
        &self,
        step: &MatrixStep,
        world: &Arc<dyn Communicator>,
        sharded: bool,
        (params, grads, momentum): (&mut [f32], &[f32], &mut [f32]),
        device: &Device,
    ) -> Result<()> {
        let (rank, ranks) = (world.rank(), world.size());
        let mut update = vec![0.0; params.len()];
        for (part, _) in self.own(rank) {
            step.accumulate(&grads[part.clone()], &mut momentum[part.clone()], &mut update[part]);
        }
        // To each owner this rank's parts of its matrices; without sharding each has all of them.
        let from = |source: usize| if sharded || source == rank { self.ranges[source].clone() } else { 0..0 };
        let send = (0..ranks).map(|owner| {
            let mut parts = vec![];
            if sharded || owner == rank {
                self.owned(owner, &self.ranges[rank]).for_each(|part| {
                    parts.extend_from_slice(&update[part.start - self.ranges[rank].start..][..part.len()]);
                });
            }
            parts
        });
        let counts = (0..ranks).map(|source| self.count(rank, &from(source)));
        let received = exchange(world, send.collect(), counts.collect())?;
        let mut matrices: Vec<Vec<f32>> = self.mine(rank).map(|matrix| vec![0.0; matrix.range.len()]).collect();
        for (source, values) in received.iter().enumerate() {
            let mut at = 0;
            for (matrix, whole) in self.mine(rank).zip(&mut matrices) {
                let part = overlap(&matrix.range, &from(source));
                let place = part.start.saturating_sub(matrix.range.start);
                whole[place..place + part.len()].copy_from_slice(&values[at..at + part.len()]);
                at += part.len();
            }
        }
        let done =
            self.mine(rank).zip(matrices).map(|(matrix, whole)| muon::orthogonalise(whole, matrix.shape, device));
        let done = done.collect::<Result<Vec<_>>>()?;
        // And back: to each rank what lies in its range.
        let send = self.ranges.iter().map(|range| {
            let mut parts = vec![];
            for (matrix, whole) in self.mine(rank).zip(&done) {
                let part = overlap(&matrix.range, range);
                parts.extend_from_slice(&whole[part.start.saturating_sub(matrix.range.start)..][..part.len()]);
            }
            parts
        });
        let counts = (0..ranks).map(|owner| self.count(owner, &self.ranges[rank]));
        let received = exchange(world, send.collect(), counts.collect())?;
        let start = self.ranges[rank].start;
        for (owner, values) in received.iter().enumerate() {
            let mut at = 0;
            for part in self.owned(owner, &self.ranges[rank]) {
                update[part.start - start..part.end - start].copy_from_slice(&values[at..at + part.len()]);
                at += part.len();
            }
        }
        for (part, shape) in self.own(rank) {
            step.apply(shape, &update[part.clone()], &mut params[part]);
        }
        Ok(())
    }

    /// The matrices that `owner` owns.
    fn mine(&self, owner: usize) -> impl Iterator<Item = &Matrix> {
        self.all.iter().filter(move |matrix| matrix.owner == owner)
    }

    /// The parts of `owner`'s matrices that lie in `range`; some may be empty.
    fn owned<'a>(&'a self, owner: usize, range: &'a Range<usize>) -> impl Iterator<Item = Range<usize>> + 'a {
        self.mine(owner).map(|matrix| overlap(&matrix.range, range)).filter(|part| !part.is_empty())
    }

    /// Elements of `owner`'s matrices that lie in `range`.
    fn count(&self, owner: usize, range: &Range<usize>) -> usize {
        self.owned(owner, range).map(|part| part.len()).sum()
    }
}

/// What two ranges share; where they do not meet, an empty range.
fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let (start, end) = (a.start.max(b.start), a.end.min(b.end));
    if start < end { start..end } else { 0..0 }
}

/// Sends `send[j]` to rank j; rank i's has `counts[i]` values.
fn exchange(world: &Arc<dyn Communicator>, send: Vec<Vec<f32>>, counts: Vec<usize>) -> Result<Vec<Vec<f32>>> {
    if world.size() == 1 {
        return Ok(send);
    }
    let tensor = |values: Vec<f32>| Ok(Tensor::new(values.as_slice(), &Device::Cpu)?);
    let shapes: Vec<Vec<usize>> = counts.into_iter().map(|n| vec![n]).collect();
    let received = world.all_to_all(send.into_iter().map(tensor).collect::<Result<_>>()?, &shapes)?;
    received.iter().map(|values| Ok(read::<f32>(values)?.to_vec())).collect()
}
