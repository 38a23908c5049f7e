//! The squared errors of a batch without gradients, for held-out clips.

use candle_core::Tensor;
use std::ops::Range;

use super::NoisyClips;
use crate::Result;

/// Adds to `sums` each clip's squared error, over this rank's elements of a tile.
pub fn squared_errors(clips: &NoisyClips, rows: Range<usize>, output: &Tensor, sums: &mut [f64]) -> Result<()> {
    let output = output.flatten_all()?.to_vec1::<f32>()?;
    let mut clip_number = rows.start / clips.tokens.len();
    clips.runs(rows, |clip, tokens, values| {
        let (x0, noise) = clips.clean_and_noise(clip, tokens)?;
        sums[clip_number] += clips.objective.loss_only(&output[values], &x0, &noise, clip.sigma);
        clip_number += 1;
        Ok(())
    })
}
