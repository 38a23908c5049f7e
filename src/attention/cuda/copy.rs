//! Copies strided rows between tensors, by kernels/copy_rows.cu, to pack and weave the messages of all-to-alls.

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, DevicePtrMut, DeviceRepr, PushKernelArg};
use candle_core::{DType, Result, Tensor, bail};
use half::bf16;

use crate::attention::moves::{Move, beside};
use crate::cuda::{Kernel, Lent, THREADS, change_as, device_of};
use crate::ops::bytes::zeros;

/// `Places` of kernels/copy_rows.cu.
#[derive(Clone, Copy)]
#[repr(C)]
struct Strides([i64; 3]);

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for Strides {}

/// Carries a plan out, whose bytes count from the beginning of `from`'s storage and of the contiguous `to`.
pub(crate) fn copy_rows(from: &Tensor, to: &Tensor, plan: &Move) -> Result<()> {
    if plan.rows.row == 0 || plan.rows.counts.contains(&0) {
        return Ok(());
    }
    match from.dtype() {
        DType::F32 => of::<f32>(from, to, plan),
        DType::BF16 => of::<bf16>(from, to, plan),
        other => bail!("copy_rows: f32 or bf16 wanted, got {other:?}"),
    }
}

/// Contiguous tensors side by side along dim 1, of any length, where Candle's `cat` counts in 32 bits.
pub(in crate::attention) fn side_by_side(parts: &[Tensor]) -> crate::Result<Tensor> {
    let (mut dims, size) = (parts[0].dims().to_vec(), parts[0].dtype().size_in_bytes());
    dims[1] = parts.iter().map(|part| part.dims()[1]).sum();
    let whole = zeros(&dims, parts[0].dtype(), parts[0].device())?;
    let (n, each) = (dims[0], dims[2..].iter().product::<usize>()); // elements of one place of dim 1
    let mut before = 0;
    for part in parts {
        let run = part.dims()[1] * each;
        let start = part.layout().start_offset();
        copy_rows(part, &whole, &beside(n, start..start + run, before, dims[1] * each, size))?;
        before += run;
    }
    Ok(whole)
}

fn of<T: CudaDType + DeviceRepr>(from: &Tensor, to: &Tensor, plan: &Move) -> Result<()> {
    let (unit, name) = piece(plan);
    let device = device_of(to)?;
    let stream = device.cuda_stream();
    let kernel = Kernel::of(&device, name)?;
    let Move { rows, base, strides } = *plan;
    let [from_at, to_at] = [rows.strides, strides].map(|strides| Strides(strides.map(|s| (s / unit) as i64)));
    let [count0, count1, count2] = rows.counts;
    let units = rows.row / unit;
    let columns = (count2 * units).div_ceil(THREADS).min(65_535); // the kernel goes on where these end
    let lent = Lent::new(from);
    change_as::<T, _>(to, |mut to| {
        let from = lent.storage()?.as_cuda_slice::<T>()?;
        let ((source, _from), (target, _to)) = (from.device_ptr(&stream), to.device_ptr_mut(&stream));
        let (source, target) = (source + rows.base as u64, target + base as u64);
        let [inner1, inner2, units] = [count1, count2, units].map(|n| n as i32);
        let mut call = kernel.call();
        call.arg(&source).arg(&target).arg(&from_at).arg(&to_at).arg(&inner1).arg(&inner2).arg(&units);
        // SAFETY: the kernel's arguments; the caller's plan stays within both tensors, which are held.
        unsafe { kernel.launch(call, [count0 * count1, columns, 1]) }?;
        Ok(())
    })
}

/// The largest piece, in bytes, that all of a plan's places and rows are multiples of, and the kernel that copies such.
fn piece(plan: &Move) -> (usize, &'static str) {
    let Move { rows, base, strides } = plan;
    let offsets: Vec<usize> = [rows.base, rows.row, *base].into_iter().chain(rows.strides).chain(*strides).collect();
    let fits = |unit: usize| offsets.iter().all(|n| n.is_multiple_of(unit));
    let kinds = [(16, "copy_rows_16"), (4, "copy_rows_4"), (2, "copy_rows_2")];
    kinds.into_iter().find(|kind| fits(kind.0)).unwrap_or(kinds[2]) // elements have two bytes or four
}
