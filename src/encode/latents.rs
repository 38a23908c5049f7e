//! A part of a clip's latents in memory, and the network's rows from it.

use std::ops::Range;

use crate::data::{ClipRows, Frames, token_grid};
use crate::{Result, bail};

/// A region of a clip's latents, normalised: `[z, frames held, lines held, width]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Latents {
    /// Which frame of the clip is the first one held.
    pub first: usize,
    /// Which lines of each frame are held.
    pub lines: Range<usize>,
    /// Channels, and a whole frame's height and width.
    pub shape: [usize; 3],
    pub values: Vec<f32>,
}

impl ClipRows for Latents {
    fn clean_rows(&self, patch: [usize; 3], tokens: Range<usize>, out: &mut [f32]) -> Result<()> {
        let [z, height, width] = self.shape;
        let [_, rows, columns] = token_grid([patch[0], height, width], patch)?;
        let (plane, row) = (self.lines.len() * width, z * patch.iter().product::<usize>());
        let frames = self.values.len() / (z * plane).max(1);
        if out.len() != tokens.len() * row {
            bail!(Shape, "{} rows of {row} values do not fit a buffer of {}", tokens.len(), out.len());
        }
        for (token, out) in tokens.clone().zip(out.chunks_exact_mut(row)) {
            let (t, h, w) = (token / (rows * columns), token / columns % rows, token % columns);
            let first = (t * patch[0]).checked_sub(self.first).filter(|first| first + patch[0] <= frames);
            let line = (h * patch[1]).checked_sub(self.lines.start).filter(|line| line + patch[1] <= self.lines.len());
            let (Some(first), Some(line)) = (first, line) else {
                bail!(
                    Shape,
                    "tokens {tokens:?} lie in latents beyond frames {}..{}, lines {:?}, which are held",
                    self.first,
                    self.first + frames,
                    self.lines
                );
            };
            let places = (0..patch[0]).flat_map(|t| (0..patch[1]).map(move |y| (t, y)));
            let places = places.flat_map(|(t, y)| (0..patch[2]).map(move |x| (t, y, x)));
            for (pixel, (dt, y, x)) in out.chunks_exact_mut(z).zip(places) {
                let at = (first + dt) * plane + (line + y) * width + w * patch[2] + x;
                for (c, value) in pixel.iter_mut().enumerate() {
                    *value = self.values[c * frames * plane + at];
                }
            }
        }
        Ok(())
    }

    fn pixels(&self) -> Option<&Frames> {
        None
    }
}
