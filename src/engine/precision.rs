//! What attention on a GPU can compute in: checked before a run's first step, by its plan, and by a bench, in the same
//! words.
//!
//! In bf16 it goes by tensor cores, whose kernels have the usual sizes of heads. In f32 a block of threads takes a row
//! and reads all keys for it: exact, and about a hundred times slower (by arithmetic; no GPU has measured it), so it is
//! for checks.

use crate::{Result, bail};

/// Tokens of a rank's attention up to which f32 is for checks.
pub const F32_TOKENS: usize = 8192;

/// Head dims of the bf16 kernels.
const BF16_HEADS: [usize; 3] = [64, 96, 128];

/// Refuses what a GPU has no kernels for, or none to train by: attention of `tokens` tokens a rank, with heads of
/// `head_dim`.
///
/// # Errors
/// It does; the message says which setting to change.
pub fn check_on_gpu(bf16: bool, head_dim: usize, tokens: usize) -> Result<()> {
    if bf16 && !BF16_HEADS.contains(&head_dim) {
        bail!(
            Shape,
            "attention in bf16 on a GPU has heads of 64, 96 or 128 features, the network's have {head_dim}: set \
             model.attention_head_dim, or train.dtype = \"f32\" for a check (of a command without a config: --dtype f32)"
        )
    }
    if !bf16 && tokens > F32_TOKENS {
        bail!(
            Shape,
            "attention in f32 on a GPU is for checks of up to {F32_TOKENS} tokens a rank, and this one has {tokens}: set train.dtype = \
             \"bf16\" (of a command without a config: --dtype bf16)"
        )
    }
    Ok(())
}
