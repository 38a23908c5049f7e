//! AdamW with moments of eight bits: blocks of 256 elements, each of codes and one scale.
//!
//! A block's scale is its largest absolute value; a code names one of 255 fractions of it, dense near 1 and reaching
//! down to 1e-6 and 1e-7 (dynamic quantisation, arXiv 2110.02861). The second moment is held as its root, whose range
//! is half as wide, and a root above 0 never rounds to 0, which would let the first moment through undivided. Fractions
//! are symmetric and contain 1, so coding what was decoded gives the same block: files hold plain f32 values and lose
//! nothing. Blocks count from a unit's first element, and ranks hold whole blocks, so their number changes no bit.

use multiversion::multiversion;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::LazyLock;

use super::{AdamW, CHUNK, Shard, Step, apply, check_ranges, segments};
use crate::state::ema::follow;
use crate::{Result, bail};

/// Elements that share a scale.
pub const BLOCK: usize = 256;

/// A block whose largest value is smaller is zero: against AdamW's eps it is nothing, and squares of its fractions
/// would be no normal f32.
const FLOOR: f32 = 1.8e-12;

/// Words of four bytes that hold `elements` elements: four codes each, then the scales.
pub const fn words(elements: usize) -> usize {
    elements.div_ceil(4) + elements.div_ceil(BLOCK)
}

/// Codes and the fractions they stand for.
struct Code {
    /// Ascending, from 0 to 1.
    values: Vec<f32>,
    /// `middles[k]` lies between fractions k - 1 and k; behind the last is infinity.
    middles: Vec<f32>,
    /// For runs of fractions with the same exponent and first eight bits, the code of the first. None has two middles.
    first: Vec<u8>,
}

/// Bits of a fraction below those that pick a run, and the run of the smallest one that is told from 0, 2^-25.
const SHIFT: u32 = 15;
const LOWEST: u32 = (127 - 25) << 8;

impl Code {
    /// With `decades` powers of ten: decade i, from the lowest, has 2^i fractions, evenly spaced up to its end.
    fn new(decades: u32) -> Self {
        let decade = |i: u32| {
            let (end, count) = (10f64.powi(i as i32 + 1 - decades as i32), 1u32 << i);
            (1..=count).map(move |j| end * (0.1 + 0.9 * f64::from(j) / f64::from(count)))
        };
        let values: Vec<f32> =
            std::iter::once(0.0).chain((0..decades).flat_map(decade)).map(|value| value as f32).collect();
        let mut middles: Vec<f32> = vec![0.0];
        middles.extend(values.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])));
        middles.push(f32::INFINITY);
        let last = (1f32.to_bits() >> SHIFT) - LOWEST;
        let first = (0..=last).map(|run| {
            let start = f32::from_bits((run + LOWEST) << SHIFT);
            (middles.partition_point(|&middle| middle <= start) - 1) as u8
        });
        Self { first: first.collect(), values, middles }
    }

    /// The code of the nearest fraction.
    #[inline(always)]
    fn of(&self, fraction: f32) -> u8 {
        let run = (fraction.to_bits() >> SHIFT).saturating_sub(LOWEST) as usize;
        let code = self.first[run.min(self.first.len() - 1)]; // of what is no number, too
        code + u8::from(fraction >= self.middles[usize::from(code) + 1])
    }
}

/// Of the first moment: seven decades and a sign, in the eighth bit.
static SIGNED: LazyLock<Code> = LazyLock::new(|| Code::new(7));
/// Of the second moment's root: eight decades.
static UNSIGNED: LazyLock<Code> = LazyLock::new(|| Code::new(8));

/// Which moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The gradient's mean.
    Mean,
    /// The mean of its square.
    Square,
}

impl Moment {
    /// Codes `values`, at most a block's, and returns their scale.
    #[inline(always)]
    fn encode(self, values: &[f32], codes: &mut [u8]) -> f32 {
        let largest = values.iter().fold(0f32, |most, value| most.max(value.abs()));
        let scale = if self == Self::Mean { largest } else { largest.sqrt() };
        if scale < FLOOR {
            codes.fill(0);
            return 0.0;
        }
        match self {
            Self::Mean => {
                let code = &*SIGNED;
                for (out, value) in codes.iter_mut().zip(values) {
                    *out = code.of(value.abs() / scale) | (u8::from(value.is_sign_negative()) << 7);
                }
            }
            Self::Square => {
                let code = &*UNSIGNED;
                for (out, value) in codes.iter_mut().zip(values) {
                    *out = code.of(value.sqrt() / scale).max(u8::from(*value > 0.0));
                }
            }
        }
        scale
    }

    #[inline(always)]
    fn decode(self, codes: &[u8], scale: f32, values: &mut [f32]) {
        match self {
            Self::Mean => {
                let fractions = &SIGNED.values;
                for (value, &code) in values.iter_mut().zip(codes) {
                    let size = fractions[usize::from(code & 0x7f)] * scale;
                    *value = if code >> 7 == 1 { -size } else { size };
                }
            }
            Self::Square => {
                let fractions = &UNSIGNED.values;
                for (value, &code) in values.iter_mut().zip(codes) {
                    let root = fractions[usize::from(code)] * scale;
                    *value = root * root;
                }
            }
        }
    }

    /// The values that `words` hold, as many as `values` has room for.
    ///
    /// # Panics
    /// If `words` are not those of so many elements.
    pub fn read(self, words: &[f32], values: &mut [f32]) {
        assert_eq!(words.len(), self::words(values.len()), "words of {} values", values.len());
        let (codes, scales) = words.split_at(values.len().div_ceil(4));
        let codes: &[u8] = bytemuck::cast_slice(codes);
        let blocks = values.par_chunks_mut(BLOCK).zip(codes.par_chunks(BLOCK)).zip(scales);
        blocks.for_each(|((values, codes), &scale)| self.decode(&codes[..values.len()], scale, values));
    }

    /// Writes `values` as words: exactly those that [`read`](Self::read) gave them, if it did.
    ///
    /// # Panics
    /// As [`read`](Self::read).
    pub fn write(self, values: &[f32], words: &mut [f32]) {
        assert_eq!(words.len(), self::words(values.len()), "words of {} values", values.len());
        let (codes, scales) = words.split_at_mut(values.len().div_ceil(4));
        let codes: &mut [u8] = bytemuck::cast_slice_mut(codes);
        let blocks = values.par_chunks(BLOCK).zip(codes.par_chunks_mut(BLOCK)).zip(scales);
        blocks.for_each(|((values, codes), scale)| *scale = self.encode(values, &mut codes[..values.len()]));
    }
}

/// A chunk's words, apart.
struct Coded<'a> {
    codes: &'a mut [u8],
    scales: &'a mut [f32],
}

/// The chunks of the words of `n` elements.
fn chunks(words: &mut [f32], n: usize) -> Vec<Coded<'_>> {
    let (codes, scales) = words.split_at_mut(n.div_ceil(4));
    let codes = bytemuck::cast_slice_mut::<f32, u8>(codes).chunks_mut(CHUNK);
    codes.zip(scales.chunks_mut(CHUNK / BLOCK)).map(|(codes, scales)| Coded { codes, scales }).collect()
}

impl AdamW {
    /// As [`update`](Self::update), with moments of [`words`] of four bytes. The first element of the shard begins a
    /// block.
    ///
    /// # Errors
    /// As there.
    pub fn update_in_blocks(
        &self,
        step: u64,
        lr: f64,
        scale: f64,
        shard: Shard<'_>,
        no_decay: &[Range<usize>],
    ) -> Result<()> {
        let Shard { params, grads, m, v, average } = shard;
        let n = params.len();
        if grads.len() != n || m.len() != words(n) || v.len() != words(n) {
            bail!(Shape, "AdamW: {n} parameters, {} gradients, words of {} and {}", grads.len(), m.len(), v.len());
        }
        if let Some((_, average)) = &average
            && average.len() != n
        {
            bail!(Shape, "EMA: an average of {} values for {n} parameters", average.len());
        }
        check_ranges(no_decay, n)?;
        let (rest, average) = average.map_or((0.0, None), |(decay, average)| ((1.0 - decay) as f32, Some(average)));
        let averages: Vec<&mut [f32]> = match average {
            Some(average) => average.chunks_mut(CHUNK).collect(),
            None => (0..n.div_ceil(CHUNK)).map(|_| &mut [][..]).collect(),
        };
        let step = self.step(step, lr, scale)?;
        let moments = chunks(m, n).into_par_iter().zip(chunks(v, n));
        let all = params.par_chunks_mut(CHUNK).zip(grads.par_chunks(CHUNK)).zip(moments).zip(averages);
        all.enumerate().for_each(|(i, (((params, grads), (m, v)), average))| {
            blocks(&step, (params, grads), (m, v), (i * CHUNK, no_decay));
            follow(rest, average, params);
        });
        Ok(())
    }
}

/// The step on a chunk that begins at element `start` of the shard: its moments are f32 for a block at a time.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl", "x86_64+avx2+fma"))]
fn blocks(
    step: &Step,
    (params, grads): (&mut [f32], &[f32]),
    (means, squares): (Coded, Coded),
    (start, no_decay): (usize, &[Range<usize>]),
) {
    let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
    for (i, (params, grads)) in params.chunks_mut(BLOCK).zip(grads.chunks(BLOCK)).enumerate() {
        let (n, first) = (params.len(), i * BLOCK);
        let (m, v) = (&mut m[..n], &mut v[..n]);
        Moment::Mean.decode(&means.codes[first..first + n], means.scales[i], m);
        Moment::Square.decode(&squares.codes[first..first + n], squares.scales[i], v);
        let first_element = start + first;
        for (part, decays) in segments(first_element..first_element + n, no_decay) {
            let part = part.start - first_element..part.end - first_element;
            let decay = if decays { step.decay } else { 0.0 };
            let values = (&mut params[part.clone()], &grads[part.clone()]);
            apply(step, values, (&mut m[part.clone()], &mut v[part]), decay);
        }
        means.scales[i] = Moment::Mean.encode(m, &mut means.codes[first..first + n]);
        squares.scales[i] = Moment::Square.encode(v, &mut squares.codes[first..first + n]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fraction_is_its_own_code_and_others_take_the_nearest() {
        for (code, last) in [(&*SIGNED, 127), (&*UNSIGNED, 255)] {
            assert_eq!((code.values.len(), code.values[0], code.values[last]), (last + 1, 0.0, 1.0));
            assert!(code.values.is_sorted_by(|a, b| a < b));
            assert!((0..=last).all(|k| usize::from(code.of(code.values[k])) == k));
            for i in 0..200_000 {
                let fraction = (f64::from(i) / 199_999.0).powi(9) as f32;
                let off = |value: f32| f64::from((value - fraction).abs());
                let nearest = code.values.iter().map(|&value| off(value)).fold(f64::INFINITY, f64::min);
                assert!(
                    off(code.values[usize::from(code.of(fraction))]) <= nearest * (1.0 + 1e-6) + 1e-12,
                    "{fraction}"
                );
            }
        }
    }

    /// Any scale down to the floor, every code.
    #[test]
    fn what_was_read_is_written_as_the_same_words() {
        for exponent in [-38, -30, -3, 0, 1, 40, 60] {
            for factor in [1.0, 1.337_f32, 1.999] {
                let scale = factor * 2f32.powi(exponent);
                for moment in [Moment::Mean, Moment::Square] {
                    let codes: Vec<u8> = (0..=255).map(|k| if k == 128 { 0 } else { k }).rev().collect();
                    let mut words = vec![0.0; self::words(256)];
                    bytemuck::cast_slice_mut::<f32, u8>(&mut words[..64]).copy_from_slice(&codes);
                    words[64] = scale;
                    let (mut values, mut again) = (vec![0.0; 256], vec![9.0; words.len()]);
                    moment.read(&words, &mut values);
                    moment.write(&values, &mut again);
                    let bits = |words: &[f32]| words.iter().map(|word| word.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&words), bits(&again), "{moment:?}, scale {scale:e}");
                }
            }
        }
    }
}
