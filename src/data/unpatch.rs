//! Writes patch rows, and regions that several ranks hold, back into frames: the way back, which samples take.

use super::frames::{Frames, RowOrder};
use crate::Result;
use std::ops::Range;

/// The nearest u8 of a pixel in [-1, 1]; what lies outside is clamped, and NaN is black.
#[inline]
pub fn unit_to_u8(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round() as u8 // `as` saturates
}

impl Frames {
    /// Writes rows in [-1, 1] (clamped; NaN is black) into the pixels of `tokens`.
    ///
    /// # Errors
    /// As [`patch_rows`](Self::patch_rows).
    pub fn set_rows(&mut self, patch: [usize; 3], tokens: Range<usize>, order: RowOrder, rows: &[f32]) -> Result<()> {
        let layout = self.layout(patch, &tokens, rows.len())?;
        for (i, row) in rows.chunks_exact(layout.row).enumerate() {
            let (plane, mut taken) = (row.len() / 3, 0);
            for (start, run) in layout.runs(tokens.start + i) {
                for (j, target) in self.data[start..start + run * 3].iter_mut().enumerate() {
                    *target = unit_to_u8(match order {
                        RowOrder::ChannelLast => row[taken * 3 + j],
                        RowOrder::ChannelFirst => row[j % 3 * plane + taken + j / 3],
                    });
                }
                taken += run;
            }
        }
        Ok(())
    }

    /// Copies what `region`, of the same clip, holds of the frames and lines held here.
    pub fn place(&mut self, region: &Self) {
        let line = self.width * 3;
        let size = self.frame_bytes();
        for i in 0..region.count() {
            let (frame, from) = (region.first + i, region.frame(i));
            if !(self.first..self.first + self.count()).contains(&frame) {
                continue;
            }
            for (y, pixels) in region.lines.clone().zip(from.chunks_exact(line)) {
                if self.lines.contains(&y) {
                    let start = (frame - self.first) * size + (y - self.lines.start) * line;
                    self.data[start..start + line].copy_from_slice(pixels);
                }
            }
        }
    }
}
