//! Keeps the stash in memory: tensors handed over as they are, without a copy; or, where they are rounded, bytes.

use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;

use super::store::Store;
use super::{Residuals, not_there};
use crate::{Result, bail};

/// A place for each block's tensors.
#[derive(Default)]
pub(super) struct Tensors(Vec<Option<Residuals>>);

impl Tensors {
    pub fn begin(&mut self, blocks: usize) {
        self.0.clear();
        self.0.resize_with(blocks, || None);
    }

    pub fn put(&mut self, i: usize, residuals: Residuals) -> Result<()> {
        let blocks = self.0.len();
        let Some(slot) = self.0.get_mut(i) else { bail!(Shape, "stash: block {i} of {blocks}") };
        *slot = Some(residuals);
        Ok(())
    }

    pub fn take(&mut self, i: usize) -> Result<Residuals> {
        self.0.get_mut(i).and_then(Option::take).ok_or_else(|| not_there(i))
    }
}

/// A place for each block's tensors as bytes, which take memory from when they are written until they are read: none
/// between steps. Each block is behind a lock of its own, as blocks are copied by several threads.
#[derive(Default)]
pub(super) struct Bytes(RwLock<Vec<Mutex<TensorBytes>>>);

/// The bytes of a block's tensors so far, by where they begin.
type TensorBytes = BTreeMap<u64, Vec<u8>>;

impl Bytes {
    fn with<T>(&self, block: usize, f: impl FnOnce(&mut TensorBytes) -> Option<T>) -> Result<T> {
        let blocks = self.0.read();
        let tensors = blocks.get(block).map(|block| block.lock());
        match tensors.and_then(|mut tensors| f(&mut tensors)) {
            Some(result) => Ok(result),
            None => bail!(Shape, "stash: bytes of block {block} that are not there"),
        }
    }
}

/// The tensor that the byte at `offset` belongs to, and which of its bytes that is.
fn tensor(tensors: &mut TensorBytes, offset: u64) -> Option<(&mut Vec<u8>, usize)> {
    let (start, bytes) = tensors.range_mut(..=offset).next_back()?;
    Some((bytes, (offset - start) as usize))
}

impl Store for Bytes {
    fn reserve(&self, blocks: usize, _: u64) -> Result<()> {
        let mut slots = self.0.write();
        slots.clear(); // a step that failed half-way leaves bytes behind
        slots.resize_with(blocks, Mutex::default);
        Ok(())
    }

    fn start(&self, block: usize, offset: u64, bytes: usize) -> Result<()> {
        self.with(block, |tensors| {
            tensors.insert(offset, Vec::with_capacity(bytes));
            Some(())
        })
    }

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()> {
        self.with(block, |tensors| {
            let (bytes, offset) = tensor(tensors, offset)?;
            (bytes.len() == offset && bytes.capacity() - offset >= from.len()).then(|| bytes.extend_from_slice(from))
        })
    }

    fn read(&self, block: usize, offset: u64, to: &mut [u8]) -> Result<()> {
        self.with(block, |tensors| {
            let (bytes, offset) = tensor(tensors, offset)?;
            to.copy_from_slice(bytes.get(offset..offset + to.len())?);
            Some(())
        })
    }

    fn forget(&self, block: usize, offset: u64) -> Result<()> {
        self.with(block, |tensors| tensors.remove(&offset).map(drop))
    }
}
