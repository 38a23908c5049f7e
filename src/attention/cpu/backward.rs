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
use super::pack::{Element, Heads};
use super::scratch::Scratch;
use super::simd::{Kernel, Simd, WIDTH};
use super::tile::{Left, Out, ROWS, Right, product};
use super::{PACKED, wide};

/// Keys of a group. Fixed, because the order of dq's sums follows from it.
const GROUP: usize = 32 * ROWS;

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
        let (columns, rows) = (d / S::PAIR * WIDTH, WIDTH / S::PAIR * wide(d));
        Self { columns, rows, total: 2 * (columns + rows) + 2 * WIDTH }
    }
}

/// dq, dk and dv, each like q, k and v.
pub(super) fn backward<S: Simd, E: Element + Default>(
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    saved: Saved<E>,
    all: usize,
    scale: f64,
) -> [Vec<E>; 3] {
    let (sq, sk, d) = (q.rows, k.rows, q.dim);
    let (blocks, groups) = (sq.div_ceil(WIDTH), sk.div_ceil(GROUP));
    let layout = Layout::new::<S>(d);
    let sums_len = WIDTH * wide(d);
    let mut dq = vec![E::default(); all * sq * d];
    let mut dk = vec![E::default(); all * sk * d];
    let mut dv = vec![E::default(); all * sk * d];

    let at_once = (PACKED / (blocks * (layout.total + sums_len))).clamp(1, all);
    let mut packed = Scratch::take(at_once * blocks * layout.total);
    let mut sums = Scratch::take(at_once * blocks * sums_len);
    let chunk_grads = dk.chunks_mut(at_once * sk * d).zip(dv.chunks_mut(at_once * sk * d));
    for (chunk, (dq, (dk, dv))) in dq.chunks_mut(at_once * sq * d).zip(chunk_grads).enumerate() {
        let first = chunk * at_once;
        let count = dq.len() / (sq * d);
        let packed = &mut packed[..count * blocks * layout.total];
        packed.par_chunks_exact_mut(layout.total).enumerate().for_each(|(i, words)| {
            pack_queries::<S, E>(&q, &saved, layout, first + i / blocks, i % blocks * WIDTH, words);
        });
        let packed = &packed[..];
        let sums = &mut sums.floats()[..count * blocks * sums_len];

        // Groups are taken in order, each by a thread that finishes it: `Lanes` asks for that.
        let lanes = Lanes::new(sums, sums_len, blocks, groups);
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
                    layout,
                    task,
                    scale,
                    dk,
                    dv,
                };
                // SAFETY: this unit was chosen for this CPU.
                unsafe { S::run(keys) }
            }
        });
        drop(lanes);
        let sums = &*sums;
        dq.par_chunks_mut(sq * d).enumerate().for_each(|(head, dq)| {
            dq.par_chunks_mut(WIDTH * d).enumerate().for_each(|(block, dq)| {
                finish(dq, &sums[(head * blocks + block) * sums_len..], d, scale);
            });
        });
    }
    [dq, dk, dv]
}

/// Rounds `[rows, wide]` sums to `[rows, d]` elements, times `scale`.
fn finish<E: Element>(out: &mut [E], sums: &[f32], d: usize, scale: f64) {
    for (out, sums) in out.chunks_exact_mut(d).zip(sums.chunks_exact(wide(d))) {
        for (out, x) in out.iter_mut().zip(sums) {
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
    let count = WIDTH.min(q.rows - first);
    for (x, words) in [q, &saved.d_o].into_iter().zip(words.chunks_exact_mut(layout.columns + layout.rows)) {
        let (columns, rows) = words.split_at_mut(layout.columns);
        x.columns::<S>(head, first, count, columns);
        x.rows::<S>(head, first, count, wide(q.dim), rows);
    }
    let stats: &mut [f32] = bytemuck::cast_slice_mut(&mut words[2 * (layout.columns + layout.rows)..]);
    let (lse, delta) = stats.split_at_mut(WIDTH);
    let at = head * q.rows + first;
    lse.fill(f32::INFINITY); // no weight for rows that are not there
    delta.fill(0.0);
    for (to, x) in lse.iter_mut().zip(&saved.lse[at..at + count]) {
        *to = (f64::from(*x) * LOG2_E) as f32;
    }
    delta[..count].copy_from_slice(&saved.delta[at..at + count]);
}

/// A task: a group of keys of one head against all its queries.
struct Keys<'a, E> {
    k: &'a Heads<'a, E>,
    v: &'a Heads<'a, E>,
    head: usize,
    first: usize,
    /// The head's packed queries.
    blocks: &'a [u32],
    layout: Layout,
    task: Task<'a>,
    scale: f64,
    dk: &'a mut [E],
    dv: &'a mut [E],
}

/// f32 values or words of a tile of keys by a block of queries.
#[repr(align(64))]
struct Square<T>([T; ROWS * WIDTH]);

impl<E: Element> Kernel for Keys<'_, E> {
    #[inline(always)]
    unsafe fn run<S: Simd>(mut self) {
        let (d, steps) = (self.k.dim, self.k.dim / S::PAIR);
        let wide = wide(d);
        let keys = self.dk.len() / d;
        let tiles = keys.div_ceil(ROWS);
        let mut left = Scratch::take(2 * tiles * ROWS * steps); // k and v by tiles
        let (k_left, v_left) = left.split_at_mut(tiles * ROWS * steps);
        self.k.tiles::<S>(self.head, self.first, keys, k_left);
        self.v.tiles::<S>(self.head, self.first, keys, v_left);
        let mut k_right = Scratch::take(tiles * ROWS / S::PAIR * wide);
        self.k.rows::<S>(self.head, self.first, keys, wide, &mut k_right);
        let mut ds = Scratch::take(tiles * ROWS / S::PAIR * WIDTH); // [keys, WIDTH], paired over keys
        let mut sums = Scratch::take(2 * tiles * ROWS * wide);
        let sums = sums.floats();
        sums.fill(0.0);
        let (dk, dv) = sums.split_at_mut(tiles * ROWS * wide); // [keys, wide]
        let factor = (self.scale * LOG2_E) as f32;

        for (i, block) in self.blocks.chunks_exact(self.layout.total).enumerate() {
            let (q, rest) = block.split_at(self.layout.columns + self.layout.rows);
            let (o, stats) = rest.split_at(self.layout.columns + self.layout.rows);
            let right = |words: &[u32]| {
                let columns = Right { words: words.as_ptr(), step: WIDTH };
                (columns, Right { words: words[self.layout.columns..].as_ptr(), step: wide })
            };
            let ((q_columns, q_rows), (o_columns, o_rows)) = (right(q), right(o));
            for t in 0..tiles {
                let (mut s, mut dp) = (Square([0f32; ROWS * WIDTH]), Square([0f32; ROWS * WIDTH]));
                let (mut p, mut ds_row) = (Square([0u32; ROWS * WIDTH]), Square([0u32; ROWS * WIDTH]));
                let pairs = ds[t * ROWS / S::PAIR * WIDTH..][..ROWS / S::PAIR * WIDTH].as_mut_ptr();
                let tile = |words: &[u32]| Left { words: words[t * ROWS * steps..].as_ptr(), row: 1, step: ROWS };
                let sum = |x: &mut [f32]| Out { values: x[t * ROWS * wide..].as_mut_ptr(), row: wide };
                let by_row = |words: *const u32| Left { words, row: WIDTH / S::PAIR, step: 1 };
                // SAFETY: the features are there; the panels were packed with these sizes.
                unsafe {
                    product::<S, ROWS, false>(
                        steps,
                        tile(k_left),
                        q_columns,
                        Out { values: s.0.as_mut_ptr(), row: WIDTH },
                        WIDTH,
                    );
                    product::<S, ROWS, false>(
                        steps,
                        tile(v_left),
                        o_columns,
                        Out { values: dp.0.as_mut_ptr(), row: WIDTH },
                        WIDTH,
                    );
                    if keys < (t + 1) * ROWS {
                        s.0[(keys - t * ROWS) * WIDTH..].fill(f32::NEG_INFINITY);
                    }
                    weights::<S>(&s, &dp, bytemuck::cast_slice(stats).as_ptr(), factor, &mut p, &mut ds_row, pairs);
                    let ds_row = if S::PAIR == 1 { pairs.cast_const() } else { ds_row.0.as_ptr() };
                    product::<S, ROWS, true>(WIDTH / S::PAIR, by_row(p.0.as_ptr()), o_rows, sum(dv), wide);
                    product::<S, ROWS, true>(WIDTH / S::PAIR, by_row(ds_row), q_rows, sum(dk), wide);
                }
            }
            let first = self.task.is_first();
            let k_right = Right { words: k_right.as_ptr(), step: wide };
            self.task.visit(i, |dq| {
                // SAFETY: as above; dq is `[WIDTH, wide]`.
                unsafe {
                    for row in (0..WIDTH).step_by(ROWS) {
                        let left = Left { words: ds.as_ptr().add(row), row: 1, step: WIDTH };
                        let out = Out { values: dq.as_mut_ptr().add(row * wide), row: wide };
                        let steps = tiles * ROWS / S::PAIR;
                        match (WIDTH - row < ROWS, first) {
                            (false, true) => product::<S, ROWS, false>(steps, left, k_right, out, wide),
                            (false, false) => product::<S, ROWS, true>(steps, left, k_right, out, wide),
                            (true, true) => product::<S, { WIDTH % ROWS }, false>(steps, left, k_right, out, wide),
                            (true, false) => product::<S, { WIDTH % ROWS }, true>(steps, left, k_right, out, wide),
                        }
                    }
                }
            });
        }
        finish(self.dk, dk, d, self.scale);
        finish(self.dv, dv, d, 1.0);
    }
}

/// P and dS of a tile of keys from logits and dP: by rows, and dS once more paired over keys.
///
/// # Safety
/// The CPU has the unit's features; `stats` holds lse in base 2 and delta, `pairs` a tile.
#[inline(always)]
unsafe fn weights<S: Simd>(
    s: &Square<f32>,
    dp: &Square<f32>,
    stats: *const f32,
    factor: f32,
    p: &mut Square<u32>,
    ds: &mut Square<u32>,
    pairs: *mut u32,
) {
    // SAFETY: all pointers stay within the tiles.
    unsafe {
        let c = S::splat(factor);
        for r in (0..ROWS).step_by(2) {
            for j in (0..WIDTH).step_by(2 * S::LANES) {
                let mut grads = [[c; 2]; 2];
                for (i, grads) in grads.iter_mut().enumerate() {
                    let at = (r + i) * WIDTH + j;
                    let mut weights = [c; 2];
                    for n in 0..2 {
                        let x = n * S::LANES;
                        let lse = S::load(stats.add(j + x));
                        let delta = S::load(stats.add(WIDTH + j + x));
                        weights[n] = S::exp2(S::mul_sub(S::load(s.0.as_ptr().add(at + x)), c, lse));
                        grads[n] = S::mul(weights[n], S::sub(S::load(dp.0.as_ptr().add(at + x)), delta));
                    }
                    S::put_row(p.0.as_mut_ptr().add(at / S::PAIR), weights[0], weights[1]);
                    if S::PAIR > 1 {
                        S::put_row(ds.0.as_mut_ptr().add(at / S::PAIR), grads[0], grads[1]);
                    }
                }
                for n in 0..2 {
                    let to = pairs.add(r / S::PAIR * WIDTH + j + n * S::LANES);
                    S::put_rows(to, WIDTH, grads[0][n], grads[1][n]);
                }
            }
        }
    }
}
