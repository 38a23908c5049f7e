//! Runs attention on the CPU: chooses the instruction set and its kernels.
//!
//! On the instruction sets of [`crate::simd`]: [`pack`] makes the panels; [`forward`] and [`backward`] are the
//! algorithms, [`softmax`] and [`probs`] what they do between products, [`schedule`] the order of both. Every
//! instruction set runs the same algorithm, so tests can hold each against the reference.

mod backward;
mod forward;
mod ordered_sums;
mod pack;
mod probs;
mod queries;
pub mod rehearsal;
mod schedule;
mod softmax;

use candle_core::{DType, Device, Storage, Tensor};
use half::bf16;

use super::check::{self, BACKWARD, FORWARD};
use super::operands::{Options, Qkv, SavedRows};
use crate::observe::meter::StepMeter;
pub use crate::simd::Isa;
use crate::simd::vector::{Simd, WIDTH};
use crate::simd::with_isa;
use crate::{Result, bail};
use pack::{Heads, PackedElement};

/// Words of packed panels that a pass holds at once, unless one head needs more.
const PACKED: usize = (256 << 20) / 4;

/// Rows (forward) or keys (backward) that go through each stage together: one stage's latency hides behind the next
/// row's work, and the panels of a large head dim pass through L1 once for all of them.
fn row_block<S: Simd>() -> usize {
    if S::MATRIX { S::ROWS } else { 4 * S::ROWS }
}

/// Words from one row of a square to the next: of logits, which become probabilities where they are, as L1 is small for
/// both. On vector units a number that the compiler knows, on a matrix unit an odd number of cache lines, as rows of
/// sixteen would share a few sets of L1.
fn by_row<S: Simd>() -> usize {
    if S::MATRIX { S::WIDTH + S::LANES } else { WIDTH }
}

/// Columns of f32 sums of d values: whole vectors of any instruction set.
fn wide(d: usize) -> usize {
    d.next_multiple_of(16)
}

/// [`super::attend`] on the CPU.
pub(super) fn attend(qkv: Qkv, options: Options) -> Result<(Tensor, Tensor)> {
    forward_as(Isa::best(), qkv, options)
}

/// [`super::differentiate`] on the CPU.
pub(super) fn differentiate(qkv: Qkv, saved: SavedRows, options: Options) -> Result<(Tensor, Tensor, Tensor)> {
    backward_as(Isa::best(), qkv, saved, options)
}

/// [`super::flash`] on one instruction set, for tests and benchmarks; f64 takes the plain reference on every one.
pub fn forward_on(isa: Isa, qkv: Qkv, scale: f64) -> Result<(Tensor, Tensor)> {
    forward_as(isa, qkv, Options { scale, rounded: true, meter: &StepMeter::default() })
}

/// o and lse: `rounded` to q's dtype and to its [`statistic`](check::statistic)'s, or in f32 and in f64.
fn forward_as(isa: Isa, qkv: Qkv, options: Options) -> Result<(Tensor, Tensor)> {
    let (Qkv { q, k, v }, Options { scale, rounded, meter }) = (qkv, options);
    let [b, h, sq, d] = check_on(isa, qkv, scale)?;
    if q.dtype() == DType::F64 {
        meter.add(check::operations(FORWARD, [b, h, sq, d], k));
        return super::reference::attention(qkv, scale);
    }
    let (qs, ks, vs) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    macro_rules! run {
        ($element:ty, $out:ty, $bf16:literal) => {{
            let (q, k, v) = (heads::<$element>(&qs)?, heads(&ks)?, heads(&vs)?);
            let (o, lse) =
                with_isa!(isa, $bf16, S => forward::forward::<S, $element, $out>(q, k, v, b * h, scale, meter));
            (Tensor::from_vec(o, (b, h, sq, d), &Device::Cpu)?, lse)
        }};
    }
    let (o, lse) = match (q.dtype(), rounded) {
        (DType::BF16, true) => run!(bf16, bf16, true),
        (DType::BF16, false) => run!(bf16, f32, true),
        _ => run!(f32, f32, false),
    };
    let lse = Tensor::from_vec(lse, (b, h, sq), &Device::Cpu)?;
    Ok((o, if rounded { lse.to_dtype(check::statistic(q.dtype()))? } else { lse }))
}

/// [`super::flash_backward`] on one instruction set, for tests and benchmarks; f64 takes the plain reference on every
/// one.
pub fn backward_on(isa: Isa, qkv: Qkv, saved: SavedRows, scale: f64) -> Result<(Tensor, Tensor, Tensor)> {
    backward_as(isa, qkv, saved, Options { scale, rounded: true, meter: &StepMeter::default() })
}

/// The gradients, `rounded` to q's dtype or in f32.
fn backward_as(isa: Isa, qkv: Qkv, saved: SavedRows, options: Options) -> Result<(Tensor, Tensor, Tensor)> {
    let (Qkv { q, k, v }, Options { scale, rounded, meter }) = (qkv, options);
    let [b, h, sq, d] = check_on(isa, qkv, scale)?;
    let sk = k.dims()[2];
    check::saved_rows(q, saved)?;
    if q.dtype() == DType::F64 {
        meter.add(check::operations(BACKWARD, [b, h, sq, d], k));
        return super::reference::attention_backward(qkv, saved, scale);
    }
    let SavedRows { d_o, lse, delta } = saved;
    let (lse, delta) = (lse.flatten_all()?.to_vec1::<f32>()?, delta.flatten_all()?.to_vec1::<f32>()?);
    let (qs, ks, vs) = (q.storage_and_layout(), k.storage_and_layout(), v.storage_and_layout());
    let os = d_o.storage_and_layout();
    macro_rules! run {
        ($element:ty, $out:ty, $bf16:literal) => {{
            let (q, k, v) = (heads::<$element>(&qs)?, heads(&ks)?, heads(&vs)?);
            let saved = queries::QueryRows { d_o: heads(&os)?, lse: &lse, delta: &delta };
            let [dq, dk, dv] = with_isa!(
                isa, $bf16, S => backward::backward::<S, $element, $out>(q, k, v, saved, b * h, scale, meter)
            );
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

/// Checks what both passes take on an instruction set; returns `[B, H, Sq, d]`.
fn check_on(isa: Isa, qkv: Qkv, scale: f64) -> Result<[usize; 4]> {
    let shape = check::operands(qkv, scale)?;
    if !isa.is_available() {
        bail!(Environment, "attention: this CPU lacks the features of the {isa:?} path");
    }
    Ok(shape)
}

/// A checked tensor's elements and strides.
fn heads<'a, E: PackedElement + candle_core::WithDType>(
    tensor: &'a (impl std::ops::Deref<Target = Storage>, &'a candle_core::Layout),
) -> Result<Heads<'a, E>> {
    let (storage, layout) = tensor;
    let Storage::Cpu(storage) = &**storage else {
        bail!(Shape, "attention: the tensor is not on the CPU");
    };
    let data = <E as candle_core::WithDType>::cpu_storage_as_slice(storage)?;
    let &[_, heads, rows, dim] = layout.dims() else {
        bail!(Shape, "attention: the tensor is {:?}, expected four dims", layout.dims());
    };
    let &[batch, head, row, _] = layout.stride() else {
        bail!(Shape, "attention: the tensor is {:?}, expected four dims", layout.dims());
    };
    Ok(Heads { data: &data[layout.start_offset()..], strides: [batch, head, row], heads, rows, dim })
}
