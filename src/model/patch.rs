//! Turns clips `[C, T, H, W]` into rows of patches and back.
//!
//! Token (t, h, w) of the grid, in that order, is the patch whose corner is (t pt, h ph, w pw). The network takes a
//! patch in (C, pt, ph, pw) order, as a convolution's weight has it, and gives it in (pt, ph, pw, C) order, as Wan's
//! head does. Clips of bytes are cut by the data room.

use std::ops::Range;

/// How a clip of C x T x H x W values is cut into patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    pub channels: usize,
    /// Frames, height, width.
    pub size: [usize; 3],
    /// Frames, height and width of a patch; each divides the size's.
    pub patch: [usize; 3],
}

impl Patches {
    /// Tokens along time, height, width.
    pub fn grid(&self) -> [usize; 3] {
        std::array::from_fn(|axis| self.size[axis] / self.patch[axis])
    }

    /// Elements in a patch.
    pub fn row(&self) -> usize {
        self.channels * self.patch.iter().product::<usize>()
    }

    /// Where in `[C, T, H, W]` the number (c, dt, dh, dw) of a token's patch lies.
    fn index(&self, token: usize, c: usize, [dt, dh, dw]: [usize; 3]) -> usize {
        let ([_, gh, gw], [pt, ph, pw], [frames, height, width]) = (self.grid(), self.patch, self.size);
        let (t, h, w) = (token / (gh * gw) * pt + dt, token / gw % gh * ph + dh, token % gw * pw + dw);
        ((c * frames + t) * height + h) * width + w
    }

    /// Every (dt, dh, dw) within a patch, in order.
    fn offsets(&self) -> impl Iterator<Item = [usize; 3]> + use<> {
        let [pt, ph, pw] = self.patch;
        (0..pt * ph * pw).map(move |i| [i / (ph * pw), i / pw % ph, i % pw])
    }

    /// The patches of `tokens`, each in (C, pt, ph, pw) order.
    pub fn input_rows(&self, clip: &[f32], tokens: Range<usize>) -> Vec<f32> {
        let mut rows = Vec::with_capacity(tokens.len() * self.row());
        for token in tokens {
            for c in 0..self.channels {
                rows.extend(self.offsets().map(|offset| clip[self.index(token, c, offset)]));
            }
        }
        rows
    }

    /// Writes `rows`, patches of `tokens` in (pt, ph, pw, C) order, where they belong in `clip`.
    pub fn place_output_rows(&self, rows: &[f32], tokens: Range<usize>, clip: &mut [f32]) {
        for (row, token) in rows.chunks_exact(self.row()).zip(tokens) {
            for (pixel, offset) in row.chunks_exact(self.channels).zip(self.offsets()) {
                for (c, &value) in pixel.iter().enumerate() {
                    clip[self.index(token, c, offset)] = value;
                }
            }
        }
    }
}
