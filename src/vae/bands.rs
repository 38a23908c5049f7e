//! Streams a clip through the layers in bands of rows, from the top to the bottom, and through each band frame by
//! frame.
//!
//! A layer that sees 3 x 3 pixels then remembers two rows of every frame instead of two frames of every row, which is
//! less where a clip has fewer frames than rows; and what is in work is a band of one frame, small enough for caches.
//! The sums are the same, so are the bits. The attention over whole frames, and the side of it with small frames, work
//! frame by frame as elsewhere.

use super::conv::{CausalConv, Double, Halve};
use super::frame::Frame;
use super::layer::{Layer, stream};
use super::resample::{AverageDown, CopyUp};
use super::residual::ResidualBlock;
use super::shards::{RowShards, Whole};
use super::{Decoder, Encoder, pixels};
use crate::Result;
use std::ops::Range;

/// Whether a clip of so many frames and rows takes less memory in bands than frame by frame.
pub fn are_smaller(frames: usize, rows: usize) -> bool {
    2 * frames < rows
}

/// Rows of latents that a band makes or is made of: enough for every thread to have a row of the smallest frames.
pub(super) fn height() -> usize {
    rayon::current_num_threads().clamp(4, 16)
}

/// The rows of one frame that came and are not done with, those from `first` on.
#[derive(Default)]
struct Rest {
    first: usize,
    values: Vec<f32>,
}

impl Rest {
    /// These rows and those of `x`, which come below them, as one frame.
    fn with(&mut self, mut x: Frame) -> Frame {
        if !self.values.is_empty() {
            let mut values = Vec::with_capacity(self.values.len() + x.values.len());
            values.append(&mut self.values);
            values.extend_from_slice(&x.values);
            x.rows = values.len() / (x.width * x.channels);
            x.values = values;
        }
        Frame { origin: [self.first, 0], ..x }
    }

    /// Keeps those rows of `all` that begin at `row` of the whole frame.
    fn keep(&mut self, all: &Frame, row: usize) {
        self.values = all.values[(row - all.origin[0]) * all.width * all.channels..].to_vec();
        self.first = row;
    }
}

/// These rows of a frame, counted in the whole frame, as a frame beyond whose sides nothing is missing: what lies there
/// is dealt with here.
fn rows_of(all: &Frame, rows: Range<usize>) -> Frame {
    let first = all.origin[0];
    Frame { cut: [false; 4], ..all.part(rows.start - first..rows.end - first, 0..all.width) }
}

/// The rows above and below some of a frame, unless the picture ends there.
struct Near([Option<Vec<f32>>; 2]);

impl RowShards for Near {
    fn neighbours(&self, _: &Frame) -> Result<[Option<Vec<f32>>; 2]> {
        Ok(self.0.clone())
    }

    fn gather(&self, x: &Frame) -> Result<Vec<f32>> {
        Whole.gather(x)
    }
}

/// What a layer of 3 x 3 pixels remembers of each frame on its way down `height` rows: it makes a row of output of
/// `step` rows of its own and sees one more on each side.
struct Window {
    height: usize,
    step: usize,
    frames: Vec<(Rest, usize)>, // with the rows of output that are made
}

impl Window {
    fn new(height: usize, step: usize) -> Self {
        Self { height, step, frames: vec![] }
    }

    /// Takes the next rows of frame `t`: the rows that can be worked on now, if there are any.
    fn push(&mut self, t: usize, x: Frame) -> Option<(Frame, Near)> {
        if self.frames.len() == t {
            self.frames.push(Default::default());
        }
        let (rest, made) = &mut self.frames[t];
        let all = rest.with(x);
        let have = all.origin[0] + all.rows;
        let end = match have == self.height {
            true => self.height / self.step,
            false => (have - 1) / self.step, // the row below is there, too
        };
        let inner = *made * self.step..end * self.step;
        if inner.is_empty() {
            rest.keep(&all, all.origin[0]);
            return None;
        }
        let row = |row: usize| rows_of(&all, row..row + 1).values;
        let above = inner.start.checked_sub(1).map(row);
        let below = (inner.end < self.height).then(|| row(inner.end));
        rest.keep(&all, if have == self.height { have } else { inner.end - 1 });
        *made = end;
        Some((rows_of(&all, inner), Near([above, below])))
    }
}

/// A layer on its way down the rows: as it is before a clip's first frame, and as it is in this band.
struct BandLayer {
    fresh: Layer,
    kind: Kind,
    /// Frames of this band that came.
    t: usize,
}

enum Kind {
    /// A layer that sees single pixels.
    Pixel(Layer),
    Conv(CausalConv, Window),
    Residual(ResidualBlock, [Window; 2], Vec<Rest>),
    Halve(Halve, Window),
    Double(Double, Window),
    Down(Vec<BandLayer>, AverageDown, Shortcut),
    Up(Vec<BandLayer>, CopyUp, Shortcut),
}

/// What the way around some layers remembers of each frame.
#[derive(Default)]
struct Shortcut {
    frames: Vec<Rest>,
    /// The rows of output that the layers made of this band's frames: of all the same.
    rows: Range<usize>,
}

impl BandLayer {
    /// A layer for frames of `height` rows.
    fn new(layer: &Layer, height: usize) -> Self {
        let window = |step| Window::new(height, step);
        let kind = match layer {
            Layer::Pointwise(_) | Layer::HalveTime(_) | Layer::DoubleTime(_) => Kind::Pixel(layer.clone()),
            Layer::Conv(conv) => Kind::Conv(conv.clone(), window(1)),
            Layer::Residual(block) => Kind::Residual(block.clone(), [window(1), window(1)], vec![]),
            Layer::HalveSpace(conv) => Kind::Halve(conv.clone(), window(2)),
            Layer::DoubleSpace(conv) => Kind::Double(conv.clone(), window(1)),
            Layer::Down(layers, shortcut) => Kind::Down(begin(layers, height), shortcut.clone(), Shortcut::default()),
            Layer::Up(layers, shortcut) => Kind::Up(begin(layers, height), shortcut.clone(), Shortcut::default()),
        };
        Self { fresh: layer.clone(), kind, t: 0 }
    }

    /// Begins a band with its first frame.
    fn restart(&mut self) {
        self.t = 0;
        match (&mut self.kind, &self.fresh) {
            (Kind::Pixel(now), fresh) => now.clone_from(fresh),
            (Kind::Conv(now, _), Layer::Conv(fresh)) => now.clone_from(fresh),
            (Kind::Residual(now, ..), Layer::Residual(fresh)) => now.clone_from(fresh),
            (Kind::Down(layers, now, shortcut), Layer::Down(_, fresh)) => {
                layers.iter_mut().for_each(Self::restart);
                now.clone_from(fresh);
                shortcut.rows = 0..0;
            }
            (Kind::Up(layers, now, shortcut), Layer::Up(_, fresh)) => {
                layers.iter_mut().for_each(Self::restart);
                now.clone_from(fresh);
                shortcut.rows = 0..0;
            }
            _ => {} // sees one frame
        }
    }

    /// The frames that the next frame of this band brings forth.
    fn push(&mut self, x: Frame) -> Result<Vec<Frame>> {
        let t = self.t;
        self.t += 1;
        Ok(match &mut self.kind {
            Kind::Pixel(layer) => layer.push(x, &Whole)?,
            Kind::Conv(conv, window) => match window.push(t, x) {
                Some((x, near)) => vec![conv.push(&x, &near)?],
                None => vec![],
            },
            Kind::Residual(block, windows, rests) => residual(block, windows, rests, t, x)?,
            Kind::Halve(conv, window) => match window.push(t, x) {
                Some((x, near)) => vec![conv.push(x, &near)?],
                None => vec![],
            },
            Kind::Double(conv, window) => match window.push(t, x) {
                Some((x, near)) => vec![conv.push(x, &near)?],
                None => vec![],
            },
            Kind::Down(layers, around, shortcut) => {
                let space = around.space;
                shortcut.add(
                    t,
                    x,
                    layers,
                    |rows| rows.start * space..rows.end * space,
                    |x| around.push(x).into_iter().collect(),
                )?
            }
            Kind::Up(layers, around, shortcut) => {
                let space = around.space;
                shortcut.add(t, x, layers, |rows| rows.start / space..rows.end / space, |x| around.push(x))?
            }
        })
    }
}

/// The residual block's output, for the rows for which what lies below is there.
fn residual(
    block: &mut ResidualBlock,
    [first, second]: &mut [Window; 2],
    rests: &mut Vec<Rest>,
    t: usize,
    x: Frame,
) -> Result<Vec<Frame>> {
    if rests.len() == t {
        rests.push(Rest::default());
    }
    let all = rests[t].with(x.clone());
    let ready = match first.push(t, x) {
        Some((x, near)) => second.push(t, block.conv1.push(&x, &near)?),
        None => None,
    };
    let Some((h, near)) = ready else {
        rests[t].keep(&all, all.origin[0]);
        return Ok(vec![]);
    };
    let rows = h.origin[0]..h.origin[0] + h.rows;
    rests[t].keep(&all, rows.end);
    let x = rows_of(&all, rows);
    drop(all);
    let base = match &block.shortcut {
        Some(shortcut) => shortcut.push(&x),
        None => x,
    };
    Ok(vec![block.conv2.push_onto(&h, base, &near)?])
}

impl Shortcut {
    /// The output of `layers` for frame `t`, with that of the way around them added: `source` gives the rows of x that
    /// some rows of output are made of, `around` what it makes of them.
    fn add(
        &mut self,
        t: usize,
        x: Frame,
        layers: &mut [BandLayer],
        source: impl Fn(&Range<usize>) -> Range<usize>,
        around: impl FnOnce(&Frame) -> Vec<Frame>,
    ) -> Result<Vec<Frame>> {
        if self.frames.len() == t {
            self.frames.push(Rest::default());
        }
        let all = self.frames[t].with(x.clone());
        let mut out = vec![];
        through(layers, x, &mut |frame| {
            out.push(frame);
            Ok(())
        })?;
        if let Some(first) = out.first() {
            self.rows = first.origin[0]..first.origin[0] + first.rows;
        }
        let rows = source(&self.rows);
        if rows.is_empty() {
            self.frames[t].keep(&all, all.origin[0]);
            return Ok(out);
        }
        self.frames[t].keep(&all, rows.end);
        let short = around(&rows_of(&all, rows));
        out.iter_mut().zip(&short).for_each(|(out, short)| out.add(short));
        Ok(out)
    }
}

/// Layers for frames of `height` rows.
fn begin(layers: &[Layer], mut height: usize) -> Vec<BandLayer> {
    let mut begun = Vec::with_capacity(layers.len());
    for layer in layers {
        begun.push(BandLayer::new(layer, height));
        height = height_after(layer, height);
    }
    begun
}

fn height_after(layer: &Layer, height: usize) -> usize {
    match layer {
        Layer::HalveSpace(_) => height / 2,
        Layer::DoubleSpace(_) => height * 2,
        Layer::Down(layers, _) | Layer::Up(layers, _) => {
            layers.iter().fold(height, |height, layer| height_after(layer, height))
        }
        _ => height,
    }
}

/// Streams a frame's next rows through layers; `emit` takes what comes out of the last one.
fn through(layers: &mut [BandLayer], x: Frame, emit: &mut dyn FnMut(Frame) -> Result<()>) -> Result<()> {
    let Some((first, rest)) = layers.split_first_mut() else { return emit(x) };
    for frame in first.push(x)? {
        through(rest, frame, emit)?;
    }
    Ok(())
}

/// Encodes `frames` frames of `size` `[rows, width]`: frames of moments. `read` gives some rows of a frame and is
/// called for all frames of a band, from the first band to the last; `done` is told after each how many frames' worth
/// of rows are done with.
///
/// # Errors
/// Those of `read`.
pub fn encode(
    encoder: &Encoder,
    frames: usize,
    size: [usize; 2],
    read: &mut dyn FnMut(usize, Range<usize>) -> Result<Frame>,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Frame>> {
    let config = encoder.config();
    let step = config.scale_space() * height();
    let mut layers = begin(&encoder.half.before, size[0] / config.patch());
    let mut features: Vec<Frame> = vec![];
    for start in (0..size[0]).step_by(step) {
        let rows = start..(start + step).min(size[0]);
        layers.iter_mut().for_each(BandLayer::restart);
        let mut made = 0;
        for t in 0..frames {
            let part = Frame { origin: [rows.start, 0], cut: [false; 4], ..read(t, rows.clone())? };
            through(&mut layers, encoder.patches(&part), &mut |rows| {
                match features.get_mut(made) {
                    Some(frame) => frame.append(&rows),
                    None => features.push(rows),
                }
                made += 1;
                Ok(())
            })?;
        }
        done(frames * rows.end / size[0]);
    }
    drop(layers);
    let mut half = encoder.half.clone();
    let mut moments = Vec::with_capacity(features.len());
    for frame in features {
        let x = half.attention.push(Frame { origin: [0; 2], ..frame }, &Whole)?;
        stream(&mut half.after, x, &Whole, &mut |frame| {
            moments.push(frame);
            Ok(())
        })?;
    }
    Ok(moments)
}

/// Decodes normalised latents. `write` takes the next rows of a frame of pixels, with its number: of all frames of a
/// band, from the first band to the last.
///
/// # Errors
/// Those of `write`.
pub fn decode(decoder: &Decoder, latents: &[Frame], write: &mut dyn FnMut(usize, Frame) -> Result<()>) -> Result<()> {
    let side = decoder.config().patch();
    let mut half = decoder.half.clone();
    let mut features = Vec::with_capacity(latents.len());
    for frame in latents {
        stream(&mut half.before, decoder.denormalised(frame), &Whole, &mut |x| {
            features.push(half.attention.push(x, &Whole)?);
            Ok(())
        })?;
    }
    let Some(rows) = features.first().map(|frame| frame.rows) else { return Ok(()) };
    let mut layers = begin(&half.after, rows);
    for start in (0..rows).step_by(height()) {
        layers.iter_mut().for_each(BandLayer::restart);
        let mut made = 0;
        for frame in &features {
            let band = rows_of(frame, start..(start + height()).min(rows));
            through(&mut layers, band, &mut |rows| {
                write(made, pixels(rows, side))?;
                made += 1;
                Ok(())
            })?;
        }
    }
    Ok(())
}
