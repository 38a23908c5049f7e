//! The forward pass: o = softmax(scale q kᵀ) v by panels of keys, with an online softmax.
//!
//! K and V are packed once a head. A task owns some rows of one head and walks over all key panels: a tile of `ROWS` rows
//! takes its logits against `WIDTH` keys, turns them into exponentials in base 2 and adds their product with V to its
//! f32 sums. The running maximum moves only when a logit exceeds it by more than 2^8 (as FlashAttention-4 does): values up to
//! 256 lose nothing in floating point, and rescaling nearly vanishes. A row's result does not depend on how rows are
//! split into tasks, hence not on the number of threads.
//!
//! FlashAttention-2, arXiv 2307.08691; online softmax, arXiv 1805.02867.

use std::marker::PhantomData;

use rayon::prelude::*;

use super::pack::{Element, Heads, columns_words, rows_words, steps};
use super::{PACKED, SQUARE, band, by_row, wide};
use crate::ops::cpu::scratch::Scratch;
use crate::ops::cpu::simd::{Beside, Kernel, Simd, WIDTH};
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
    let panels = sk.div_ceil(S::WIDTH);
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
    let words = sk.div_ceil(S::WIDTH) * (columns_words::<S>(d) + rows_words::<S>(d)); // of a head
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

/// Logits or words of weights of a band of rows against a panel of keys, a row every `WIDTH`; two of them, used in turn.
#[repr(align(64))]
struct Squares<T>([[T; SQUARE]; 2]);

impl<E: Element, O: Element> Kernel for Rows<'_, E, O> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let (d, rows) = (self.q.dim, self.lse.len());
        let (wide, padded, steps) = (wide(d), rows.next_multiple_of(S::ROWS), steps::<S>(d));
        let mut queries = Scratch::take(padded * steps);
        self.q.tiles::<S>(self.head, self.first, rows, &mut queries);
        let mut sums = Scratch::take(padded * wide); // [rows, wide]
        let mut running = vec![Running { max: f32::NEG_INFINITY, sum: [0.0; 16] }; padded];
        let (mut s, mut p) = (Squares([[0f32; SQUARE]; 2]), Squares([[0u32; SQUARE]; 2]));
        let bands = padded.div_ceil(band::<S>());
        let pass = Pass {
            queries: &queries,
            panels: self.panels,
            sk: self.sk,
            d,
            wide,
            padded,
            bands,
            factor: (self.scale * std::f64::consts::LOG2_E) as f32,
            sums: sums.floats().as_mut_ptr(),
            running: running.as_mut_ptr(),
            s: s.0.each_mut().map(|s| s.as_mut_ptr()),
            p: p.0.each_mut().map(|p| p.as_mut_ptr()),
        };
        let pieces = bands * self.sk.div_ceil(S::WIDTH);
        // SAFETY: the features are there, and the pieces; nothing else touches what the pass points to.
        unsafe {
            if S::MATRIX && bands > 1 {
                // A piece's weights are made while products of its neighbours run, which are other bands'.
                for i in 0..pieces + 2 {
                    if i.is_multiple_of(bands) && self.watch.stops() {
                        return;
                    }
                    let mut weights = if (1..=pieces).contains(&i) { pass.weights::<S>(i - 1) } else { pass.none::<S>() };
                    if i < pieces {
                        pass.logits::<S>(i, &mut weights);
                    }
                    if i >= 2 {
                        pass.values::<S>(i - 2, &mut weights);
                    }
                    weights.rest();
                }
            } else {
                for i in 0..pieces {
                    if i.is_multiple_of(bands) && self.watch.stops() {
                        return;
                    }
                    pass.logits::<S>(i, &mut ());
                    pass.weights::<S>(i).rest();
                    pass.values::<S>(i, &mut ());
                }
            }
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
        self.watch.add(super::FORWARD * (rows * self.sk * d) as u64);
    }
}

/// A task at work. It is done in *pieces*, a band of rows against a panel of keys, all bands for one panel after another: a piece's
/// logits, its weights, and its part of the sums of values.
struct Pass<'a> {
    queries: &'a [u32],
    panels: &'a [u32],
    sk: usize,
    d: usize,
    wide: usize,
    padded: usize,
    bands: usize,
    factor: f32,
    /// `[padded, wide]`
    sums: *mut f32,
    /// `padded` of them
    running: *mut Running,
    s: [*mut f32; 2],
    p: [*mut u32; 2],
}

impl Pass<'_> {
    /// Piece `i`: its first row, its rows, the keys of its panel, and the panel.
    #[inline(always)]
    fn piece<S: Simd>(&self, i: usize) -> (usize, usize, usize, &[u32]) {
        let (panel, row) = (i / self.bands, i % self.bands * band::<S>());
        let words = columns_words::<S>(self.d) + rows_words::<S>(self.d);
        let keys = S::WIDTH.min(self.sk - panel * S::WIDTH);
        (row, band::<S>().min(self.padded - row), keys, &self.panels[panel * words..][..words])
    }

    /// # Safety
    /// The CPU has the unit's features, and there is this piece.
    #[inline(always)]
    unsafe fn logits<S: Simd>(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, keys, panel) = self.piece::<S>(i);
        let steps = steps::<S>(self.d);
        let q = Left::tiles::<S>(self.queries[row * steps..].as_ptr(), steps);
        let (values, stride, width) = (self.s[i % 2], S::WIDTH, S::WIDTH);
        // SAFETY: the panels were packed with these sizes; a square holds a band by a panel.
        unsafe {
            let out = Out { values, stride, rows, width, add: false };
            S::product_beside(steps, q, Right::new::<S>(panel, steps, width), out, beside);
            for row in (0..rows).take_while(|_| keys < width) {
                std::slice::from_raw_parts_mut(values.add(row * stride + keys), width - keys).fill(f32::NEG_INFINITY);
            }
        }
    }

    /// To be done when the piece has its logits.
    ///
    /// # Safety
    /// As [`Self::logits`].
    #[inline(always)]
    unsafe fn weights<S: Simd>(&self, i: usize) -> Softmax<S> {
        let (row, rows, ..) = self.piece::<S>(i);
        // SAFETY: within the pass's arrays.
        unsafe { Softmax { left: rows, ..self.softmax(i, row) } }
    }

    /// No weights.
    ///
    /// # Safety
    /// The CPU has the unit's features.
    #[inline(always)]
    unsafe fn none<S: Simd>(&self) -> Softmax<S> {
        // SAFETY: the first piece is there.
        unsafe { self.softmax(0, 0) }
    }

    #[inline(always)]
    unsafe fn softmax<S: Simd>(&self, i: usize, row: usize) -> Softmax<S> {
        // SAFETY: within the pass's arrays.
        unsafe {
            Softmax {
                left: 0,
                pace: (self.d / 64).clamp(1, 4),
                s: self.s[i % 2],
                p: self.p[i % 2],
                running: self.running.add(row),
                sums: self.sums.add(row * self.wide),
                wide: self.wide,
                first: i < self.bands,
                factor: self.factor,
                unit: PhantomData,
            }
        }
    }

    /// Adds to the sums of values what the piece's weights give.
    ///
    /// # Safety
    /// As [`Self::logits`].
    #[inline(always)]
    unsafe fn values<S: Simd>(&self, i: usize, beside: &mut impl Beside) {
        let (row, rows, keys, panel) = self.piece::<S>(i);
        let v = Right::new::<S>(&panel[columns_words::<S>(self.d)..], S::WIDTH / S::PAIR, self.wide);
        let p = Left::<WIDTH>::rows::<S>(self.p[i % 2], by_row::<S>());
        let steps = keys.div_ceil(S::PAIR).next_multiple_of(S::STEPS);
        // SAFETY: as above.
        unsafe {
            let values = self.sums.add(row * self.wide);
            let out = Out { values, stride: self.wide, rows, width: self.wide, add: i >= self.bands };
            S::product_beside(steps, p, v, out, beside);
        }
    }
}

/// Logits of a band to exponentials, as the left operand of the product with V.
struct Softmax<S> {
    /// Rows that are left, and how slowly to take them.
    left: usize,
    pace: usize,
    // Of the next row:
    s: *const f32,
    p: *mut u32,
    running: *mut Running,
    sums: *mut f32,
    wide: usize,
    /// There are no sums yet.
    first: bool,
    factor: f32,
    unit: PhantomData<S>,
}

/// A row at work.
struct Row<S: Simd> {
    s: *const f32,
    p: *mut u32,
    running: *mut Running,
    factor: S::V,
    max: S::V,
    sum: S::V,
}

impl<S: Simd> Softmax<S> {
    /// Does what is left.
    ///
    /// # Safety
    /// The CPU has the unit's features.
    #[inline(always)]
    unsafe fn rest(&mut self) {
        while self.more() {
            // SAFETY: there is a row.
            unsafe {
                let mut row = self.begin();
                for i in 0..S::WIDTH / (2 * S::LANES) {
                    self.two(&mut row, i);
                }
                self.end(row);
            }
        }
    }

    /// Makes the row's largest logit what it subtracts.
    ///
    /// # Safety
    /// There is a row.
    #[cold]
    #[inline(never)]
    unsafe fn raise(&self) {
        // SAFETY: the row's arrays are there.
        unsafe {
            let (row, logits) = (&mut *self.running, std::slice::from_raw_parts(self.s, S::WIDTH));
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) * self.factor;
            let shrink = (row.max - max).exp2();
            row.max = max;
            if !self.first {
                row.sum.iter_mut().for_each(|x| *x *= shrink);
                std::slice::from_raw_parts_mut(self.sums, self.wide).iter_mut().for_each(|x| *x *= shrink);
            }
        }
    }
}

impl<S: Simd> Beside for Softmax<S> {
    type Row = Row<S>;
    #[inline(always)]
    fn more(&self) -> bool {
        self.left > 0
    }
    #[inline(always)]
    fn pace(&self) -> usize {
        self.pace
    }
    #[inline(always)]
    unsafe fn begin(&mut self) -> Row<S> {
        // SAFETY: a row's arrays are there, here and below.
        unsafe {
            let (s, p, running, factor) = (self.s, self.p, self.running, S::splat(self.factor));
            let mut top = S::load(s);
            for j in 1..S::WIDTH / S::LANES {
                top = S::max(top, S::load(s.add(j * S::LANES)));
            }
            if S::any_above(S::mul(top, factor), S::splat((*running).max + SLACK)) {
                self.raise();
            }
            self.left -= 1;
            self.s = s.add(S::WIDTH);
            self.p = p.add(by_row::<S>());
            self.running = running.add(1);
            self.sums = self.sums.add(self.wide);
            Row { s, p, running, factor, max: S::splat((*running).max), sum: S::load((*running).sum.as_ptr()) }
        }
    }
    #[inline(always)]
    unsafe fn two(&self, row: &mut Row<S>, i: usize) {
        // SAFETY: as above.
        unsafe {
            let exp2 = |j: usize| S::exp2(S::mul_sub(S::load(row.s.add(j * S::LANES)), row.factor, row.max));
            let (a, b) = (exp2(2 * i), exp2(2 * i + 1));
            row.sum = S::add(row.sum, S::add(a, b));
            S::put_row(row.p.add(2 * i * S::LANES / S::PAIR), a, b);
        }
    }
    #[inline(always)]
    unsafe fn end(&self, row: Row<S>) {
        // SAFETY: as above.
        unsafe { S::store((*row.running).sum.as_mut_ptr(), row.sum) }
    }
}
