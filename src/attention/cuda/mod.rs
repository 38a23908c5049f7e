//! Runs attention on a GPU: chooses among the kernels of kernels/flash_*.cu and passes their arguments. Counterpart of
//! [`super::cpu`].
//!
//! bf16 with heads of 64, 96 or 128 takes the tensor cores; f32 the plain kernels, which are for checks. **It has run
//! on an emulated driver (kernels/host/driver), on no GPU.**

mod copy;
mod merge;

use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{DeviceRepr, PushKernelArg};
use candle_core::{DType, Tensor};
use half::bf16;

use super::check::{self, BACKWARD, FORWARD, operations};
use super::operands::{Options, Qkv, SavedRows};
use crate::cuda::{Kernel, Lent, device_of, empty, tensor};
use crate::{Result, bail};
pub(crate) use copy::copy_rows;
pub(super) use copy::side_by_side;
pub(super) use merge::merge;

/// What kernels/tile.cuh calls so: elements from one batch entry, head and row to the next.
#[derive(Clone, Copy)]
#[repr(C)]
struct Strides {
    batch: i64,
    head: i64,
    row: i64,
}

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for Strides {}

/// The kernels for one dtype and head dim: forward, backward for keys and values, backward for queries.
struct Kernels {
    names: [&'static str; 3],
    /// Rows that a block of each takes.
    rows: [usize; 3],
    /// Whether they are told the head dim.
    any_dim: bool,
}

impl Kernels {
    /// `partial`: results are still to be merged with those of other keys, and are f32 (lse f64).
    fn of(dtype: DType, d: usize, partial: bool) -> Result<Self> {
        macro_rules! names {
            ($end:literal) => {
                [
                    concat!("flash_forward_", $end),
                    concat!("flash_backward_kv_", $end),
                    concat!("flash_backward_q_", $end),
                ]
            };
        }
        let names = match (dtype, d, partial) {
            (DType::BF16, 64, false) => names!("bf16_d64"),
            (DType::BF16, 96, false) => names!("bf16_d96"),
            (DType::BF16, 128, false) => names!("bf16_d128"),
            (DType::BF16, 64, true) => names!("partial_bf16_d64"),
            (DType::BF16, 96, true) => names!("partial_bf16_d96"),
            (DType::BF16, 128, true) => names!("partial_bf16_d128"),
            (DType::F32, _, _) => names!("f32"),
            _ => bail!(
                Shape,
                "attention on a GPU: {dtype:?} with heads of {d}; there is bf16 with heads of 64, 96 or 128, and f32, for checks"
            ),
        };
        let rows = match (dtype, d) {
            (DType::F32, _) => [1; 3],
            (_, 64) => [128; 3],
            _ => [128, 64, 64],
        };
        Ok(Self { names, rows, any_dim: dtype == DType::F32 })
    }
}

/// As [`super::cpu::attend`], on the GPU that q, k and v are on.
pub(super) fn attend(qkv: Qkv, options: Options) -> Result<(Tensor, Tensor)> {
    let (Qkv { q, k, v }, Options { scale, rounded, meter }) = (qkv, options);
    let shape = check::operands(qkv, scale)?;
    let kernels = Kernels::of(q.dtype(), shape[3], !rounded)?;
    let [q, k, v] = [aligned(q)?, aligned(k)?, aligned(v)?];
    let (o, lse) = match (q.dtype(), rounded) {
        (DType::BF16, true) => forward::<bf16, bf16, f32>(&kernels, &q, &k, &v, scale)?,
        (DType::BF16, false) => forward::<bf16, f32, f64>(&kernels, &q, &k, &v, scale)?,
        _ => forward::<f32, f32, f32>(&kernels, &q, &k, &v, scale)?,
    };
    meter.add(operations(FORWARD, shape, &k));
    let lse = if rounded { lse } else { lse.to_dtype(DType::F64)? };
    Ok((o, lse))
}

/// As [`super::cpu::differentiate`], on the GPU that q, k and v are on.
pub(super) fn differentiate(qkv: Qkv, saved: SavedRows, options: Options) -> Result<(Tensor, Tensor, Tensor)> {
    let (Qkv { q, k, v }, SavedRows { d_o, lse, delta }) = (qkv, saved);
    let Options { scale, rounded, meter } = options;
    let shape = check::operands(qkv, scale)?;
    check::saved_rows(q, saved)?;
    let kernels = Kernels::of(q.dtype(), shape[3], !rounded)?;
    let inputs = [aligned(q)?, aligned(k)?, aligned(v)?, aligned(d_o)?, lse.contiguous()?, delta.contiguous()?];
    let gradients = match (q.dtype(), rounded) {
        (DType::BF16, true) => backward::<bf16, bf16>(&kernels, &inputs, scale)?,
        (DType::BF16, false) => backward::<bf16, f32>(&kernels, &inputs, scale)?,
        _ => backward::<f32, f32>(&kernels, &inputs, scale)?,
    };
    meter.add(operations(BACKWARD, shape, k));
    Ok(gradients)
}

fn forward<T, O, L>(kernels: &Kernels, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<(Tensor, Tensor)>
where
    T: CudaDType + DeviceRepr,
    O: CudaDType + DeviceRepr,
    L: CudaDType + DeviceRepr,
{
    let (b, h, sq, d) = q.dims4()?;
    let device = device_of(q)?;
    let (mut o, mut lse) = (empty::<O>(&device, b * h * sq * d)?, empty::<L>(&device, b * h * sq)?);
    let kernel = Kernel::of(&device, kernels.names[0])?;
    let lent = [q, k, v].map(Lent::new);
    let [q_view, k_view, v_view] = [lent[0].view::<T>()?, lent[1].view::<T>()?, lent[2].view::<T>()?];
    let [q_at, k_at, v_at] = [q, k, v].map(strides);
    let (queries, keys, dim, scale) = (sq as i32, k.dims()[2] as i32, d as i32, scale as f32);
    let mut call = kernel.call();
    call.arg(&q_view).arg(&k_view).arg(&v_view).arg(&mut o).arg(&mut lse);
    call.arg(&q_at).arg(&k_at).arg(&v_at).arg(&queries).arg(&keys);
    if kernels.any_dim {
        call.arg(&dim);
    }
    call.arg(&scale);
    // SAFETY: the arguments are those that the kernel declares; all rows are within the tensors, which are held.
    unsafe { kernel.launch(call, [sq.div_ceil(kernels.rows[0]), h, b]) }?;
    Ok((tensor(o, (b, h, sq, d), &device), tensor(lse, (b, h, sq), &device)))
}

/// `inputs`: q, k, v, d_o, lse, delta.
fn backward<T, O>(kernels: &Kernels, inputs: &[Tensor; 6], scale: f64) -> Result<(Tensor, Tensor, Tensor)>
where
    T: CudaDType + DeviceRepr,
    O: CudaDType + DeviceRepr,
{
    let [q, k, v, d_o, lse, delta] = inputs;
    let ((b, h, sq, d), sk) = (q.dims4()?, k.dims()[2]);
    let device = device_of(q)?;
    let [mut dq, mut dk, mut dv] =
        [empty::<O>(&device, b * h * sq * d)?, empty(&device, b * h * sk * d)?, empty(&device, b * h * sk * d)?];
    let lent = [q, k, v, d_o, lse, delta].map(Lent::new);
    let [q_view, k_view, v_view, d_o_view] =
        [lent[0].view::<T>()?, lent[1].view::<T>()?, lent[2].view::<T>()?, lent[3].view::<T>()?];
    let [lse_view, delta_view] = [lent[4].view::<f32>()?, lent[5].view::<f32>()?];
    let input_strides = [q, k, v, d_o].map(strides);
    let (queries, keys, dim, scale) = (sq as i32, sk as i32, d as i32, scale as f32);
    for (name, rows, block, of_keys) in
        [(kernels.names[1], sk, kernels.rows[1], true), (kernels.names[2], sq, kernels.rows[2], false)]
    {
        let kernel = Kernel::of(&device, name)?;
        let mut call = kernel.call();
        call.arg(&q_view).arg(&k_view).arg(&v_view).arg(&d_o_view).arg(&lse_view).arg(&delta_view);
        if of_keys {
            call.arg(&mut dk).arg(&mut dv);
        } else {
            call.arg(&mut dq);
        }
        call.arg(&input_strides[0])
            .arg(&input_strides[1])
            .arg(&input_strides[2])
            .arg(&input_strides[3])
            .arg(&queries)
            .arg(&keys);
        if kernels.any_dim {
            call.arg(&dim);
        }
        call.arg(&scale);
        // SAFETY: as in `forward`.
        unsafe { kernel.launch(call, [rows.div_ceil(block), h, b]) }?;
    }
    let of = |x, rows| tensor(x, (b, h, rows, d), &device);
    Ok((of(dq, sq), of(dk, sk), of(dv, sk)))
}

fn strides(x: &Tensor) -> Strides {
    let at = |dim: usize| x.stride()[dim] as i64;
    Strides { batch: at(0), head: at(1), row: at(2) }
}

/// The tensor, or a copy of it whose rows begin at multiples of 16 bytes, as the kernels copy by.
fn aligned(x: &Tensor) -> Result<Tensor> {
    let unit = 16 / x.dtype().size_in_bytes();
    let whole = |n: &usize| n.is_multiple_of(unit);
    let start = x.storage_and_layout().1.start_offset();
    Ok(if x.stride()[..3].iter().chain([&start]).all(whole) { x.clone() } else { x.force_contiguous()? })
}
