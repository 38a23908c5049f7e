//! Holds decoded frames of a clip as u8, and makes the patch rows of any run of tokens from them.
//!
//! A rank holds only the frames its tokens lie in, and of an image, or where all its tokens lie in one patch of frames,
//! only the lines of pixels; a tile asks for only its tokens' rows. Tokens are ordered (t, h, w): token n of a grid of
//! T x H x W patches is the patch at t = n / (H W), h = n / W mod H, w = n mod W.

use crate::{Result, bail};
use rayon::prelude::*;
use std::ops::Range;

/// The order of values in a patch row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// (C, pt, ph, pw): the order of a patch embedding's convolution weight.
    ChannelFirst,
    /// (pt, ph, pw, C): the order of the head's prediction.
    ChannelLast,
}

/// A region of a clip: the same lines of some consecutive frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameRegion {
    /// Which frames, counted in the clip.
    pub frames: Range<usize>,
    /// Lines of pixels of each frame, at least one.
    pub lines: Range<usize>,
}

impl FrameRegion {
    /// Whole frames, of `height` lines.
    pub fn whole(frames: Range<usize>, height: usize) -> Self {
        Self { frames, lines: 0..height }
    }

    /// What `tokens` lie in, `grid` counting patches along (t, h, w): their frames, and the lines of one patch of
    /// frames, or all lines where they lie in several. No tokens lie in no frames.
    pub fn of_tokens(tokens: Range<usize>, grid: [usize; 3], patch: [usize; 3]) -> Self {
        let height = grid[1] * patch[1];
        if tokens.is_empty() {
            return Self::whole(0..0, height);
        }
        let plane = grid[1] * grid[2];
        let (first, last) = (tokens.start, tokens.end - 1);
        let (t, u) = (first / plane, last / plane);
        let line = |token: usize| token % plane / grid[2] * patch[1];
        let lines = if t == u { line(first)..line(last) + patch[1] } else { 0..height };
        Self { frames: t * patch[0]..(u + 1) * patch[0], lines }
    }

    /// Bytes of its pixels, of `width` a line.
    pub fn bytes(&self, width: usize) -> usize {
        self.frames.len() * self.lines.len() * width * 3
    }
}

/// The pixels of a part of a clip, [n, lines, width, 3] in RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Which frame of the clip is the first one held.
    pub first: usize,
    /// Which lines of each frame are held.
    pub lines: Range<usize>,
    /// Lines of a whole frame.
    pub height: usize,
    /// Pixels of a line.
    pub width: usize,
    /// The pixels; its length is a multiple of lines * width * 3.
    pub data: Vec<u8>,
}

/// A part of a clip that gives the network's rows of the tokens in it.
pub trait ClipRows: Send + Sync {
    /// Writes the patch rows of `tokens` to `out`, [tokens, pt ph pw C].
    ///
    /// # Errors
    /// The patch does not divide the clip, a token lies in what is not held, or `out` has another length.
    fn clean_rows(&self, patch: [usize; 3], tokens: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Its pixels, where it is made of those.
    fn pixels(&self) -> Option<&Frames>;
}

impl ClipRows for Frames {
    fn clean_rows(&self, patch: [usize; 3], tokens: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.patch_rows(patch, tokens, RowOrder::ChannelLast, out)
    }

    fn pixels(&self) -> Option<&Frames> {
        Some(self)
    }
}

/// A u8 pixel value as the network sees it, in [-1, 1].
#[inline]
pub fn u8_to_unit(value: u8) -> f32 {
    value as f32 / 127.5 - 1.0
}

/// Patches along (t, h, w) of a clip of `size` (frames, height, width).
///
/// # Errors
/// A side of the patch is 0 or does not divide the clip's.
pub fn token_grid(size: [usize; 3], patch: [usize; 3]) -> Result<[usize; 3]> {
    for ((side, step), name) in size.into_iter().zip(patch).zip(["frames", "height", "width"]) {
        if step == 0 || side % step != 0 || side == 0 {
            bail!(
                Shape,
                "a patch of {patch:?} (frames, height, width) does not divide a clip of {size:?}: \
                 {name} {side} is no positive multiple of {step}"
            );
        }
    }
    Ok(std::array::from_fn(|i| size[i] / patch[i]))
}

impl Frames {
    /// `region` of a black clip of `height` and `width`.
    pub fn black(region: &FrameRegion, height: usize, width: usize) -> Self {
        let FrameRegion { frames, lines } = region.clone();
        Self { first: frames.start, lines, height, width, data: vec![0; region.bytes(width)] }
    }

    /// How many frames are held, whole or in part.
    pub fn count(&self) -> usize {
        self.data.len() / self.frame_bytes()
    }

    /// Frame `i` of those held, [lines, width, 3].
    pub fn frame(&self, i: usize) -> &[u8] {
        let size = self.frame_bytes();
        &self.data[i * size..(i + 1) * size]
    }

    /// Bytes of the lines held of a frame.
    pub(super) fn frame_bytes(&self) -> usize {
        self.lines.len() * self.width * 3
    }

    /// Writes the patch rows of `tokens` to `out`, [tokens, 3 pt ph pw], values in [-1, 1]; rows are made in parallel.
    ///
    /// # Errors
    /// The patch does not divide the frame, a token lies in frames or lines not held, or `out` has another length.
    pub fn patch_rows(&self, patch: [usize; 3], tokens: Range<usize>, order: RowOrder, out: &mut [f32]) -> Result<()> {
        let layout = self.layout(patch, &tokens, out.len())?;
        let least = (16 * 1024 / layout.row).max(1); // so many rows that handing them to a thread pays
        out.par_chunks_mut(layout.row).with_min_len(least).enumerate().for_each(|(i, row)| {
            let mut taken = 0;
            for (start, channel_run) in layout.runs(tokens.start + i) {
                let pixels = &self.data[start..start + channel_run * 3];
                match order {
                    RowOrder::ChannelLast => {
                        for (value, &pixel) in row[taken * 3..].iter_mut().zip(pixels) {
                            *value = u8_to_unit(pixel);
                        }
                    }
                    RowOrder::ChannelFirst => {
                        let plane = row.len() / 3;
                        for (i, &pixel) in pixels.iter().enumerate() {
                            row[i % 3 * plane + taken + i / 3] = u8_to_unit(pixel);
                        }
                    }
                }
                taken += channel_run;
            }
        });
        Ok(())
    }

    pub(super) fn layout(&self, patch: [usize; 3], tokens: &Range<usize>, values: usize) -> Result<Layout> {
        let [_, rows, columns] = token_grid([patch[0], self.height, self.width], patch)?;
        let needed = FrameRegion::of_tokens(tokens.clone(), [0, rows, columns], patch);
        let decoded = FrameRegion { frames: self.first..self.first + self.count(), lines: self.lines.clone() };
        let within = |a: &Range<usize>, b: &Range<usize>| a.start >= b.start && a.end <= b.end;
        let is_decoded = within(&needed.frames, &decoded.frames) && within(&needed.lines, &decoded.lines);
        if !is_decoded && !tokens.is_empty() {
            bail!(
                Shape,
                "tokens {tokens:?} lie in frames {:?} of the clip, lines {:?}, but frames {:?}, lines {:?}, are held",
                needed.frames,
                needed.lines,
                decoded.frames,
                decoded.lines
            );
        }
        let row = 3 * patch.iter().product::<usize>();
        if values != tokens.len() * row {
            bail!(Shape, "{} rows of {row} values do not fit a buffer of {values}", tokens.len());
        }
        let (first, lines) = (self.first, self.lines.clone());
        Ok(Layout { patch, rows, columns, row, first, lines, width: self.width })
    }
}

/// Where a token's pixels lie in the frames held.
pub(super) struct Layout {
    patch: [usize; 3],
    /// Patches along a frame's height and width.
    rows: usize,
    columns: usize,
    /// Values a row.
    pub row: usize,
    first: usize,
    lines: Range<usize>,
    width: usize,
}

impl Layout {
    /// A token's pixels in the order (pt, ph): the offset of each run of pw pixels, and pw.
    pub fn runs(&self, token: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let [pt, ph, pw] = self.patch;
        let (w, h, t) = (token % self.columns, token / self.columns % self.rows, token / (self.columns * self.rows));
        let (lines, width, first) = (self.lines.clone(), self.width, self.first);
        (0..pt * ph).map(move |i| {
            let (frame, y) = (t * pt + i / ph - first, h * ph + i % ph);
            (((frame * lines.len() + y - lines.start) * width + w * pw) * 3, pw)
        })
    }
}
