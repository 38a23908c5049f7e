//! Casts between f32 and bf16, threaded, vectorised and differentiable: the gradient is cast back.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use multiversion::multiversion;
use rayon::prelude::*;

use super::Tape;
use super::custom::contiguous;
use crate::simd::uninit_vec::UninitVec;
use crate::simd::{narrowed, widened};

const CHUNK: usize = 1 << 14;

/// `x` in `dtype`; itself where it is so already. bf16 is the nearest, ties to even.
pub fn cast(tape: &Tape, x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { tape.one(x, Cast(dtype)) }
}

struct Cast(DType);

impl CustomOp1 for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let storage = match (storage, self.0) {
            (CpuStorage::F32(x), DType::BF16) => {
                let x = contiguous(x, layout, "cast")?;
                let mut y = UninitVec::new(x.len());
                y.chunks(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| narrow(y.filled(bf16::ZERO), x));
                CpuStorage::BF16(y.into_vec())
            }
            (CpuStorage::BF16(x), DType::F32) => CpuStorage::F32(to_f32(contiguous(x, layout, "cast")?)),
            (x, to) => bail!("cast: between f32 and bf16 only, not from {:?} to {to:?}", x.dtype()),
        };
        Ok((storage, Shape::from(layout.dims())))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((crate::cuda::cast(storage, layout, self.0)?, Shape::from(layout.dims())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(cast(&Tape::off(), &dy.contiguous()?, x.dtype())?))
    }
}

/// `x` as f32, threaded.
pub(super) fn to_f32(x: &[bf16]) -> Vec<f32> {
    let mut y = UninitVec::new(x.len());
    y.chunks(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| widen(y.filled(0.0), x));
    y.into_vec()
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn narrow(y: &mut [bf16], x: &[f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = narrowed(x));
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn widen(y: &mut [f32], x: &[bf16]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = widened(x));
}
