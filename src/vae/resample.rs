//! Changes of a clip's frame rate, and the shortcuts of the 2.2 VAE around its changes of size.
//!
//! The first frame of a clip is an image of its own: it passes without a change in time, and is no history for what
//! comes after it where frames are doubled.

use std::sync::Arc;

use super::backend::Backend;
use super::conv::TimeConv;
use super::frame::Frame;
use crate::Result;

/// Halves the frame rate: the first frame as it is, then one frame for every two, of them and the one before.
#[derive(Clone)]
pub(super) struct HalveTime<B: Backend> {
    conv: TimeConv<B>,
    /// The last frame of the pair before.
    before: Option<B::Packed>,
    /// The first frame of this pair.
    first: Option<B::Packed>,
}

impl<B: Backend> HalveTime<B> {
    pub fn new(conv: TimeConv<B>) -> Self {
        Self { conv, before: None, first: None }
    }

    pub fn push(&mut self, x: Frame<B::Values>) -> Result<Vec<Frame<B::Values>>> {
        let packed = self.conv.pack(&x)?;
        let Some(before) = &self.before else {
            self.before = Some(packed);
            return Ok(vec![x]);
        };
        let Some(first) = self.first.take() else {
            self.first = Some(packed);
            return Ok(vec![]);
        };
        let y = self.conv.run([Some(before), Some(&first), Some(&packed)], &x)?;
        self.before = Some(packed);
        Ok(vec![y])
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        let frames = [&self.before, &self.first].into_iter().flatten();
        [self.conv.bytes(), frames.map(B::bytes_of_packed).sum()]
    }
}

/// Doubles the frame rate: the first frame as it is, then two frames for each, of it and the two before it.
#[derive(Clone)]
pub(super) struct DoubleTime<B: Backend> {
    /// Of the earlier and the later of the two frames.
    convs: [TimeConv<B>; 2],
    begun: bool,
    /// The last two frames but the clip's first, the older first.
    last: [Option<B::Packed>; 2],
}

impl<B: Backend> DoubleTime<B> {
    pub fn new(convs: [TimeConv<B>; 2]) -> Self {
        Self { convs, begun: false, last: [None, None] }
    }

    pub fn push(&mut self, x: Frame<B::Values>) -> Result<Vec<Frame<B::Values>>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(vec![x]);
        }
        let now = self.convs[0].pack(&x)?;
        let [older, old] = self.last.each_ref().map(Option::as_ref);
        let frames = self.convs.iter().map(|conv| conv.run([older, old, Some(&now)], &x)).collect::<Result<_>>()?;
        self.last = [self.last[1].take(), Some(now)];
        Ok(frames)
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        let weights = self.convs.iter().map(TimeConv::bytes).sum();
        [weights, self.last.iter().flatten().map(B::bytes_of_packed).sum()]
    }
}

/// The encoder's shortcut: means over groups of channels, of both frames of a pair and of the pixels of a square. The
/// clip's first frame pairs with a frame of zeros.
pub(super) struct AverageDown<B: Backend> {
    on: B,
    /// Frames and sides of a group: 1 or 2.
    pub time: usize,
    pub space: usize,
    pub out: usize,
    begun: bool,
    first: Option<Arc<Frame<B::Values>>>,
}

impl<B: Backend> Clone for AverageDown<B> {
    fn clone(&self) -> Self {
        Self { on: self.on.clone(), first: self.first.clone(), ..*self }
    }
}

impl<B: Backend> AverageDown<B> {
    pub fn new(on: &B, [time, space]: [usize; 2], out: usize) -> Self {
        Self { on: on.clone(), time, space, out, begun: false, first: None }
    }

    pub fn push(&mut self, x: &Frame<B::Values>) -> Result<Option<Frame<B::Values>>> {
        let first_of_clip = !std::mem::replace(&mut self.begun, true);
        if self.time == 1 {
            return self.mean([Some(x), None], x).map(Some);
        }
        if first_of_clip {
            return self.mean([None, Some(x)], x).map(Some);
        }
        match self.first.take() {
            None => {
                let copy = self.on.part(x, 0..x.rows, 0..x.width)?;
                self.first = Some(Arc::new(x.with(x.channels, copy)));
                Ok(None)
            }
            Some(first) => self.mean([Some(&first), Some(x)], x).map(Some),
        }
    }

    /// `x` is one of the frames.
    fn mean(&self, frames: [Option<&Frame<B::Values>>; 2], x: &Frame<B::Values>) -> Result<Frame<B::Values>> {
        // Squares begin at even pixels of the whole frame.
        let skip = x.origin.map(|at| at % self.space);
        let [rows, width] = [(x.rows - skip[0]) / self.space, (x.width - skip[1]) / self.space];
        let values = self.on.mean(self, frames, skip, [rows, width])?;
        Ok(x.rescaled(|at| at.div_ceil(self.space), [rows, width, self.out], values))
    }

    /// Values that a mean is of, for frames of so many channels.
    pub fn per_mean(&self, channels: usize) -> usize {
        channels * self.time * self.space * self.space / self.out
    }

    /// Bytes of remembered frames.
    pub fn bytes(&self) -> usize {
        self.first.as_ref().map_or(0, |frame| B::bytes_of_values(&frame.values))
    }
}

/// The decoder's shortcut: channels spread over frames and pixels, copied as often as needed. Of the clip's first
/// frame only the last of its frames stays.
#[derive(Clone)]
pub(super) struct CopyUp {
    pub time: usize,
    pub space: usize,
    pub out: usize,
    begun: bool,
}

impl CopyUp {
    pub fn new([time, space]: [usize; 2], out: usize) -> Self {
        Self { time, space, out, begun: false }
    }

    pub fn push<B: Backend>(&mut self, on: &B, x: &Frame<B::Values>) -> Result<Vec<Frame<B::Values>>> {
        let from = if std::mem::replace(&mut self.begun, true) { 0 } else { self.time - 1 };
        let size = [self.space * x.rows, self.space * x.width, self.out];
        (from..self.time).map(|time| Ok(x.rescaled(|at| self.space * at, size, on.spread(self, x, time)?))).collect()
    }

    /// How often each of so many channels is copied.
    pub fn repeats(&self, channels: usize) -> usize {
        self.out * self.time * self.space * self.space / channels
    }
}

/// Moves the pixels of `side` x `side` squares into channels: channel `(c side + dx) side + dy`.
pub(super) fn patchify(x: &Frame, side: usize) -> Frame {
    let (rows, width, channels) = (x.rows / side, x.width / side, x.channels * side * side);
    let mut values = Vec::with_capacity(rows * width * channels);
    for (y, column) in (0..rows).flat_map(|y| (0..width).map(move |column| (y, column))) {
        for c in 0..x.channels {
            for (dx, dy) in (0..side).flat_map(|dx| (0..side).map(move |dy| (dx, dy))) {
                values.push(x.values[((y * side + dy) * x.width + column * side + dx) * x.channels + c]);
            }
        }
    }
    x.rescaled(|at| at / side, [rows, width, channels], values)
}

/// The inverse of [`patchify`].
pub(super) fn unpatchify(x: &Frame, side: usize) -> Frame {
    let (rows, width, channels) = (x.rows * side, x.width * side, x.channels / (side * side));
    let mut values = Vec::with_capacity(rows * width * channels);
    for (y, column) in (0..rows).flat_map(|y| (0..width).map(move |column| (y, column))) {
        let pixel = &x.values[(y / side * x.width + column / side) * x.channels..][..x.channels];
        values.extend((0..channels).map(|c| pixel[(c * side + column % side) * side + y % side]));
    }
    x.rescaled(|at| at * side, [rows, width, channels], values)
}
