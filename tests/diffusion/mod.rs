//! The diffusion room: noise and losses, sigmas, samplers.

mod flows;
mod guidance;
mod objective;
mod orders;
mod samplers;
mod schedule;
mod schedulers;
mod tiled;

use candle_core::{Device, Tensor};

/// The numbers of an f64 or f32 tensor, as f64.
fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_dtype(candle_core::DType::F64).unwrap().to_vec1().unwrap()
}

/// A 1-D f64 tensor.
fn tensor(values: &[f64]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}
