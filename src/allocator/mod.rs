//! Allocates the process's memory: mimalloc, set to keep what is freed, and for large blocks a pool that counts what is
//! in use.
//!
//! A step asks for the same tensors again and again. Memory that goes back to the system in between comes back as page
//! faults, a tenth of a step's time, so freed memory stays with the process and is handed out again: the pool of every
//! tensor, Candle's own included. What that costs is that the process never shrinks below its peak.
//!
//! Large blocks are mapped one by one and reused for their own length only (`ledger`). General allocators hold up to
//! 1.65 times what is in use (measured in docs/design.md); exact-size reuse keeps resident memory equal to peak use,
//! which `plan` predicts.

mod ledger;
mod shortage;

use mimalloc::MiMalloc;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use ledger::SPARE;
use ledger::{Block, Ledger};
pub use shortage::report_shortage;

/// `mi_option_purge_delay` of mimalloc.h, which the Rust crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Blocks of at least so many bytes are the pool's.
pub const LARGE: usize = 64 << 10;

/// Lengths of the pool's blocks are multiples of this, so that nearly equal requests serve each other.
const GRAIN: usize = 16 << 10;

/// Alignment of what the system maps.
const PAGE: usize = 4096;

/// Blocks of at least this length start at a multiple of it and ask for pages of this length: fewer faults, fewer
/// misses of the TLB.
const HUGE: usize = 2 << 20;

/// The standard library's lock: parking_lot's allocates when a thread waits for it, which an allocator cannot allow.
static LEDGER: Mutex<Ledger> = Mutex::new(Ledger::new());

/// See the module.
pub struct Allocator;

/// Small freed memory is not given back from now on. For programs whose global allocator is [`Allocator`]; without
/// effect elsewhere.
pub fn keep_freed_memory() {
    // SAFETY: a plain call that sets one option; -1 means never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}

/// The most bytes of large blocks that were in use at once since the last call; 0 in programs with another allocator.
pub fn most_in_use() -> usize {
    books().restart()
}

fn books() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The length of the pool's block for a request, if it is the pool's.
fn pooled(layout: Layout) -> Option<usize> {
    (layout.size() >= LARGE && layout.align() <= PAGE).then(|| layout.size().next_multiple_of(GRAIN))
}

/// A block of `len` bytes, and whether they are zeros; null where the system has none.
fn take(len: usize) -> (*mut u8, bool) {
    let mut books = books();
    let reused = books.take(len);
    while let Some(block) = books.excess() {
        drop(books);
        unmap(block);
        books = self::books();
    }
    drop(books);
    if let Some(address) = reused {
        return (std::ptr::with_exposed_provenance_mut(address), false);
    }
    match map(len) {
        Some(at) => (at, true),
        None => {
            self::books().untake(len);
            (null_mut(), true)
        }
    }
}

/// New zeros.
fn map(len: usize) -> Option<*mut u8> {
    let huge = len >= HUGE;
    let room = if huge { len + HUGE - PAGE } else { len };
    // SAFETY: a mapping at a place that the system chooses touches no other memory.
    let at = unsafe { mmap_anonymous(null_mut(), room, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }.ok()?;
    if !huge {
        return Some(at.cast());
    }
    let before = at.align_offset(HUGE);
    // SAFETY: the block lies within the room, whose other ends nobody knows of; advice that is not followed does no
    // harm.
    unsafe {
        let block = at.byte_add(before);
        for (end, len) in [(at, before), (block.byte_add(len), room - before - len)] {
            if len > 0 {
                let _ = munmap(end, len);
            }
        }
        let _ = madvise(block, len, Advice::LinuxHugepage);
        Some(block.cast())
    }
}

/// What was allocated for a request of so many bytes; that there is nothing is noted.
fn noted(at: *mut u8, bytes: usize) -> *mut u8 {
    if at.is_null() {
        shortage::note(bytes);
    }
    at
}

fn put(at: *mut u8, len: usize) {
    let oldest = books().put(Block { at: at.expose_provenance(), len });
    if let Some(block) = oldest {
        unmap(block);
    }
}

fn unmap(block: Block) {
    // SAFETY: the ledger gave the block away: it was mapped with this length, nobody uses it and nobody can get it any
    // more.
    // fails only on a wrong address
    let _ = unsafe { munmap(std::ptr::with_exposed_provenance_mut(block.at), block.len) };
}

// SAFETY: blocks are mapped or mimalloc's, decided by the layout alone, so each goes back where it came from. A mapped
// block is at least as long as asked for, starts at a page, and is in use by one owner at a time, as the ledger hands
// out only what was put.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let at = match pooled(layout) {
            Some(len) => take(len).0,
            // SAFETY: the caller's promises are passed on, here and below.
            None => unsafe { MiMalloc.alloc(layout) },
        };
        noted(at, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(len) = pooled(layout) else {
            // SAFETY: as above.
            return noted(unsafe { MiMalloc.alloc_zeroed(layout) }, layout.size());
        };
        let (at, zeros) = take(len);
        if noted(at, layout.size()).is_null() {
            return at;
        }
        if !zeros {
            // SAFETY: the block has at least this length.
            unsafe { at.write_bytes(0, layout.size()) }
        }
        at
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        match pooled(layout) {
            Some(len) => put(at, len),
            // SAFETY: as above.
            None => unsafe { MiMalloc.dealloc(at, layout) },
        }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that size is not 0 and does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (pooled(layout), pooled(new)) {
            // SAFETY: as above.
            (None, None) => noted(unsafe { MiMalloc.realloc(at, layout, size) }, size),
            (Some(old), Some(len)) if old == len => at,
            // SAFETY: as above; the two blocks are distinct, and both have what is copied.
            _ => unsafe {
                let to = self.alloc(new);
                if !to.is_null() {
                    to.copy_from_nonoverlapping(at, layout.size().min(size));
                    self.dealloc(at, layout);
                }
                to
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    fn bytes(at: *mut u8, len: usize) -> &'static mut [u8] {
        assert!(!at.is_null());
        // SAFETY: callers give a live block of this length and drop the slice before they free it.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }

    #[test]
    fn zeroed_block_is_zero_even_if_reused() {
        let large = layout(1 << 20);
        // SAFETY: each block is freed once, with its layout.
        unsafe {
            let at = Allocator.alloc(large);
            bytes(at, 1 << 20).fill(7);
            Allocator.dealloc(at, large);
            let again = Allocator.alloc_zeroed(large);
            assert_eq!(again, at, "the block was not kept");
            assert!(bytes(again, 1 << 20).iter().all(|&byte| byte == 0));
            Allocator.dealloc(again, large);
        }
    }

    #[test]
    fn realloc_keeps_contents() {
        let sizes = [100, LARGE - 1, LARGE, LARGE + 1, 3 << 20, (3 << 20) + 1, 5 << 20, LARGE, 200];
        // SAFETY: the block is reallocated from the layout that it has, and freed with its last one.
        unsafe {
            let mut block = Allocator.alloc(layout(sizes[0]));
            bytes(block, sizes[0]).fill(1);
            for pair in sizes.windows(2) {
                block = Allocator.realloc(block, layout(pair[0]), pair[1]);
                let common = pair[0].min(pair[1]);
                assert!(bytes(block, common).iter().all(|&byte| byte == 1), "{pair:?}");
                bytes(block, pair[1]).fill(1);
            }
            Allocator.dealloc(block, layout(200));
        }
    }
}
