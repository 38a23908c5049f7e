//! Packs frames for [`super::conv`]: channels together, a border of zeros, norm and SiLU on the way.

use rayon::prelude::*;

use super::scratch::Scratch;
use super::vector::{Kernel, Simd};

/// Words of a pixel of `channels`.
pub(super) fn pixel_words<S: Simd>(channels: usize) -> usize {
    channels.div_ceil(S::PAIR).next_multiple_of(S::STEPS)
}

/// What a frame's values go through on their way into the packed frame.
#[derive(Clone, Copy)]
pub(crate) enum Activation<'a> {
    /// Nothing.
    None,
    /// SiLU of the pixel's channels, scaled to norm 1 and multiplied by these factors, one a channel.
    NormSilu(&'a [f32]),
}

/// A frame with channels together and a border of one pixel, as words of an instruction set:
/// `[rows + 2][pitch][pixel words]`.
pub(crate) struct PackedFrame {
    words: Scratch,
    /// Rows without the border.
    pub(super) rows: usize,
    /// Pixels of a row with its border and what the last register tile reads beyond.
    pitch: usize,
    pub(super) pixel_words: usize,
}

impl PackedFrame {
    /// Packs `values` `[rows, width, channels]`; `neighbours` are the rows above and below, which are zeros where there
    /// is none.
    pub fn pack<S: Simd>(
        values: &[f32],
        [width, channels]: [usize; 2],
        neighbours: [Option<&[f32]>; 2],
        activation: Activation,
    ) -> Self {
        let (row, pixel_words) = (width * channels, pixel_words::<S>(channels));
        let pitch = width.next_multiple_of(2 * S::ROWS) + 3;
        let rows = values.len() / row;
        let mut words = Scratch::take((rows + 2) * pitch * pixel_words);
        let line = channels.next_multiple_of(2 * S::LANES);
        let factors = match activation {
            Activation::None => None,
            Activation::NormSilu(factors) => {
                let mut padded = factors.to_vec();
                padded.resize(line, 0.0);
                Some(padded)
            }
        };
        words.par_chunks_exact_mut(pitch * pixel_words).enumerate().for_each(|(i, words)| {
            let values = match i {
                0 => neighbours[0],
                i if i > rows => neighbours[1],
                i => Some(&values[(i - 1) * row..i * row]),
            };
            match values {
                // SAFETY: this instruction set was chosen for this CPU.
                Some(values) => unsafe {
                    S::run(PackRow { values, channels, line, factors: factors.as_deref(), words, pixel_words })
                },
                None => words.fill(0),
            }
        });
        Self { words, rows, pitch, pixel_words }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        4 * self.words.len()
    }

    /// The words of a pixel, the border counted.
    pub(super) fn at(&self, row: usize, pixel: usize) -> *const u32 {
        self.words[(row * self.pitch + pixel) * self.pixel_words..].as_ptr()
    }
}

struct PackRow<'a> {
    values: &'a [f32],
    channels: usize,
    /// Channels rounded up to two vectors.
    line: usize,
    factors: Option<&'a [f32]>,
    words: &'a mut [u32],
    pixel_words: usize,
}

impl Kernel for PackRow<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { values, channels, line, factors, words, pixel_words } = self;
        let width = values.len() / channels;
        words[..pixel_words].fill(0);
        words[(width + 1) * pixel_words..].fill(0);
        // The line of a pixel, and its words with room for whole vectors.
        let (mut x, mut packed) = (vec![0f32; line], vec![0u32; line.max(pixel_words)]);
        let whole = line == channels && line / S::PAIR == pixel_words;
        for (pixel, words) in
            values.chunks_exact(channels).zip(words[pixel_words..].chunks_exact_mut(pixel_words).take(width))
        {
            x[..channels].copy_from_slice(pixel);
            if let Some(factors) = factors {
                // SAFETY: both are `line` long, whole vectors.
                unsafe { norm_silu::<S>(&mut x, factors) }
            }
            let to = if whole { words.as_mut_ptr() } else { packed.as_mut_ptr() };
            for i in (0..line).step_by(2 * S::LANES) {
                // SAFETY: two vectors of the line, and room for their words.
                unsafe {
                    let p = x.as_ptr().add(i);
                    S::put_row(to.add(i / S::PAIR), S::element(S::load(p)), S::element(S::load(p.add(S::LANES))));
                }
            }
            if !whole {
                words.copy_from_slice(&packed[..pixel_words]);
            }
        }
    }
}

/// `x = silu(x / max(|x|, 1e-12) * factors)`.
///
/// # Safety
/// The CPU has the features of `S`; both are as long, whole vectors.
#[inline(always)]
unsafe fn norm_silu<S: Simd>(x: &mut [f32], factors: &[f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut squares = S::splat(0.0);
        for x in x.chunks_exact(S::LANES) {
            let x = S::load(x.as_ptr());
            squares = S::mul_add(x, x, squares);
        }
        let mut lanes = [0f32; 16];
        S::store(lanes.as_mut_ptr(), squares);
        let norm = lanes.iter().sum::<f32>().sqrt();
        let scale = S::splat(1.0 / norm.max(1e-12));
        let (to_base_2, least, none) = (S::splat(std::f32::consts::LOG2_E), S::splat(-127.0), S::splat(0.0));
        for (x, factors) in x.chunks_exact_mut(S::LANES).zip(factors.chunks_exact(S::LANES)) {
            let y = S::mul(S::mul(S::load(x.as_ptr()), scale), S::load(factors.as_ptr()));
            // e^-y, at most 2^127
            S::store(lanes.as_mut_ptr(), S::exp2(S::sub(none, S::max(least, S::mul(y, to_base_2)))));
            S::store(x.as_mut_ptr(), y);
            for (x, e) in x.iter_mut().zip(&lanes) {
                *x /= 1.0 + e;
            }
        }
    }
}
