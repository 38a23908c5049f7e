//! Our CUDA kernels as Candle's GPUs run them: embedded, loaded once a device, launched by name, on tensors.
//!
//! What a kernel computes is said in kernels/, and which op launches which one in the op. **Nothing here has run on a GPU yet.**

mod modules;
mod tensor;

pub(crate) use modules::Kernel;
pub(crate) use tensor::{Held, device_of, empty, tensor};
