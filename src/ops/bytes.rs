//! Copies tensors as plain bytes, by rows and blocks, parallel over the current rayon pool, to move messages, tiles and
//! heads.
//!
//! Moving data does not depend on what it means, so all of it is done on bytes: one kernel serves f32, bf16 and f64.
//! Candle's own copies are single-threaded, and the strided ones go element by element. CPU tensors, unless a function
//! says more.

use candle_core::{CpuStorage, DType, Device, Layout, Storage, Tensor};
use half::{bf16, f16};
use rayon::prelude::*;

use crate::simd::uninit_vec::UninitVec;
use crate::{Result, bail};

/// Bytes that one task copies: large enough to amortise a task, small enough to share a head over threads.
const PIECE: usize = 64 << 10;

/// Refuses what the kernels here cannot read: tensors off the CPU and the packed sub-byte dtypes.
pub(crate) fn check(t: &Tensor) -> Result<()> {
    let (storage, _) = t.storage_and_layout();
    raw(&storage).map(|_| ())
}

/// As [`check`], where nothing moves between ranks: tensors on a GPU pass.
pub(crate) fn check_here(t: &Tensor) -> Result<()> {
    if t.device().is_cpu() { check(t) } else { Ok(()) }
}

/// The whole storage of a CPU tensor; a view's layout says which part of it is meant.
pub(crate) fn raw(storage: &Storage) -> Result<&[u8]> {
    let Storage::Cpu(storage) = storage else {
        bail!(Shape, "the tensor is on a GPU, where its bytes are not at hand; copy it to the CPU first")
    };
    Ok(match storage {
        CpuStorage::U8(v) => v,
        CpuStorage::U32(v) => bytemuck::cast_slice(v),
        CpuStorage::I16(v) => bytemuck::cast_slice(v),
        CpuStorage::I32(v) => bytemuck::cast_slice(v),
        CpuStorage::I64(v) => bytemuck::cast_slice(v),
        CpuStorage::BF16(v) => bytemuck::cast_slice(v),
        CpuStorage::F16(v) => bytemuck::cast_slice(v),
        CpuStorage::F32(v) => bytemuck::cast_slice(v),
        CpuStorage::F64(v) => bytemuck::cast_slice(v),
        other => bail!(Shape, "cannot move a tensor of dtype {:?}", storage_dtype(other)),
    })
}

fn storage_dtype(storage: &CpuStorage) -> DType {
    use candle_core::backend::BackendStorage;
    storage.dtype()
}

/// Like [`raw`], for writing.
fn raw_mut(storage: &mut CpuStorage) -> Result<&mut [u8]> {
    Ok(match storage {
        CpuStorage::U8(v) => v,
        CpuStorage::U32(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::I16(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::I32(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::I64(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::BF16(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::F16(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::F32(v) => bytemuck::cast_slice_mut(v),
        CpuStorage::F64(v) => bytemuck::cast_slice_mut(v),
        other => bail!(Shape, "cannot fill a tensor of dtype {:?}", storage_dtype(other)),
    })
}

/// The bytes of a contiguous view, given its storage's.
pub(crate) fn view<'a>(bytes: &'a [u8], layout: &Layout, dtype: DType) -> Result<&'a [u8]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!(Shape, "expected a contiguous tensor, got {:?} with strides {:?}", layout.dims(), layout.stride())
    };
    let size = dtype.size_in_bytes();
    Ok(&bytes[start * size..end * size])
}

/// A new tensor of `dims` on the CPU whose bytes are written by `fill` (they start as zeros).
pub(crate) fn build(dtype: DType, dims: &[usize], fill: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<Tensor> {
    macro_rules! of {
        ($t:ty) => {{
            let mut data = UninitVec::<$t>::new(dims.iter().product());
            data.chunks(PIECE / size_of::<$t>()).for_each(|run| _ = run.filled(bytemuck::Zeroable::zeroed()));
            let mut data = data.into_vec();
            fill(bytemuck::cast_slice_mut(&mut data))?;
            Tensor::from_vec(data, dims, &Device::Cpu)?
        }};
    }
    Ok(match dtype {
        DType::U8 => of!(u8),
        DType::U32 => of!(u32),
        DType::I16 => of!(i16),
        DType::I32 => of!(i32),
        DType::I64 => of!(i64),
        DType::BF16 => of!(bf16),
        DType::F16 => of!(f16),
        DType::F32 => of!(f32),
        DType::F64 => of!(f64),
        other => bail!(Shape, "cannot make a tensor of dtype {other:?}"),
    })
}

/// Zeros, of which there may be none, on any device.
pub(crate) fn zeros(dims: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    if device.is_cpu() {
        return build(dtype, dims, |_| Ok(())); // Candle writes them one by one
    }
    if dims.iter().product::<usize>() > 0 {
        return Ok(Tensor::zeros(dims, dtype, device)?);
    }
    // CUDA allocates nothing of no bytes.
    Ok(Tensor::zeros(1, dtype, device)?.narrow(0, 0, 0)?.reshape(dims)?)
}

/// A contiguous copy that shares nothing with `t`, where `t` is.
pub(crate) fn duplicate(t: &Tensor) -> Result<Tensor> {
    if !t.device().is_cpu() {
        return match t.elem_count() {
            0 => zeros(t.dims(), t.dtype(), t.device()),
            _ => Ok(t.detach().force_contiguous()?),
        };
    }
    let (storage, layout) = t.storage_and_layout();
    let bytes = raw(&storage)?;
    if layout.is_contiguous() {
        return build(t.dtype(), t.dims(), |out| {
            copy(out, view(bytes, layout, t.dtype())?);
            Ok(())
        });
    }
    let Some(rows) = Rows::of(layout, t.dtype().size_in_bytes()) else { return Ok(t.detach().contiguous()?) };
    build(t.dtype(), t.dims(), |out| {
        gather(out, bytes, rows);
        Ok(())
    })
}

/// `t` with its elements in order: itself where they are, else a copy, which Candle's autograd does not follow.
pub(crate) fn in_order(t: &Tensor) -> Result<Tensor> {
    if t.is_contiguous() { Ok(t.clone()) } else { duplicate(t) }
}

/// Writes `part` over rows of the contiguous `whole`, from row `start` on.
///
/// # Errors
/// If they do not fit, or share their storage.
pub(crate) fn set_rows(whole: &Tensor, part: &Tensor, start: usize) -> Result<()> {
    let part = in_order(part)?;
    if !whole.device().is_cpu() {
        return Ok(whole.slice_set(&part, 0, start)?);
    }
    let to = whole.narrow(0, start, part.dims().first().copied().unwrap_or(0))?;
    if (to.dims(), to.dtype()) != (part.dims(), part.dtype()) {
        bail!(
            Shape,
            "rows {:?} of {:?} do not go into {:?} of {:?}",
            part.dims(),
            part.dtype(),
            whole.dims(),
            whole.dtype()
        )
    }
    let (storage, layout) = part.storage_and_layout();
    if layout.shape().elem_count() == 0 {
        return Ok(());
    }
    if std::ptr::eq(raw(&storage)?, raw(&whole.storage_and_layout().0)?) {
        bail!(Shape, "rows cannot be written over with rows of the same storage"); // which would be locked twice
    }
    let bytes = view(raw(&storage)?, layout, part.dtype())?;
    overwrite(&to, |out| {
        copy(out, bytes);
        Ok(())
    })
}

/// Whether `t` is all of its storage in order, so that giving `t` away gives nothing else away.
pub(crate) fn owns_storage(t: &Tensor) -> Result<bool> {
    let (storage, layout) = t.storage_and_layout();
    let size = t.dtype().size_in_bytes();
    Ok(layout.is_contiguous() && layout.start_offset() == 0 && raw(&storage)?.len() == t.elem_count() * size)
}

/// Writes into a contiguous tensor in place: `fill` is given its bytes.
pub(crate) fn overwrite(t: &Tensor, fill: impl Fn(&mut [u8]) -> Result<()>) -> Result<()> {
    struct Overwrite<F>(F);
    impl<F: Fn(&mut [u8]) -> Result<()>> candle_core::InplaceOp1 for Overwrite<F> {
        fn name(&self) -> &'static str {
            "overwrite"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let size = storage_dtype(storage).size_in_bytes();
            let Some((start, end)) = layout.contiguous_offsets() else {
                candle_core::bail!("overwrite: the tensor is not contiguous, its strides are {:?}", layout.stride())
            };
            raw_mut(storage)
                .and_then(|bytes| (self.0)(&mut bytes[start * size..end * size]))
                .map_err(crate::Error::into_candle)
        }
    }
    Ok(t.inplace_op1(&Overwrite(fill))?)
}

/// Copies `src` into `dst` of the same length.
pub(crate) fn copy(dst: &mut [u8], src: &[u8]) {
    dst.par_chunks_mut(PIECE).zip(src.par_chunks(PIECE)).for_each(|(dst, src)| dst.copy_from_slice(src));
}

/// A strided 3-D array of rows within a storage; lengths and strides in bytes. The last dim of a row is contiguous.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// Where the first row starts.
    pub base: usize,
    /// How many rows along each of the three dims.
    pub counts: [usize; 3],
    /// Bytes from a row to the next along each dim.
    pub strides: [usize; 3],
    /// Bytes in a row.
    pub row: usize,
}

impl Rows {
    /// A view's rows, or its elements where those of the last dim are apart; None: along more than three dims.
    fn of(layout: &Layout, size: usize) -> Option<Self> {
        let mut dims: Vec<_> = layout.dims().iter().copied().zip(layout.stride().iter().copied()).collect();
        let row = if let Some((n, 1)) = dims.last().copied() {
            dims.pop();
            n * size
        } else {
            size
        };
        dims.retain(|&(n, _)| n != 1);
        let padding = vec![(1, 0); 3usize.checked_sub(dims.len())?];
        let [a, b, c] = [padding, dims].concat()[..] else { return None };
        let strides = [a.1, b.1, c.1].map(|stride| stride * size);
        Some(Self { base: layout.start_offset() * size, counts: [a.0, b.0, c.0], strides, row })
    }
}

/// Copies `rows` of `src` one after another, in the order of their dims, into `dst`.
pub(crate) fn gather(dst: &mut [u8], src: &[u8], rows: Rows) {
    let Rows { base, counts: [_, n1, n2], strides: [s0, s1, s2], row } = rows;
    if dst.is_empty() {
        return;
    }
    let per_piece = (PIECE / row).max(1);
    dst.par_chunks_mut(per_piece * row).enumerate().for_each(|(piece, dst)| {
        let mut index = piece * per_piece; // of the next row
        let mut rest = dst;
        while !rest.is_empty() {
            // The rows up to the end of the innermost dim or of this piece, whichever comes first.
            let (i0, i1, i2) = (index / (n1 * n2), index / n2 % n1, index % n2);
            let run = (n2 - i2).min(rest.len() / row);
            let (now, later) = rest.split_at_mut(run * row);
            let from = base + i0 * s0 + i1 * s1 + i2 * s2;
            if s2 == row {
                now.copy_from_slice(&src[from..from + run * row]);
            } else {
                for (k, out) in now.chunks_exact_mut(row).enumerate() {
                    out.copy_from_slice(&src[from + k * s2..from + k * s2 + row]);
                }
            }
            index += run;
            rest = later;
        }
    });
}

/// Concatenates along an inner dim: `dst` is a sequence of groups, each made of one run of every part in turn; a part
/// is given as its bytes (its runs one after another) and the length of a run.
pub(crate) fn weave(dst: &mut [u8], parts: &[(&[u8], usize)]) {
    let starts: Vec<usize> = std::iter::once(0)
        .chain(parts.iter().scan(0, |end, part| {
            *end += part.1;
            Some(*end)
        }))
        .collect(); // part i lies at starts[i]..starts[i + 1] of a group
    let group = starts[parts.len()];
    dst.par_chunks_mut(PIECE).enumerate().for_each(|(piece, dst)| {
        let mut position = piece * PIECE;
        let mut rest = dst;
        while !rest.is_empty() {
            let within = position % group;
            let part = starts.partition_point(|&start| start <= within) - 1;
            let (bytes, run) = parts[part];
            let n = (starts[part + 1] - within).min(rest.len());
            let (now, later) = rest.split_at_mut(n);
            let from = position / group * run + within - starts[part];
            now.copy_from_slice(&bytes[from..from + n]);
            position += n;
            rest = later;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn numbers(dims: &[usize]) -> Tensor {
        let n: usize = dims.iter().product();
        Tensor::arange(0f32, n as f32, &Device::Cpu).unwrap().reshape(dims).unwrap()
    }

    #[test]
    fn view_put_in_order_equals_candles_contiguous() {
        let x = numbers(&[3, 5, 7, 4]);
        let views = [
            x.transpose(1, 2).unwrap(),
            x.transpose(0, 3).unwrap(),              // single elements, along four dims
            x.narrow(2, 1, 5).unwrap().t().unwrap(), // the same, from an offset
            x.narrow(1, 2, 2).unwrap(),
            x.get(1).unwrap().t().unwrap(), // single elements, along three dims
            numbers(&[6, 9]).t().unwrap(),
            numbers(&[6, 1]).broadcast_as((6, 9)).unwrap(),
            x.narrow(1, 0, 0).unwrap().transpose(1, 2).unwrap(), // none
        ];
        for view in views {
            let got = in_order(&view).unwrap();
            assert!(got.is_contiguous() && got.dims() == view.dims());
            assert_eq!(values(&got), values(&view.contiguous().unwrap()), "{:?}", view.layout());
        }
    }

    #[test]
    fn set_rows_changes_no_other_rows() {
        let whole = numbers(&[7, 3, 2]);
        let expected = whole.copy().unwrap();
        let part = numbers(&[3, 4, 2]).affine(-1.0, -1.0).unwrap().transpose(0, 1).unwrap(); // [4, 3, 2], not in order
        expected.slice_set(&part.contiguous().unwrap(), 0, 2).unwrap();
        set_rows(&whole, &part, 2).unwrap();
        assert_eq!(values(&whole), values(&expected));

        set_rows(&whole, &part.narrow(0, 0, 0).unwrap(), 7).unwrap();
        let wide = numbers(&[1, 3, 3]);
        let (late, double) = (part.clone(), part.to_dtype(DType::F64).unwrap());
        for (wrong, start) in [(wide, 0), (late, 4), (double, 0), (whole.narrow(0, 0, 2).unwrap(), 3)] {
            assert!(set_rows(&whole, &wrong, start).is_err());
        }
        assert_eq!(values(&whole), values(&expected));
    }
}
