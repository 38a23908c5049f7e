//! Matrix products by cuBLAS, which may add to what is there: weight gradients are summed where they are.
//!
//! Results and sums are f32. Operands are f32 or bf16, both of one kind, and are never rounded on the way: cuBLAS may
//! do that or not with f32 operands (`CUBLAS_COMPUTE_32F_FAST_16BF`, `NVIDIA_TF32_OVERRIDE`), by shape and alignment,
//! so that the last, shorter tile of a layer would be computed otherwise than the rest. Hence bf16 operands are bf16 in
//! memory, and f32 ones go by the pedantic compute type, which nothing in the environment changes.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType,
};
use candle_core::cuda_backend::cudarc::driver::{
    CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop,
};
use candle_core::{CudaDevice, Error, Result};
use half::bf16;

use super::check::checked;

/// The elements of an operand.
pub(crate) enum Elements<'a> {
    F32(CudaView<'a, f32>),
    Bf16(CudaView<'a, bf16>),
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(view) => view.len(),
            Self::Bf16(view) => view.len(),
        }
    }

    fn kind(&self) -> cudaDataType {
        match self {
            Self::F32(_) => cudaDataType::CUDA_R_32F,
            Self::Bf16(_) => cudaDataType::CUDA_R_16BF,
        }
    }

    fn address<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        match self {
            Self::F32(view) => view.device_ptr(stream),
            Self::Bf16(view) => view.device_ptr(stream),
        }
    }
}

/// A row-major matrix.
pub(crate) struct Matrix<'a> {
    pub values: Elements<'a>,
    pub rows: usize,
    pub columns: usize,
    /// To be taken as its transpose.
    pub transposed: bool,
}

impl Matrix<'_> {
    fn shape(&self) -> [usize; 2] {
        if self.transposed { [self.columns, self.rows] } else { [self.rows, self.columns] }
    }

    fn operation(&self) -> cublasOperation_t {
        if self.transposed { cublasOperation_t::CUBLAS_OP_T } else { cublasOperation_t::CUBLAS_OP_N }
    }
}

/// c `[m, n]` = a b, or c += a b if `add`.
pub(crate) fn product(
    device: &CudaDevice,
    a: &Matrix,
    b: &Matrix,
    c: &mut CudaViewMut<'_, f32>,
    add: bool,
) -> Result<()> {
    scaled_product(device, a, b, c, 1.0, add)
}

/// c `[m, n]` = `alpha` a b, or c += `alpha` a b if `add`.
pub(crate) fn scaled_product(
    device: &CudaDevice,
    a: &Matrix,
    b: &Matrix,
    c: &mut CudaViewMut<'_, f32>,
    alpha: f32,
    add: bool,
) -> Result<()> {
    let ([m, k], [inner, n]) = (a.shape(), b.shape());
    let room = a.values.len() >= m * k && b.values.len() >= k * n && c.len() >= m * n;
    if k != inner || !room || a.values.kind() != b.values.kind() || [m, n, k].iter().any(|&n| n > i32::MAX as usize) {
        return Err(Error::msg(format!("a product of {:?} and {:?} into {} elements", a.shape(), b.shape(), c.len())));
    }
    let beta = if add { 1f32 } else { 0f32 };
    let kind = a.values.kind();
    let compute = match a.values {
        Elements::F32(_) => cublasComputeType_t::CUBLAS_COMPUTE_32F_PEDANTIC,
        Elements::Bf16(_) => cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let (stream, blas) = (device.cuda_stream(), device.cublas_handle());
    let (a_at, _a) = a.values.address(&stream);
    let (b_at, _b) = b.values.address(&stream);
    let (c_at, _c) = c.device_ptr_mut(&stream);
    let what = format_args!("a product of {:?} and {:?} in {kind:?} by cuBLAS", a.shape(), b.shape());
    // cuBLAS counts by columns, where a row-major matrix is its own transpose: cᵀ = bᵀ aᵀ.
    checked(&stream, what, || {
        // SAFETY: the matrices have the sizes that were checked, and are held; the handle is that of this stream.
        unsafe {
            gemm_ex(
                *blas.handle(),
                b.operation(),
                a.operation(),
                n as i32,
                m as i32,
                k as i32,
                (&raw const alpha).cast::<c_void>(),
                b_at as *const c_void,
                kind,
                b.columns as i32,
                a_at as *const c_void,
                kind,
                a.columns as i32,
                (&raw const beta).cast::<c_void>(),
                c_at as *mut c_void,
                cudaDataType::CUDA_R_32F,
                n as i32,
                compute,
                cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| Error::msg(format!("{what} failed: {e:?}")))
    })
}
