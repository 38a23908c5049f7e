//! What a ring merges, on a GPU, in place: shares of the softmax (kernels/ring.cu).

use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{CpuStorage, InplaceOp3, Layout, Result, Tensor, bail};

use crate::gpu::{Kernel, Lent, THREADS, failed};

/// Rows that a block of `ring_merge` takes, a warp each.
const ROWS: usize = THREADS / 32;

/// As the CPU's merge: `more` `[B, H, S, d]` in f32, what the same queries got from other keys, into `o`, and its `lse` `[B, H, S]` in f64
/// likewise. All are contiguous.
pub(crate) fn merge(o: &Tensor, lse: &Tensor, more: &Tensor, more_lse: &Tensor) -> Result<()> {
    o.inplace_op3(lse, more, &Merge { more_lse })
}

struct Merge<'a> {
    more_lse: &'a Tensor,
}

impl InplaceOp3 for Merge<'_> {
    fn name(&self) -> &'static str {
        "ring_merge"
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        bail!("ring_merge is for GPUs")
    }

    fn cuda_fwd(
        &self,
        o: &mut CudaStorage,
        o_layout: &Layout,
        lse: &CudaStorage,
        lse_layout: &Layout,
        more: &CudaStorage,
        more_layout: &Layout,
    ) -> Result<()> {
        let device = o.device.clone();
        let (b, h, s, d) = o_layout.shape().dims4()?;
        let rows = b * h * s;
        contiguous(&[o_layout, lse_layout, more_layout, self.more_lse.layout()])?;
        if [lse_layout.shape().elem_count(), self.more_lse.elem_count()] != [rows; 2]
            || more_layout.dims() != o_layout.dims()
        {
            bail!("ring_merge: {:?} cannot take {:?}", o_layout.dims(), more_layout.dims())
        }
        let mut o = o.as_cuda_slice_mut::<f32>()?.slice_mut(o_layout.start_offset()..);
        let lse = lse.as_cuda_slice::<f64>()?.slice(lse_layout.start_offset()..);
        let more = more.as_cuda_slice::<f32>()?.slice(more_layout.start_offset()..);
        let more_lse = Lent::new(self.more_lse);
        let more_lse = more_lse.view::<f64>()?;
        let kernel = Kernel::of(&device, "ring_merge")?;
        let (count, dim) = (rows as i64, d as i32);
        let mut call = kernel.call();
        call.arg(&mut o).arg(&lse).arg(&more).arg(&more_lse).arg(&count).arg(&dim);
        // SAFETY: the kernel's arguments, all within their tensors. It writes lse too, which Candle lends for reading only: memory of
        // the GPU, of which Rust sees nothing, on the one stream that all of this runs on.
        unsafe { call.launch(kernel.grid([rows.div_ceil(ROWS), 1, 1])?) }.map_err(failed)?;
        Ok(())
    }
}

fn contiguous(layouts: &[&Layout]) -> Result<()> {
    if layouts.iter().all(|layout| layout.is_contiguous()) {
        Ok(())
    } else {
        bail!("a ring adds up contiguous tensors")
    }
}
