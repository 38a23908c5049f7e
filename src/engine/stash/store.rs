//! Defines the trait of what blocks are kept in as bytes: memory, pinned memory or a file.

use crate::Result;

/// Where bytes go. `offset` counts from the block's first byte.
pub(super) trait Store: Send + Sync {
    /// Makes room for `blocks` blocks of `size` bytes, no copy being under way.
    fn reserve(&self, blocks: usize, size: u64) -> Result<()>;

    fn write(&self, block: usize, offset: u64, from: &[u8]) -> Result<()>;

    fn read(&self, block: usize, offset: u64, to: &mut [u8]) -> Result<()>;

    /// A tensor of so many bytes is about to be written from `offset` on, from its first byte to its last.
    fn start(&self, _block: usize, _offset: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }

    /// The tensor at `offset` was read and will not be again: memory that holds it may go.
    fn forget(&self, _block: usize, _offset: u64) -> Result<()> {
        Ok(())
    }

    /// Calls `f` with `length` of the block's bytes, if they are memory that a GPU copies to and from by itself; None
    /// if not.
    #[cfg(feature = "cuda")]
    fn pinned(&self, _: usize, _: u64, _: usize, _: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Option<Result<()>> {
        None
    }
}
