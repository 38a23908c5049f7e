//! The VAE's convolutions: causal in time with the frames they remember, plain ones over one frame, and the doubling of
//! a frame's sides.

use std::sync::Arc;

use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;
use crate::ops::products::{Packed, Products, WeightMatrix, WeightValues};
use crate::simd::conv::{ConvWeights, Convolution, Phase};
use crate::simd::packed_frame::{Activation, PackedFrame};
use crate::simd::{Isa, with_isa};

/// What a VAE's products are computed with.
#[derive(Clone, Copy, Debug)]
pub struct Arithmetic {
    /// The instruction set.
    pub isa: Isa,
    /// Round operands of products to bf16; sums, norms and residuals stay f32.
    pub bf16: bool,
}

macro_rules! on_isa {
    ($arithmetic:expr, $S:ident => $body:expr) => {
        if $arithmetic.bf16 {
            with_isa!($arithmetic.isa, true, $S => $body)
        } else {
            with_isa!($arithmetic.isa, false, $S => $body)
        }
    };
}

/// A convolution's packed weights and its bias.
pub(super) struct Kernel {
    arithmetic: Arithmetic,
    weights: ConvWeights,
    /// Of each output channel.
    pub bias: Vec<f32>,
}

impl Kernel {
    /// Of `weights` `[out, channels, frames, rows, columns]`.
    pub fn new(arithmetic: Arithmetic, weights: &[f32], shape: [usize; 5], bias: Vec<f32>) -> Self {
        let weights = on_isa!(arithmetic, S => ConvWeights::pack::<S>(weights, shape));
        Self { arithmetic, weights, bias }
    }

    /// Packs a frame for this kernel; `near`: with the rows beyond it.
    pub fn pack(&self, x: &Frame, norm: Option<&[f32]>, near: Option<&dyn RowShards>) -> Result<PackedFrame> {
        let neighbours = near.map_or(Ok([None, None]), |shards| shards.neighbours(x))?;
        let neighbours = [0, 1].map(|side| neighbours[side].as_deref());
        let activation = norm.map_or(Activation::None, Activation::NormSilu);
        let shape = [x.width, x.channels];
        Ok(on_isa!(self.arithmetic, S => PackedFrame::pack::<S>(&x.values, shape, neighbours, activation)))
    }

    /// `out += the convolution of inputs`, the bias apart.
    fn add_to(&self, inputs: &[Option<&PackedFrame>], origin: [usize; 2], stride: usize, out: &mut Frame) {
        let phases = &[Phase { weights: &self.weights, origin }];
        run(self.arithmetic, &Convolution { phases, inputs, stride }, out);
    }

    pub fn bytes(&self) -> usize {
        self.weights.bytes()
    }
}

fn run(arithmetic: Arithmetic, convolution: &Convolution, out: &mut Frame) {
    let shape = [out.width, out.channels];
    on_isa!(arithmetic, S => convolution.add_to::<S>(&mut out.values, shape));
}

/// A 3 x 3 x 3 convolution that sees this frame and the two before it, which are zeros at the clip's start; before it,
/// where `norm` is given, norm and SiLU.
#[derive(Clone)]
pub(super) struct CausalConv {
    kernel: Arc<Kernel>,
    norm: Option<Arc<Vec<f32>>>,
    /// The last two frames, packed, the older first.
    last: [Option<Arc<PackedFrame>>; 2],
}

impl CausalConv {
    pub fn new(kernel: Kernel, norm: Option<Vec<f32>>) -> Self {
        Self { kernel: Arc::new(kernel), norm: norm.map(Arc::new), last: [None, None] }
    }

    /// The next frame's output.
    pub fn push(&mut self, x: &Frame, shards: &dyn RowShards) -> Result<Frame> {
        let out = x.filled(&self.kernel.bias);
        self.convolve(x, out, shards)
    }

    /// The next frame's output added to `out`.
    pub fn push_onto(&mut self, x: &Frame, mut out: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let bias = &self.kernel.bias;
        out.values.chunks_exact_mut(bias.len()).for_each(|pixel| pixel.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        self.convolve(x, out, shards)
    }

    fn convolve(&mut self, x: &Frame, mut out: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let norm = self.norm.as_ref().map(|norm| norm.as_slice());
        let now = Arc::new(self.kernel.pack(x, norm, Some(shards))?);
        let [older, old] = self.last.each_ref().map(Option::as_deref);
        self.kernel.add_to(&[older, old, Some(&now)], [0, 0], 1, &mut out);
        self.last = [self.last[1].take(), Some(now)];
        Ok(out)
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        [self.kernel.bytes(), self.last.iter().flatten().map(|frame| frame.bytes()).sum()]
    }
}

/// A 3 x 3 convolution of one frame that halves its sides: output pixel i sees pixels 2i, 2i + 1 and 2i + 2, zeros
/// beyond the last.
#[derive(Clone)]
pub(super) struct Halve(Arc<Kernel>);

impl Halve {
    pub fn new(kernel: Kernel) -> Self {
        Self(Arc::new(kernel))
    }

    pub fn push(&self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let odd = x.origin.map(|at| at % 2);
        let x = x.trimmed([odd[0], 0, odd[1], 0]);
        let packed = self.0.pack(&x, None, Some(shards))?;
        let (rows, width, bias) = (x.rows / 2, x.width / 2, &self.0.bias);
        // The last of an even number of pixels sees one beyond it.
        let [below, right] = [x.rows, x.width].map(|n| usize::from(n % 2 == 0));
        let mut out = x.rescaled(|at| at / 2, [rows, width, bias.len()], bias.repeat(rows * width));
        drop(x);
        self.0.add_to(&[Some(&packed)], [1, 1], 2, &mut out);
        Ok(out.trimmed([0, below, 0, right]))
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// Every pixel doubled in both directions, then a 3 x 3 convolution: as four convolutions of 2 x 2 over the frame as it
/// was, one for each place in a doubled pixel, whose weights are sums of the 3 x 3.
#[derive(Clone)]
pub(super) struct Double(Arc<[Kernel; 4]>);

impl Double {
    /// Of `weights` `[out, channels, 3, 3]`.
    pub fn new(arithmetic: Arithmetic, weights: &[f32], [out, channels]: [usize; 2], bias: Vec<f32>) -> Self {
        let kernel = |phase: usize| {
            // Taps 0, 1, 2 of the doubled frame fall on these of two neighbouring pixels.
            let place = |odd: usize, tap: usize| if odd == 0 { tap.div_ceil(2) } else { tap / 2 };
            let mut summed = vec![0f32; out * channels * 4];
            for (to, from) in summed.chunks_exact_mut(4).zip(weights.chunks_exact(9)) {
                for (tap, weight) in from.iter().enumerate() {
                    to[2 * place(phase / 2, tap / 3) + place(phase % 2, tap % 3)] += weight;
                }
            }
            Kernel::new(arithmetic, &summed, [out, channels, 1, 2, 2], bias.clone())
        };
        Self(Arc::new(std::array::from_fn(kernel)))
    }

    pub fn push(&self, x: Frame, shards: &dyn RowShards) -> Result<Frame> {
        let first = &self.0[0];
        let packed = first.pack(&x, None, Some(shards))?;
        let (rows, width) = (2 * x.rows, 2 * x.width);
        let mut out = x.rescaled(|at| 2 * at, [rows, width, first.bias.len()], first.bias.repeat(rows * width));
        drop(x);
        let phases: Vec<Phase> = self.0.iter().enumerate().map(|(i, kernel)| kernel.phase([i / 2, i % 2])).collect();
        let convolution = Convolution { phases: &phases, inputs: &[Some(&packed)], stride: 1 };
        run(first.arithmetic, &convolution, &mut out);
        Ok(out.trimmed([1; 4]))
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().map(Kernel::bytes).sum()
    }
}

impl Kernel {
    fn phase(&self, origin: [usize; 2]) -> Phase<'_> {
        Phase { weights: &self.weights, origin }
    }
}

/// A convolution over three frames, pixel by pixel.
#[derive(Clone)]
pub(super) struct TimeConv(Arc<Kernel>);

impl TimeConv {
    pub fn new(kernel: Kernel) -> Self {
        Self(Arc::new(kernel))
    }

    pub fn pack(&self, x: &Frame) -> Result<Arc<PackedFrame>> {
        Ok(Arc::new(self.0.pack(x, None, None)?))
    }

    /// Of three packed frames, of which `like` tells the size; none: zeros.
    pub fn run(&self, inputs: [Option<&PackedFrame>; 3], like: &Frame) -> Frame {
        let mut out = like.filled(&self.0.bias);
        self.0.add_to(&inputs, [1, 1], 1, &mut out);
        out
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A product of each pixel with a matrix: a convolution of one frame, row and column.
#[derive(Clone)]
pub(super) struct Pointwise(Arc<Matrix>);

struct Matrix {
    arithmetic: Arithmetic,
    weights: Vec<f32>,
    bias: Vec<f32>,
    packed: Packed,
}

impl Pointwise {
    /// Of `weights` `[out, channels]`.
    pub fn new(arithmetic: Arithmetic, weights: Vec<f32>, bias: Vec<f32>) -> Self {
        Self(Arc::new(Matrix { arithmetic, weights, bias, packed: Packed::default() }))
    }

    pub fn push(&self, x: &Frame) -> Frame {
        let Matrix { arithmetic, weights, bias, packed } = &*self.0;
        let matrix = WeightMatrix {
            values: WeightValues::Same(weights),
            out: bias.len(),
            inner: x.channels,
            isa: arithmetic.isa,
            bf16: arithmetic.bf16,
            packed,
        };
        let [values, _] = f32::forward(&matrix, &x.values, x.rows * x.width, false, &Bias(bias));
        x.with(bias.len(), values)
    }

    pub fn bytes(&self) -> usize {
        4 * self.0.weights.len()
    }
}

/// Adds a column's bias.
struct Bias<'a>(&'a [f32]);

impl crate::simd::product::Epilogue<f32> for Bias<'_> {
    #[inline(always)]
    fn apply(&self, out: &mut [f32], _: &mut [f32], _: usize, column: usize) {
        out.iter_mut().zip(&self.0[column..]).for_each(|(x, b)| *x += b);
    }
}
