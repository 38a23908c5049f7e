//! Convolves packed frames: products of pixels and channels over a kernel's taps, on the register tiles of
//! [`super::tile`], without a copy of every pixel's neighbourhood.
//!
//! A [`PackedFrame`] holds a frame's channels pixel after pixel with a border of zeros. The taps of one kernel row then
//! lie next to each other in memory, for every pixel, so a row of output pixels times one kernel row is one product
//! whose left rows overlap. Sums start from what the result holds (a bias, or a residual), and each element's sum is
//! taken in one order: kernel row by kernel row, wherever the pixel lies, so results have the same bits for any number
//! of threads and any split of a frame's rows.

use rayon::prelude::*;

use super::packed_frame::{PackedFrame, pixel_words};
use super::panel::{Matrix, Panels, across_by};
use super::scratch::Scratch;
use super::tile::{Left, Out, Right, column_block};
use super::vector::{Kernel, Simd};

/// Pixels whose sums are taken together: whole register tiles on every instruction set.
const BLOCK: usize = 192;

/// Words of the weights taken at a time: 20 KiB, which stay in L1. A matrix unit has more, see `product.rs`.
fn words<S: Simd>() -> usize {
    if S::MATRIX { 16 << 10 } else { 5 << 10 }
}

/// The weights of a convolution packed for an instruction set: a right operand for each frame and row of the kernel.
pub(crate) struct ConvWeights {
    /// `[frames][rows]`, each of contraction `[columns][channels]`.
    taps: Vec<Panels>,
    /// Frames and rows of the kernel.
    size: [usize; 2],
}

impl ConvWeights {
    /// Packs `weights` `[out, channels, frames, rows, columns]`.
    pub fn pack<S: Simd>(weights: &[f32], [out, channels, frames, rows, columns]: [usize; 5]) -> Self {
        assert_eq!(weights.len(), out * channels * frames * rows * columns, "a kernel's weights");
        let padded = pixel_words::<S>(channels) * S::PAIR;
        let width = column_block::<S>(out.next_multiple_of(S::LANES));
        let mut taps = Vec::with_capacity(frames * rows);
        let mut matrix = vec![0f32; columns * padded * out];
        for tap in 0..frames * rows {
            for (o, weights) in weights.chunks_exact(channels * frames * rows * columns).enumerate() {
                for (c, weights) in weights.chunks_exact(frames * rows * columns).enumerate() {
                    for (x, weight) in weights[tap * columns..][..columns].iter().enumerate() {
                        matrix[(x * padded + c) * out + o] = *weight;
                    }
                }
            }
            taps.push(across_by::<S>(Matrix::new(&matrix, columns * padded, out).into(), width, false, false));
        }
        Self { taps, size: [frames, rows] }
    }

    /// Bytes it holds.
    pub fn bytes(&self) -> usize {
        self.taps.iter().map(Panels::bytes).sum()
    }
}

/// One kernel of a convolution, and where it stands.
pub(crate) struct Phase<'a> {
    pub weights: &'a ConvWeights,
    /// The row and column of the packed frame that the kernel's first tap reads for the first output pixel; 1 is the
    /// frame's own first.
    pub origin: [usize; 2],
}

/// A convolution of up to three packed frames into one.
pub(crate) struct Convolution<'a> {
    /// One kernel; or four, of which number `2 a + b` makes the pixels at rows `2 i + a` and columns `2 j + b`.
    pub phases: &'a [Phase<'a>],
    /// A frame for each frame of the kernel, the oldest first; none: zeros.
    pub inputs: &'a [Option<&'a PackedFrame>],
    /// Input pixels from one output pixel of a phase to the next.
    pub stride: usize,
}

impl Convolution<'_> {
    /// `out += the convolution`, for `out` `[rows, width, channels]`.
    pub fn add_to<S: Simd>(&self, out: &mut [f32], [width, channels]: [usize; 2]) {
        let times = if self.phases.len() == 4 { 2 } else { 1 };
        let (rows, width) = (out.len() / (width * channels * times), width / times);
        // As many rows as fill a block share a pass over the weights, if there are tasks enough.
        let enough = rows.div_ceil(4 * rayon::current_num_threads()).max(1);
        let together = BLOCK.div_ceil(width).min(enough);
        out.par_chunks_mut(together * times * times * width * channels).enumerate().with_max_len(1).for_each(
            |(i, out)| {
                let task = Rows { of: self, out, first: i * together, width, channels, times };
                // SAFETY: this instruction set was chosen for this CPU.
                unsafe { S::run(task) }
            },
        );
    }
}

/// Some rows of output of each phase.
struct Rows<'a, 'b> {
    of: &'a Convolution<'b>,
    out: &'a mut [f32],
    first: usize,
    /// Pixels of a phase's row.
    width: usize,
    channels: usize,
    /// Rows and columns of output for one of a phase.
    times: usize,
}

impl Kernel for Rows<'_, '_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { of, out, first, width, channels, times } = self;
        let line = times * width * channels; // of output
        let rows = out.len() / (times * line);
        let mut edge: Option<Scratch> = None; // sums of blocks that are not whole tiles and vectors
        for (p, phase) in of.phases.iter().enumerate() {
            let start = p / times * line + p % times * channels;
            let columns = phase.weights.taps[0].width;
            for (panel, column) in (0..channels).step_by(columns).enumerate() {
                let count = columns.min(channels - column);
                // SAFETY: all blocks lie within the output; the packed frames have a border, and words beyond a row's
                // end for whole register tiles.
                unsafe {
                    let mut blocks = Vec::with_capacity(rows * width.div_ceil(BLOCK));
                    for (row, x) in (0..rows).flat_map(|row| (0..width).step_by(BLOCK).map(move |x| (row, x))) {
                        let pixels = BLOCK.min(width - x);
                        let at = start + row * times * line + x * times * channels + column;
                        blocks.push(Pixels { row, x, pixels, values: out[at..].as_mut_ptr() });
                    }
                    let edges = blocks.iter().filter(|block| !block.is_whole::<S>(count)).count();
                    let mut sums = match edges {
                        0 => std::ptr::null_mut(),
                        n => edge.insert(Scratch::take(n * BLOCK * columns)).floats().as_mut_ptr(),
                    };
                    let targets: Vec<Out> = blocks
                        .iter()
                        .map(|block| {
                            let rows = block.padded::<S>();
                            if block.is_whole::<S>(count) {
                                let (values, stride) = (block.values, times * channels);
                                return Out { values, stride, rows, width: count, add: true };
                            }
                            let target = Out { values: sums, stride: columns, rows, width: columns, add: true };
                            std::slice::from_raw_parts_mut(sums, rows * columns).fill(0.0);
                            block.copy(times * channels, count, target, true);
                            sums = sums.add(BLOCK * columns);
                            target
                        })
                        .collect();
                    phase.add_products::<S>(of, panel, first, &blocks, &targets);
                    for (block, target) in blocks.iter().zip(&targets).filter(|(block, _)| !block.is_whole::<S>(count))
                    {
                        block.copy(times * channels, count, *target, false);
                    }
                }
            }
        }
    }
}

impl Phase<'_> {
    /// Adds the products of all taps with panel `panel` of the weights: run by run of the weights, which stay in L1 for
    /// all blocks.
    ///
    /// # Safety
    /// The CPU has the features of `S`; blocks and targets belong to the convolution's output.
    #[inline(always)]
    unsafe fn add_products<S: Simd>(
        &self,
        of: &Convolution,
        panel: usize,
        first: usize,
        blocks: &[Pixels],
        targets: &[Out],
    ) {
        let [_, kernel_rows] = self.weights.size;
        for (tap, panels) in self.weights.taps.iter().enumerate() {
            let Some(input) = of.inputs[tap / kernel_rows] else { continue };
            let (width, words_of_panel) = (panels.width, panels.panel(panel));
            let most = words::<S>() / width;
            for step in (0..panels.steps).step_by(most) {
                let steps = most.min(panels.steps - step);
                let right = Right { words: words_of_panel[step * width..].as_ptr(), step: width, column_block: 0 };
                for (block, target) in blocks.iter().zip(targets) {
                    let row = (first + block.row) * of.stride + self.origin[0] + tap % kernel_rows;
                    debug_assert!(row < input.rows + 2);
                    let pixel = of.stride * input.pixel_words;
                    // SAFETY: the packed frame has this row, and its pitch has room for the last tile's pixels.
                    unsafe {
                        let words = input.at(row, block.x * of.stride + self.origin[1]).add(step);
                        let left = Left::<0> { words, tile: S::ROWS * pixel, row: pixel, step: 1 };
                        S::product(steps, left, right, *target);
                    }
                }
            }
        }
    }
}

/// A run of output pixels of one row and panel.
struct Pixels {
    row: usize,
    x: usize,
    pixels: usize,
    values: *mut f32,
}

impl Pixels {
    /// Pixels rounded up to what register tiles take.
    fn padded<S: Simd>(&self) -> usize {
        match self.pixels % S::ROWS {
            1..=4 if !S::MATRIX => self.pixels / S::ROWS * S::ROWS + 4,
            _ => self.pixels.next_multiple_of(S::ROWS),
        }
    }

    fn is_whole<S: Simd>(&self, count: usize) -> bool {
        self.padded::<S>() == self.pixels && count.is_multiple_of(S::LANES)
    }

    /// Copies `count` channels of each pixel, `stride` apart, into `target` or back.
    ///
    /// # Safety
    /// Both have room for the pixels.
    unsafe fn copy(&self, stride: usize, count: usize, target: Out, into: bool) {
        for i in 0..self.pixels {
            // SAFETY: the caller's promise.
            unsafe {
                let (values, sums) = (self.values.add(i * stride), target.values.add(i * target.stride));
                match into {
                    true => std::ptr::copy_nonoverlapping(values, sums, count),
                    false => std::ptr::copy_nonoverlapping(sums, values, count),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::packed_frame::Activation;
    use super::super::{Isa, round_to_bf16, with_isa};
    use super::*;

    /// Numbers in -1..1 that depend on `i` alone.
    fn value(i: usize) -> f32 {
        (i as u32).wrapping_mul(2_654_435_761) as f32 / (1u64 << 31) as f32 - 1.0
    }

    fn values(n: usize, from: usize) -> Vec<f32> {
        (0..n).map(|i| value(i + from)).collect()
    }

    /// Sizes of a convolution: rows, width and channels of the frames; channels, frames, rows and columns of the
    /// kernel.
    struct Case([usize; 3], [usize; 4], usize);

    /// The convolution by its definition, in f64, on top of 0.5.
    fn plain(case: &Case, frames: &[Option<Vec<f32>>], weights: &[f32], round: impl Fn(f32) -> f32) -> Vec<f64> {
        let &Case([rows, width, c], [out, kt, kh, kw], stride) = case;
        let [ry, rx] = [rows / stride, width / stride];
        let first = usize::from(stride == 2 || kh == 1); // of the border's rows that the first tap reads
        let mut sums = vec![0.5; ry * rx * out];
        for (i, sum) in sums.iter_mut().enumerate() {
            let (y, x, o) = (i / out / rx, i / out % rx, i % out);
            for (t, frame) in frames.iter().enumerate() {
                let Some(frame) = frame else { continue };
                for (dy, dx) in (0..kh).flat_map(|dy| (0..kw).map(move |dx| (dy, dx))) {
                    let (y, x) = ((y * stride + dy + first).wrapping_sub(1), (x * stride + dx + first).wrapping_sub(1));
                    if y >= rows || x >= width {
                        continue;
                    }
                    for c_in in 0..c {
                        let weight = weights[(((o * c + c_in) * kt + t) * kh + dy) * kw + dx];
                        *sum += f64::from(round(frame[(y * width + x) * c + c_in])) * f64::from(round(weight));
                    }
                }
            }
        }
        sums
    }

    fn fast<S: Simd>(case: &Case, frames: &[Option<Vec<f32>>], weights: &[f32]) -> Vec<f32> {
        let &Case([rows, width, c], [out, kt, kh, kw], stride) = case;
        let weights = ConvWeights::pack::<S>(weights, [out, c, kt, kh, kw]);
        let pack = |frame: &Vec<f32>| PackedFrame::pack::<S>(frame, [width, c], [None; 2], Activation::None);
        let packed: Vec<_> = frames.iter().map(|frame| frame.as_ref().map(pack)).collect();
        let inputs: Vec<_> = packed.iter().map(Option::as_ref).collect();
        let origin = [usize::from(stride == 2 || kh == 1); 2];
        let mut sums = vec![0.5; (rows / stride) * (width / stride) * out];
        let phases = &[Phase { weights: &weights, origin }];
        Convolution { phases, inputs: &inputs, stride }.add_to::<S>(&mut sums, [width / stride, out]);
        sums
    }

    #[test]
    fn convolution_agrees_with_its_definition_on_every_isa() {
        let cases = [
            Case([3, 5, 3], [7, 3, 3, 3], 1),     // nothing is whole
            Case([4, 200, 20], [24, 3, 3, 3], 1), // two blocks a row
            Case([5, 12, 70], [131, 1, 3, 3], 1), // several panels and runs of weights
            Case([6, 14, 33], [16, 1, 3, 3], 2),
            Case([2, 9, 40], [40, 3, 1, 1], 1),
        ];
        for case in &cases {
            let &Case([rows, width, c], [out, kt, kh, kw], _) = case;
            // The oldest frame is missing, as at a clip's start.
            let frames: Vec<_> =
                (0..kt).map(|t| (t > 0 || kt == 1).then(|| values(rows * width * c, 1000 * t))).collect();
            let weights = values(out * c * kt * kh * kw, 77);
            let bound = 1e-6 * (c * kt * kh * kw) as f64;
            let (exact, rounded) =
                (plain(case, &frames, &weights, |x| x), plain(case, &frames, &weights, round_to_bf16));
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
                let f32 = with_isa!(isa, false, S => fast::<S>(case, &frames, &weights));
                let bf16 = with_isa!(isa, true, S => fast::<S>(case, &frames, &weights));
                for (i, ((a, b), (c, d))) in f32.iter().zip(&exact).zip(bf16.iter().zip(&rounded)).enumerate() {
                    assert!((f64::from(*a) - b).abs() < bound, "{isa:?} f32, element {i}: {a}, not {b}");
                    assert!((f64::from(*c) - d).abs() < bound, "{isa:?} bf16, element {i}: {c}, not {d}");
                }
            }
        }
    }

    #[test]
    fn rows_of_neighbours_are_seen_as_rows_of_one_frame() {
        type S = super::super::portable::Portable<false>;
        let case = Case([6, 7, 5], [9, 1, 3, 3], 1);
        let (frame, weights) = (values(6 * 7 * 5, 3), values(9 * 5 * 9, 4));
        let whole = fast::<S>(&case, &[Some(frame.clone())], &weights);
        let packed_weights = ConvWeights::pack::<S>(&weights, [9, 5, 1, 3, 3]);
        let part = |rows: std::ops::Range<usize>| {
            let row = |i: usize| &frame[i * 35..][..35];
            let near = [(rows.start > 0).then(|| row(rows.start - 1)), (rows.end < 6).then(|| row(rows.end))];
            let values = &frame[rows.start * 35..rows.end * 35];
            let packed = PackedFrame::pack::<S>(values, [7, 5], near, Activation::None);
            let mut sums = vec![0.5; rows.len() * 7 * 9];
            let phases = &[Phase { weights: &packed_weights, origin: [0, 0] }];
            Convolution { phases, inputs: &[Some(&packed)], stride: 1 }.add_to::<S>(&mut sums, [7, 9]);
            sums
        };
        assert_eq!([part(0..2), part(2..3), part(3..6)].concat(), whole);
    }
}
