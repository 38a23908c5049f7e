//! Packs a block's tensors into bytes of a store, rounded to bf16 or not, and reads them back into buffers.

use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use parking_lot::Mutex;

#[cfg(feature = "cuda")]
use super::cuda::{CopyStream, Recorded};
use super::store::Store;
use super::{Attention, Residuals, Shapes, StashOptions};
use crate::ops::{Compute, Element, Tape, bytes, cast, read, write};
use crate::{Result, bail};

/// Tensors start at multiples of this, as pages do.
const PAGE: u64 = 4096;

/// Values that are rounded at a time: 2 MiB of bf16. Tensors that are not rounded go in one piece.
pub(super) const CHUNK: usize = 1 << 20;

/// One tensor of a block.
#[derive(Clone, Debug, PartialEq)]
struct Field {
    dims: Vec<usize>,
    dtype: DType,
    stored: DType,
    /// Its first byte, from the block's first.
    offset: u64,
}

/// Where the tensors of a block lie.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    x: Field,
    attention: Option<(Field, Field)>,
    /// Bytes of a block.
    pub size: u64,
}

/// What a copy thread works with.
#[derive(Default)]
pub(super) struct Copier {
    /// Where it rounds.
    chunk: Vec<bf16>,
    #[cfg(feature = "cuda")]
    copy_stream: Option<CopyStream>,
}

impl Copier {
    /// For tensors on this device.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Self { copy_stream: Some(CopyStream::new(device)?), ..Self::default() },
            _ => Self::default(),
        })
    }

    /// Has later copies begin when the GPU has computed what came before `point`.
    pub fn after(&self, point: &Point) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let (Some(copy_stream), Some(event)) = (&self.copy_stream, &point.event) {
            return copy_stream.after(event);
        }
        let _ = point;
        Ok(())
    }
}

/// A point in the order of what a GPU computes: all that was asked of it until then. What a CPU computes is done
/// already.
#[derive(Clone, Default)]
pub(super) struct Point {
    #[cfg(feature = "cuda")]
    event: Option<Recorded>,
}

impl Layout {
    pub fn new(shapes: &Shapes, options: &StashOptions) -> Self {
        let mut size = 0u64;
        let mut field = |(dims, dtype): &(Vec<usize>, DType), round: bool| {
            let stored = if round { DType::BF16 } else { *dtype };
            let field = Field { dims: dims.clone(), dtype: *dtype, stored, offset: size };
            // Absurd sizes are for the check of free space to refuse.
            let bytes = dims.iter().fold(stored.size_in_bytes() as u64, |n, &d| n.saturating_mul(d as u64));
            size = size.saturating_add(bytes.div_ceil(PAGE).saturating_mul(PAGE));
            field
        };
        let round = options.dtype == Compute::Bf16;
        let x = field(&shapes.x, round);
        let attention = options.keep_attention.then(|| (field(&shapes.o, round), field(&shapes.lse, false)));
        Self { x, attention, size }
    }

    /// Bytes of `blocks` blocks.
    pub fn bytes(&self, blocks: usize) -> u64 {
        self.size.saturating_mul(blocks as u64)
    }

    /// A block as it is stored, where that is a matter for its GPU: rounded and in order there, before it is copied.
    pub fn stored(&self, residuals: Residuals) -> Result<Residuals> {
        self.convert(residuals, |field| field.stored)
    }

    /// A block as it was put, where that is a matter for its GPU.
    pub fn widened(&self, residuals: Residuals) -> Result<Residuals> {
        self.convert(residuals, |field| field.dtype)
    }

    fn convert(&self, residuals: Residuals, dtype: impl Fn(&Field) -> DType) -> Result<Residuals> {
        let attention = match (&self.attention, residuals.attention) {
            (Some((field, _)), Some(Attention { o, lse })) if !o.device().is_cpu() => {
                Some(Attention { o: cast(&Tape::off(), &o, dtype(field))?.contiguous()?, lse: lse.contiguous()? })
            }
            (_, other) => other,
        };
        let x = if residuals.x.device().is_cpu() {
            residuals.x
        } else {
            cast(&Tape::off(), &residuals.x, dtype(&self.x))?.contiguous()?
        };
        Ok(Residuals { x, attention })
    }

    /// Writes a block.
    pub fn write(&self, store: &dyn Store, block: usize, residuals: &Residuals, copier: &mut Copier) -> Result<()> {
        self.x.write(store, block, &residuals.x, copier)?;
        match (&self.attention, &residuals.attention) {
            (Some((o, lse)), Some(attention)) => {
                o.write(store, block, &attention.o, copier)?;
                lse.write(store, block, &attention.lse, copier)
            }
            (None, None) => Ok(()),
            _ => bail!(Shape, "stash: attention's output was put by mistake, or not put"),
        }
    }

    /// Reads a block into new tensors, or on a GPU into buffers of the pool.
    pub fn read(&self, store: &dyn Store, block: usize, pool: &Pool, copier: &mut Copier) -> Result<Residuals> {
        // The block above is still in use; the one above that is not, so two buffers take turns.
        let mut turn = pool.turns[block % 2].lock();
        // On a GPU a new tensor would be taken behind what is computed, and copied to after it. Memory that only the
        // block's user holds goes back as soon as it is not needed, and between steps there is none.
        let buffers = if pool.device.is_cpu() { &mut Buffers::default() } else { &mut *turn };
        let x = self.x.buffer(&mut buffers.x, pool, copier)?;
        self.x.read(store, block, &x, copier)?;
        let mut attention = None;
        if let Some((o, lse)) = &self.attention {
            let lse_buffer = lse.buffer(&mut buffers.lse, pool, copier)?;
            let to = Attention { lse: lse_buffer, o: o.buffer(&mut buffers.o, pool, copier)? };
            o.read(store, block, &to.o, copier)?;
            lse.read(store, block, &to.lse, copier)?;
            attention = Some(to);
        }
        Ok(Residuals { x, attention })
    }
}

/// A GPU's buffers to read into, of even and of odd blocks.
pub(super) struct Pool {
    device: Device,
    turns: [Mutex<Buffers>; 2],
}

#[derive(Default)]
struct Buffers {
    x: Option<Tensor>,
    o: Option<Tensor>,
    lse: Option<Tensor>,
}

impl Pool {
    /// On this device.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), turns: Default::default() }
    }

    /// Now, in the order of what the device computes.
    pub fn now(&self) -> Result<Point> {
        Ok(match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Point { event: Some(super::cuda::record(device)?) },
            _ => Point::default(),
        })
    }
}

impl Field {
    /// The buffer in `slot`, or a new one there if that has another shape.
    fn buffer(&self, slot: &mut Option<Tensor>, pool: &Pool, copier: &Copier) -> Result<Tensor> {
        let device = &pool.device;
        let dtype = if device.is_cpu() { self.dtype } else { self.stored };
        if let Some(t) = slot
            && (t.dims(), t.dtype()) == (&self.dims, dtype)
        {
            return Ok(t.clone());
        }
        *slot = None; // the old one goes before the new one comes
        let buffer = slot.insert(Tensor::zeros(self.dims.as_slice(), dtype, device)?).clone();
        copier.after(&pool.now()?)?; // it is there, and zeros, when the GPU has come to that
        Ok(buffer)
    }

    fn write(&self, store: &dyn Store, block: usize, t: &Tensor, copier: &mut Copier) -> Result<()> {
        let dtype = if t.device().is_cpu() { self.dtype } else { self.stored };
        if (t.dims(), t.dtype()) != (&self.dims, dtype) {
            let dims = &self.dims;
            bail!(
                Shape,
                "stash: a tensor of {:?} {:?} was put where {dims:?} {dtype:?} was announced",
                t.dims(),
                t.dtype()
            )
        }
        let t = t.contiguous()?;
        if t.elem_count() == 0 {
            return Ok(());
        }
        store.start(block, self.offset, self.stored.size_in_bytes() * t.elem_count())?;
        #[cfg(feature = "cuda")]
        if let Some(copy_stream) = &mut copier.copy_stream {
            return copy_stream.store(store, block, self.offset, &t);
        }
        if self.stored == self.dtype {
            let (storage, layout) = t.storage_and_layout();
            return store.write(block, self.offset, bytes::view(bytes::raw(&storage)?, layout, self.dtype)?);
        }
        match self.dtype {
            DType::F64 => self
                .round(store, block, &read::<f64>(&t)?, &mut copier.chunk, |to, from| to.convert_from_f64_slice(from)),
            _ => self
                .round(store, block, &read::<f32>(&t)?, &mut copier.chunk, |to, from| to.convert_from_f32_slice(from)),
        }
    }

    fn read(&self, store: &dyn Store, block: usize, t: &Tensor, copier: &mut Copier) -> Result<()> {
        if t.elem_count() == 0 {
            return Ok(());
        }
        self.read_into(store, block, t, copier)?;
        store.forget(block, self.offset)
    }

    fn read_into(&self, store: &dyn Store, block: usize, t: &Tensor, copier: &mut Copier) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(copy_stream) = &mut copier.copy_stream {
            return copy_stream.load(store, block, self.offset, t);
        }
        if self.stored == self.dtype {
            // Not by bytes::overwrite, which makes a Candle error of ours.
            return match self.dtype {
                DType::F64 => write(t, |to: &mut [f64]| store.read(block, self.offset, bytemuck::cast_slice_mut(to)))?,
                DType::BF16 => {
                    write(t, |to: &mut [bf16]| store.read(block, self.offset, bytemuck::cast_slice_mut(to)))?
                }
                _ => write(t, |to: &mut [f32]| store.read(block, self.offset, bytemuck::cast_slice_mut(to)))?,
            };
        }
        match self.dtype {
            DType::F64 => {
                self.widen::<f64>(store, block, t, &mut copier.chunk, |from, to| from.convert_to_f64_slice(to))
            }
            _ => self.widen::<f32>(store, block, t, &mut copier.chunk, |from, to| from.convert_to_f32_slice(to)),
        }
    }

    /// Writes `values` rounded.
    fn round<T>(
        &self,
        store: &dyn Store,
        block: usize,
        values: &[T],
        chunk: &mut Vec<bf16>,
        convert: impl Fn(&mut [bf16], &[T]),
    ) -> Result<()> {
        chunk.resize(CHUNK, bf16::ZERO);
        for (n, values) in values.chunks(CHUNK).enumerate() {
            let rounded = &mut chunk[..values.len()];
            convert(rounded, values);
            store.write(block, self.offset + (2 * n * CHUNK) as u64, bytemuck::cast_slice(rounded))?;
        }
        Ok(())
    }

    /// Reads rounded values into `t`.
    fn widen<T: Element>(
        &self,
        store: &dyn Store,
        block: usize,
        t: &Tensor,
        chunk: &mut Vec<bf16>,
        convert: impl Fn(&[bf16], &mut [T]),
    ) -> Result<()> {
        chunk.resize(CHUNK, bf16::ZERO);
        write(t, |values: &mut [T]| {
            for (n, values) in values.chunks_mut(CHUNK).enumerate() {
                let rounded = &mut chunk[..values.len()];
                store.read(block, self.offset + (2 * n * CHUNK) as u64, bytemuck::cast_slice_mut(rounded))?;
                convert(rounded, values);
            }
            Ok(())
        })?
    }
}
