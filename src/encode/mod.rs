//! Pixels to latents and back, over the ranks of a run.
//!
//! The VAE itself knows of one process; here its frames are split over ranks by rows ([`rows`]), and `clip_reader`
//! decodes the pixels of a file as the encoder asks for them. A [`cache`] holds the latents of a dataset's clips,
//! [`fill`] encodes those that it lacks, and [`latents`] makes the network's rows of them. [`embeddings`] holds what a
//! text encoder makes of captions and prompts, [`embed`] embeds those that it lacks.

pub mod cache;
pub mod clip_reader;
pub mod embed;
pub mod embeddings;
mod entry;
pub mod fill;
pub mod latents;
pub mod rows;
mod sources;

use std::ops::Range;
use std::sync::Arc;

use crate::parallel::Communicator;
use crate::vae::{Decoder, Encoder, Frame, bands};
use crate::{Result, bail};
use rows::Rows;

/// Encodes `frames` frames of `size` `[rows, width]` on the ranks of `comm`: frames of moments, whole, on every rank.
/// `read` gives some rows of a frame, in -1..1; frames that do not make a whole latent frame are not read. Where
/// `again` says that rows may be read in any order, one rank on a CPU takes a short clip in bands of rows, for less
/// memory.
///
/// # Errors
/// The VAE cannot take the size; those of `read` and of the exchange.
pub fn encode(
    encoder: &Encoder,
    comm: &Arc<dyn Communicator>,
    frames: usize,
    size: [usize; 2],
    again: bool,
    read: &mut dyn FnMut(usize, Range<usize>) -> Result<Frame>,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Frame>> {
    let config = encoder.config();
    config.check_size(size)?;
    let scale = config.scale_space();
    let frames = config.pixel_frames(config.latent_frames(frames));
    if again && comm.size() == 1 && encoder.is_on_cpu() && bands::are_smaller(frames, size[0]) {
        return bands::encode(encoder, frames, size, read, done);
    }
    let rows = Rows::new(comm.clone(), size[0] / scale)?;
    let empty = Frame::new([0, size[1] / scale, 2 * config.z_dim], vec![]);
    let mut encoder = encoder.clone();
    let mut moments = vec![];
    for t in 0..frames {
        let ready = match rows.shards() {
            Some(shards) => encoder.push(&read(t, rows.pixels(scale, size[0]))?, &shards)?,
            None => t.is_multiple_of(config.scale_time()).then(|| empty.clone()),
        };
        if let Some(part) = ready {
            moments.push(rows.gather(&part, 1)?);
        }
        done(t + 1);
    }
    Ok(moments)
}

/// Decodes normalised latents on the ranks of `comm`; `emit` takes each frame of pixels, whole, on every rank.
///
/// # Errors
/// There is no latent frame; those of the exchange and of `emit`.
pub fn decode(
    decoder: &Decoder,
    comm: &Arc<dyn Communicator>,
    latents: &[Frame],
    emit: &mut dyn FnMut(Frame) -> Result<()>,
) -> Result<()> {
    let config = decoder.config();
    let Some(first) = latents.first() else { bail!(Shape, "there are no latents to decode") };
    let (scale, width) = (config.scale_space(), first.width);
    let frames = config.pixel_frames(latents.len());
    if comm.size() == 1 && decoder.is_on_cpu() && bands::are_smaller(frames, first.rows * scale) {
        let mut whole: Vec<Frame> = vec![];
        bands::decode(decoder, latents, &mut |t, rows| {
            match whole.get_mut(t) {
                Some(frame) => frame.append(&rows),
                None => {
                    let mut frame = rows;
                    frame.values.reserve_exact(first.rows * scale * frame.width * frame.channels - frame.values.len());
                    whole.push(frame);
                }
            }
            Ok(())
        })?;
        return whole.into_iter().try_for_each(emit);
    }
    let rows = Rows::new(comm.clone(), first.rows)?;
    let empty = Frame::new([0, width * scale, 3], vec![]);
    let mut decoder = decoder.clone();
    for (i, frame) in latents.iter().enumerate() {
        match rows.shards() {
            Some(shards) => {
                let part = Frame { cut: [false; 4], ..frame.part(rows.latent(), 0..width) };
                decoder.push(&part, &shards, &mut |part| emit(rows.gather(&part, scale)?))?;
            }
            None => {
                let count = if i == 0 { 1 } else { config.scale_time() };
                (0..count).try_for_each(|_| emit(rows.gather(&empty, scale)?))?;
            }
        }
    }
    Ok(())
}
