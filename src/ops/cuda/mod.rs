//! The ops on a GPU: their kernels and products, and the way of small ones past the GPU. What an op computes is said
//! beside its form for the CPU, which this is the counterpart of, in f32 only.

mod linear;
mod low_rank;
mod norm;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaDevice, CudaStorage, Layout, Result, Tensor, bail};
use half::bf16;

use crate::cuda::{Lent, tensor, to_bf16};

/// What an op on a GPU makes.
pub(crate) type Numbers = CudaSlice<f32>;

/// A contiguous array of f32 on a GPU.
#[derive(Clone, Copy)]
pub(crate) struct Array<'a> {
    storage: &'a CudaStorage,
    layout: &'a Layout,
}

impl<'a> Array<'a> {
    pub fn new(storage: &'a CudaStorage, layout: &'a Layout, name: &str) -> Result<Self> {
        if !layout.is_contiguous() {
            bail!("{name}: the tensor is not contiguous")
        }
        storage.as_cuda_slice::<f32>()?; // checks the dtype
        Ok(Self { storage, layout })
    }

    pub fn dims(&self) -> Vec<usize> {
        self.layout.dims().to_vec()
    }

    /// `[rows, width]`
    pub fn rows(&self) -> Result<[usize; 2]> {
        let (rows, width) = self.layout.shape().dims2()?;
        Ok([rows, width])
    }

    pub fn view(&self) -> Result<CudaView<'a, f32>> {
        let start = self.layout.start_offset();
        Ok(self.storage.as_cuda_slice::<f32>()?.slice(start..start + self.layout.shape().elem_count()))
    }

    pub fn device(&self) -> &'a CudaDevice {
        &self.storage.device
    }

    /// The elements, on the CPU.
    pub fn to_host(self) -> Result<Vec<f32>> {
        self.device().clone_dtoh(&self.view()?)
    }

    /// The elements rounded to bf16, to the nearest.
    pub fn to_bf16(self) -> Result<CudaSlice<bf16>> {
        to_bf16(self.device(), &self.view()?)
    }

    /// Elements as a tensor of this one's shape.
    pub fn tensor(self, values: Numbers) -> Tensor {
        tensor(values, self.dims(), self.device())
    }

    /// A copy.
    pub fn copy(self) -> Result<Numbers> {
        let mut copy = crate::cuda::empty::<f32>(self.device(), self.layout.shape().elem_count())?;
        self.device().memcpy_dtod(&self.view()?, &mut copy)?;
        Ok(copy)
    }
}

impl Lent<'_> {
    /// As an array for an op of this name.
    pub(super) fn array(&self, name: &str) -> Result<Array<'_>> {
        Array::new(self.storage()?, self.layout(), name)
    }
}

/// A copy of a tensor's elements.
pub(crate) fn numbers(x: &Tensor) -> Result<Numbers> {
    Lent::new(x).array("numbers")?.copy()
}

/// An op of one array on the CPU: for the few elements of conditions.
pub(super) fn host1(x: Array, op: impl FnOnce(&[f32], &[usize]) -> Result<Vec<f32>>) -> Result<Numbers> {
    x.device().clone_htod(&op(&x.to_host()?, &x.dims())?)
}

/// An op of two arrays on the CPU.
pub(super) fn host2(
    a: Array,
    b: Array,
    op: impl FnOnce([&[f32]; 2], [&[usize]; 2]) -> Result<Vec<f32>>,
) -> Result<Numbers> {
    a.device().clone_htod(&op([&a.to_host()?, &b.to_host()?], [&a.dims(), &b.dims()])?)
}
