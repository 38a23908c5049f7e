//! Adds tensors in place, by a kernel.

use candle_core::cuda_backend::cudarc::driver::PushKernelArg;
use candle_core::{Result, Tensor};

use super::{Kernel, Lent, THREADS, change, device_of};

/// to += values, both contiguous and in f32.
pub(crate) fn add_assign(to: &Tensor, values: &Tensor) -> Result<()> {
    let kernel = Kernel::of(&device_of(values)?, "add_assign")?;
    let n = values.elem_count();
    if to.dims() != values.dims() || !values.is_contiguous() {
        candle_core::bail!(
            "add_assign: {:?} += {:?} (contiguous: {})",
            to.dims(),
            values.dims(),
            values.is_contiguous()
        )
    }
    let lent = Lent::new(values);
    change(to, |mut to| {
        let (values, count) = (lent.view::<f32>()?, n as i64);
        let mut call = kernel.call();
        call.arg(&mut to).arg(&values).arg(&count);
        // SAFETY: the kernel's arguments, of `n` elements each.
        unsafe { kernel.launch(call, [n.div_ceil(THREADS), 1, 1]) }?;
        Ok(())
    })
}
