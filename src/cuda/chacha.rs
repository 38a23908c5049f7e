//! Mirrors what kernels/chacha.cuh declares: the key that a kernel draws random numbers by.

use candle_core::cuda_backend::cudarc::driver::DeviceRepr;

use crate::rng::Key;

/// `Key`: ChaCha's.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct KeyWords([u32; 8]);

// SAFETY: plain values, laid out as in C.
unsafe impl DeviceRepr for KeyWords {}

impl From<Key> for KeyWords {
    fn from(key: Key) -> Self {
        Self(key.words())
    }
}
