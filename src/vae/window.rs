//! Keeps the rows of each frame that a layer on its way down the rows still needs, and says which it can work on.

use super::frame::{Frame, joined};
use super::shards::{RowShards, Whole};
use crate::Result;
use std::ops::Range;

/// The rows of one frame that came and are not done with, those from `first` on.
#[derive(Default)]
pub(super) struct Rest {
    first: usize,
    values: Vec<f32>,
}

impl Rest {
    /// These rows and those of `x`, which come below them, as one frame.
    pub fn with(&mut self, mut x: Frame) -> Frame {
        if !self.values.is_empty() {
            x.values = joined(&[&self.values, &x.values]);
            x.rows = x.values.len() / (x.width * x.channels);
            self.values.clear();
        }
        Frame { origin: [self.first, 0], ..x }
    }

    /// Keeps those rows of `all` that begin at `row` of the whole frame.
    pub fn keep(&mut self, all: &Frame, row: usize) {
        self.values = joined(&[&all.values[(row - all.origin[0]) * all.width * all.channels..]]);
        self.first = row;
    }
}

/// These rows of a frame, counted in the whole frame, as a frame beyond whose sides nothing is missing: what lies there
/// is dealt with here.
pub(super) fn rows_of(all: &Frame, rows: Range<usize>) -> Frame {
    let first = all.origin[0];
    Frame { cut: [false; 4], ..all.part(rows.start - first..rows.end - first, 0..all.width) }
}

/// A copy of a frame.
pub(super) fn copied(x: &Frame) -> Frame {
    x.with(x.channels, joined(&[&x.values]))
}

/// The rows above and below some of a frame, unless the picture ends there.
pub(super) struct Near([Option<Vec<f32>>; 2]);

impl RowShards for Near {
    fn is_whole(&self) -> bool {
        false
    }

    fn neighbours(&self, _: [&[f32]; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        Ok(self.0.clone())
    }

    fn gather(&self, values: &[f32]) -> Result<Vec<f32>> {
        Whole.gather(values)
    }
}

/// What a layer of 3 x 3 pixels remembers of each frame on its way down `height` rows: it makes a row of output of
/// `step` rows of its own and sees one more on each side.
pub(super) struct Window {
    height: usize,
    step: usize,
    /// The picture's last rows may be worked on: until then they wait, though nothing comes below them.
    open: bool,
    frames: Vec<(Rest, usize)>, // with the rows of output that are made
}

impl Window {
    pub fn new(height: usize, step: usize) -> Self {
        Self { height, step, open: false, frames: vec![] }
    }

    /// Takes the next rows of frame `t`, and gives those that can be worked on now. Of either there may be none.
    pub fn push(&mut self, t: usize, x: Frame) -> (Frame, Near) {
        if self.frames.len() == t {
            self.frames.push(Default::default());
        }
        let (rest, made) = &mut self.frames[t];
        let all = rest.with(x);
        let have = all.origin[0] + all.rows;
        let end = match self.open && have == self.height {
            true => self.height / self.step,
            false => have.saturating_sub(1) / self.step, // the row below is there, too
        };
        let inner = *made * self.step..end * self.step;
        if inner.is_empty() {
            rest.keep(&all, all.origin[0]);
            return (Frame { origin: [inner.start, 0], rows: 0, values: vec![], ..all }, Near([None, None]));
        }
        let row = |row: usize| rows_of(&all, row..row + 1).values;
        let above = inner.start.checked_sub(1).map(row);
        let below = (inner.end < self.height).then(|| row(inner.end));
        rest.keep(&all, if end * self.step == self.height { have } else { inner.end - 1 });
        *made = end;
        (rows_of(&all, inner), Near([above, below]))
    }

    /// Lets the picture's last rows be worked on, if they wait and are no more than `share` of it; returns what is left
    /// of that, or none if they do not fit in.
    pub fn release(&mut self, share: f64) -> Option<f64> {
        let left = share - if self.open { 0.0 } else { self.step as f64 / self.height as f64 };
        self.open |= left >= 0.0;
        (left >= 0.0).then_some(left)
    }
}
