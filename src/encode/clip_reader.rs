//! Reads a clip's pixels for the encoder, a run of frames at a time, so that memory does not grow with the clip.

use std::ops::Range;

use crate::Result;
use crate::data::{Augment, Clip, Dataset, FrameRegion, Frames, u8_to_unit};
use crate::vae::Frame;

/// A clip and the frames of it that are decoded now.
pub struct ClipReader<'a> {
    dataset: &'a Dataset,
    clip: Clip,
    augment: Augment,
    /// Bytes of pixels that are decoded at once, if a frame has no more.
    budget: usize,
    decoded: Option<Frames>,
}

impl<'a> ClipReader<'a> {
    /// Reads clip `id` of `dataset`, cropped and mirrored as `augment` says, `budget` bytes of pixels at once.
    pub fn new(dataset: &'a Dataset, id: usize, augment: Augment, budget: usize) -> Self {
        Self { dataset, clip: dataset.clip(id), augment, budget, decoded: None }
    }

    /// A rectangle of frame `t`, in -1..1. Frames are asked for in their order, or again from one that came before.
    ///
    /// # Errors
    /// Those of [`Dataset::region`].
    pub fn read(&mut self, t: usize, rows: Range<usize>, columns: Range<usize>) -> Result<Frame> {
        let within = |lines: &Range<usize>| lines.start <= rows.start && rows.end <= lines.end;
        let has = |frames: &Frames| within(&frames.lines) && (frames.first..frames.first + frames.count()).contains(&t);
        let frames = match self.decoded.take().filter(has) {
            Some(frames) => frames,
            None => self.decode(t, rows.clone())?,
        };
        let line = frames.width * 3;
        let pixels = &frames.frame(t - frames.first)[(rows.start - frames.lines.start) * line..][..rows.len() * line];
        let shape = [rows.len(), columns.len(), 3];
        let mut values = Vec::with_capacity(shape.iter().product());
        for row in pixels.chunks_exact(line) {
            values.extend(row[columns.start * 3..columns.end * 3].iter().map(|&value| u8_to_unit(value)));
        }
        self.decoded = Some(frames);
        Ok(Frame::new(shape, values))
    }

    /// Whether all pixels fit the budget: they are then decoded once, and any part may be read at any time.
    pub fn holds_all(&self) -> bool {
        self.whole().bytes(self.dataset.options().width) <= self.budget
    }

    fn whole(&self) -> FrameRegion {
        let options = self.dataset.options();
        FrameRegion::whole(0..options.frames, options.height)
    }

    /// The whole clip, if it fits the budget, or else frames from `t` on, as many as fit.
    fn decode(&self, t: usize, lines: Range<usize>) -> Result<Frames> {
        if self.holds_all() {
            return self.dataset.region(&self.clip, &self.augment, &self.whole());
        }
        let options = self.dataset.options();
        let frame = FrameRegion { frames: t..t + 1, lines: lines.clone() }.bytes(options.width);
        let end = (t + (self.budget / frame.max(1)).max(1)).min(options.frames);
        self.dataset.region(&self.clip, &self.augment, &FrameRegion { frames: t..end, lines })
    }
}
