//! Copies a GPU's blocks to pinned host memory and back, in streams of their own beside the computing stream.
//!
//! A copy waits for an event of the computing stream: one that was recorded when the block was put, for its tensors are
//! computed by then, or when the block above was taken, for nothing uses its buffers any more then. cudarc keeps events
//! with each allocation too, but Candle's kernels write through arguments that cudarc takes for reads, so those events
//! do not tell when a tensor is there. The computing stream never waits for a copy: the copy thread does, before it
//! gives a block back. Pinned memory is taken once a run, and is not write-combined, for the CPU reads it where blocks
//! go on to a scratch file.

use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, CudaView, CudaViewMut, DriverError, PinnedHostSlice,
};
use candle_core::{CudaDevice, DType, Tensor};
use half::bf16;
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;

use super::STAGED;
use super::store::Store;
use crate::cuda::{Lent, change_as, meaning};
use crate::{Error, Result, bail};

/// Pinned bytes.
fn pin(context: &Arc<CudaContext>, bytes: usize) -> Result<PinnedHostSlice<u8>> {
    // SAFETY: bytes of any value are bytes; nothing is read of them that was not written.
    unsafe { context.alloc_pinned_with_flags(bytes, 0) }.map_err(|e| {
        Error::Environment(format!(
            "stash: cannot pin {bytes} bytes of memory ({e:?}): set stash.where = \"disk\", stash.dtype = \"bf16\" or \
             stash.keep_attention = false"
        ))
    })
}

fn failed(e: DriverError) -> Error {
    Error::Environment(format!("stash: the GPU cannot copy: {}", meaning(e)))
}

/// An event of the stream that Candle computes in.
pub(super) type Recorded = Arc<CudaEvent>;

/// All that was asked of the device so far.
pub(super) fn record(device: &CudaDevice) -> Result<Recorded> {
    device.cuda_stream().record_event(None).map(Arc::new).map_err(failed)
}

/// The stash in pinned memory.
pub(super) struct Pinned {
    context: Arc<CudaContext>,
    /// Each behind a lock of its own, as blocks are copied by several threads.
    blocks: RwLock<Vec<Mutex<PinnedHostSlice<u8>>>>,
}

impl Pinned {
    pub fn new(device: &CudaDevice) -> Self {
        Self { context: device.cuda_stream().context().clone(), blocks: RwLock::default() }
    }

    /// Calls `f` with the `length` bytes of a block from `offset` on.
    fn with(&self, block: usize, offset: u64, length: usize, f: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let blocks = self.blocks.read();
        let mut bytes = blocks[block].lock();
        let range = offset as usize..offset as usize + length;
        let Some(part) = bytes.as_mut_slice().map_err(failed)?.get_mut(range.clone()) else {
            bail!(Shape, "stash: bytes {range:?} were not reserved")
        };
        f(part)
    }
}

impl Store for Pinned {
    fn reserve(&self, blocks: usize, size: u64) -> Result<()> {
        let size = size as usize;
        let mut slots = self.blocks.write();
        let fits = |block: &Mutex<PinnedHostSlice<u8>>| block.lock().len() == size;
        if slots.len() == blocks && slots.iter().all(fits) {
            return Ok(());
        }
        slots.clear(); // the old ones go before the new ones come
        for _ in 0..blocks {
            slots.push(Mutex::new(pin(&self.context, size)?));
        }
        Ok(())
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.with(block, offset, from.len(), |bytes| {
            bytes.copy_from_slice(from);
            Ok(())
        })
    }

    fn read(&self, block: usize, offset: u64, to: &mut [u8]) -> Result<()> {
        self.with(block, offset, to.len(), |bytes| {
            to.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn pinned(
        &self,
        block: usize,
        offset: u64,
        length: usize,
        f: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Option<Result<()>> {
        Some(self.with(block, offset, length, f))
    }
}

/// A copy thread's stream, and pinned bytes on the way to a store that has none of its own.
pub(super) struct CopyStream {
    stream: Arc<CudaStream>,
    staging: Option<PinnedHostSlice<u8>>,
}

impl CopyStream {
    /// A stream of the device's.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(device: &CudaDevice) -> Result<Self> {
        Ok(Self { stream: device.cuda_stream().context().new_stream().map_err(failed)?, staging: None })
    }

    /// Has the copies that follow wait for the event.
    pub fn after(&self, event: &CudaEvent) -> Result<()> {
        self.stream.wait(event).map_err(failed)
    }

    /// Copies a contiguous tensor into a block's bytes, and waits until it is there.
    pub fn store(&mut self, store: &dyn Store, block: usize, offset: u64, t: &Tensor) -> Result<()> {
        let lent = Lent::new(t);
        let from = bytes_of(&lent, t)?;
        let stream = self.stream.clone();
        let copy = |from: &CudaView<u8>, to: &mut [u8]| {
            stream.memcpy_dtoh(from, to).and_then(|()| stream.synchronize()).map_err(failed)
        };
        if let Some(done) = store.pinned(block, offset, from.len(), &mut |to| copy(&from, to)) {
            return done;
        }
        let staging = self.staging()?;
        for start in (0..from.len()).step_by(STAGED) {
            let piece = from.slice(start..(start + STAGED).min(from.len()));
            let staging = &mut staging[..piece.len()];
            copy(&piece, staging)?;
            store.write(block, offset + start as u64, staging)?;
        }
        Ok(())
    }

    /// Copies a block's bytes into a contiguous tensor, and waits until they are there.
    pub fn load(&mut self, store: &dyn Store, block: usize, offset: u64, t: &Tensor) -> Result<()> {
        let stream = self.stream.clone();
        let copy = |from: &[u8], to: &mut CudaViewMut<u8>| {
            stream.memcpy_htod(from, to).and_then(|()| stream.synchronize()).map_err(failed)
        };
        change_bytes(t, |mut to| {
            let length = to.len();
            if let Some(done) = store.pinned(block, offset, length, &mut |from| copy(from, &mut to)) {
                return done;
            }
            let staging = self.staging()?;
            for start in (0..length).step_by(STAGED) {
                let mut piece = to.slice_mut(start..(start + STAGED).min(length));
                let staging = &mut staging[..piece.len()];
                store.read(block, offset + start as u64, staging)?;
                copy(staging, &mut piece)?;
            }
            Ok(())
        })
    }

    fn staging(&mut self) -> Result<&mut [u8]> {
        if self.staging.is_none() {
            self.staging = Some(pin(self.stream.context(), STAGED)?);
        }
        match &mut self.staging {
            Some(bytes) => bytes.as_mut_slice().map_err(failed),
            None => bail!(Shape, "stash: no staging memory"),
        }
    }
}

/// A contiguous tensor's bytes.
fn bytes_of<'a>(lent: &'a Lent, t: &Tensor) -> Result<CudaView<'a, u8>> {
    let n = t.elem_count();
    // SAFETY: elements are bytes of any value, as many as the view has.
    let bytes = match t.dtype() {
        DType::F32 => unsafe { lent.view::<f32>()?.transmute(4 * n) },
        DType::BF16 => unsafe { lent.view::<bf16>()?.transmute(2 * n) },
        other => bail!(Shape, "stash: a GPU stashes f32 and bf16, got {other:?}"),
    };
    bytes.ok_or_else(|| Error::Shape(format!("stash: {:?} is more than its storage holds", t.dims())))
}

/// Calls `f` with a contiguous tensor's bytes, to be changed in place.
fn change_bytes(t: &Tensor, f: impl FnOnce(CudaViewMut<'_, u8>) -> Result<()>) -> Result<()> {
    let n = t.elem_count();
    let short = || Error::Shape(format!("stash: {:?} is more than its storage holds", t.dims()));
    // SAFETY (of both): as in `bytes_of`, and any bytes are elements.
    match t.dtype() {
        DType::F32 => {
            change_as::<f32, _>(t, |mut to| Ok(unsafe { to.transmute_mut(4 * n) }.ok_or_else(short).and_then(f)))?
        }
        DType::BF16 => {
            change_as::<bf16, _>(t, |mut to| Ok(unsafe { to.transmute_mut(2 * n) }.ok_or_else(short).and_then(f)))?
        }
        other => bail!(Shape, "stash: a GPU stashes f32 and bf16, got {other:?}"),
    }
}
