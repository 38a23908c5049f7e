//! The backward pass computes the gradients in five products, with the same bits for any number of threads, and no
//! locks but one at the end of a group.
//!
//! With P = exp(scale q kᵀ - lse) and dS = P * (dO vᵀ - delta): dv = Pᵀ dO, dk = scale dSᵀ q, dq = scale dS k. A task
//! owns a *group* of keys and goes over all blocks of queries; the group's dk and dv stay in L2. Every group adds to dq
//! as well. Key groups of one head form a pipeline over query blocks: group g updates a block only after group g - 1,
//! so sums are always taken in the order of groups. A slow group holds up all behind it, so each head (each half of a
//! long one) is its own pipeline, and a group is begun in all pipelines before the next one is in any. Logits are
//! computed transposed (a row a key, a lane a query), so that lse and delta are vectors and two of the three products
//! take P and dS as they come.
//!
//! FlashAttention-2, arXiv 2307.08691.

use std::f64::consts::LOG2_E;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rayon::prelude::*;

use super::ordered_sums::{OrderedSums, Task};
use super::pack::{Heads, PackedElement, steps};
use super::probs::{Pairs, Probs, RowBlock};
use super::queries::{Layout, QueryRows, pack_queries};
use super::schedule::{self, Schedule};
use super::{PACKED, by_row, row_block, wide};
use crate::observe::meter::StepMeter;
use crate::simd::scratch::Scratch;
use crate::simd::tile::{Left, Out, Right, column_block};
use crate::simd::vector::{Beside, Kernel, Simd, WIDTH};

/// Keys of a group: dq and the panels of queries pass through once a group, and from L3. Fixed, because the order of
/// dq's sums follows from it.
const GROUP: usize = 384;

/// Queries from which a head is two pipelines, each with half of them: packing the keys' panels twice then costs a
/// percent. No other heads matter for it, since the order of the sums of dk and dv follows from it.
const HALVED: usize = 8192;

/// dq, dk and dv, each like q, k and v, rounded to `O`. Once `meter` says stop, what is left of them is garbage.
pub(super) fn backward<S: Simd, E: PackedElement, O: PackedElement + Default>(
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    saved: QueryRows<E>,
    heads: usize,
    scale: f64,
    meter: &StepMeter,
) -> [Vec<O>; 3] {
    let (sq, sk, d) = (q.rows, k.rows, q.dim);
    let (blocks, groups) = (sq.div_ceil(S::WIDTH), sk.div_ceil(GROUP));
    let layout = Layout::new::<S>(d);
    let sums_len = sums_words::<S>(d);
    let mut dq = vec![O::default(); heads * sq * d];
    let mut dk = vec![O::default(); heads * sk * d];
    let mut dv = vec![O::default(); heads * sk * d];

    let (at_once, [packed_words, sums_words]) = packed::<S>(heads, sq, d);
    let mut packed = Scratch::take(packed_words);
    let mut sums = Scratch::take(sums_words);
    let chunk_grads = dk.chunks_mut(at_once * sk * d).zip(dv.chunks_mut(at_once * sk * d));
    for (chunk, (dq, (dk, dv))) in dq.chunks_mut(at_once * sq * d).zip(chunk_grads).enumerate() {
        if meter.stops() {
            break;
        }
        let first = chunk * at_once;
        let count = dq.len() / (sq * d);
        let packed = &mut packed[..count * blocks * layout.total];
        packed.par_chunks_exact_mut(layout.total).enumerate().for_each(|(i, words)| {
            pack_queries::<S, E>(&q, &saved, layout, first + i / blocks, i % blocks * S::WIDTH, words);
        });
        let packed = &packed[..];
        let sums = &mut sums.floats()[..count * blocks * sums_len];

        let halves = sq >= HALVED;
        let middle = if halves { blocks.div_ceil(2) } else { blocks };
        let head_blocks =
            |head: usize| [head * blocks..head * blocks + middle, head * blocks + middle..(head + 1) * blocks];
        let pipeline_blocks = (0..count).flat_map(head_blocks).filter(|blocks| !blocks.is_empty()).collect();
        let ordered_sums = OrderedSums::new(sums, sums_len, pipeline_blocks, groups, meter);
        let rows = dk.chunks_mut(sk * d).zip(dv.chunks_mut(sk * d));
        let grads = rows.flat_map(|(dk, dv)| dk.chunks_mut(GROUP * d).zip(dv.chunks_mut(GROUP * d)));
        let grads: Vec<_> = grads.map(|(dk, dv)| Mutex::new(Grads { dk, dv, half: None })).collect();
        // Tasks are taken in order, each by a thread that finishes it: `OrderedSums` asks for that.
        let next = AtomicUsize::new(0);
        let threads = rayon::current_num_threads().min(ordered_sums.count() * groups);
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                let (group, pipeline) = (task / ordered_sums.count(), task % ordered_sums.count());
                if group >= groups {
                    break;
                }
                let task = ordered_sums.task(pipeline, group);
                let blocks_of_pipeline = ordered_sums.blocks(pipeline);
                let head = blocks_of_pipeline.start / blocks;
                let row = blocks_of_pipeline.start % blocks * S::WIDTH;
                let keys = Keys {
                    k: &k,
                    v: &v,
                    head: first + head,
                    first: group * GROUP,
                    blocks: &packed[blocks_of_pipeline.start * layout.total..blocks_of_pipeline.end * layout.total],
                    queries: (sq - row).min(blocks_of_pipeline.len() * S::WIDTH),
                    layout,
                    task,
                    scale,
                    grads: &grads[head * groups + group],
                    halves,
                    meter,
                };
                // SAFETY: this instruction set was chosen for this CPU.
                unsafe { S::run(keys) }
            }
        });
        drop(ordered_sums);
        let sums = &*sums;
        dq.par_chunks_mut(sq * d).enumerate().for_each(|(head, dq)| {
            dq.par_chunks_mut(S::WIDTH * d).enumerate().for_each(|(block, dq)| {
                let sums = &sums[(head * blocks + block) * sums_len..];
                finish(dq, sums, d, if S::MATRIX { [1, S::WIDTH] } else { [wide(d), 1] }, scale);
            });
        });
    }
    [dq, dk, dv]
}

/// Heads that are packed at once, and the words that their queries and their sums of dq take.
pub(super) fn packed<S: Simd>(heads: usize, sq: usize, d: usize) -> (usize, [usize; 2]) {
    let blocks = sq.div_ceil(S::WIDTH);
    let words = [Layout::new::<S>(d).total, sums_words::<S>(d)].map(|words| blocks * words); // of a head
    let at_once = (PACKED / (words[0] + words[1])).clamp(1, heads);
    (at_once, words.map(|words| at_once * words))
}

/// Sums of dq over a block of queries: `[WIDTH, wide]`, or `[wide, WIDTH]` in whole tiles on a matrix unit.
fn sums_words<S: Simd>(d: usize) -> usize {
    S::WIDTH * if S::MATRIX { wide(d).next_multiple_of(S::ROWS) } else { wide(d) }
}

/// Rounds sums to `[rows, d]` elements, times `scale`; that of row i, column j is at `i row + j column` of `sums`.
fn finish<E: PackedElement>(out: &mut [E], sums: &[f32], d: usize, [row, column]: [usize; 2], scale: f64) {
    for (i, out) in out.chunks_exact_mut(d).enumerate() {
        for (out, x) in out.iter_mut().zip(sums[i * row..].iter().step_by(column)) {
            *out = E::from_f32(x * scale as f32);
        }
    }
}

/// What the tasks of a group add up to.
struct Grads<'a, O> {
    dk: &'a mut [O],
    dv: &'a mut [O],
    /// The sums of the half that was done first. There are only two, so that it does not matter which.
    half: Option<Scratch>,
}

/// A task: a group of keys of one head against the queries of a pipeline.
struct Keys<'a, E, O> {
    k: &'a Heads<'a, E>,
    v: &'a Heads<'a, E>,
    head: usize,
    first: usize,
    /// The pipeline's packed queries, and how many there are.
    blocks: &'a [u32],
    queries: usize,
    layout: Layout,
    task: Task<'a>,
    scale: f64,
    grads: &'a Mutex<Grads<'a, O>>,
    /// Whether another task does the same keys with the head's other queries.
    halves: bool,
    meter: &'a StepMeter,
}

impl<E: PackedElement, O: PackedElement> Kernel for Keys<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (d, steps) = (self.k.dim, steps::<S>(self.k.dim));
        let wide = wide(d);
        let keys = GROUP.min(self.k.rows - self.first);
        let padded = keys.next_multiple_of(S::ROWS);
        let mut left = Scratch::take(2 * padded * steps); // k and v by tiles
        let (k_left, v_left) = left.split_at_mut(padded * steps);
        self.k.tiles::<S>(self.head, self.first, keys, k_left);
        self.v.tiles::<S>(self.head, self.first, keys, v_left);
        let of_keys = padded / S::PAIR; // steps of a contraction over the group
        // k as the product that gives dq takes it, or dqᵀ on a matrix unit, which wants dS on the right
        let mut k_of_dq;
        if S::MATRIX {
            k_of_dq = Scratch::take(sums_words::<S>(d) / S::WIDTH * of_keys);
            self.k.turned::<S>(self.head, self.first, keys, of_keys, &mut k_of_dq);
        } else {
            k_of_dq = Scratch::take(Right::words::<S>(of_keys, wide));
            self.k.rows::<S>(self.head, self.first, keys, of_keys, &mut k_of_dq);
        }
        let mut ds = Scratch::take(of_keys * S::WIDTH); // [keys, WIDTH], paired over keys
        let step = if S::MATRIX { column_block::<S>(S::WIDTH) } else { S::WIDTH };
        let column_block = if S::MATRIX { of_keys * step } else { 2 * S::LANES };
        let mut sums = Scratch::take(2 * padded * wide);
        let (dk, dv) = sums.floats().split_at_mut(padded * wide); // [keys, wide]
        let mut squares = Scratch::take(2 * RowBlock::words::<S>()); // of two row blocks, in turn
        let (first, second) = squares.split_at_mut(RowBlock::words::<S>());
        let row_blocks = padded.div_ceil(row_block::<S>());
        let pass = Pass {
            k_left,
            v_left,
            blocks: self.blocks,
            layout: self.layout,
            d,
            wide,
            keys,
            padded,
            row_blocks,
            factor: (self.scale * LOG2_E) as f32,
            dk: dk.as_mut_ptr(),
            dv: dv.as_mut_ptr(),
            pairs: Pairs { words: ds.as_mut_ptr(), step, column_block },
            squares: [first, second].map(RowBlock::new::<S>),
        };
        let pieces = row_blocks * (self.blocks.len() / self.layout.total);
        let add = !self.task.is_first();
        let mut turn = |block: usize| {
            let Some(mut dq) = self.task.visit(block) else { return false };
            let values = dq.as_mut_ptr();
            // SAFETY: the features are there; the panels were packed with these sizes.
            unsafe {
                let ds = pass.pairs.words.cast_const();
                if S::MATRIX {
                    let rows = sums_words::<S>(d) / S::WIDTH;
                    let out = Out { values, stride: S::WIDTH, rows, width: S::WIDTH, add }; // [wide, WIDTH]
                    let k = Left { words: k_of_dq.as_ptr(), tile: S::ROWS * of_keys, row: of_keys, step: 1 };
                    let ds = std::slice::from_raw_parts(ds, of_keys * S::WIDTH);
                    S::product::<0>(of_keys, k, Right::new::<S>(ds, of_keys, S::WIDTH), out);
                } else {
                    let out = Out { values, stride: wide, rows: S::WIDTH, width: wide, add }; // [WIDTH, wide]
                    let k = Right::new::<S>(&k_of_dq, of_keys, wide);
                    S::product(of_keys, Left::steps::<S>(ds, S::WIDTH), k, out);
                }
            }
            true
        };
        let mut stopped = false;
        // SAFETY: the features are there, and the pieces; nothing else touches what the pass points to.
        unsafe {
            schedule::run::<S, _>(&pass, pieces, S::MATRIX, |i| {
                stopped = (i + 1).is_multiple_of(row_blocks) && !turn(i / row_blocks);
                !stopped
            });
        }
        if stopped {
            return;
        }
        self.meter.add(super::BACKWARD * (keys * self.queries * d) as u64);
        let mut grads = self.grads.lock();
        match grads.half.take() {
            Some(mut half) => sums.floats().iter_mut().zip(half.floats()).for_each(|(x, half)| *x += *half),
            None if self.halves => {
                grads.half = Some(sums);
                return;
            }
            None => {}
        }
        let (dk, dv) = sums.floats().split_at(padded * wide);
        finish(grads.dk, dk, d, [wide, 1], self.scale);
        finish(grads.dv, dv, d, [wide, 1], 1.0);
    }
}

/// A task at work, in pieces of keys by queries.
struct Pass<'a> {
    k_left: &'a [u32],
    v_left: &'a [u32],
    blocks: &'a [u32],
    layout: Layout,
    d: usize,
    wide: usize,
    keys: usize,
    padded: usize,
    row_blocks: usize,
    factor: f32,
    /// `[padded, wide]`
    dk: *mut f32,
    dv: *mut f32,
    pairs: Pairs,
    squares: [RowBlock; 2],
}

impl Pass<'_> {
    /// Piece `i`: its first key and its keys (`rows`), and the packed queries and output gradients of its block, and
    /// their statistics.
    #[inline(always)]
    fn piece<S: Simd>(&self, i: usize) -> (usize, usize, [&[u32]; 3]) {
        let row = i % self.row_blocks * row_block::<S>();
        let block = &self.blocks[i / self.row_blocks * self.layout.total..][..self.layout.total];
        let (q, rest) = block.split_at(self.layout.columns + self.layout.rows);
        let (o, stats) = rest.split_at(self.layout.columns + self.layout.rows);
        (row, row_block::<S>().min(self.padded - row), [q, o, stats])
    }
}

impl<S: Simd> Schedule<S> for Pass<'_> {
    type Work = Probs<S>;

    /// Logits and dP.
    #[inline(always)]
    unsafe fn logits(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, [q, o, _]) = self.piece::<S>(i);
        let steps = steps::<S>(self.d);
        let left = |x: &[u32]| Left::tiles::<S>(x[row * steps..].as_ptr(), steps);
        let columns = |x| Right::new::<S>(x, steps, S::WIDTH);
        let square = |values| Out { values, stride: by_row::<S>(), rows, width: S::WIDTH, add: false };
        let RowBlock { s, dp } = self.squares[i % 2];
        // SAFETY: the panels were packed with these sizes; a square holds a row block by a block.
        unsafe {
            S::product_beside(steps, left(self.k_left), columns(q), square(s), beside);
            S::product_beside(steps, left(self.v_left), columns(o), square(dp), beside);
            if self.keys < row + rows {
                std::slice::from_raw_parts_mut(s, rows * by_row::<S>())[(self.keys - row) * by_row::<S>()..]
                    .fill(f32::NEG_INFINITY);
            }
        }
    }

    #[inline(always)]
    unsafe fn probs(&self, i: usize) -> Probs<S> {
        let (row, rows, [.., stats]) = self.piece::<S>(i);
        let stats: &[f32] = bytemuck::cast_slice(stats);
        let RowBlock { s, dp } = self.squares[i % 2];
        Probs {
            left: rows / 2,
            pace: (self.d / 16).clamp(1, 4),
            s,
            dp,
            pairs: Pairs { words: self.pairs.words.wrapping_add(row / S::PAIR * self.pairs.step), ..self.pairs },
            lse: stats.as_ptr(),
            delta: stats[S::WIDTH..].as_ptr(),
            factor: self.factor,
            unit: PhantomData,
        }
    }

    /// Adds to dv and dk.
    #[inline(always)]
    unsafe fn sums(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, [q, o, _]) = self.piece::<S>(i);
        let of_queries = S::WIDTH / S::PAIR;
        let by_rows = |x: &[u32]| Right::new::<S>(&x[self.layout.columns..], of_queries, self.wide);
        let left = |words| Left::<WIDTH>::rows::<S>(words, by_row::<S>());
        let RowBlock { s, dp } = self.squares[i % 2];
        let ds = if S::PAIR == 1 { self.pairs.words.wrapping_add(row * self.pairs.step) } else { dp.cast() };
        let (stride, add) = (self.wide, i >= self.row_blocks);
        let sum = |x: *mut f32| Out { values: x.wrapping_add(row * stride), stride, rows, width: stride, add };
        // SAFETY: as above.
        unsafe {
            S::product_beside(of_queries, left(s.cast()), by_rows(o), sum(self.dv), beside);
            S::product_beside(of_queries, left(ds), by_rows(q), sum(self.dk), beside);
        }
    }
}
