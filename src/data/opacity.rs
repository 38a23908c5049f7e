//! What is done to transparent pixels: they are laid over white, unless nothing would be seen.

use super::decode;
use super::ffmpeg::{self, Reason};
use super::probe::VideoIndex;
use super::scale::Conversion;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use std::path::Path;

/// Frames looked at to find out whether a file has opacity at all.
const SAMPLES: usize = 5;

/// Whether pixels could be transparent, and each of some frames is so altogether.
pub fn is_invisible(path: &Path, index: &VideoIndex) -> Reason<bool> {
    let last = index.pts.len() - 1;
    let mut samples: Vec<u32> = (0..SAMPLES).map(|i| (last * i / (SAMPLES - 1)) as u32).collect();
    samples.dedup();
    let mut invisible = true;
    let looked = decode::frames(path, index, &samples, None, |_, frame| {
        invisible &= ffmpeg::has_alpha(frame.format()) && is_transparent(frame)?;
        if invisible { Ok(()) } else { Err(String::new()) }
    });
    match looked {
        Err(reason) if invisible => Err(reason),
        _ => Ok(invisible),
    }
}

/// Whether all of a frame is transparent.
fn is_transparent(source: &frame::Video) -> Reason<bool> {
    let mut conversion = None;
    let target = Conversion::run(&mut conversion, source, Pixel::RGBA, (source.width(), source.height()))?;
    let width = source.width() as usize;
    let mut lines = target.data(0).chunks_exact(target.stride(0));
    Ok(lines.all(|line| line[..width * 4].chunks_exact(4).all(|pixel| pixel[3] == 0)))
}

/// An RGBA frame over white, as RGB.
pub fn over_white(source: &frame::Video) -> frame::Video {
    let mut flat = frame::Video::new(Pixel::RGB24, source.width(), source.height());
    let (from, to) = (source.stride(0), flat.stride(0));
    let width = source.width() as usize;
    for (input, output) in source.data(0).chunks_exact(from).zip(flat.data_mut(0).chunks_exact_mut(to)) {
        for (rgba, rgb) in input[..width * 4].chunks_exact(4).zip(output.chunks_exact_mut(3)) {
            for (target, &value) in rgb.iter_mut().zip(&rgba[..3]) {
                *target = blend(value, rgba[3]);
            }
        }
    }
    flat
}

/// `value` with opacity `alpha` over white.
pub fn blend(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (value as u32, alpha as u32);
    ((value * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}
