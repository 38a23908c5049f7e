//! Encodes and decodes a clip tile by tile, exactly, for one process with little memory.
//!
//! Only the attention in the middle of the encoder and of the decoder sees a whole frame, and it sits at an eighth of
//! the sides or less. So the costly side of it runs on tiles with a halo of what its layers see, a tile for all frames
//! of the clip; the other side and the attention run on whole frames. Halos shrink from layer to layer
//! ([`Frame::trimmed`]): what was computed without what lies beyond is dropped at once.

use super::{Decoder, Encoder, Frame, Result, VaeConfig, Whole, pixels, spec};
use std::ops::Range;

/// Tiles of `tile` of `whole` with what is seen beyond them: `(tile, tile with halo)`.
fn windows(whole: usize, tile: usize, halo: [usize; 2]) -> Vec<(Range<usize>, Range<usize>)> {
    (0..whole)
        .step_by(tile)
        .map(|start| {
            let end = (start + tile).min(whole);
            (start..end, start.saturating_sub(halo[0])..(end + halo[1]).min(whole))
        })
        .collect()
}

/// How many tiles of `tile` pixels a frame of `size` `[rows, width]` pixels has.
pub fn count(config: &VaeConfig, [rows, width]: [usize; 2], tile: usize) -> usize {
    let side = (tile / config.scale_space()).max(1) * config.scale_space();
    rows.div_ceil(side) * width.div_ceil(side)
}

/// Encodes `frames` frames of `size` `[rows, width]` in tiles of `tile` pixels: frames of moments. `read` gives a
/// rectangle of a frame, and is called once for each tile and frame.
///
/// # Errors
/// Those of [`VaeConfig::check_size`] and of `read`.
pub fn encode(
    encoder: &Encoder,
    frames: usize,
    size: [usize; 2],
    tile: usize,
    read: &mut dyn FnMut(usize, Range<usize>, Range<usize>) -> Result<Frame>,
) -> Result<Vec<Frame>> {
    let config = encoder.config();
    config.check_size(size)?;
    let (scale, patch) = (config.scale_space(), config.patch());
    let tile = (tile / scale).max(1) * scale;
    let frames = config.pixel_frames(config.latent_frames(frames));
    // What begins at whole latents keeps its place in every layer.
    let side = scale / patch;
    let halo = spec::encoder(config).halo_before().map(|n| n.next_multiple_of(side) * patch);
    let mut features: Vec<Frame> = vec![];
    for (rows, seen_rows) in windows(size[0], tile, halo) {
        for (columns, seen_columns) in windows(size[1], tile, halo) {
            let mut half = encoder.half.clone();
            let mut latent = 0;
            for t in 0..frames {
                let mut pixels = read(t, seen_rows.clone(), seen_columns.clone())?;
                place(&mut pixels, [&seen_rows, &seen_columns], size);
                half.before(encoder.patches(&pixels), &Whole, &mut |part| {
                    if features.len() == latent {
                        let shape = [size[0] / scale, size[1] / scale, part.channels];
                        features.push(Frame::new(shape, vec![0.0; shape.iter().product()]));
                    }
                    let [y, x] = [&rows, &columns].map(|range| range.start / scale..range.end / scale);
                    let [top, left] = part.origin;
                    features[latent].put(&part.part(y.start - top..y.end - top, x.start - left..x.end - left));
                    latent += 1;
                    Ok(())
                })?;
            }
        }
    }
    let mut half = encoder.half.clone();
    let mut moments = Vec::with_capacity(features.len());
    for frame in features {
        let x = half.attend(frame, &Whole)?;
        half.after(x, &Whole, &mut |frame| {
            moments.push(frame);
            Ok(())
        })?;
    }
    Ok(moments)
}

/// Decodes normalised latents in tiles of `tile` pixels. `write` takes each tile of pixels of each frame, with its
/// number; its origin tells its place.
///
/// # Errors
/// Those of [`Decoder::push`] and of `write`.
pub fn decode(
    decoder: &Decoder,
    latents: &[Frame],
    tile: usize,
    write: &mut dyn FnMut(usize, Frame) -> Result<()>,
) -> Result<()> {
    let config = decoder.config();
    let (scale, patch) = (config.scale_space(), config.patch());
    let tile = (tile / scale).max(1);
    let mut half = decoder.half.clone();
    let mut features = Vec::with_capacity(latents.len());
    for frame in latents {
        half.before(decoder.denormalised(frame), &Whole, &mut |x| {
            features.push(decoder.half.attend(x, &Whole)?);
            Ok(())
        })?;
    }
    let Some(first) = features.first() else { return Ok(()) };
    let halo = spec::decoder(config).halo_after();
    for (rows, seen_rows) in windows(first.rows, tile, halo) {
        for (columns, seen_columns) in windows(first.width, tile, halo) {
            let mut half = decoder.half.clone();
            let mut t = 0;
            for frame in &features {
                let part = frame.part(seen_rows.clone(), seen_columns.clone());
                half.after(part, &Whole, &mut |part| {
                    let part = pixels(part, patch);
                    let [y, x] = [0, 1].map(|axis| [&rows, &columns][axis].start * scale - part.origin[axis]);
                    let tile = part.part(y..y + rows.len() * scale, x..x + columns.len() * scale);
                    t += 1;
                    write(t - 1, tile)
                })?;
            }
        }
    }
    Ok(())
}

/// Tells a rectangle its place in a frame of `size`.
fn place(frame: &mut Frame, seen: [&Range<usize>; 2], size: [usize; 2]) {
    frame.origin = seen.map(|range| range.start);
    let [rows, columns] = seen;
    frame.cut = [rows.start > 0, rows.end < size[0], columns.start > 0, columns.end < size[1]];
}
