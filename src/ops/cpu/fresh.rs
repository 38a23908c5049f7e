//! New vectors that threads begin run by run: none writes zeros or a copy all over one while the others wait, and a run is in a cache
//! when it is changed.

use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A vector of `n` numbers to be, none of which is there before its [`Run`] is begun.
pub(crate) struct Fresh<T> {
    values: Vec<T>,
    n: usize,
    begun: AtomicUsize,
}

/// A part of a [`Fresh`] vector.
pub(crate) struct Run<'a, T> {
    slots: &'a mut [MaybeUninit<T>],
    begun: &'a AtomicUsize,
}

impl<T: Copy + Send> Fresh<T> {
    pub fn new(n: usize) -> Self {
        Self { values: Vec::with_capacity(n), n, begun: AtomicUsize::new(0) }
    }

    /// All of it in runs of `len`, the last being what is left.
    pub fn runs(&mut self, len: usize) -> impl IndexedParallelIterator<Item = Run<'_, T>> {
        let (slots, begun) = self.slots();
        slots.par_chunks_mut(len.max(1)).map(|slots| Run { slots, begun })
    }

    /// A copy of `values`, which are `n`, in runs of `len`.
    pub fn copies(&mut self, values: &[T], len: usize) -> impl IndexedParallelIterator<Item = &mut [T]>
    where
        T: Sync,
    {
        self.runs(len).zip(values.par_chunks(len.max(1))).map(|(run, values)| run.copy_of(values))
    }

    /// The first runs of these lengths.
    ///
    /// # Panics
    /// If they are longer than the vector.
    pub fn parts(&mut self, lens: impl IntoIterator<Item = usize>) -> Vec<Run<'_, T>> {
        let (mut left, begun) = self.slots();
        let part = |len| Run { slots: left.split_off_mut(..len).expect("runs within the vector"), begun };
        lens.into_iter().map(part).collect()
    }

    fn slots(&mut self) -> (&mut [MaybeUninit<T>], &AtomicUsize) {
        *self.begun.get_mut() = 0; // the slots of runs made before are given away again
        (&mut self.values.spare_capacity_mut()[..self.n], &self.begun)
    }

    /// The vector.
    ///
    /// # Panics
    /// If a run was not begun.
    pub fn made(mut self) -> Vec<T> {
        assert_eq!(*self.begun.get_mut(), self.n, "numbers of runs that were begun");
        // SAFETY: runs of one call do not overlap and count once each, when they are written, so all n numbers are.
        unsafe { self.values.set_len(self.n) }
        self.values
    }
}

impl<'a, T: Copy> Run<'a, T> {
    /// Begins it with `value` everywhere.
    pub fn filled(self, value: T) -> &'a mut [T] {
        self.slots.fill(MaybeUninit::new(value));
        // SAFETY: all of it was written.
        unsafe { self.begin() }
    }

    /// Begins it with a copy of `values`, which are as many.
    pub fn copy_of(self, values: &[T]) -> &'a mut [T] {
        assert_eq!(values.len(), self.slots.len(), "values for a run");
        // SAFETY: as many values as slots, which are no one else's; then all of them were written.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.slots.as_mut_ptr().cast(), values.len());
            self.begin()
        }
    }

    /// # Safety
    /// All numbers are written.
    unsafe fn begin(self) -> &'a mut [T] {
        self.begun.fetch_add(self.slots.len(), Ordering::Relaxed);
        // SAFETY: the caller's promise; `MaybeUninit<T>` is laid out as `T`.
        unsafe { &mut *(std::ptr::from_mut(self.slots) as *mut [T]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_is_made_of_its_runs_and_not_without_one_of_them() {
        let mut fresh = Fresh::new(10);
        fresh.runs(4).enumerate().for_each(|(i, run)| run.filled(i)[0] = 9);
        assert_eq!(fresh.made(), [9, 0, 0, 0, 9, 1, 1, 1, 9, 2]);

        let mut fresh = Fresh::new(5);
        let mut parts = fresh.parts([2, 3]);
        parts.pop().unwrap().copy_of(&[3, 4, 5]);
        parts.pop().unwrap().copy_of(&[1, 2]);
        assert_eq!(fresh.made(), [1, 2, 3, 4, 5]);

        let mut fresh = Fresh::new(3);
        fresh.copies(&[1, 2, 3], 2).for_each(|run| run[0] += 5);
        assert_eq!(fresh.made(), [6, 2, 8]);

        let half = std::panic::catch_unwind(|| {
            let mut fresh = Fresh::new(4);
            fresh.runs(2).take(1).for_each(|run| run.filled(0)[0] = 1);
            fresh.runs(2).skip(1).for_each(|run| run.filled(0)[0] = 1); // the first run is unbegun again
            fresh.made()
        });
        assert!(half.is_err());
    }
}
