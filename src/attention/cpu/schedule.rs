//! Schedules the pieces of a task of either pass: a row block against a panel of lanes, all row blocks for one panel
//! after another. Each piece goes through logits, probabilities, and what the probabilities add to sums.

use crate::simd::vector::{Beside, Simd};

/// A task's pieces. All functions need the instruction set's features, and the pieces they name.
pub(super) trait Schedule<S: Simd> {
    /// Makes probabilities of logits.
    type Work: Beside;
    /// Multiplies for a piece's logits, with some of `beside` meanwhile.
    unsafe fn logits(&self, i: usize, beside: &mut impl Beside);
    /// What makes a piece's probabilities, to be done when it has its logits.
    unsafe fn probs(&self, i: usize) -> Self::Work;
    /// Adds what a piece's probabilities give, with some of `beside` meanwhile.
    unsafe fn sums(&self, i: usize, beside: &mut impl Beside);
}

/// Takes `count` pieces through all stages. `probs_done(i)` is called when piece `i` has its probabilities, before the
/// next one makes any; once it says no, the rest is left.
///
/// Where `woven`, a piece's probabilities are made while the products of its neighbours run, which may then be no
/// pieces of the same rows if making probabilities changes those rows' sums.
///
/// # Safety
/// The CPU has the features of `S`, and the task these pieces.
#[inline(always)]
pub(super) unsafe fn run<S: Simd, P: Schedule<S>>(
    task: &P,
    count: usize,
    woven: bool,
    mut probs_done: impl FnMut(usize) -> bool,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if !woven {
            for i in 0..count {
                task.logits(i, &mut ());
                task.probs(i).rest();
                task.sums(i, &mut ());
                if !probs_done(i) {
                    return;
                }
            }
            return;
        }
        task.logits(0, &mut ());
        for i in 0..count {
            let mut probs = task.probs(i);
            if i > 0 {
                task.sums(i - 1, &mut probs); // then its square is free
            }
            if i + 1 < count {
                task.logits(i + 1, &mut probs);
            }
            probs.rest();
            if !probs_done(i) {
                return;
            }
        }
        task.sums(count - 1, &mut ());
    }
}
