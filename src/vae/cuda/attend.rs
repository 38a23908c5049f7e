//! Computes attention of one wide head on a GPU: products by cuBLAS and the softmax of kernels/softmax.cu, a block of
//! queries at a time.

use candle_core::Tensor;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;

use super::{Gpu, Operand, rows_of, tile_of};
use crate::Result;
use crate::cuda::{Kernel, Lent, Matrix, change, empty, product};

impl Gpu {
    /// `softmax(q kᵀ / sqrt(inner)) v`, of operands of products.
    pub(super) fn attend_as<T: Operand>(
        &self,
        query: &Tensor,
        key: &Tensor,
        value: &Tensor,
        inner: usize,
    ) -> Result<Tensor> {
        let [queries, keys] = [query, key].map(|x| x.elem_count() / inner);
        let (q, k, v) = (Lent::new(query), Lent::new(key), Lent::new(value));
        let tile = tile_of(keys * (4 + size_of::<T>()), queries);
        let mut scores = empty::<f32>(&self.device, tile * keys)?;
        let mut shares = empty::<T>(&self.device, tile * keys)?;
        let kernel = Kernel::of(&self.device, T::SOFTMAX)?;
        let (width, scale) = (keys as i32, 1.0 / (inner as f32).sqrt());
        let out = self.room(&[queries * inner])?;
        change(&out, |mut out| {
            for start in (0..queries).step_by(tile) {
                let n = tile.min(queries - start);
                let q = rows_of::<T>(&q, start..start + n, inner, false)?;
                let k = rows_of::<T>(&k, 0..keys, inner, true)?;
                product(&self.device, &q, &k, &mut scores.slice_mut(..n * keys), false)?;
                {
                    let mut call = kernel.call();
                    call.arg(&scores).arg(&mut shares).arg(&width).arg(&scale);
                    // SAFETY: the kernel's arguments: `n` rows of both.
                    unsafe { kernel.launch(call, [n, 1, 1]) }?;
                }
                let shares =
                    Matrix { values: T::elements(shares.slice(..n * keys)), rows: n, columns: keys, transposed: false };
                let mut out = out.slice_mut(start * inner..(start + n) * inner);
                product(&self.device, &shares, &rows_of::<T>(&v, 0..keys, inner, false)?, &mut out, false)?;
            }
            Ok(())
        })?;
        Ok(out)
    }
}
