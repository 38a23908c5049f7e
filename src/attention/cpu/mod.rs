//! Attention on the CPU: checks, and the choice of the vector unit and its kernels.
//!
//! On the vector units of [`crate::ops::cpu`]: [`pack`] makes the panels; [`forward`] and [`backward`] are the algorithms.
//! Every unit runs the same algorithm, so tests can hold each against the reference.

mod backward;
mod forward;
mod lane;
mod pack;
pub mod rehearsal;

use candle_core::{DType, Device, Storage, Tensor};
use half::bf16;

pub use crate::ops::cpu::Path;
use crate::ops::cpu::with_unit;
use crate::watch::Watch;
use crate::{Result, bail};
use pack::{Element, Heads};

/// Words of packed panels that a pass holds at once, unless one head needs more.
const PACKED: usize = (256 << 20) / 4;

/// Operations for each query, key and feature: two products forward, five backward.
pub const FORWARD: u64 = 4;
pub const BACKWARD: u64 = 10;

/// Head dims above this would overflow the blocks' share of the caches.
const MAX_DIM: usize = 256;

/// Columns of f32 sums of d values: whole vectors of any unit.
fn wide(d: usize) -> usize {
    d.next_multiple_of(16)
}

/// [`super::attend`] on the CPU.
pub(super) fn attend(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    rounded: bool,
    watch: &Watch,
) -> Result<(Tensor, Tensor)> {
    forward_as(Path::best(), q, k, v, scale, rounded, watch)
}

/// [`super::differentiate`] on the CPU.
#[allow(clippy::too_many_arguments)]
pub(super) fn differentiate(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    [lse, delta]: [&Tensor; 2],
    scale: f64,
    rounded: bool,
    watch: &Watch,
) -> Result<(Tensor, Tensor, Tensor)> {
    backward_as(Path::best(), q, k, v, d_o, [lse, delta], scale, rounded, watch)
}

/// [`super::flash`] on one path, for tests and benchmarks; f64 takes the plain reference on every path.
pub fn forward_on(path: Path, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<(Tensor, Tensor)> {
    forward_as(path, q, k, v, scale, true, &Watch::default())
}

/// The dtype of lse and delta beside tensors of `dtype`.
pub(super) fn statistic(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

/// o and lse: `rounded` to q's dtype and to its [`statistic`]'s, or in f32 and in f64.
fn forward_as(
    path: Path,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    scale: f64,
    rounded: bool,
    watch: &Watch,
) -> Result<(Tensor, Tensor)> {
    let [b, h, sq, d] = check(Some(path), q, k, v, scale)?;
    if q.dtype() == DType::F64 {
        watch.add(operations(FORWARD, [b, h, sq, d], k));
        return super::reference::attention(q, k, v, scale);
    }
    let (qs, ks, vs) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    macro_rules! run {
        ($element:ty, $out:ty, $bf16:literal) => {{
            let (q, k, v) = (heads::<$element>(&qs)?, heads(&ks)?, heads(&vs)?);
            let (o, lse) = with_unit!(path, $bf16, S => forward::forward::<S, $element, $out>(q, k, v, b * h, scale, watch));
            (Tensor::from_vec(o, (b, h, sq, d), &Device::Cpu)?, lse)
        }};
    }
    let (o, lse) = match (q.dtype(), rounded) {
        (DType::BF16, true) => run!(bf16, bf16, true),
        (DType::BF16, false) => run!(bf16, f32, true),
        _ => run!(f32, f32, false),
    };
    let lse = Tensor::from_vec(lse, (b, h, sq), &Device::Cpu)?;
    Ok((o, if rounded { lse.to_dtype(statistic(q.dtype()))? } else { lse }))
}

/// [`super::flash_backward`] on one path, for tests and benchmarks; f64 takes the plain reference on every path.
#[allow(clippy::too_many_arguments)]
pub fn backward_on(
    path: Path,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    lse: &Tensor,
    delta: &Tensor,
    scale: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    backward_as(path, q, k, v, d_o, [lse, delta], scale, true, &Watch::default())
}

/// The gradients, `rounded` to q's dtype or in f32.
#[allow(clippy::too_many_arguments)]
fn backward_as(
    path: Path,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    d_o: &Tensor,
    [lse, delta]: [&Tensor; 2],
    scale: f64,
    rounded: bool,
    watch: &Watch,
) -> Result<(Tensor, Tensor, Tensor)> {
    let [b, h, sq, d] = check(Some(path), q, k, v, scale)?;
    let sk = k.dims()[2];
    check_operand("d_o", d_o, q.dims(), q)?;
    let stat = statistic(q.dtype());
    for (name, x) in [("lse", lse), ("delta", delta)] {
        if x.dims() != [b, h, sq] || x.dtype() != stat || !x.device().is_cpu() {
            let (shape, dtype) = (x.dims(), x.dtype());
            bail!("attention backward: {name} is {dtype:?} {shape:?}, expected {stat:?} [{b}, {h}, {sq}] on the CPU");
        }
    }
    if q.dtype() == DType::F64 {
        watch.add(operations(BACKWARD, [b, h, sq, d], k));
        return super::reference::attention_backward(q, k, v, d_o, lse, delta, scale);
    }
    let (lse, delta) = (lse.flatten_all()?.to_vec1::<f32>()?, delta.flatten_all()?.to_vec1::<f32>()?);
    let (qs, ks, vs) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    let os = d_o.storage_and_layout();
    macro_rules! run {
        ($element:ty, $out:ty, $bf16:literal) => {{
            let (q, k, v) = (heads::<$element>(&qs)?, heads(&ks)?, heads(&vs)?);
            let saved = backward::Saved { d_o: heads(&os)?, lse: &lse, delta: &delta };
            let [dq, dk, dv] =
                with_unit!(path, $bf16, S => backward::backward::<S, $element, $out>(q, k, v, saved, b * h, scale, watch));
            let tensor = |x, rows| Tensor::from_vec(x, (b, h, rows, d), &Device::Cpu);
            (tensor(dq, sq)?, tensor(dk, sk)?, tensor(dv, sk)?)
        }};
    }
    Ok(match (q.dtype(), rounded) {
        (DType::BF16, true) => run!(bf16, bf16, true),
        (DType::BF16, false) => run!(bf16, f32, true),
        _ => run!(f32, f32, false),
    })
}

/// `each` operations for every query of `[B, H, Sq, d]`, every key and feature.
pub(super) fn operations(each: u64, q: [usize; 4], k: &Tensor) -> u64 {
    each * (q.iter().product::<usize>() * k.dims()[2]) as u64
}

/// Checks what both passes take, on a path of the CPU or on a GPU; returns `[B, H, Sq, d]`.
pub(super) fn check(path: Option<Path>, q: &Tensor, k: &Tensor, v: &Tensor, scale: f64) -> Result<[usize; 4]> {
    let &[b, h, sq, d] = q.dims() else {
        bail!("attention: q is {:?}, expected [B, H, Sq, d]", q.dims());
    };
    let sk = k.dims().get(2).copied().unwrap_or(0);
    if !matches!(q.dtype(), DType::F32 | DType::BF16 | DType::F64) {
        bail!("attention: q is {:?}; it runs in f32, bf16 or, on the CPU, f64", q.dtype());
    }
    check_operand("q", q, q.dims(), q)?;
    check_operand("k", k, &[b, h, sk, d], q)?;
    check_operand("v", v, &[b, h, sk, d], q)?;
    if b * h * sq * sk == 0 {
        bail!("attention: q {:?} and k {:?} need at least one row, key, head and batch entry", q.dims(), k.dims());
    }
    if d % 8 != 0 || d == 0 || d > MAX_DIM {
        bail!("attention: the head dim is {d}; it must be a multiple of 8 from 8 to {MAX_DIM}");
    }
    if !(scale.is_finite() && scale > 0.0) {
        bail!("attention: the scale is {scale}; it must be positive and finite");
    }
    if let Some(path) = path
        && !path.is_available()
    {
        bail!("attention: this CPU lacks the features of the {path:?} path");
    }
    Ok([b, h, sq, d])
}

/// `like`: of whose dtype and where the operand must be.
pub(super) fn check_operand(name: &str, x: &Tensor, shape: &[usize], like: &Tensor) -> Result<()> {
    let dtype = like.dtype();
    if x.dims() != shape || x.dtype() != dtype || !x.device().same_device(like.device()) {
        let (has, is, place) = (x.dims(), x.dtype(), like.device().location());
        bail!("attention: {name} is {is:?} {has:?}, expected {dtype:?} {shape:?} on {place:?}");
    }
    if x.dim(3)? > 1 && x.stride()[3] != 1 {
        bail!("attention: {name}'s last dim is not contiguous (strides {:?}); call contiguous() on it", x.stride());
    }
    Ok(())
}

/// A checked tensor's elements and strides.
fn heads<'a, E: Element + candle_core::WithDType>(
    tensor: &'a (impl std::ops::Deref<Target = Storage>, &'a candle_core::Layout),
) -> Result<Heads<'a, E>> {
    let (storage, layout) = tensor;
    let Storage::Cpu(storage) = &**storage else {
        bail!("attention: the tensor is not on the CPU");
    };
    let data = <E as candle_core::WithDType>::cpu_storage_as_slice(storage)?;
    let &[_, heads, rows, dim] = layout.dims() else {
        bail!("attention: the tensor is {:?}, expected four dims", layout.dims());
    };
    let &[batch, head, row, _] = layout.stride() else {
        bail!("attention: the tensor is {:?}, expected four dims", layout.dims());
    };
    Ok(Heads { data: &data[layout.start_offset()..], strides: [batch, head, row], heads, rows, dim })
}
