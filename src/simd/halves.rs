//! Holds words of bf16 in half their room: the upper 16 bits of an f32 whose lower ones are zero.
//!
//! Instruction sets without products of bf16 multiply f32 whose values were rounded to bf16. Their packed right
//! operands lie in memory as halves, and a task widens as much as stays in L1 before it multiplies many rows by it:
//! weights are read from memory far more often than they are packed.

use multiversion::multiversion;

/// Words from their upper halves.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(crate) fn widen(halves: &[u16], words: &mut [u32]) {
    words.iter_mut().zip(halves).for_each(|(word, &half)| *word = u32::from(half) << 16);
}

/// The upper halves of words.
#[multiversion(targets("x86_64+avx512f+avx512dq+avx512vl+avx512bw", "x86_64+avx2+fma"))]
pub(crate) fn halve(words: &[u32], halves: &mut [u16]) {
    halves.iter_mut().zip(words).for_each(|(half, &word)| *half = (word >> 16) as u16);
}
