//! Merges a ring's shares of the softmax in place, on a GPU (kernels/ring.cu).

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Result, Tensor, bail};

use crate::cuda::{Kernel, Lent, THREADS, change_as, device_of};

/// Rows that a block of `ring_merge` takes, a warp each.
const ROWS: usize = THREADS / 32;

/// As the CPU's merge: `more` `[B, H, S, d]` in f32, what the same queries got from other keys, into `o`, and
/// `more_lse` `[B, H, S]` in f64 into `lse`. All are contiguous.
pub(crate) fn merge(o: &Tensor, lse: &Tensor, more: &Tensor, more_lse: &Tensor) -> Result<()> {
    let (b, h, s, d) = o.dims4()?;
    let rows = b * h * s;
    if [lse.elem_count(), more_lse.elem_count()] != [rows; 2] || more.dims() != o.dims() {
        bail!("ring_merge: {:?} cannot take {:?}", o.dims(), more.dims())
    }
    if ![more, more_lse].iter().all(|t| t.is_contiguous()) {
        bail!("a ring adds up contiguous tensors")
    }
    let kernel = Kernel::of(&device_of(o)?, "ring_merge")?;
    let (lent, held_lse) = (Lent::new(more), Lent::new(more_lse));
    let (count, dim) = (rows as i64, d as i32);
    change_as::<f32, _>(o, |mut o| {
        change_as::<f64, _>(lse, |mut lse| {
            let (more, more_lse) = (lent.view::<f32>()?, held_lse.view::<f64>()?);
            let mut call = kernel.call();
            call.arg(&mut o).arg(&mut lse).arg(&more).arg(&more_lse).arg(&count).arg(&dim);
            // SAFETY: the kernel's arguments, all within their tensors.
            unsafe { kernel.launch(call, [rows.div_ceil(ROWS), 1, 1]) }?;
            Ok(())
        })
    })
}
