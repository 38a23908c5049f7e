//! The process's allocator: mimalloc, told to keep what is freed.
//!
//! A step asks for the same tensors again and again. Memory that goes back to the system in between comes back as page faults,
//! a tenth of a step's time, so freed memory stays with the process and is handed out again: the pool of every tensor, Candle's
//! own included. What that costs is that the process never shrinks below its peak.

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc.h, which the Rust crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Freed memory is not given back from now on. For programs whose global allocator is [`Allocator`]; without effect elsewhere.
pub fn keep_freed_memory() {
    // SAFETY: a plain call that sets one option; -1 means never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) }
}
