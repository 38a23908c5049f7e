//! Streams a clip through the layers in bands of rows, from the top to the bottom: through each band frame by frame.
//!
//! A layer that sees 3 x 3 pixels then remembers two rows of every frame instead of two frames of every row, which is
//! less where a clip has fewer frames than rows; and what is in work is a band of one frame, small enough for caches.
//! Every layer of 3 x 3 pixels is a row behind the one before it: the rows that are left at the bottom would make a
//! last band several times as high, so they go in bands of their own. The sums are the same, so are the bits.
//!
//! The attention over whole frames, and the side of it with small frames, work frame by frame as elsewhere. This is for
//! CPUs: a band is too little work for a GPU, which goes frame by frame.

use super::backend::Backend;
use super::conv::{CausalConv, Double, Halve};
use super::cpu::Cpu;
use super::direction::{Half, Layers};
use super::frame::Frame;
use super::layer::Layer;
use super::resample::{AverageDown, CopyUp};
use super::residual::ResidualBlock;
use super::shards::Whole;
use super::window::{Rest, Window, copied, rows_of};
use super::{Decoder, Encoder, pixels};
use crate::{Result, bail};
use std::ops::Range;

/// Whether a clip of so many frames and rows takes less memory in bands than frame by frame.
pub fn are_smaller(frames: usize, rows: usize) -> bool {
    2 * frames < rows
}

/// Rows of latents that a band makes or is made of: enough for every thread to have a row of the smallest frames.
pub(super) fn height() -> usize {
    rayon::current_num_threads().clamp(4, 16)
}

/// A layer on its way down the rows: as it is before a clip's first frame, and as it is in this band.
struct BandLayer {
    on: Cpu,
    fresh: Layer<Cpu>,
    kind: Kind,
    /// Frames of this band that came.
    t: usize,
}

enum Kind {
    /// A layer that sees single pixels.
    Pixel(Layer<Cpu>),
    Conv(CausalConv<Cpu>, Window),
    Residual(ResidualBlock<Cpu>, [Window; 2], Vec<Rest>),
    Halve(Halve<Cpu>, Window),
    Double(Double<Cpu>, Window),
    Down(Vec<BandLayer>, AverageDown<Cpu>, Shortcut),
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
    fn new(on: Cpu, layer: &Layer<Cpu>, height: usize) -> Self {
        let window = |step| Window::new(height, step);
        let kind = match layer {
            Layer::Pointwise(_) | Layer::HalveTime(_) | Layer::DoubleTime(_) => Kind::Pixel(layer.clone()),
            Layer::Conv(conv) => Kind::Conv(conv.clone(), window(1)),
            Layer::Residual(block) => Kind::Residual(block.clone(), [window(1), window(1)], vec![]),
            Layer::HalveSpace(conv) => Kind::Halve(conv.clone(), window(2)),
            Layer::DoubleSpace(conv) => Kind::Double(conv.clone(), window(1)),
            Layer::Down(layers, shortcut) => {
                Kind::Down(begin(on, layers, height), shortcut.clone(), Shortcut::default())
            }
            Layer::Up(layers, shortcut) => Kind::Up(begin(on, layers, height), shortcut.clone(), Shortcut::default()),
        };
        Self { on, fresh: layer.clone(), kind, t: 0 }
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

    /// The frames that the next frame of this band brings forth: rows of them, or none yet.
    fn push(&mut self, x: Frame) -> Result<Vec<Frame>> {
        let (on, t) = (self.on, self.t);
        self.t += 1;
        Ok(match &mut self.kind {
            Kind::Pixel(layer) => layer.push(&on, x, &Whole)?,
            Kind::Conv(conv, window) => {
                let (x, near) = window.push(t, x);
                vec![conv.push(&x, &near)?]
            }
            Kind::Residual(block, windows, rests) => vec![residual(block, windows, rests, t, x)?],
            Kind::Halve(conv, window) => {
                let (x, near) = window.push(t, x);
                vec![conv.push(x, &near)?]
            }
            Kind::Double(conv, window) => {
                let (x, near) = window.push(t, x);
                vec![conv.push(x, &near)?]
            }
            Kind::Down(layers, around, shortcut) => {
                let space = around.space;
                shortcut.add(
                    on,
                    t,
                    x,
                    layers,
                    |rows| rows.start * space..rows.end * space,
                    |x| Ok(around.push(x)?.into_iter().collect()),
                )?
            }
            Kind::Up(layers, around, shortcut) => {
                let space = around.space;
                shortcut.add(on, t, x, layers, |rows| rows.start / space..rows.end / space, |x| around.push(&on, x))?
            }
        })
    }
}

/// The residual block's output, for the rows for which what lies below is there.
fn residual(
    block: &mut ResidualBlock<Cpu>,
    [first, second]: &mut [Window; 2],
    rests: &mut Vec<Rest>,
    t: usize,
    x: Frame,
) -> Result<Frame> {
    if rests.len() == t {
        rests.push(Rest::default());
    }
    let all = rests[t].with(copied(&x));
    let (x, near) = first.push(t, x);
    let (h, near) = second.push(t, block.conv1.push(&x, &near)?);
    let rows = h.origin[0]..h.origin[0] + h.rows;
    rests[t].keep(&all, rows.end);
    let x = rows_of(&all, rows);
    drop(all);
    let base = match &block.shortcut {
        Some(shortcut) => shortcut.push(&x)?,
        None => x,
    };
    block.conv2.push_onto(&h, base, &near)
}

impl Shortcut {
    /// The output of `layers` for frame `t`, with that of the way around them added: `source` gives the rows of x that
    /// some rows of output are made of, `around` what it makes of them.
    fn add(
        &mut self,
        on: Cpu,
        t: usize,
        x: Frame,
        layers: &mut [BandLayer],
        source: impl Fn(&Range<usize>) -> Range<usize>,
        around: impl FnOnce(&Frame) -> Result<Vec<Frame>>,
    ) -> Result<Vec<Frame>> {
        if self.frames.len() == t {
            self.frames.push(Rest::default());
        }
        let all = self.frames[t].with(copied(&x));
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
        let short = around(&rows_of(&all, rows))?;
        for (out, short) in out.iter_mut().zip(&short) {
            on.add(&mut out.values, &short.values)?;
        }
        Ok(out)
    }
}

/// Layers for frames of `height` rows.
fn begin(on: Cpu, layers: &[Layer<Cpu>], mut height: usize) -> Vec<BandLayer> {
    let mut begun = Vec::with_capacity(layers.len());
    for layer in layers {
        begun.push(BandLayer::new(on, layer, height));
        height = height_after(layer, height);
    }
    begun
}

fn height_after(layer: &Layer<Cpu>, height: usize) -> usize {
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

/// Begins the next band, of `step` rows of `rows` at most, after those up to `end`: an empty one where only rows inside
/// the layers are left; nothing after the last.
fn next_band(layers: &mut [BandLayer], end: usize, step: usize, rows: usize) -> Option<Range<usize>> {
    if end == rows && !release(layers, step as f64 / rows as f64) {
        return None;
    }
    layers.iter_mut().for_each(BandLayer::restart);
    Some(end..(end + step).min(rows))
}

/// Lets the last rows of the next layers through, as many as make no more than `share` of the picture; whether any were
/// left.
fn release(layers: &mut [BandLayer], share: f64) -> bool {
    let mut left = Some(share);
    each_window(layers, &mut |window| left = left.and_then(|share| window.release(share)));
    left != Some(share)
}

fn each_window(layers: &mut [BandLayer], visit: &mut dyn FnMut(&mut Window)) {
    for layer in layers {
        match &mut layer.kind {
            Kind::Pixel(_) => {}
            Kind::Conv(_, window) | Kind::Halve(_, window) | Kind::Double(_, window) => visit(window),
            Kind::Residual(_, windows, _) => windows.iter_mut().for_each(&mut *visit),
            Kind::Down(layers, ..) | Kind::Up(layers, ..) => each_window(layers, visit),
        }
    }
}

/// The layers of an encoder or a decoder on a CPU.
fn on_cpu(half: &Half) -> Result<&Layers<Cpu>> {
    match half.on_cpu() {
        Some(layers) => Ok(layers),
        None => bail!(Environment, "only a CPU takes a clip in bands of rows; a GPU takes it frame by frame"),
    }
}

/// Encodes `frames` frames of `size` `[rows, width]`: frames of moments. `read` gives some rows of a frame and is
/// called for all frames of a band, from the first band to the last; `done` is told after each how many frames' worth
/// of rows are done with.
///
/// # Errors
/// The encoder is not on a CPU; those of `read`.
pub fn encode(
    encoder: &Encoder,
    frames: usize,
    size: [usize; 2],
    read: &mut dyn FnMut(usize, Range<usize>) -> Result<Frame>,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Frame>> {
    let config = encoder.config();
    let step = config.scale_space() * height();
    let Layers { on, before, .. } = on_cpu(&encoder.half)?;
    let mut layers = begin(*on, before, size[0] / config.patch());
    let mut features: Vec<Frame> = vec![];
    let mut end = 0;
    while let Some(rows) = next_band(&mut layers, end, step, size[0]) {
        end = rows.end;
        let mut made = 0;
        for t in 0..frames {
            let part = match rows.is_empty() {
                true => Frame::new([0, size[1], config.in_channels / config.patch().pow(2)], vec![]),
                false => read(t, rows.clone())?,
            };
            let part = Frame { origin: [rows.start, 0], cut: [false; 4], ..part };
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
        let x = half.attend(Frame { origin: [0; 2], ..frame }, &Whole)?;
        half.after(x, &Whole, &mut |frame| {
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
/// The decoder is not on a CPU; those of `write`.
pub fn decode(decoder: &Decoder, latents: &[Frame], write: &mut dyn FnMut(usize, Frame) -> Result<()>) -> Result<()> {
    let side = decoder.config().patch();
    let Layers { on, after, .. } = on_cpu(&decoder.half)?;
    let mut half = decoder.half.clone();
    let mut features = Vec::with_capacity(latents.len());
    for frame in latents {
        half.before(decoder.denormalised(frame), &Whole, &mut |x| {
            features.push(decoder.half.attend(x, &Whole)?);
            Ok(())
        })?;
    }
    let Some(rows) = features.first().map(|frame| frame.rows) else { return Ok(()) };
    let mut layers = begin(*on, after, rows);
    let mut end = 0;
    while let Some(band) = next_band(&mut layers, end, height(), rows) {
        end = band.end;
        let mut made = 0;
        for frame in &features {
            let band = rows_of(frame, band.clone());
            through(&mut layers, band, &mut |rows| {
                write(made, pixels(rows, side))?;
                made += 1;
                Ok(())
            })?;
        }
    }
    Ok(())
}
