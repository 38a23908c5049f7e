//! Our CUDA kernels as Candle's GPUs run them: embedded, loaded once a device, launched by name, on tensors.
//!
//! What a kernel computes is said in kernels/, and which op launches which one in the op. **Nothing here has run on a
//! GPU yet.**

mod add;
mod bandwidth;
mod cast;
mod chacha;
mod check;
mod device;
mod errors;
mod gemm;
mod memory;
mod modules;
mod rows;
mod tensor;

pub(crate) use add::add_assign;
pub(crate) use bandwidth::copies_per_second;
pub(crate) use cast::{cast, to_bf16, to_f32};
pub(crate) use chacha::KeyWords;
pub(crate) use device::{before_start, count, open};
pub(crate) use errors::meaning;
pub(crate) use gemm::{Elements, Matrix, product, scaled_product};
pub(crate) use memory::{Memory, empty};
pub(crate) use modules::Kernel;
pub(crate) use rows::{PerSample, RUN, Reading, Sum, THREADS, TileRows, sum_runs};
pub(crate) use tensor::{Lent, change, change_as, clear, device_of, ones, tensor};
