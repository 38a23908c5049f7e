//! Reads stored elements as f32.

use crate::Result;
use safetensors::tensor::Dtype;

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
        Dtype::BF16 => widen::<2>(out, first, read, |b| half::bf16::from_le_bytes(b).to_f32()),
        Dtype::F16 => widen::<2>(out, first, read, |b| half::f16::from_le_bytes(b).to_f32()),
        Dtype::F64 => widen::<8>(out, first, read, |b| f64::from_le_bytes(b) as f32),
        Dtype::I64 if integers => widen::<8>(out, first, read, |b| i64::from_le_bytes(b) as f32),
        Dtype::I32 if integers => widen::<4>(out, first, read, |b| i32::from_le_bytes(b) as f32),
        _ => return None,
    })
}

/// Fills `out` from elements of N bytes, a piece at a time.
fn widen<const N: usize>(
    out: &mut [f32],
    first: u64,
    read: &mut ReadBytes,
    convert: impl Fn([u8; N]) -> f32,
) -> Result<()> {
    let mut bytes = vec![0; N * PIECE.min(out.len())];
    for (i, piece) in out.chunks_mut(PIECE).enumerate() {
        let bytes = &mut bytes[..N * piece.len()];
        read(bytes, (first + (i * PIECE) as u64) * N as u64)?;
        for (x, raw) in piece.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *x = convert(*raw);
        }
    }
    Ok(())
}
