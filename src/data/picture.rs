//! Still images: PNG, JPEG and WebP, upright and opaque.
//!
//! At indexing only headers and the file's structure are read: an image that was cut short is found without decoding
//! it.

use super::av::Reason;
use super::scale::blend;
use super::whole;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;

/// Bytes that decoding an image may take: a picture of 16K x 16K fits, a file that lies about its size does not.
const MEMORY: u64 = 4 << 30;

/// The kind of still image that the file's first bytes announce, whatever its name; none for anything else.
pub fn sniff(path: &Path) -> std::io::Result<Option<ImageFormat>> {
    let mut head = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut head)?;
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    Ok(image::guess_format(&head).ok().filter(|format| known.contains(format)))
}

/// Width and height of the upright image.
pub fn probe(path: &Path, format: ImageFormat) -> Reason<(usize, usize)> {
    let bytes = std::fs::read(path).map_err(|e| format!("it cannot be read ({e})"))?;
    let complete = match format {
        ImageFormat::Png => whole::png(&bytes),
        ImageFormat::Jpeg => whole::jpeg(&bytes),
        _ => whole::webp(&bytes),
    };
    if complete.is_none() {
        return Err("it is cut short or damaged".to_owned());
    }
    if is_animated(&bytes, format) {
        return Err("it is an animated image: convert it to a video".to_owned());
    }
    let broken = |e: image::ImageError| format!("it cannot be read as an image ({e})");
    let mut decoder = ImageReader::with_format(Cursor::new(&bytes), format).into_decoder().map_err(broken)?;
    let turned = decoder.orientation().map_err(broken)?.to_exif() >= 5;
    let (width, height) = decoder.dimensions();
    let (width, height) = if turned { (height, width) } else { (width, height) };
    Ok((width as usize, height as usize))
}

/// The upright image over white, as an RGB frame.
pub fn load(path: &Path) -> Reason<frame::Video> {
    let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
    let broken = |e: image::ImageError| format!("it cannot be decoded ({e})");
    let file = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(unreadable)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let orientation = decoder.orientation().map_err(broken)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
    image.apply_orientation(orientation);
    let (width, height) = (image.width(), image.height());
    let mut frame = frame::Video::new(Pixel::RGB24, width, height);
    let stride = frame.stride(0);
    let lines = frame.data_mut(0).chunks_exact_mut(stride);
    if image.color().has_alpha() {
        let pixels = image.into_rgba8();
        for (line, row) in lines.zip(pixels.chunks_exact(width as usize * 4)) {
            for (rgb, rgba) in line.chunks_exact_mut(3).zip(row.chunks_exact(4)) {
                for (target, &value) in rgb.iter_mut().zip(&rgba[..3]) {
                    *target = blend(value, rgba[3]);
                }
            }
        }
    } else {
        let pixels = image.into_rgb8();
        for (line, row) in lines.zip(pixels.chunks_exact(width as usize * 3)) {
            line[..row.len()].copy_from_slice(row);
        }
    }
    Ok(frame)
}

fn is_animated(bytes: &[u8], format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png => image::codecs::png::PngDecoder::new(Cursor::new(bytes))
            .and_then(|decoder| decoder.is_apng())
            .unwrap_or(false), // the decoder's own error comes up again, with its text
        ImageFormat::WebP => {
            image::codecs::webp::WebPDecoder::new(Cursor::new(bytes)).is_ok_and(|decoder| decoder.has_animation())
        }
        _ => false,
    }
}
