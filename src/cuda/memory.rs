//! The GPU's memory: the pool that the driver allocates from, what is in use, and a second try where there was none.
//!
//! cudarc allocates by `cuMemAllocAsync` from the device's default pool. Such a pool gives what is free in it back to
//! the system at each synchronisation, unless its release threshold says otherwise, and has to map it again for the
//! next tile. Here it keeps everything: a GPU has one process of ours.

use candle_core::cuda_backend::cudarc::driver::sys::{self, CUdevice, CUmemPool_attribute, CUmemoryPool, CUresult};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaSlice, DeviceRepr, DriverError, result};
use candle_core::{CudaDevice, Error, Result};
use std::fmt::{self, Display, Formatter};

use super::errors::meaning;
use crate::files::gib;

/// Bytes of a GPU's memory, now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// In use by tensors of this process.
    pub used: u64,
    /// The most that was in use at one time.
    pub used_most: u64,
    /// What the pool holds for them, the free parts included.
    pub reserved: u64,
    /// What no process holds.
    pub free: u64,
    /// All there is.
    pub all: u64,
}

impl Display for Memory {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let [used, reserved, free, all] = [self.used, self.reserved, self.free, self.all].map(gib);
        write!(
            f,
            "of {all} tensors use {used}, {reserved} are reserved for them, {free} are free, and the rest is with CUDA and other \
             processes"
        )
    }
}

impl Memory {
    /// Of the GPU whose context the calling thread has; None if it cannot be told.
    pub fn now() -> Option<Self> {
        let mut device: CUdevice = 0;
        // SAFETY: a pointer to a local; the device is the one that the driver gives.
        let pool = unsafe {
            sys::cuCtxGetDevice(&mut device).result().ok()?;
            result::device::get_default_mem_pool(device).ok()?
        };
        Self::of_pool(pool).ok()
    }

    /// Of this device.
    pub fn of(device: &CudaDevice) -> std::result::Result<Self, DriverError> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        Self::of_pool(pool(stream.context())?)
    }

    fn of_pool(pool: CUmemoryPool) -> std::result::Result<Self, DriverError> {
        let get = |attribute| {
            let mut bytes = 0u64;
            // SAFETY: the pool is a device's default one, which is never destroyed; these attributes are 64 bits.
            unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }.map(|()| bytes)
        };
        let (free, all) = result::mem_get_info()?;
        Ok(Self {
            used: get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
            used_most: get(CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
            reserved: get(CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?,
            free: free as u64,
            all: all as u64,
        })
    }
}

fn pool(context: &CudaContext) -> std::result::Result<CUmemoryPool, DriverError> {
    // SAFETY: the device is that of a context.
    unsafe { result::device::get_default_mem_pool(context.cu_device()) }
}

/// Has the pool of a device keep what is free in it, for the next allocation.
pub(super) fn keep(context: &CudaContext) -> std::result::Result<(), DriverError> {
    let mut threshold = u64::MAX;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: as in `of_pool`; the driver copies the number.
    unsafe { result::mem_pool::set_attribute(pool(context)?, attribute, (&raw mut threshold).cast()) }
}

/// Room for `n` elements, which are not set. If there is none, what is free in the pool goes back to the system, which
/// may make one piece of it, and one more try is made.
pub(crate) fn empty<T: DeviceRepr>(device: &CudaDevice, n: usize) -> Result<CudaSlice<T>> {
    let stream = device.cuda_stream();
    // SAFETY (of both): callers give it to a kernel that sets all of it before anything reads it.
    let room = || unsafe { stream.alloc::<T>(n) };
    let trimmed = || {
        stream.synchronize()?; // frees take place in the stream's order
        // SAFETY: as in `of_pool`.
        unsafe { result::mem_pool::trim_to(pool(stream.context())?, 0) }
    };
    let room = match room() {
        Err(e) if e.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY => trimmed().and_then(|()| room()),
        other => other,
    };
    room.map_err(|e| {
        let bytes = n.saturating_mul(size_of::<T>());
        Error::msg(format!("{bytes} bytes cannot be allocated on the GPU: {}", meaning(e)))
    })
}
