//! The backward pass in five products, without locks and with the same bits for any number of threads.
//!
//! With P = exp(scale q kᵀ - lse) and dS = P * (dO vᵀ - delta): dv = Pᵀ dO, dk = scale dSᵀ q, dq = scale dS k. A task owns a
//! *group* of keys and walks over all blocks of queries; the group's dk and dv stay in L2. Every group adds to dq as well:
//! group g adds to a block only after group g - 1 has, so sums are always taken in the order of groups, and threads follow
//! each other over the blocks like cars in a lane, each one block behind the last. Logits are computed transposed (a row a
//! key, a lane a query), so that lse and delta are vectors and two of the three products take P and dS as they come.
//!
//! FlashAttention-2, arXiv 2307.08691.

use std::f64::consts::LOG2_E;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::lane::{Lanes, Task};
use super::pack::{Element, Heads, columns_words, rows_words, steps};
use super::{PACKED, SQUARE, band, by_row, wide};
use crate::ops::cpu::scratch::Scratch;
use crate::ops::cpu::simd::{Kernel, Simd, WIDTH};
use crate::ops::cpu::tile::{Left, Out, Right, strip};
use crate::watch::Watch;

/// Keys of a group: dq and the panels of queries pass through once a group, and from L3. Fixed, because the order of dq's sums follows
/// from it.
const GROUP: usize = 384;

/// What the forward pass left and the caller's cotangent.
#[derive(Clone, Copy)]
pub(super) struct Saved<'a, E> {
    pub d_o: Heads<'a, E>,
    /// `[B, H, Sq]`
    pub lse: &'a [f32],
    /// rowsum(d_o * o) `[B, H, Sq]`
    pub delta: &'a [f32],
}

/// Word counts of one block of queries in packed form, in order.
#[derive(Clone, Copy)]
struct Layout {
    /// q or dO by columns.
    columns: usize,
    /// q or dO by rows.
    rows: usize,
    /// All four and lse and delta.
    total: usize,
}

impl Layout {
    fn new<S: Simd>(d: usize) -> Self {
        let (columns, rows) = (columns_words::<S>(d), rows_words::<S>(d));
        Self { columns, rows, total: 2 * (columns + rows) + 2 * S::WIDTH }
    }
}

/// dq, dk and dv, each like q, k and v, rounded to `O`. Once `watch` says stop, what is left of them is garbage.
pub(super) fn backward<S: Simd, E: Element, O: Element + Default>(
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    saved: Saved<E>,
    all: usize,
    scale: f64,
    watch: &Watch,
) -> [Vec<O>; 3] {
    let (sq, sk, d) = (q.rows, k.rows, q.dim);
    let (blocks, groups) = (sq.div_ceil(S::WIDTH), sk.div_ceil(GROUP));
    let layout = Layout::new::<S>(d);
    let sums_len = sums_words::<S>(d);
    let mut dq = vec![O::default(); all * sq * d];
    let mut dk = vec![O::default(); all * sk * d];
    let mut dv = vec![O::default(); all * sk * d];

    let (at_once, [packed_words, sums_words]) = packed::<S>(all, sq, d);
    let mut packed = Scratch::take(packed_words);
    let mut sums = Scratch::take(sums_words);
    let chunk_grads = dk.chunks_mut(at_once * sk * d).zip(dv.chunks_mut(at_once * sk * d));
    for (chunk, (dq, (dk, dv))) in dq.chunks_mut(at_once * sq * d).zip(chunk_grads).enumerate() {
        if watch.stops() {
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

        // Groups are taken in order, each by a thread that finishes it: `Lanes` asks for that.
        let lanes = Lanes::new(sums, sums_len, blocks, groups, watch);
        let rows = dk.chunks_mut(sk * d).zip(dv.chunks_mut(sk * d)).enumerate();
        let tasks = Mutex::new(rows.flat_map(|(head, (dk, dv))| {
            let grads = dk.chunks_mut(GROUP * d).zip(dv.chunks_mut(GROUP * d)).enumerate();
            grads.map(move |(group, (dk, dv))| (head, group, dk, dv))
        }));
        let threads = rayon::current_num_threads().min(count * groups);
        (0..threads).into_par_iter().with_max_len(1).for_each(|_| {
            loop {
                let task = tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((head, group, dk, dv)) = task else { break };
                let blocks = &packed[head * blocks * layout.total..][..blocks * layout.total];
                let task = lanes.task(head, group);
                let keys = Keys {
                    k: &k,
                    v: &v,
                    head: first + head,
                    first: group * GROUP,
                    blocks,
                    queries: sq,
                    layout,
                    task,
                    scale,
                    dk,
                    dv,
                    watch,
                };
                // SAFETY: this unit was chosen for this CPU.
                unsafe { S::run(keys) }
            }
        });
        drop(lanes);
        let sums = &*sums;
        dq.par_chunks_mut(sq * d).enumerate().for_each(|(head, dq)| {
            dq.par_chunks_mut(S::WIDTH * d).enumerate().for_each(|(block, dq)| {
                let sums = &sums[(head * blocks + block) * sums_len..];
                if S::MATRIX { finish_turned::<S, O>(dq, sums, d, scale) } else { finish(dq, sums, d, scale) }
            });
        });
    }
    [dq, dk, dv]
}

/// Heads that are packed at once, and the words that their queries and their sums of dq take.
pub(super) fn packed<S: Simd>(all: usize, sq: usize, d: usize) -> (usize, [usize; 2]) {
    let blocks = sq.div_ceil(S::WIDTH);
    let words = [Layout::new::<S>(d).total, sums_words::<S>(d)].map(|words| blocks * words); // of a head
    let at_once = (PACKED / (words[0] + words[1])).clamp(1, all);
    (at_once, words.map(|words| at_once * words))
}

/// Sums of dq over a block of queries: `[WIDTH, wide]`, or `[wide, WIDTH]` in whole tiles on a matrix unit.
fn sums_words<S: Simd>(d: usize) -> usize {
    S::WIDTH * if S::MATRIX { wide(d).next_multiple_of(S::ROWS) } else { wide(d) }
}

/// Rounds `[rows, wide]` sums to `[rows, d]` elements, times `scale`.
fn finish<E: Element>(out: &mut [E], sums: &[f32], d: usize, scale: f64) {
    for (out, sums) in out.chunks_exact_mut(d).zip(sums.chunks_exact(wide(d))) {
        for (out, x) in out.iter_mut().zip(sums) {
            *out = E::from_f32(x * scale as f32);
        }
    }
}

/// As [`finish`], for sums `[wide, WIDTH]`.
fn finish_turned<S: Simd, E: Element>(out: &mut [E], sums: &[f32], d: usize, scale: f64) {
    for (row, out) in out.chunks_exact_mut(d).enumerate() {
        for (out, x) in out.iter_mut().zip(sums[row..].iter().step_by(S::WIDTH)) {
            *out = E::from_f32(x * scale as f32);
        }
    }
}

/// One block of queries in the layouts that every group of keys needs.
fn pack_queries<S: Simd, E: Element>(
    q: &Heads<E>,
    saved: &Saved<E>,
    layout: Layout,
    head: usize,
    first: usize,
    words: &mut [u32],
) {
    let count = S::WIDTH.min(q.rows - first);
    for (x, words) in [q, &saved.d_o].into_iter().zip(words.chunks_exact_mut(layout.columns + layout.rows)) {
        let (columns, rows) = words.split_at_mut(layout.columns);
        x.columns::<S>(head, first, count, columns);
        x.rows::<S>(head, first, count, S::WIDTH / S::PAIR, rows);
    }
    let stats: &mut [f32] = bytemuck::cast_slice_mut(&mut words[2 * (layout.columns + layout.rows)..]);
    let (lse, delta) = stats.split_at_mut(S::WIDTH);
    let at = head * q.rows + first;
    lse.fill(f32::INFINITY); // no weight for rows that are not there
    delta.fill(0.0);
    for (to, x) in lse.iter_mut().zip(&saved.lse[at..at + count]) {
        *to = (f64::from(*x) * LOG2_E) as f32;
    }
    delta[..count].copy_from_slice(&saved.delta[at..at + count]);
}

/// A task: a group of keys of one head against all its queries.
struct Keys<'a, E, O> {
    k: &'a Heads<'a, E>,
    v: &'a Heads<'a, E>,
    head: usize,
    first: usize,
    /// The head's packed queries, and how many there are.
    blocks: &'a [u32],
    queries: usize,
    layout: Layout,
    task: Task<'a>,
    scale: f64,
    dk: &'a mut [O],
    dv: &'a mut [O],
    watch: &'a Watch,
}

/// What a band of keys by a block of queries passes through, each row a key; used over and over.
#[repr(C, align(64))]
struct Band {
    /// Logits.
    s: [f32; SQUARE],
    dp: [f32; SQUARE],
    /// Words, paired over queries, a row every [`by_row`].
    p: [u32; SQUARE],
    /// As `p`.
    ds: [u32; SQUARE],
}

impl<E: Element, O: Element> Kernel for Keys<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (d, steps, band) = (self.k.dim, steps::<S>(self.k.dim), band::<S>());
        let wide = wide(d);
        let keys = self.dk.len() / d;
        let padded = keys.next_multiple_of(S::ROWS);
        let mut left = Scratch::take(2 * padded * steps); // k and v by tiles
        let (k_left, v_left) = left.split_at_mut(padded * steps);
        self.k.tiles::<S>(self.head, self.first, keys, k_left);
        self.v.tiles::<S>(self.head, self.first, keys, v_left);
        let of_keys = padded / S::PAIR; // steps of a contraction over the group
        let mut k_of_dq; // k as the product that gives dq takes it, or dqᵀ on a matrix unit, which wants dS on the right
        if S::MATRIX {
            k_of_dq = Scratch::take(sums_words::<S>(d) / S::WIDTH * of_keys);
            self.k.turned::<S>(self.head, self.first, keys, of_keys, &mut k_of_dq);
        } else {
            k_of_dq = Scratch::take(Right::words::<S>(of_keys, wide));
            self.k.rows::<S>(self.head, self.first, keys, of_keys, &mut k_of_dq);
        }
        let mut ds = Scratch::take(of_keys * S::WIDTH); // [keys, S::WIDTH], paired over keys
        let pairs = match S::MATRIX {
            true => Pairs { words: ds.as_mut_ptr(), step: strip::<S>(S::WIDTH), strip: of_keys * strip::<S>(S::WIDTH) },
            false => Pairs { words: ds.as_mut_ptr(), step: S::WIDTH, strip: 2 * S::LANES },
        };
        let mut sums = Scratch::take(2 * padded * wide);
        let (dk, dv) = sums.floats().split_at_mut(padded * wide); // [keys, wide]
        let factor = (self.scale * LOG2_E) as f32;

        let mut squares =
            Band { s: [0.0; SQUARE], dp: [0.0; SQUARE], p: [0; SQUARE], ds: [0; SQUARE] };
        for (i, block) in self.blocks.chunks_exact(self.layout.total).enumerate() {
            let (q, rest) = block.split_at(self.layout.columns + self.layout.rows);
            let (o, stats) = rest.split_at(self.layout.columns + self.layout.rows);
            let right = |words: &[u32]| {
                let (columns, rows) = words.split_at(self.layout.columns);
                (Right::new::<S>(columns, steps, S::WIDTH), Right::new::<S>(rows, S::WIDTH / S::PAIR, wide))
            };
            let ((q_columns, q_rows), (o_columns, o_rows)) = (right(q), right(o));
            for row in (0..padded).step_by(band) {
                let rows = band.min(padded - row);
                let left = |x: &[u32]| Left::tiles::<S>(x[row * steps..].as_ptr(), steps);
                let square = |values| Out { values, stride: S::WIDTH, rows, width: S::WIDTH, add: false };
                let sum = |x: &mut [f32]| Out {
                    values: x[row * wide..].as_mut_ptr(),
                    stride: wide,
                    rows,
                    width: wide,
                    add: i > 0,
                };
                let of_queries = S::WIDTH / S::PAIR;
                let by_row = |words| Left::<WIDTH>::rows::<S>(words, by_row::<S>());
                // SAFETY: the features are there; the panels were packed with these sizes; the group has `row` keys before these.
                unsafe {
                    S::product(steps, left(k_left), q_columns, square(squares.s.as_mut_ptr()));
                    S::product(steps, left(v_left), o_columns, square(squares.dp.as_mut_ptr()));
                    if keys < row + rows {
                        squares.s[(keys - row) * S::WIDTH..].fill(f32::NEG_INFINITY);
                    }
                    let pairs = Pairs { words: pairs.words.add(row / S::PAIR * pairs.step), ..pairs };
                    weights::<S>(&mut squares, rows, bytemuck::cast_slice(stats), factor, pairs);
                    let ds_row = if S::PAIR == 1 { pairs.words.cast_const() } else { squares.ds.as_ptr() };
                    S::product(of_queries, by_row(squares.p.as_ptr()), o_rows, sum(dv));
                    S::product(of_queries, by_row(ds_row), q_rows, sum(dk));
                }
            }
            let add = !self.task.is_first();
            let Some(mut dq) = self.task.visit(i) else { return };
            let values = dq.as_mut_ptr();
            // SAFETY: as above.
            unsafe {
                if S::MATRIX {
                    let rows = sums_words::<S>(d) / S::WIDTH;
                    let out = Out { values, stride: S::WIDTH, rows, width: S::WIDTH, add }; // [wide, S::WIDTH]
                    let k = Left { words: k_of_dq.as_ptr(), tile: S::ROWS * of_keys, row: of_keys, step: 1 };
                    S::product::<0>(of_keys, k, Right::new::<S>(&ds, of_keys, S::WIDTH), out);
                } else {
                    let out = Out { values, stride: wide, rows: S::WIDTH, width: wide, add }; // [S::WIDTH, wide]
                    let k = Right::new::<S>(&k_of_dq, of_keys, wide);
                    S::product(of_keys, Left::steps::<S>(ds.as_ptr(), S::WIDTH), k, out);
                }
            }
        }
        finish(self.dk, dk, d, self.scale);
        finish(self.dv, dv, d, 1.0);
        self.watch.add(super::BACKWARD * (keys * self.queries * d) as u64);
    }
}

/// Where dS of a group goes, paired over keys: a step's words from `words + step * step` on, each two vectors of queries `strip` from
/// those before.
#[derive(Clone, Copy)]
struct Pairs {
    words: *mut u32,
    step: usize,
    strip: usize,
}

/// P and dS of a band of keys from logits and dP: by rows, and dS once more paired over keys.
///
/// # Safety
/// The CPU has the unit's features; `stats` holds lse in base 2 and delta, `pairs` the band.
#[inline(always)]
unsafe fn weights<S: Simd>(band: &mut Band, rows: usize, stats: &[f32], factor: f32, pairs: Pairs) {
    // SAFETY: all pointers stay within `rows` of BAND rows.
    unsafe {
        let c = S::splat(factor);
        let (lse, delta) = (stats[..S::WIDTH].as_ptr(), stats[S::WIDTH..2 * S::WIDTH].as_ptr());
        for row in (0..rows).step_by(2) {
            for column in (0..S::WIDTH).step_by(2 * S::LANES) {
                let mut ds = [[c; 2]; 2]; // two rows of two vectors: what either pairing takes
                for (r, ds) in ds.iter_mut().enumerate() {
                    let at = (row + r) * S::WIDTH + column;
                    let words = (row + r) * by_row::<S>() + column / S::PAIR;
                    let mut p = [c; 2];
                    for (v, (p, ds)) in p.iter_mut().zip(ds.iter_mut()).enumerate() {
                        let x = v * S::LANES;
                        let s = S::load(band.s.as_ptr().add(at + x));
                        let dp = S::load(band.dp.as_ptr().add(at + x));
                        *p = S::exp2(S::mul_sub(s, c, S::load(lse.add(column + x))));
                        *ds = S::mul(*p, S::sub(dp, S::load(delta.add(column + x))));
                    }
                    S::put_row(band.p.as_mut_ptr().add(words), p[0], p[1]);
                    if S::PAIR > 1 {
                        S::put_row(band.ds.as_mut_ptr().add(words), ds[0], ds[1]);
                    }
                }
                let to = pairs.words.add(row / S::PAIR * pairs.step + column / (2 * S::LANES) * pairs.strip);
                S::put_rows(to, S::WIDTH, ds[0][0], ds[1][0]);
                S::put_rows(to.add(S::LANES), S::WIDTH, ds[0][1], ds[1][1]);
            }
        }
    }
}
