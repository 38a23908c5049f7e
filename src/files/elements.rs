//! Reads stored elements as f32.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use multiversion::multiversion;
use safetensors::tensor::Dtype;

use crate::Result;

/// Elements that are converted at a time.
const PIECE: usize = 1 << 16;

/// Fills bytes from a byte of a tensor on.
pub(super) type ReadBytes<'a> = dyn FnMut(&mut [u8], u64) -> Result<()> + 'a;

/// Fills `out` with a tensor's elements of type `dtype` from number `first` on; f64 is rounded to nearest. `integers`:
/// i32 and i64 too, which are no weights. `None`: the type is another.
pub(super) fn read_f32(
    dtype: Dtype,
    integers: bool,
    out: &mut [f32],
    first: u64,
    read: &mut ReadBytes,
) -> Option<Result<()>> {
    Some(match dtype {
        Dtype::F32 => read(bytemuck::cast_slice_mut(out), 4 * first).map(|()| {
            if cfg!(target_endian = "big") {
                out.iter_mut().for_each(|x| *x = f32::from_bits(x.to_bits().swap_bytes()));
            }
        }),
        Dtype::BF16 => widen::<2>(out, first, read, widen_bf16),
        Dtype::F16 => widen::<2>(out, first, read, widen_f16),
        Dtype::F64 => widen::<8>(out, first, read, each(|b| f64::from_le_bytes(b) as f32)),
        Dtype::I64 if integers => widen::<8>(out, first, read, each(|b| i64::from_le_bytes(b) as f32)),
        Dtype::I32 if integers => widen::<4>(out, first, read, each(|b| i32::from_le_bytes(b) as f32)),
        _ => return None,
    })
}

/// Fills `out` from elements of N bytes, a piece at a time.
fn widen<const N: usize>(
    out: &mut [f32],
    first: u64,
    read: &mut ReadBytes,
    convert: impl Fn(&[[u8; N]], &mut [f32]),
) -> Result<()> {
    let mut bytes = vec![0; N * PIECE.min(out.len())];
    for (i, piece) in out.chunks_mut(PIECE).enumerate() {
        let bytes = &mut bytes[..N * piece.len()];
        read(bytes, (first + (i * PIECE) as u64) * N as u64)?;
        convert(bytes.as_chunks::<N>().0, piece);
    }
    Ok(())
}

/// Converts elements one by one.
fn each<const N: usize>(convert: impl Fn([u8; N]) -> f32) -> impl Fn(&[[u8; N]], &mut [f32]) {
    move |raw, out| out.iter_mut().zip(raw).for_each(|(x, raw)| *x = convert(*raw))
}

#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
fn widen_bf16(raw: &[[u8; 2]], out: &mut [f32]) {
    out.iter_mut().zip(raw).for_each(|(x, raw)| *x = bf16::from_le_bytes(*raw).to_f32());
}

/// Some at a time, since a single f16 has no fast way to f32.
fn widen_f16(raw: &[[u8; 2]], out: &mut [f32]) {
    let mut halves = [f16::ZERO; 64];
    for (out, raw) in out.chunks_mut(halves.len()).zip(raw.chunks(halves.len())) {
        let halves = &mut halves[..raw.len()];
        halves.iter_mut().zip(raw).for_each(|(half, raw)| *half = f16::from_le_bytes(*raw));
        halves.convert_to_f32_slice(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every value of 16 bits, more than are converted at a time, from an odd place on: as half converts each alone.
    #[test]
    fn elements_of_16_bits_are_widened_as_they_are_one_by_one() {
        let bits = |i: u64| (i as u16).to_le_bytes();
        for (dtype, one) in [
            (Dtype::BF16, (|b| bf16::from_le_bytes(b).to_f32()) as fn([u8; 2]) -> f32),
            (Dtype::F16, |b| f16::from_le_bytes(b).to_f32()),
        ] {
            let mut out = vec![0f32; PIECE + 77];
            let mut read = |bytes: &mut [u8], at: u64| {
                bytes.as_chunks_mut::<2>().0.iter_mut().zip(at / 2..).for_each(|(raw, i)| *raw = bits(i));
                Ok(())
            };
            read_f32(dtype, false, &mut out, 3, &mut read).unwrap().unwrap();
            for (x, i) in out.iter().zip(3..) {
                let wanted = one(bits(i));
                assert!(x.to_bits() == wanted.to_bits() || x.is_nan() && wanted.is_nan(), "{dtype} {i}: {x}");
            }
        }
    }
}
