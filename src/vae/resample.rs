//! Changes of a clip's frame rate, and the shortcuts of the 2.2 VAE around its changes of size.
//!
//! The first frame of a clip is an image of its own: it passes without a change in time, and is no history for what
//! comes after it where frames are doubled.

use std::sync::Arc;

use super::conv::TimeConv;
use super::frame::Frame;
use crate::Result;
use crate::simd::packed_frame::PackedFrame;

/// Halves the frame rate: the first frame as it is, then one frame for every two, of them and the one before.
#[derive(Clone)]
pub(super) struct HalveTime {
    conv: TimeConv,
    /// The last frame of the pair before.
    before: Option<Arc<PackedFrame>>,
    /// The first frame of this pair.
    first: Option<Arc<PackedFrame>>,
}

impl HalveTime {
    pub fn new(conv: TimeConv) -> Self {
        Self { conv, before: None, first: None }
    }

    pub fn push(&mut self, x: Frame) -> Result<Vec<Frame>> {
        let packed = self.conv.pack(&x)?;
        let Some(before) = &self.before else {
            self.before = Some(packed);
            return Ok(vec![x]);
        };
        let Some(first) = self.first.take() else {
            self.first = Some(packed);
            return Ok(vec![]);
        };
        let y = self.conv.run([Some(before), Some(&first), Some(&packed)], &x);
        self.before = Some(packed);
        Ok(vec![y])
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        [self.conv.bytes(), [&self.before, &self.first].into_iter().flatten().map(|frame| frame.bytes()).sum()]
    }
}

/// Doubles the frame rate: the first frame as it is, then two frames for each, of it and the two before it.
#[derive(Clone)]
pub(super) struct DoubleTime {
    /// Of the earlier and the later of the two frames.
    convs: [TimeConv; 2],
    begun: bool,
    /// The last two frames but the clip's first, the older first.
    last: [Option<Arc<PackedFrame>>; 2],
}

impl DoubleTime {
    pub fn new(convs: [TimeConv; 2]) -> Self {
        Self { convs, begun: false, last: [None, None] }
    }

    pub fn push(&mut self, x: Frame) -> Result<Vec<Frame>> {
        if !std::mem::replace(&mut self.begun, true) {
            return Ok(vec![x]);
        }
        let now = self.convs[0].pack(&x)?;
        let [older, old] = self.last.each_ref().map(Option::as_deref);
        let frames = self.convs.iter().map(|conv| conv.run([older, old, Some(&now)], &x)).collect();
        self.last = [self.last[1].take(), Some(now)];
        Ok(frames)
    }

    /// Bytes of weights, and of remembered frames.
    pub fn bytes(&self) -> [usize; 2] {
        let weights = self.convs.iter().map(TimeConv::bytes).sum();
        [weights, self.last.iter().flatten().map(|frame| frame.bytes()).sum()]
    }
}

/// The encoder's shortcut: means over groups of channels, of both frames of a pair and of the pixels of a square. The
/// clip's first frame pairs with a frame of zeros.
#[derive(Clone)]
pub(super) struct AverageDown {
    /// Frames and sides of a group: 1 or 2.
    pub time: usize,
    pub space: usize,
    pub out: usize,
    begun: bool,
    first: Option<Frame>,
}

impl AverageDown {
    pub fn new(time: usize, space: usize, out: usize) -> Self {
        Self { time, space, out, begun: false, first: None }
    }

    pub fn push(&mut self, x: &Frame) -> Option<Frame> {
        let first_of_clip = !std::mem::replace(&mut self.begun, true);
        if self.time == 1 {
            return Some(self.mean([Some(x), None], 0));
        }
        if first_of_clip {
            return Some(self.mean([None, Some(x)], 1));
        }
        match self.first.take() {
            None => {
                self.first = Some(x.clone());
                None
            }
            Some(first) => Some(self.mean([Some(&first), Some(x)], 1)),
        }
    }

    /// `like`: which of the frames tells the size.
    fn mean(&self, frames: [Option<&Frame>; 2], like: usize) -> Frame {
        let x = frames[like].expect("a frame");
        let (space, time) = (self.space, self.time);
        // Squares begin at even pixels of the whole frame.
        let skip = x.origin.map(|at| at % space);
        let [rows, width] = [(x.rows - skip[0]) / space, (x.width - skip[1]) / space];
        let group = x.channels * time * space * space / self.out;
        let mut values = vec![0f32; rows * width * self.out];
        let pixels = values.chunks_exact_mut(self.out).enumerate();
        for (i, out) in pixels {
            let (row, column) = (skip[0] + i / width * space, skip[1] + i % width * space);
            for (c, dt) in (0..x.channels).flat_map(|c| (0..time).map(move |dt| (c, dt))) {
                let Some(frame) = frames[dt] else { continue };
                for (dy, dx) in (0..space).flat_map(|dy| (0..space).map(move |dx| (dy, dx))) {
                    let value = frame.values[((row + dy) * x.width + column + dx) * x.channels + c];
                    out[(((c * time + dt) * space + dy) * space + dx) / group] += value;
                }
            }
            out.iter_mut().for_each(|x| *x /= group as f32);
        }
        x.rescaled(|at| at.div_ceil(space), [rows, width, self.out], values)
    }

    /// Bytes of remembered frames.
    pub fn bytes(&self) -> usize {
        self.first.as_ref().map_or(0, |frame| 4 * frame.values.len())
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
    pub fn new(time: usize, space: usize, out: usize) -> Self {
        Self { time, space, out, begun: false }
    }

    pub fn push(&mut self, x: &Frame) -> Vec<Frame> {
        let from = if std::mem::replace(&mut self.begun, true) { 0 } else { self.time - 1 };
        (from..self.time).map(|a| self.copied(x, a)).collect()
    }

    /// The frame at place `a` in time.
    fn copied(&self, x: &Frame, a: usize) -> Frame {
        let (space, repeats) = (self.space, self.out * self.time * self.space * self.space / x.channels);
        let (rows, width) = (space * x.rows, space * x.width);
        let mut values = Vec::with_capacity(rows * width * self.out);
        for (y, column) in (0..rows).flat_map(|y| (0..width).map(move |column| (y, column))) {
            let pixel = &x.values[(y / space * x.width + column / space) * x.channels..][..x.channels];
            let (b, c) = (y % space, column % space);
            let channel = |o: usize| (((o * self.time + a) * space + b) * space + c) / repeats;
            values.extend((0..self.out).map(|o| pixel[channel(o)]));
        }
        x.rescaled(|at| space * at, [rows, width, self.out], values)
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
