//! The process's allocator: mimalloc, told to keep what is freed, or to give it back.
//!
//! A step asks for the same tensors again and again. Memory that goes back to the system in between comes back as page faults,
//! a tenth of a short step's time, so freed memory stays with the process and is handed out again: the pool of every tensor, Candle's
//! own included. What that costs is that the process never shrinks below its peak, and that pieces which fit no later request are
//! held in vain. Where steps are long, faults are nothing beside attention and such pieces are large: then freed memory is given back.

pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc.h, which the Rust crate does not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// Freed memory is not given back from now on. For programs whose global allocator is [`Allocator`]; without effect elsewhere.
pub fn keep_freed_memory() {
    purge_after(-1); // never
}

/// Freed memory is given back at once from now on; likewise.
pub fn give_back_freed_memory() {
    purge_after(0);
}

fn purge_after(milliseconds: std::ffi::c_long) {
    // SAFETY: a plain call that sets one option.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, milliseconds) }
}
