//! The stash keeps each block's residuals between forward and backward, in memory or in a scratch file.
//!
//! - `options`: where a stash is, and how much it keeps;
//! - `ram`: memory, where tensors are handed over as they are, or kept as bytes if they are rounded;
//! - `disk`: the scratch file, and whether there is room for it;
//! - `pack`: a block as bytes, rounded to bf16 or not;
//! - `copies`: the threads that write blocks behind forward and read them ahead of backward;
//! - `store`: what bytes are kept in, for the copies;
//! - `cuda`: pinned memory for a GPU's blocks, and the streams that copy them.
//!
//! The engine sees `begin`, `put` and `take`, and none of this. Nothing here knows what the tensors mean.

mod copies;
#[cfg(feature = "cuda")]
mod cuda;
mod disk;
mod options;
mod pack;
mod ram;
mod store;

use candle_core::{DType, Device, Tensor};
use std::sync::Arc;

use crate::files::Place;
use crate::ops::Compute;
use crate::{Error, Result};
use copies::Copies;
pub use options::StashOptions;
use pack::Layout;
use store::Store;

/// What backward needs of a block's forward pass. On a GPU, `x` and `o` are lent until the next block is taken: their
/// memory is then read into again, so they must not be kept, nor given to another rank.
pub struct Residuals {
    /// The block's input `[rows, D]`.
    pub x: Tensor,
    /// None: to be computed again.
    pub attention: Option<Attention>,
}

/// What attention gave.
pub struct Attention {
    /// Its output `[rows, D]`.
    pub o: Tensor,
    /// Its row statistic `[B, my heads, S]`.
    pub lse: Tensor,
}

/// The dims and dtypes of what every block of a step puts.
#[derive(Clone, Debug, PartialEq)]
pub struct Shapes {
    x: (Vec<usize>, DType),
    o: (Vec<usize>, DType),
    lse: (Vec<usize>, DType),
}

impl Shapes {
    /// For x and o `[rows, width]`, x in the model's `dtype` and o in that which attention computes in, and for a row
    /// statistic of dims `lse`.
    pub fn new(rows: usize, width: usize, lse: [usize; 3], dtype: DType, compute: DType) -> Self {
        let statistic = if compute == DType::F64 { DType::F64 } else { DType::F32 };
        Self { x: (vec![rows, width], dtype), o: (vec![rows, width], compute), lse: (lse.to_vec(), statistic) }
    }
}

/// A copy that is about to start on a copy thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    /// Of this block, out of the engine.
    Write(usize),
    /// Of this block, back to it.
    Read(usize),
}

/// Called on the copy thread before each copy. Tests make copies slow, late or fail with it.
pub type Hook = Arc<dyn Fn(Copy) -> Result<()> + Send + Sync>;

/// A place for each block's [`Residuals`], used again step after step.
pub struct Stash {
    keep_attention: bool,
    backend: Backend,
    /// Bytes of a block that are copied.
    copied: u64,
}

enum Backend {
    /// Tensors as they are.
    Tensors(ram::Tensors),
    /// Bytes that threads copy.
    Copies(Copies),
}

impl Default for Stash {
    /// In memory, everything as it is.
    fn default() -> Self {
        Self { keep_attention: true, backend: Backend::Tensors(ram::Tensors::default()), copied: 0 }
    }
}

impl Stash {
    /// The stash of `rank` as `options` say, for tensors on `device`.
    ///
    /// # Errors
    /// The scratch folder is not there or cannot be written to.
    pub fn open(options: &StashOptions, rank: usize, device: &Device) -> Result<Self> {
        Self::start(options, rank, device, Arc::new(|_| Ok(())))
    }

    /// As [`open`](Self::open) for the CPU, with a hook.
    pub fn open_with(options: &StashOptions, rank: usize, hook: Hook) -> Result<Self> {
        Self::start(options, rank, &Device::Cpu, hook)
    }

    fn start(options: &StashOptions, rank: usize, device: &Device, hook: Hook) -> Result<Self> {
        let copies = |store: Box<dyn Store>| -> Result<Backend> {
            Ok(Backend::Copies(Copies::start(store, options, rank, device, hook)?))
        };
        let backend = match (options.place, options.dtype, device) {
            (Place::Disk, ..) => copies(Box::new(disk::Blocks::open(options)?)),
            #[cfg(feature = "cuda")]
            (Place::Ram, _, Device::Cuda(device)) => copies(Box::new(cuda::Pinned::new(device))),
            (Place::Ram, Compute::F32, _) => Ok(Backend::Tensors(ram::Tensors::default())),
            (Place::Ram, Compute::Bf16, _) => copies(Box::<ram::Bytes>::default()),
        }?;
        Ok(Self { keep_attention: options.keep_attention, backend, copied: 0 })
    }

    /// Starts a step of `blocks` blocks of these shapes; what an earlier step left is forgotten. Makes room for all of
    /// it.
    ///
    /// # Errors
    /// There is no room.
    pub fn begin(&mut self, blocks: usize, shapes: &Shapes) -> Result<()> {
        match &mut self.backend {
            Backend::Tensors(tensors) => tensors.begin(blocks),
            Backend::Copies(copies) => self.copied = copies.begin(blocks, shapes)?,
        }
        Ok(())
    }

    /// Bytes of each block of the step that are written, and read again; 0 where tensors are kept as they are.
    pub fn copied(&self) -> u64 {
        self.copied
    }

    /// Whether attention's output is kept, and not computed again.
    pub fn keeps_attention(&self) -> bool {
        self.keep_attention
    }

    /// Keeps what block `i` needs. Waits while two blocks before it are still being written.
    ///
    /// # Errors
    /// It, or a block before it, could not be written.
    pub fn put(&mut self, i: usize, residuals: Residuals) -> Result<()> {
        let residuals = Residuals { attention: residuals.attention.filter(|_| self.keep_attention), ..residuals };
        match &mut self.backend {
            Backend::Tensors(tensors) => tensors.put(i, residuals),
            Backend::Copies(copies) => copies.put(i, residuals),
        }
    }

    /// Gives back what block `i` needs, each block once and the last one first: the block below is read ahead
    /// meanwhile.
    ///
    /// # Errors
    /// It could not be written or read.
    pub fn take(&mut self, i: usize) -> Result<Residuals> {
        match &mut self.backend {
            Backend::Tensors(tensors) => tensors.take(i),
            Backend::Copies(copies) => copies.take(i),
        }
    }
}

pub use copies::FLYING;

/// Pinned bytes that the copy threads of a GPU's blocks take on their way to a scratch file.
pub const STAGING: usize = FLYING * STAGED;

/// Those of one of them, at a time.
const STAGED: usize = 32 << 20;

/// Bytes that the copy threads round in.
pub const CHUNKS: usize = copies::FLYING * pack::CHUNK * size_of::<half::bf16>();

/// Bytes of a block of these shapes where they are copied, to a scratch file, rounded, or from a GPU; 0 where tensors
/// are kept as they are.
pub fn copied(options: &StashOptions, from_gpu: bool, shapes: &Shapes) -> u64 {
    match (options.place, options.dtype) {
        (Place::Ram, Compute::F32) if !from_gpu => 0,
        _ => Layout::new(shapes, options).size,
    }
}

/// Fails if the scratch folder cannot be written to or has no room for what the ranks of a run put there together,
/// `blocks` blocks of these shapes. For a run to find out before it starts; a stash in memory always passes.
pub fn check_room(options: &StashOptions, blocks: usize, shapes: &Shapes) -> Result<()> {
    if options.place == Place::Ram {
        return Ok(());
    }
    let scratch = disk::open(options)?;
    scratch.check(Layout::new(shapes, options).bytes(blocks))?;
    scratch.warn_of_memory();
    Ok(())
}

fn not_there(i: usize) -> Error {
    Error::Shape(format!("stash: block {i} was not put, or was taken twice"))
}
