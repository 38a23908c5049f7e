//! Streams a clip through the layers from its first row to its last, all frames at once: for short clips.
//!
//! A layer that sees 3 x 3 pixels then remembers two rows of every frame instead of two frames of every row, which is
//! less where a clip has fewer frames than rows. The sums are the same, so are the bits. As with [`super::tiles`], the
//! attention over whole frames and the side of it with small frames work frame by frame.

use super::conv::{CausalConv, Double, Halve};
use super::frame::Frame;
use super::layer::{Layer, stream};
use super::resample::{AverageDown, CopyUp};
use super::residual::ResidualBlock;
use super::{Decoder, Encoder, Result, Whole, pixels};
use std::ops::Range;

/// Whether a clip of so many frames and rows takes less memory in bands than frame by frame.
pub fn are_smaller(frames: usize, rows: usize) -> bool {
    4 * frames < rows
}

/// The same rows of all frames.
type Band = Vec<Frame>;

/// Rows of all frames, of which the first are dropped as they are done with.
#[derive(Default)]
struct HeldRows {
    frames: Vec<Frame>,
    /// The row of the whole frame that is the first held.
    first: usize,
}

impl HeldRows {
    fn add(&mut self, band: Band) {
        if self.frames.is_empty() {
            self.frames = band;
            return;
        }
        for (held, new) in self.frames.iter_mut().zip(band) {
            held.values.extend_from_slice(&new.values);
            held.rows += new.rows;
        }
    }

    /// Rows that came so far.
    fn end(&self) -> usize {
        self.first + self.frames.first().map_or(0, |frame| frame.rows)
    }

    /// These rows of frame `t`, counted in the whole frame.
    fn rows(&self, t: usize, rows: Range<usize>) -> Frame {
        let frame = &self.frames[t];
        frame.part(rows.start - self.first..rows.end - self.first, 0..frame.width)
    }

    fn drop_before(&mut self, row: usize) {
        let n = row.saturating_sub(self.first);
        if n == 0 {
            return;
        }
        self.first += n;
        for frame in &mut self.frames {
            frame.values.drain(..n * frame.width * frame.channels);
            frame.rows -= n;
            frame.origin[0] += n;
        }
    }
}

/// Rows of one frame with what is above and below them, unless the picture ends there.
pub(super) struct Rows {
    pub inner: Frame,
    pub near: [Option<Vec<f32>>; 2],
}

/// The rows of a layer of 3 x 3 pixels that can be made of what is held: of `height` rows in all, from `next` on, each
/// seeing `step` rows of its own and one more on each side.
struct Window {
    held: HeldRows,
    height: usize,
    step: usize,
    next: usize,
}

impl Window {
    fn new(height: usize, step: usize) -> Self {
        Self { held: HeldRows::default(), height, step, next: 0 }
    }

    /// Adds rows; each frame's rows of which the output can be made now.
    fn push(&mut self, band: Band) -> Vec<Rows> {
        self.held.add(band);
        let have = self.held.end();
        let end = match have == self.height {
            true => self.height / self.step,
            false => (have - 1) / self.step, // the row below is there, too
        };
        let inner = self.next * self.step..end * self.step;
        if inner.is_empty() {
            return vec![];
        }
        let row = |t: usize, row: usize| Some(self.held.rows(t, row..row + 1).values);
        let rows = (0..self.held.frames.len())
            .map(|t| Rows {
                inner: Frame { cut: [false; 4], ..self.held.rows(t, inner.clone()) },
                near: [
                    inner.start.checked_sub(1).and_then(|above| row(t, above)),
                    Some(inner.end).filter(|&below| below < self.height).and_then(|below| row(t, below)),
                ],
            })
            .collect();
        self.next = end;
        self.held.drop_before((end * self.step).saturating_sub(1));
        rows
    }
}

/// A layer on its way down the rows.
enum BandLayer {
    /// A layer that sees one pixel of each frame, as it is before a clip's first frame.
    Pixel(Layer),
    Conv(CausalConv, Window),
    Residual(Box<ResidualBand>),
    Halve(Halve, Window),
    Double(Double, Window),
    Down(Vec<BandLayer>, AverageDown, HeldRows),
    Up(Vec<BandLayer>, CopyUp, HeldRows),
}

struct ResidualBand {
    block: ResidualBlock,
    windows: [Window; 2],
    x: HeldRows,
}

/// Layers for frames of `height` rows, and the height after them.
fn begin(layers: &[Layer], mut height: usize) -> (Vec<BandLayer>, usize) {
    let mut begun = Vec::with_capacity(layers.len());
    for layer in layers {
        let window = |step| Window::new(height, step);
        begun.push(match layer {
            Layer::Pointwise(_) | Layer::HalveTime(_) | Layer::DoubleTime(_) => BandLayer::Pixel(layer.clone()),
            Layer::Conv(conv) => BandLayer::Conv(conv.clone(), window(1)),
            Layer::Residual(block) => BandLayer::Residual(Box::new(ResidualBand {
                block: block.clone(),
                windows: [window(1), window(1)],
                x: HeldRows::default(),
            })),
            Layer::HalveSpace(conv) => BandLayer::Halve(conv.clone(), window(2)),
            Layer::DoubleSpace(conv) => BandLayer::Double(conv.clone(), window(1)),
            Layer::Down(layers, shortcut) => {
                let (inner, _) = begin(layers, height);
                BandLayer::Down(inner, shortcut.clone(), HeldRows::default())
            }
            Layer::Up(layers, shortcut) => {
                let (inner, _) = begin(layers, height);
                BandLayer::Up(inner, shortcut.clone(), HeldRows::default())
            }
        });
        height = match layer {
            Layer::HalveSpace(_) => height / 2,
            Layer::DoubleSpace(_) => height * 2,
            Layer::Down(layers, _) | Layer::Up(layers, _) => begin(layers, height).1,
            _ => height,
        };
    }
    (begun, height)
}

/// Streams rows through layers; what comes out of the last one, which may be nothing.
fn through(layers: &mut [BandLayer], mut band: Band) -> Result<Band> {
    for layer in layers {
        if band.is_empty() {
            break;
        }
        band = layer.push(band)?;
    }
    Ok(band)
}

impl BandLayer {
    fn push(&mut self, band: Band) -> Result<Band> {
        Ok(match self {
            Self::Pixel(layer) => over_time(layer, band)?,
            Self::Conv(conv, window) => conv.push_rows(window.push(band), |_, like| conv.bias(like)),
            Self::Residual(band_of) => band_of.push(band),
            Self::Halve(conv, window) => window.push(band).into_iter().map(|rows| conv.push_rows(rows)).collect(),
            Self::Double(conv, window) => window.push(band).into_iter().map(|rows| conv.push_rows(rows)).collect(),
            Self::Down(layers, shortcut, held) => {
                held.add(band.clone());
                let mut out = through(layers, band)?;
                let space = shortcut.space;
                let mut shortcut = shortcut.clone();
                let rows = rows_of(&out);
                let parts = (0..if rows.is_empty() { 0 } else { held.frames.len() })
                    .map(|t| held.rows(t, rows.start * space..rows.end * space));
                let short: Band = parts.filter_map(|part| shortcut.push(&whole(part))).collect();
                out.iter_mut().zip(&short).for_each(|(out, short)| out.add(short));
                held.drop_before(rows.end * space);
                out
            }
            Self::Up(layers, shortcut, held) => {
                held.add(band.clone());
                let mut out = through(layers, band)?;
                let space = shortcut.space;
                let mut shortcut = shortcut.clone();
                let rows = rows_of(&out);
                let parts = (0..if rows.is_empty() { 0 } else { held.frames.len() })
                    .map(|t| held.rows(t, rows.start / space..rows.end / space));
                let short: Band = parts.flat_map(|part| shortcut.push(&whole(part))).collect();
                out.iter_mut().zip(&short).for_each(|(out, short)| out.add(short));
                held.drop_before(rows.end / space);
                out
            }
        })
    }
}

impl ResidualBand {
    fn push(&mut self, band: Band) -> Band {
        let Self { block, windows: [first, second], x } = self;
        x.add(band.clone());
        let h = block.conv1.push_rows(first.push(band), |_, like| block.conv1.bias(like));
        if h.is_empty() {
            return vec![];
        }
        let rows = second.push(h);
        let out = block.conv2.push_rows(rows, |t, like| {
            let x = whole(x.rows(t, like.origin[0]..like.origin[0] + like.rows));
            let base = block.shortcut.as_ref().map(|shortcut| shortcut.push(&x)).unwrap_or(x);
            block.conv2.biased(base)
        });
        x.drop_before(rows_of(&out).end.max(x.first));
        out
    }
}

/// The rows of the whole frame that a band is.
fn rows_of(band: &Band) -> Range<usize> {
    band.first().map_or(0..0, |frame| frame.origin[0]..frame.origin[0] + frame.rows)
}

/// A part of a frame as a frame whose picture goes on nowhere: what lies beyond is dealt with here.
fn whole(frame: Frame) -> Frame {
    Frame { cut: [false; 4], ..frame }
}

/// Streams a band's frames through a layer that sees single pixels.
fn over_time(layer: &Layer, band: Band) -> Result<Band> {
    let mut layers = [layer.clone()];
    let mut out = Vec::with_capacity(band.len());
    for frame in band {
        stream(&mut layers, frame, &Whole, &mut |frame| {
            out.push(frame);
            Ok(())
        })?;
    }
    Ok(out)
}

/// Encodes `frames` frames of `size` `[rows, width]`: frames of moments. `read` gives some rows of a frame and is
/// called for all frames of a band, from the first band to the last.
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
    let (scale, patch) = (config.scale_space(), config.patch());
    let (mut layers, _) = begin(&encoder.half.before, size[0] / patch);
    let mut features: Vec<Frame> = vec![];
    for start in (0..size[0]).step_by(scale) {
        let rows = start..(start + scale).min(size[0]);
        let band = (0..frames)
            .map(|t| {
                let part = Frame { origin: [rows.start, 0], cut: [false; 4], ..read(t, rows.clone())? };
                Ok(encoder.patches(&part))
            })
            .collect::<Result<Band>>()?;
        let out = through(&mut layers, band)?;
        match features.is_empty() {
            true => features = out,
            false => features.iter_mut().zip(out).for_each(|(frame, rows)| frame.append(&rows)),
        }
        done(frames * rows.end / size[0]);
    }
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

/// Decodes normalised latents. `write` takes some rows of a frame of pixels, with its number; all frames of a band,
/// from the first band to the last.
///
/// # Errors
/// Those of `write`.
pub fn decode(decoder: &Decoder, latents: &[Frame], write: &mut dyn FnMut(usize, Frame) -> Result<()>) -> Result<()> {
    let patch = decoder.config().patch();
    let mut half = decoder.half.clone();
    let mut features = Vec::with_capacity(latents.len());
    for frame in latents {
        stream(&mut half.before, decoder.denormalised(frame), &Whole, &mut |x| {
            features.push(half.attention.push(x, &Whole)?);
            Ok(())
        })?;
    }
    let Some(first) = features.first() else { return Ok(()) };
    let (mut layers, _) = begin(&half.after, first.rows);
    for row in 0..first.rows {
        let band = features.iter().map(|frame| whole(frame.part(row..row + 1, 0..frame.width))).collect();
        for (t, rows) in through(&mut layers, band)?.into_iter().enumerate() {
            write(t, pixels(rows, patch))?;
        }
    }
    Ok(())
}
