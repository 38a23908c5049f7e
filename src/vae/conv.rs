//! The VAE's convolutions: causal in time with the frames they remember, plain ones over one frame, and the doubling of
//! a frame's sides.

use std::sync::Arc;

use super::backend::Backend;
use super::frame::Frame;
use super::shards::RowShards;
use crate::Result;
use crate::simd::Isa;

/// What a VAE's products are computed with.
#[derive(Clone, Copy, Debug)]
pub struct Arithmetic {
    /// The instruction set, on a CPU.
    pub isa: Isa,
    /// Round operands of products to bf16; sums, norms and residuals stay f32.
    pub bf16: bool,
}

/// A convolution of up to three packed frames into one.
pub(super) struct Taps<'a, B: Backend> {
    /// One kernel's weights; or four, of which number `2 a + b` makes the pixels at rows `2 i + a` and columns
    /// `2 j + b`. Beside them the row and column of the packed frame that the kernel's first tap reads for the first
    /// output pixel; 1 is the frame's own first.
    pub phases: &'a [(&'a B::Weights, [usize; 2])],
    /// A frame for each frame of the kernel, the oldest first; none: zeros.
    pub inputs: &'a [Option<&'a B::Packed>],
    /// Input pixels from one output pixel of a phase to the next.
    pub stride: usize,
}

/// A convolution's weights and its bias.
pub(super) struct Kernel<B: Backend> {
    on: B,
    weights: B::Weights,
    /// Of each output channel.
    bias: B::Row,
    out: usize,
}

impl<B: Backend> Kernel<B> {
    /// Of `weights` `[out, channels, frames, rows, columns]`.
    pub fn new(on: &B, weights: &[f32], shape: [usize; 5], bias: Vec<f32>) -> Result<Self> {
        Ok(Self { on: on.clone(), weights: on.weights(weights, shape)?, bias: on.row(bias)?, out: shape[0] })
    }

    /// `out += the convolution of inputs`, the bias apart.
    fn add_to(
        &self,
        inputs: &[Option<&B::Packed>],
        origin: [usize; 2],
        stride: usize,
        out: &mut Frame<B::Values>,
    ) -> Result<()> {
        self.on.convolve(&Taps { phases: &[(&self.weights, origin)], inputs, stride }, out)
    }

    pub fn bytes(&self) -> usize {
        B::bytes_of_weights(&self.weights)
    }
}

/// A 3 x 3 x 3 convolution that sees this frame and the two before it, which are zeros at the clip's start; before it,
/// where `norm` is given, norm and SiLU.
#[derive(Clone)]
pub(super) struct CausalConv<B: Backend> {
    kernel: Arc<Kernel<B>>,
    norm: Option<B::Row>,
    /// The last two frames, packed, the older first.
    last: [Option<B::Packed>; 2],
}

impl<B: Backend> CausalConv<B> {
    pub fn new(kernel: Kernel<B>, norm: Option<B::Row>) -> Self {
        Self { kernel: Arc::new(kernel), norm, last: [None, None] }
    }

    /// The next frame's output.
    pub fn push(&mut self, x: &Frame<B::Values>, shards: &dyn RowShards) -> Result<Frame<B::Values>> {
        let Kernel { on, bias, out, .. } = &*self.kernel;
        let out = x.filled(on, bias, *out)?;
        self.convolve(x, out, shards)
    }

    /// The next frame's output added to `out`.
    pub fn push_onto(
        &mut self,
        x: &Frame<B::Values>,
        mut out: Frame<B::Values>,
        shards: &dyn RowShards,
    ) -> Result<Frame<B::Values>> {
        self.kernel.on.add_row(&mut out, &self.kernel.bias)?;
        self.convolve(x, out, shards)
    }

    fn convolve(
        &mut self,
        x: &Frame<B::Values>,
        mut out: Frame<B::Values>,
        shards: &dyn RowShards,
    ) -> Result<Frame<B::Values>> {
        let now = self.kernel.on.pack(x, self.norm.as_ref(), Some(shards))?;
        let [older, old] = self.last.each_ref().map(Option::as_ref);
        self.kernel.add_to(&[older, old, Some(&now)], [0, 0], 1, &mut out)?;
        self.last = [self.last[1].take(), Some(now)];
        Ok(out)
    }

    /// What computes it.
    pub fn on(&self) -> &B {
        &self.kernel.on
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        [self.kernel.bytes(), self.last.iter().flatten().map(B::bytes_of_packed).sum()]
    }
}

/// A 3 x 3 convolution of one frame that halves its sides: output pixel i sees pixels 2i, 2i + 1 and 2i + 2, zeros
/// beyond the last.
#[derive(Clone)]
pub(super) struct Halve<B: Backend>(Arc<Kernel<B>>);

impl<B: Backend> Halve<B> {
    pub fn new(kernel: Kernel<B>) -> Self {
        Self(Arc::new(kernel))
    }

    pub fn push(&self, x: Frame<B::Values>, shards: &dyn RowShards) -> Result<Frame<B::Values>> {
        let Kernel { on, bias, out, .. } = &*self.0;
        let odd = x.origin.map(|at| at % 2);
        let x = x.trimmed(on, [odd[0], 0, odd[1], 0])?;
        let packed = on.pack(&x, None, Some(shards))?;
        let (rows, width) = (x.rows / 2, x.width / 2);
        // The last of an even number of pixels sees one beyond it.
        let [below, right] = [x.rows, x.width].map(|n| usize::from(n % 2 == 0));
        let mut y = x.rescaled(|at| at / 2, [rows, width, *out], on.repeat(bias, rows * width)?);
        drop(x);
        self.0.add_to(&[Some(&packed)], [1, 1], 2, &mut y)?;
        y.trimmed(on, [0, below, 0, right])
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// Every pixel doubled in both directions, then a 3 x 3 convolution: as four convolutions of 2 x 2 over the frame as it
/// was, one for each place in a doubled pixel, whose weights are sums of the 3 x 3.
#[derive(Clone)]
pub(super) struct Double<B: Backend>(Arc<[Kernel<B>; 4]>);

impl<B: Backend> Double<B> {
    /// Of `weights` `[out, channels, 3, 3]`.
    pub fn new(on: &B, weights: &[f32], [out, channels]: [usize; 2], bias: Vec<f32>) -> Result<Self> {
        let kernel = |phase: usize| {
            // Taps 0, 1, 2 of the doubled frame fall on these of two neighbouring pixels.
            let place = |odd: usize, tap: usize| if odd == 0 { tap.div_ceil(2) } else { tap / 2 };
            let mut summed = vec![0f32; out * channels * 4];
            for (to, from) in summed.chunks_exact_mut(4).zip(weights.chunks_exact(9)) {
                for (tap, weight) in from.iter().enumerate() {
                    to[2 * place(phase / 2, tap / 3) + place(phase % 2, tap % 3)] += weight;
                }
            }
            Kernel::new(on, &summed, [out, channels, 1, 2, 2], bias.clone())
        };
        Ok(Self(Arc::new([kernel(0)?, kernel(1)?, kernel(2)?, kernel(3)?])))
    }

    pub fn push(&self, x: Frame<B::Values>, shards: &dyn RowShards) -> Result<Frame<B::Values>> {
        let Kernel { on, bias, out, .. } = &self.0[0];
        let packed = on.pack(&x, None, Some(shards))?;
        let (rows, width) = (2 * x.rows, 2 * x.width);
        let mut y = x.rescaled(|at| 2 * at, [rows, width, *out], on.repeat(bias, rows * width)?);
        drop(x);
        let phases: Vec<_> = self.0.iter().enumerate().map(|(i, kernel)| (&kernel.weights, [i / 2, i % 2])).collect();
        on.convolve(&Taps { phases: &phases, inputs: &[Some(&packed)], stride: 1 }, &mut y)?;
        y.trimmed(on, [1; 4])
    }

    pub fn bytes(&self) -> usize {
        self.0.iter().map(Kernel::bytes).sum()
    }
}

/// A convolution over three frames, pixel by pixel.
#[derive(Clone)]
pub(super) struct TimeConv<B: Backend>(Arc<Kernel<B>>);

impl<B: Backend> TimeConv<B> {
    pub fn new(kernel: Kernel<B>) -> Self {
        Self(Arc::new(kernel))
    }

    pub fn pack(&self, x: &Frame<B::Values>) -> Result<B::Packed> {
        self.0.on.pack(x, None, None)
    }

    /// Of three packed frames, of which `like` tells the size; none: zeros.
    pub fn run(&self, inputs: [Option<&B::Packed>; 3], like: &Frame<B::Values>) -> Result<Frame<B::Values>> {
        let Kernel { on, bias, out, .. } = &*self.0;
        let mut out = like.filled(on, bias, *out)?;
        self.0.add_to(&inputs, [1, 1], 1, &mut out)?;
        Ok(out)
    }

    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A product of each pixel with a matrix: a convolution of one frame, row and column.
#[derive(Clone)]
pub(super) struct Pointwise<B: Backend>(Arc<Matrix<B>>);

struct Matrix<B: Backend> {
    on: B,
    weights: B::Matrix,
    bias: B::Row,
    out: usize,
}

impl<B: Backend> Pointwise<B> {
    /// Of `weights` `[out, channels]`.
    pub fn new(on: &B, weights: Vec<f32>, bias: Vec<f32>) -> Result<Self> {
        let out = bias.len();
        let channels = weights.len() / out;
        let weights = on.matrix(weights, [out, channels])?;
        Ok(Self(Arc::new(Matrix { on: on.clone(), weights, bias: on.row(bias)?, out })))
    }

    pub fn push(&self, x: &Frame<B::Values>) -> Result<Frame<B::Values>> {
        let Matrix { on, weights, bias, out } = &*self.0;
        Ok(x.with(*out, on.multiply(x, weights, bias)?))
    }

    pub fn bytes(&self) -> usize {
        B::bytes_of_matrix(&self.0.weights)
    }
}
