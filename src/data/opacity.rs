//! What is done to transparent pixels: they are laid over white.

use super::ffmpeg::Reason;
use super::scale::Conversion;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;

/// Whether all of a frame is transparent.
pub fn is_invisible(source: &frame::Video) -> Reason<bool> {
    let mut conversion = None;
    Conversion::run(&mut conversion, source, Pixel::RGBA, (source.width(), source.height()))?;
    let width = source.width() as usize;
    Ok(conversion.is_none_or(|Conversion { target, .. }| {
        let lines = target.data(0).chunks_exact(target.stride(0));
        lines.flat_map(|line| line[..width * 4].chunks_exact(4)).all(|pixel| pixel[3] == 0)
    }))
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
