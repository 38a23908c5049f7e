//! The forward pass computes o = softmax(scale q kᵀ) v by panels of keys, with an online softmax.
//!
//! K and V are packed once a head. A task owns some rows of one head and walks over all key panels: a tile of `ROWS`
//! rows takes its logits against `WIDTH` keys, turns them into exponentials in base 2 and adds their product with V to
//! its f32 sums. A row's result does not depend on how rows are split into tasks, hence not on the number of threads.
//!
//! FlashAttention-2, arXiv 2307.08691; online softmax, arXiv 1805.02867.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::pack::{Heads, PackedElement, columns_words, rows_words, steps};
use super::schedule::{self, Schedule};
use super::softmax::{Running, Softmax};
use super::{PACKED, by_row, row_block, wide};
use crate::observe::meter::StepMeter;
use crate::simd::scratch::Scratch;
use crate::simd::tile::{Left, Out, Right};
use crate::simd::vector::{Beside, Kernel, Simd, WIDTH};

/// Bands of a task at most: their sums and words stay in L2 while a key panel stays in L1.
const ROW_BLOCKS: usize = 8;

/// o `[B, H, Sq, d]`, rounded to `O`, and lse `[B, H, Sq]`.
///
/// lse is f64: merging the results of several runs of keys takes differences of it, and an f32 near 1e4 is off by 5e-4.
/// Once `meter` says stop, what is left of both stays 0.
pub(super) fn forward<S: Simd, E: PackedElement, O: PackedElement + Default>(
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    heads: usize,
    scale: f64,
    meter: &StepMeter,
) -> (Vec<O>, Vec<f64>) {
    let (sq, sk, d) = (q.rows, k.rows, q.dim);
    let panels = sk.div_ceil(S::WIDTH);
    let panel = columns_words::<S>(d) + rows_words::<S>(d);
    let (at_once, words) = packed::<S>(heads, sk, d);
    let threads = rayon::current_num_threads();
    let block = (sq * heads).div_ceil(threads * 8).clamp(1, ROW_BLOCKS * row_block::<S>()).next_multiple_of(S::ROWS);

    let mut o = vec![O::default(); heads * sq * d];
    let mut lse = vec![0f64; heads * sq];
    let mut packed = Scratch::take(words);
    let chunks = o.chunks_mut(at_once * sq * d).zip(lse.chunks_mut(at_once * sq)).enumerate();
    for (chunk, (o, lse)) in chunks {
        if meter.stops() {
            break;
        }
        let first = chunk * at_once;
        let count = lse.len() / sq;
        packed[..count * panels * panel].par_chunks_exact_mut(panel).enumerate().for_each(|(i, words)| {
            let (head, row) = (first + i / panels, i % panels * S::WIDTH);
            let keys = S::WIDTH.min(sk - row);
            let (kt, vn) = words.split_at_mut(columns_words::<S>(d));
            k.columns::<S>(head, row, keys, kt);
            v.rows::<S>(head, row, keys, S::WIDTH / S::PAIR, vn);
        });
        let packed = &packed[..];
        o.par_chunks_mut(sq * d).zip(lse.par_chunks_mut(sq)).enumerate().for_each(|(head, (o, lse))| {
            let rows = o.par_chunks_mut(block * d).zip(lse.par_chunks_mut(block)).enumerate().with_max_len(1);
            rows.for_each(|(i, (o, lse))| {
                let panels = &packed[head * panels * panel..][..panels * panel];
                let task = Rows { q: &q, head: first + head, first: i * block, panels, sk, scale, o, lse, meter };
                // SAFETY: this instruction set was chosen for this CPU.
                unsafe { S::run(task) }
            });
        });
    }
    (o, lse)
}

/// Heads whose keys and values are packed at once, and the words that takes.
pub(super) fn packed<S: Simd>(heads: usize, sk: usize, d: usize) -> (usize, usize) {
    let words = sk.div_ceil(S::WIDTH) * (columns_words::<S>(d) + rows_words::<S>(d)); // of a head
    let at_once = (PACKED / words).clamp(1, heads);
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
    meter: &'a StepMeter,
}

impl<E: PackedElement, O: PackedElement> Kernel for Rows<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (d, rows) = (self.q.dim, self.lse.len());
        let (wide, padded, steps) = (wide(d), rows.next_multiple_of(S::ROWS), steps::<S>(d));
        let mut queries = Scratch::take(padded * steps);
        self.q.tiles::<S>(self.head, self.first, rows, &mut queries);
        let mut sums = Scratch::take(padded * wide); // [rows, wide]
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: [0.0; 16] }; padded];
        let mut squares = Scratch::take(2 * row_block::<S>() * by_row::<S>());
        let row_blocks = padded.div_ceil(row_block::<S>());
        let pass = Pass {
            queries: &queries,
            panels: self.panels,
            sk: self.sk,
            d,
            wide,
            padded,
            row_blocks,
            factor: (self.scale * std::f64::consts::LOG2_E) as f32,
            sums: sums.floats().as_mut_ptr(),
            running: running.as_mut_ptr(),
            squares: squares.floats().as_mut_ptr(),
        };
        let pieces = row_blocks * self.sk.div_ceil(S::WIDTH);
        let mut stopped = self.meter.stops();
        if !stopped {
            // Woven only over several row blocks, since probabilities rescale the sums of their rows.
            // SAFETY: the features are there, and the pieces; nothing else touches what the pass points to.
            unsafe {
                schedule::run::<S, _>(&pass, pieces, S::MATRIX && row_blocks > 1, |i| {
                    stopped = (i + 1).is_multiple_of(row_blocks) && i + 1 < pieces && self.meter.stops();
                    !stopped
                });
            }
        }
        if stopped {
            return;
        }
        for (row, (o, lse)) in self.o.chunks_exact_mut(d).zip(self.lse).enumerate() {
            let Running { max, sum } = running[row];
            let sum: f32 = sum.iter().sum();
            let inverse = 1.0 / sum;
            for (o, x) in o.iter_mut().zip(&sums.floats()[row * wide..]) {
                *o = O::from_f32(x * inverse);
            }
            let log2 = f64::from(max) + f64::from(sum).log2();
            *lse = log2 * std::f64::consts::LN_2;
        }
        self.meter.add(super::FORWARD * (rows * self.sk * d) as u64);
    }
}

/// A task at work, in pieces of rows by keys.
struct Pass<'a> {
    queries: &'a [u32],
    panels: &'a [u32],
    sk: usize,
    d: usize,
    wide: usize,
    padded: usize,
    row_blocks: usize,
    factor: f32,
    /// `[padded, wide]`
    sums: *mut f32,
    /// `padded` of them
    running: *mut Running,
    /// Logits of a row block by a panel, then words of probabilities: two squares, used in turn.
    squares: *mut f32,
}

impl Pass<'_> {
    /// Piece `i`: its first row, its rows, the keys of its panel, and the panel.
    #[inline(always)]
    fn piece<S: Simd>(&self, i: usize) -> (usize, usize, usize, &[u32]) {
        let (panel, row) = (i / self.row_blocks, i % self.row_blocks * row_block::<S>());
        let words = columns_words::<S>(self.d) + rows_words::<S>(self.d);
        let keys = S::WIDTH.min(self.sk - panel * S::WIDTH);
        (row, row_block::<S>().min(self.padded - row), keys, &self.panels[panel * words..][..words])
    }

    /// Where piece `i` has its logits, then its probabilities.
    #[inline(always)]
    fn square<S: Simd>(&self, i: usize) -> *mut f32 {
        self.squares.wrapping_add(i % 2 * row_block::<S>() * by_row::<S>())
    }
}

impl<S: Simd> Schedule<S> for Pass<'_> {
    type Work = Softmax<S>;

    #[inline(always)]
    unsafe fn logits(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, keys, panel) = self.piece::<S>(i);
        let steps = steps::<S>(self.d);
        let q = Left::tiles::<S>(self.queries[row * steps..].as_ptr(), steps);
        let values = self.square::<S>(i);
        // SAFETY: the panels were packed with these sizes; a square holds a row block by a panel.
        unsafe {
            let out = Out { values, stride: by_row::<S>(), rows, width: S::WIDTH, add: false };
            S::product_beside(steps, q, Right::new::<S>(panel, steps, S::WIDTH), out, beside);
            if keys < S::WIDTH {
                let logits = std::slice::from_raw_parts_mut(values, rows * by_row::<S>());
                logits.chunks_exact_mut(by_row::<S>()).for_each(|row| row[keys..].fill(f32::NEG_INFINITY));
            }
        }
    }

    #[inline(always)]
    unsafe fn probs(&self, i: usize) -> Softmax<S> {
        let (row, rows, ..) = self.piece::<S>(i);
        Softmax {
            left: rows,
            pace: (self.d / 64).clamp(1, 4),
            s: self.square::<S>(i),
            running: self.running.wrapping_add(row),
            sums: self.sums.wrapping_add(row * self.wide),
            wide: self.wide,
            first: i < self.row_blocks,
            factor: self.factor,
            unit: PhantomData,
        }
    }

    #[inline(always)]
    unsafe fn sums(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, keys, panel) = self.piece::<S>(i);
        let v = Right::new::<S>(&panel[columns_words::<S>(self.d)..], S::WIDTH / S::PAIR, self.wide);
        let p = Left::<WIDTH>::rows::<S>(self.square::<S>(i).cast(), by_row::<S>());
        let steps = keys.div_ceil(S::PAIR).next_multiple_of(S::STEPS);
        let values = self.sums.wrapping_add(row * self.wide);
        let out = Out { values, stride: self.wide, rows, width: self.wide, add: i >= self.row_blocks };
        // SAFETY: as above.
        unsafe { S::product_beside(steps, p, v, out, beside) }
    }
}
