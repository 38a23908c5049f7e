//! The order in which a task of either pass takes its pieces: a band of rows against a panel of lanes, all bands for one panel after
//! another. Each goes through logits, weights, and what the weights add to sums.

use crate::ops::cpu::simd::{Beside, Simd};

/// A task's pieces. All functions need the unit's features, and the pieces they name.
pub(super) trait Pieces<S: Simd> {
    /// Makes weights of logits.
    type Work: Beside;
    /// Multiplies for a piece's logits, with some of `beside` meanwhile.
    unsafe fn logits(&self, i: usize, beside: &mut impl Beside);
    /// What makes a piece's weights, to be done when it has its logits.
    unsafe fn weights(&self, i: usize) -> Self::Work;
    /// Adds what a piece's weights give, with some of `beside` meanwhile.
    unsafe fn sums(&self, i: usize, beside: &mut impl Beside);
}

/// Takes `count` pieces through all stages. `weighed(i)` is called when piece `i` has its weights, before the next one makes any; once it
/// says no, the rest is left.
///
/// Where `woven`, a piece's weights are made while the products of its neighbours run, which may then be no pieces of the same rows if
/// making weights changes those rows' sums.
///
/// # Safety
/// The CPU has the unit's features, and the task these pieces.
#[inline(always)]
pub(super) unsafe fn take<S: Simd, P: Pieces<S>>(
    task: &P,
    count: usize,
    woven: bool,
    mut weighed: impl FnMut(usize) -> bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if !woven {
            for i in 0..count {
                task.logits(i, &mut ());
                task.weights(i).rest();
                task.sums(i, &mut ());
                if !weighed(i) {
                    return;
                }
            }
            return;
        }
        task.logits(0, &mut ());
        for i in 0..count {
            let mut weights = task.weights(i);
            if i > 0 {
                task.sums(i - 1, &mut weights); // then its square is free
            }
            if i + 1 < count {
                task.logits(i + 1, &mut weights);
            }
            weights.rest();
            if !weighed(i) {
                return;
            }
        }
        task.sums(count - 1, &mut ());
    }
}
