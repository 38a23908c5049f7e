//! The stash in memory: tensors handed over as they are, without a copy; or, where they are rounded, bytes.

use std::sync::{Mutex, PoisonError, RwLock};

use super::copies::Store;
use super::{Saved, not_there};
use crate::{Result, bail};

/// A place for each block's tensors.
#[derive(Default)]
pub(super) struct Tensors(Vec<Option<Saved>>);

impl Tensors {
    pub fn begin(&mut self, blocks: usize) {
        self.0.clear();
        self.0.resize_with(blocks, || None);
    }

    pub fn put(&mut self, i: usize, saved: Saved) -> Result<()> {
        let blocks = self.0.len();
        let Some(place) = self.0.get_mut(i) else { bail!("stash: block {i} of {blocks}") };
        *place = Some(saved);
        Ok(())
    }

    pub fn take(&mut self, i: usize) -> Result<Saved> {
        self.0.get_mut(i).and_then(Option::take).ok_or_else(|| not_there(i))
    }
}

/// A place for each block's bytes, each behind a lock of its own, as blocks are copied by several threads.
#[derive(Default)]
pub(super) struct Bytes(RwLock<Vec<Mutex<Vec<u8>>>>);

impl Bytes {
    /// Calls `f` with the `length` bytes of a block from `at` on.
    fn with(&self, block: usize, at: u64, length: usize, f: impl FnOnce(&mut [u8])) -> Result<()> {
        let blocks = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = blocks[block].lock().unwrap_or_else(PoisonError::into_inner);
        let range = at as usize..at as usize + length;
        let Some(part) = bytes.get_mut(range.clone()) else { bail!("stash: bytes {range:?} were not reserved") };
        f(part);
        Ok(())
    }
}

impl Store for Bytes {
    fn reserve(&self, blocks: usize, size: u64) -> Result<()> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.resize_with(blocks, Mutex::default);
        for bytes in all.iter() {
            bytes.lock().unwrap_or_else(PoisonError::into_inner).resize(size as usize, 0);
        }
        Ok(())
    }

    fn write(&self, block: usize, at: u64, from: &[u8]) -> Result<()> {
        self.with(block, at, from.len(), |bytes| bytes.copy_from_slice(from))
    }

    fn read(&self, block: usize, at: u64, to: &mut [u8]) -> Result<()> {
        self.with(block, at, to.len(), |bytes| to.copy_from_slice(bytes))
    }
}
