//! Defines differentiable fused ops, the [`Param`]s that hold their weights, and the [`Tape`] that differentiates them.
//!
//! A tape lives for one tile of tokens. The ops here are Candle custom ops written once for f32 and f64. An op that
//! owns a weight adds the weight's gradient straight into the [`Param`]'s buffer during backward and returns only the
//! gradient of its activation; so no tape holds a parameter, and none outlives a tile. Each op stands beside a form
//! made of Candle's own differentiable ops in [`plain`], against which the tests compare it.
//!
//! Nothing here knows of ranks, models or files.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use longreel::ops::{Tape, silu};
//!
//! let x = Tensor::new(&[[-1f32, 0.0, 2.0]], &Device::Cpu)?;
//! let tape = Tape::recording();
//! let y = silu(&tape, &x)?;
//! let gradients = tape.backward(&[(&y, &y.ones_like()?)], &[&x])?;
//! assert_eq!(gradients[0].to_vec2::<f32>()?[0][1], 0.5); // silu'(0)
//! # Ok::<(), longreel::Error>(())
//! ```

#![warn(missing_docs)]

pub(crate) mod bytes;
mod cast;
mod compute;
#[cfg(feature = "cuda")]
mod cuda;
mod custom;
mod dropout;
mod elementwise;
mod gelu;
mod gemm;
mod linear;
mod low_rank;
mod math;
mod norm;
mod packed;
mod param;
pub mod plain;
pub(crate) mod products;
mod release;
mod residual;
mod rope;
mod softmax;
mod tape;

/// An [`Op1`]'s passes on a GPU, by its own `on_gpu(x)` and `back_on_gpu(x, dy)`; an `Op2`'s by `on_gpu(a, b)` and
/// `back_on_gpu(b, dy)`.
macro_rules! on_gpu {
    (two) => {
        #[cfg(feature = "cuda")]
        fn gpu_forward(
            &self,
            a: crate::ops::cuda::Array,
            b: crate::ops::cuda::Array,
        ) -> Result<crate::ops::cuda::Numbers> {
            self.on_gpu(a, b)
        }

        #[cfg(feature = "cuda")]
        fn gpu_backward(
            &self,
            _: crate::ops::cuda::Array,
            b: crate::ops::cuda::Array,
            dy: crate::ops::cuda::Array,
        ) -> Result<[Option<crate::ops::cuda::Numbers>; 2]> {
            self.back_on_gpu(b, dy)
        }
    };
    () => {
        #[cfg(feature = "cuda")]
        fn gpu_forward(&self, x: crate::ops::cuda::Array) -> Result<crate::ops::cuda::Numbers> {
            self.on_gpu(x)
        }

        #[cfg(feature = "cuda")]
        fn gpu_backward(
            &self,
            x: crate::ops::cuda::Array,
            _: crate::ops::cuda::Array,
            dy: crate::ops::cuda::Array,
        ) -> Result<crate::ops::cuda::Numbers> {
            self.back_on_gpu(x, dy)
        }
    };
}
use on_gpu;

pub use cast::cast;
pub use compute::{Compute, Hardware};
#[cfg(feature = "cuda")]
pub(crate) use cuda::{Array, Numbers, numbers};
pub(crate) use custom::{Custom, Op1};
pub use custom::{Element, Values, read, write};
pub use dropout::{Draws, Dropout, Input};
pub(crate) use elementwise::add_into;
pub use elementwise::{add, add_assign, clear, row_dot, silu, sum_columns};
pub(crate) use gelu::gelu;
pub use linear::Linear;
pub use low_rank::LowRank;
pub use math::Real;
pub use norm::{Affine, layer_norm, rms_norm, rms_rope};
pub use packed::PackedGuard;
pub use param::Param;
#[cfg(feature = "media")]
pub(crate) use products::packed_words;
pub use release::{release, restore, storage_bytes};
pub use rope::Rope;
pub(crate) use softmax::softmax;
pub use tape::Tape;

/// Which sample a tile's rows belong to: row i of the tile is row `start + i` of `[B, tokens]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// The tile's first row in the flattened `[B, tokens]`.
    pub start: usize,
    /// Tokens of each sample on this rank.
    pub tokens: usize,
}

impl Rows {
    /// The runs of rows of one sample each: (sample, first row in the tile, rows), cut so that none is longer than
    /// `most`.
    pub fn runs(&self, rows: usize, most: usize) -> Vec<(usize, usize, usize)> {
        let (mut runs, mut row) = (vec![], 0);
        while row < rows {
            let global = self.start + row;
            let left = self.tokens - global % self.tokens; // rows of this sample still to come
            let count = left.min(rows - row).min(most);
            runs.push((global / self.tokens, row, count));
            row += count;
        }
        runs
    }
}
