//! Matrix products by cuBLAS, which may add to what is there: weight gradients are summed where they are.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType,
};
use candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use candle_core::{CudaDevice, Error, Result};

/// A row-major matrix.
pub(crate) struct Matrix<'a> {
    pub values: CudaView<'a, f32>,
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

/// c `[m, n]` = a b, or c += a b if `add`, in f32; with `bf16` operands are rounded to bf16 and products summed in f32.
pub(crate) fn product(
    device: &CudaDevice,
    a: &Matrix,
    b: &Matrix,
    c: &mut CudaViewMut<'_, f32>,
    add: bool,
    bf16: bool,
) -> Result<()> {
    let ([m, k], [inner, n]) = (a.shape(), b.shape());
    if k != inner || m * n > c.len() || [m, n, k].iter().any(|&n| n > i32::MAX as usize) {
        return Err(Error::msg(format!("a product of {:?} and {:?} into {} numbers", a.shape(), b.shape(), c.len())));
    }
    let (alpha, beta) = (1f32, if add { 1f32 } else { 0f32 });
    let compute = match bf16 {
        true => cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_16BF,
        false => cublasComputeType_t::CUBLAS_COMPUTE_32F,
    };
    let (stream, blas) = (device.cuda_stream(), device.cublas_handle());
    let kind = cudaDataType::CUDA_R_32F;
    let (a_at, _a) = a.values.device_ptr(&stream);
    let (b_at, _b) = b.values.device_ptr(&stream);
    let (c_at, _c) = c.device_ptr_mut(&stream);
    // cuBLAS counts by columns, where a row-major matrix is its own transpose: cᵀ = bᵀ aᵀ.
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
            kind,
            n as i32,
            compute,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| Error::msg(format!("cuBLAS: a product of {:?} and {:?}: {e}", a.shape(), b.shape())))
}
