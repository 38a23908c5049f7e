//! Keeps the stash in a scratch file, one a rank, opened once a run and used again by every step.

use std::sync::atomic::{AtomicU64, Ordering};

use super::StashOptions;
use super::store::Store;
use crate::Result;
use crate::files::Scratch;
use crate::ops::Compute;

/// Blocks in a scratch file.
pub(super) struct Blocks {
    file: Scratch,
    /// Bytes of a block.
    size: AtomicU64,
}

/// A scratch file for a stash.
pub(super) fn open(options: &StashOptions) -> Result<Scratch> {
    let mut less = vec![];
    if options.dtype == Compute::F32 {
        less.push("stash.dtype = \"bf16\"");
    }
    if options.keep_attention {
        less.push("stash.keep_attention = false");
    }
    less.push("a smaller train.batch, or smaller clips");
    let advice = format!("name another stash.folder, or need less: {}", less.join(", "));
    Scratch::open(options.folder.as_deref(), advice)
}

impl Blocks {
    /// No blocks yet, in the scratch folder.
    pub fn open(options: &StashOptions) -> Result<Self> {
        Ok(Self { file: open(options)?, size: AtomicU64::new(0) })
    }

    fn at(&self, block: usize, offset: u64) -> u64 {
        block as u64 * self.size.load(Ordering::SeqCst) + offset
    }
}

impl Store for Blocks {
    fn reserve(&self, blocks: usize, size: u64) -> Result<()> {
        self.size.store(size, Ordering::SeqCst);
        self.file.reserve(size.saturating_mul(blocks as u64))
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.file.write(self.at(block, offset), from)
    }

    fn read(&self, block: usize, at: u64, to: &mut [u8]) -> Result<()> {
        self.file.read(self.at(block, at), to)
    }
}
