//! Fills uninitialised vectors chunk by chunk in parallel, so that no single thread zeroes the whole and each chunk is
//! in cache when first used.

use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A vector of `n` elements, of which none is initialised before its [`Chunk`] is written.
pub(crate) struct UninitVec<T> {
    values: Vec<T>,
    n: usize,
    written_count: AtomicUsize,
}

/// An uninitialised part of a [`UninitVec`].
pub(crate) struct Chunk<'a, T> {
    slots: &'a mut [MaybeUninit<T>],
    written_count: &'a AtomicUsize,
}

impl<T: Copy + Send> UninitVec<T> {
    pub fn new(n: usize) -> Self {
        Self { values: Vec::with_capacity(n), n, written_count: AtomicUsize::new(0) }
    }

    /// All of it in chunks of `len`, the last being what is left.
    pub fn chunks(&mut self, len: usize) -> impl IndexedParallelIterator<Item = Chunk<'_, T>> {
        let (slots, written_count) = self.slots();
        slots.par_chunks_mut(len.max(1)).map(|slots| Chunk { slots, written_count })
    }

    /// A copy of `values`, which are `n`, in chunks of `len`.
    pub fn copied_chunks(&mut self, values: &[T], len: usize) -> impl IndexedParallelIterator<Item = &mut [T]>
    where
        T: Sync,
    {
        self.chunks(len).zip(values.par_chunks(len.max(1))).map(|(chunk, values)| chunk.copy_of(values))
    }

    /// The first chunks of these lengths.
    ///
    /// # Panics
    /// If the lengths add up to more than the vector.
    pub fn chunks_of(&mut self, lens: impl IntoIterator<Item = usize>) -> Vec<Chunk<'_, T>> {
        let (mut left, written_count) = self.slots();
        let part = |len| Chunk { slots: left.split_off_mut(..len).expect("runs within the vector"), written_count };
        lens.into_iter().map(part).collect()
    }

    fn slots(&mut self) -> (&mut [MaybeUninit<T>], &AtomicUsize) {
        *self.written_count.get_mut() = 0; // the slots of earlier chunks are given away again
        (&mut self.values.spare_capacity_mut()[..self.n], &self.written_count)
    }

    /// The vector.
    ///
    /// # Panics
    /// If a chunk was not written.
    pub fn into_vec(mut self) -> Vec<T> {
        assert_eq!(*self.written_count.get_mut(), self.n, "numbers of runs that were begun");
        // SAFETY: chunks of one call do not overlap and count once each, when they are written, so all n elements are.
        unsafe { self.values.set_len(self.n) }
        self.values
    }
}

impl<'a, T: Copy> Chunk<'a, T> {
    /// Writes `value` everywhere.
    pub fn filled(self, value: T) -> &'a mut [T] {
        self.slots.fill(MaybeUninit::new(value));
        // SAFETY: all of it was written.
        unsafe { self.written() }
    }

    /// Writes a copy of `values`, which are as many.
    pub fn copy_of(self, values: &[T]) -> &'a mut [T] {
        assert_eq!(values.len(), self.slots.len(), "values for a run");
        // SAFETY: as many values as slots, which are no one else's; then all of them were written.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.slots.as_mut_ptr().cast(), values.len());
            self.written()
        }
    }

    /// # Safety
    /// All elements are written.
    unsafe fn written(self) -> &'a mut [T] {
        self.written_count.fetch_add(self.slots.len(), Ordering::Relaxed);
        // SAFETY: the caller's promise; `MaybeUninit<T>` is laid out as `T`.
        unsafe { &mut *(std::ptr::from_mut(self.slots) as *mut [T]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vector_with_an_unwritten_chunk_panics() {
        let mut vector = UninitVec::new(10);
        vector.chunks(4).enumerate().for_each(|(i, chunk)| chunk.filled(i)[0] = 9);
        assert_eq!(vector.into_vec(), [9, 0, 0, 0, 9, 1, 1, 1, 9, 2]);

        let mut vector = UninitVec::new(5);
        let mut parts = vector.chunks_of([2, 3]);
        parts.pop().unwrap().copy_of(&[3, 4, 5]);
        parts.pop().unwrap().copy_of(&[1, 2]);
        assert_eq!(vector.into_vec(), [1, 2, 3, 4, 5]);

        let mut vector = UninitVec::new(3);
        vector.copied_chunks(&[1, 2, 3], 2).for_each(|chunk| chunk[0] += 5);
        assert_eq!(vector.into_vec(), [6, 2, 8]);

        let half = std::panic::catch_unwind(|| {
            let mut vector = UninitVec::new(4);
            vector.chunks(2).take(1).for_each(|chunk| chunk.filled(0)[0] = 1);
            // the first chunk counts as unwritten again
            vector.chunks(2).skip(1).for_each(|chunk| chunk.filled(0)[0] = 1);
            vector.into_vec()
        });
        assert!(half.is_err());
    }
}
