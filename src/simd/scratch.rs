//! Keeps working memory from call to call: cache-line aligned buffers for the next call of the same size class.
//!
//! A training step calls attention once a block with the same shapes, and fresh pages cost a fault each (a tenth of the
//! time of a short forward pass). Contents of a buffer are whatever its last user left.

use parking_lot::Mutex;
use std::ops::{Deref, DerefMut};

/// Memory kept for later calls, in bytes; buffers beyond it are freed.
pub(crate) const KEPT: usize = 64 << 20;

/// Larger buffers, in bytes, are never kept: what is computed with them takes far longer than to fetch them and fill
/// them with zeros.
pub(crate) const LARGEST: usize = 16 << 20;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

static FREE: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Whether a kept buffer of `len` is given to whoever needs `need`, in any one unit.
pub(crate) fn serves(len: usize, need: usize) -> bool {
    (need..=2 * need).contains(&len)
}

/// A borrowed buffer of words, aligned to 64 bytes; it goes back when dropped.
pub(crate) struct Scratch {
    lines: Vec<Line>,
    len: usize,
}

impl Scratch {
    /// A buffer of `len` words with unspecified contents.
    pub fn take(len: usize) -> Self {
        let need = len.div_ceil(16).max(1);
        let mut free = FREE.lock();
        // The smallest that fits, unless it would waste more than it holds.
        let fit = (0..free.len())
            .filter(|&i| serves(free[i].len(), need))
            .min_by_key(|&i| free[i].len())
            .map(|i| free.swap_remove(i));
        drop(free);
        let lines = fit.unwrap_or_else(|| bytemuck::zeroed_vec(need));
        Self { lines, len }
    }

    /// The words as f32.
    pub fn floats(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self[..])
    }
}

impl Deref for Scratch {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.len() * 64 > LARGEST {
            return;
        }
        let mut free = FREE.lock();
        let kept_bytes: usize = free.iter().map(|l| l.len() * 64).sum();
        if kept_bytes + lines.len() * 64 <= KEPT {
            free.push(lines);
        }
    }
}
