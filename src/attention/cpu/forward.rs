//! The forward pass: o = softmax(scale q kᵀ) v by panels of keys, with an online softmax.
//!
//! K and V are packed once a head. A task owns some rows of one head and walks over all key panels: a tile of `ROWS` rows
//! takes its logits against `WIDTH` keys, turns them into exponentials in base 2 and adds their product with V to its
//! f32 sums. The running maximum moves only when a logit exceeds it by more than 2^8 (as FlashAttention-4 does): values up to
//! 256 lose nothing in floating point, and rescaling nearly vanishes. A row's result does not depend on how rows are
//! split into tasks, hence not on the number of threads.
//!
//! FlashAttention-2, arXiv 2307.08691; online softmax, arXiv 1805.02867.

use rayon::prelude::*;

use super::pack::{Element, Heads, columns_words, rows_words, steps};
use super::{PACKED, WIDEST_BAND, band, wide};
use crate::ops::cpu::scratch::Scratch;
use crate::ops::cpu::simd::{Kernel, Simd, WIDTH};
use crate::ops::cpu::tile::{Left, Out, Right};
use crate::watch::Watch;

/// Bands of a task at most: their sums and words stay in L2 while a key panel stays in L1.
const BANDS: usize = 8;

/// log2 of how far a logit may exceed the maximum that its row subtracts.
const SLACK: f32 = 8.0;

/// o `[B, H, Sq, d]`, rounded to `O`, and lse `[B, H, Sq]`.
///
/// lse is f64: merging the results of several runs of keys takes differences of it, and an f32 near 1e4 is off by 5e-4.
/// Once `watch` says stop, what is left of both stays 0.
pub(super) fn forward<S: Simd, E: Element, O: Element + Default>(
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    all: usize,
    scale: f64,
    watch: &Watch,
) -> (Vec<O>, Vec<f64>) {
    let (sq, sk, d) = (q.rows, k.rows, q.dim);
    let panels = sk.div_ceil(WIDTH);
    let panel = columns_words::<S>(d) + rows_words::<S>(d);
    let (at_once, words) = packed::<S>(all, sk, d);
    let threads = rayon::current_num_threads();
    let block = (sq * all).div_ceil(threads * 8).clamp(1, BANDS * band::<S>()).next_multiple_of(S::ROWS);

    let mut o = vec![O::default(); all * sq * d];
    let mut lse = vec![0f64; all * sq];
    let mut packed = Scratch::take(words);
    let chunks = o.chunks_mut(at_once * sq * d).zip(lse.chunks_mut(at_once * sq)).enumerate();
    for (chunk, (o, lse)) in chunks {
        if watch.stops() {
            break;
        }
        let first = chunk * at_once;
        let count = lse.len() / sq;
        packed[..count * panels * panel].par_chunks_exact_mut(panel).enumerate().for_each(|(i, words)| {
            let (head, row) = (first + i / panels, i % panels * WIDTH);
            let keys = WIDTH.min(sk - row);
            let (kt, vn) = words.split_at_mut(columns_words::<S>(d));
            k.columns::<S>(head, row, keys, kt);
            v.rows::<S>(head, row, keys, WIDTH / S::PAIR, vn);
        });
        let packed = &packed[..];
        o.par_chunks_mut(sq * d).zip(lse.par_chunks_mut(sq)).enumerate().for_each(|(head, (o, lse))| {
            let rows = o.par_chunks_mut(block * d).zip(lse.par_chunks_mut(block)).enumerate().with_max_len(1);
            rows.for_each(|(i, (o, lse))| {
                let panels = &packed[head * panels * panel..][..panels * panel];
                let task = Rows { q: &q, head: first + head, first: i * block, panels, sk, scale, o, lse, watch };
                // SAFETY: this unit was chosen for this CPU.
                unsafe { S::run(task) }
            });
        });
    }
    (o, lse)
}

/// Heads whose keys and values are packed at once, and the words that takes.
pub(super) fn packed<S: Simd>(all: usize, sk: usize, d: usize) -> (usize, usize) {
    let words = sk.div_ceil(WIDTH) * (columns_words::<S>(d) + rows_words::<S>(d)); // of a head
    let at_once = (PACKED / words).clamp(1, all);
    (at_once, at_once * words)
}

/// A task: `lse.len()` rows from `first` of one head against all its keys.
struct Rows<'a, E, O> {
    q: &'a Heads<'a, E>,
    head: usize,
    first: usize,
    panels: &'a [u32],
    sk: usize,
    scale: f64,
    o: &'a mut [O],
    lse: &'a mut [f64],
    watch: &'a Watch,
}

/// What a row carries from panel to panel, beside its sums of values.
#[derive(Clone, Copy)]
struct Running {
    /// The maximum that it subtracts, in base 2.
    max: f32,
    /// Its sum of exponentials, lane by lane.
    sum: [f32; 16],
}

/// Logits or words of weights of a band of rows against a panel of keys, a row every `WIDTH`.
#[repr(align(64))]
struct Square<T>([T; SQUARE]);
const SQUARE: usize = WIDEST_BAND * WIDTH;

impl<E: Element, O: Element> Kernel for Rows<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (d, rows) = (self.q.dim, self.lse.len());
        let (wide, padded, steps, band) = (wide(d), rows.next_multiple_of(S::ROWS), steps::<S>(d), band::<S>());
        let panel = columns_words::<S>(d) + rows_words::<S>(d);
        let mut queries = Scratch::take(padded * steps);
        self.q.tiles::<S>(self.head, self.first, rows, &mut queries);
        let mut sums = Scratch::take(padded * wide);
        let sums = sums.floats(); // [rows, wide]
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: [0.0; 16] }; padded];
        let factor = (self.scale * std::f64::consts::LOG2_E) as f32;

        let (mut s, mut p) = (Square([0f32; SQUARE]), Square([0u32; SQUARE])); // of a band, used over and over
        for (i, words) in self.panels.chunks_exact(panel).enumerate() {
            if self.watch.stops() {
                return;
            }
            let keys = WIDTH.min(self.sk - i * WIDTH);
            let (kt, vn) = words.split_at(columns_words::<S>(d));
            let kt = Right::new::<S>(kt, steps, WIDTH);
            let vn = Right::new::<S>(vn, WIDTH / S::PAIR, wide);
            for (i_band, (running, sums)) in running.chunks_mut(band).zip(sums.chunks_mut(band * wide)).enumerate() {
                let rows = running.len();
                let q = Left::tiles::<S>(queries[i_band * band * steps..].as_ptr(), steps);
                let left = Left::<WIDTH>::rows::<S>(p.0.as_ptr());
                // SAFETY: the features are there; the panels were packed with these sizes.
                unsafe {
                    let out = Out { values: s.0.as_mut_ptr(), stride: WIDTH, rows, width: WIDTH, add: false };
                    S::product(steps, q, kt, out);
                    if keys < WIDTH {
                        s.0.chunks_exact_mut(WIDTH).for_each(|row| row[keys..].fill(f32::NEG_INFINITY));
                    }
                    softmax::<S>(&s, &mut p, running, factor, sums, wide, i == 0);
                    let out = Out { values: sums.as_mut_ptr(), stride: wide, rows, width: wide, add: i > 0 };
                    S::product(keys.div_ceil(S::PAIR).next_multiple_of(S::STEPS), left, vn, out);
                }
            }
        }
        for (row, (o, lse)) in self.o.chunks_exact_mut(d).zip(self.lse).enumerate() {
            let Running { max, sum } = running[row];
            let sum: f32 = sum.iter().sum();
            let inverse = 1.0 / sum;
            for (o, x) in o.iter_mut().zip(&sums[row * wide..]) {
                *o = O::from_f32(x * inverse);
            }
            let log2 = f64::from(max) + f64::from(sum).log2();
            *lse = log2 * std::f64::consts::LN_2;
        }
        self.watch.add(super::FORWARD * (rows * self.sk * d) as u64);
    }
}

/// Logits of a band to exponentials, as the left operand of the product with V.
///
/// # Safety
/// The CPU has the unit's features.
#[inline(always)]
unsafe fn softmax<S: Simd>(
    s: &Square<f32>,
    p: &mut Square<u32>,
    running: &mut [Running],
    factor: f32,
    sums: &mut [f32],
    wide: usize,
    first: bool,
) {
    // SAFETY: all pointers stay within a row of the arrays; a band has at most WIDEST_BAND rows.
    unsafe {
        let c = S::splat(factor);
        for (r, row) in running.iter_mut().enumerate() {
            let logits = &s.0[r * WIDTH..][..WIDTH];
            let logits_at = logits.as_ptr();
            let mut top = S::load(logits_at);
            for j in 1..WIDTH / S::LANES {
                top = S::max(top, S::load(logits_at.add(j * S::LANES)));
            }
            if S::any_above(S::mul(top, c), S::splat(row.max + SLACK)) {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) * factor;
                let shrink = (row.max - max).exp2();
                row.max = max;
                if !first {
                    row.sum.iter_mut().for_each(|x| *x *= shrink);
                    sums[r * wide..][..wide].iter_mut().for_each(|x| *x *= shrink);
                }
            }
            let max = S::splat(row.max);
            let mut sum = S::load(row.sum.as_ptr());
            let out = p.0[r * WIDTH..][..WIDTH / S::PAIR].as_mut_ptr();
            for j in (0..WIDTH / S::LANES).step_by(2) {
                let a = S::exp2(S::mul_sub(S::load(logits_at.add(j * S::LANES)), c, max));
                let b = S::exp2(S::mul_sub(S::load(logits_at.add((j + 1) * S::LANES)), c, max));
                sum = S::add(sum, S::add(a, b));
                S::put_row(out.add(j * S::LANES / S::PAIR), a, b);
            }
            S::store(row.sum.as_mut_ptr(), sum);
        }
    }
}
