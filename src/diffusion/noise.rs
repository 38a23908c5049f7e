//! Noise for rows of tokens, the noisy rows the network sees, and the two orders a row may be in.
//!
//! A row is one token's patch, `pt * ph * pw * C` values. Noise is defined once, in channel-last order (pt, ph, pw, C),
//! the order of the network's head; the patch embedding's weight wants channel-first (C, pt, ph, pw), a transpose away.
//! Every token has a random stream of its own, so any rank or tile makes its part alone and the whole is always the
//! same.

use crate::rng::{Key, Purpose};
use rayon::prelude::*;
use std::ops::Range;

/// The key of the training noise of `sample`, an index in the step's global batch.
pub fn training_key(seed: u64, step: u64, sample: u64) -> Key {
    Key { seed, purpose: Purpose::Noise, step, sample }
}

/// Fills `out` (`[tokens, row_len]`, channel-last) with the standard normal noise of `tokens`, clip-wide token numbers.
///
/// # Panics
/// If `out` does not hold exactly those rows.
pub fn noise_rows(key: Key, tokens: Range<usize>, row_len: usize, out: &mut [f32]) {
    assert_eq!(out.len(), tokens.len() * row_len, "noise_rows: {} tokens of {row_len} values", tokens.len());
    if row_len == 0 {
        return;
    }
    let rows = out.par_chunks_mut(row_len).zip(tokens.into_par_iter());
    rows.with_min_len(4).for_each(|(row, token)| key.stream(token as u64).fill_normal(row));
}

/// Writes `x_sigma = (1 - sigma) x0 + sigma eps`, element by element.
///
/// # Panics
/// If the slices differ in length.
pub fn noisy(x0: &[f32], eps: &[f32], sigma: f64, out: &mut [f32]) {
    assert!(x0.len() == out.len() && eps.len() == out.len(), "noisy: {} {} {}", x0.len(), eps.len(), out.len());
    let (keep, add) = ((1.0 - sigma) as f32, sigma as f32);
    for ((out, &x0), &eps) in out.iter_mut().zip(x0).zip(eps) {
        *out = keep * x0 + add * eps;
    }
}

/// Copies rows from channel-last (pt, ph, pw, C) to channel-first (C, pt, ph, pw) order.
///
/// # Panics
/// If `channels` does not divide `row_len`, `row_len` not `rows`, or the slices differ in length.
pub fn channel_first(rows: &[f32], row_len: usize, channels: usize, out: &mut [f32]) {
    transpose_rows(rows, row_len, channels, out);
}

/// Copies rows from channel-first (C, pt, ph, pw) to channel-last (pt, ph, pw, C) order.
///
/// # Panics
/// As [`channel_first`].
pub fn channel_last(rows: &[f32], row_len: usize, channels: usize, out: &mut [f32]) {
    assert!(channels > 0, "channel_last: a row needs a channel");
    transpose_rows(rows, row_len, row_len / channels, out);
}

/// Transposes each row, seen as a matrix `[row_len / inner, inner]`.
fn transpose_rows(rows: &[f32], row_len: usize, inner: usize, out: &mut [f32]) {
    assert!(rows.len() == out.len(), "rows: {} values in, {} out", rows.len(), out.len());
    if rows.is_empty() {
        return;
    }
    assert!(inner > 0 && row_len.is_multiple_of(inner), "a row of {row_len} values does not split by {inner}");
    assert!(rows.len().is_multiple_of(row_len), "{} values are not rows of {row_len}", rows.len());
    let outer = row_len / inner;
    for (from, to) in rows.chunks_exact(row_len).zip(out.chunks_exact_mut(row_len)) {
        for (i, column) in to.chunks_exact_mut(outer).enumerate() {
            for (value, source) in column.iter_mut().zip(from[i..].iter().step_by(inner)) {
                *value = *source;
            }
        }
    }
}
