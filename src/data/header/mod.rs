//! Reads an image file's header before anything is decoded, and refuses claims that cannot be true or are too dear.
//!
//! A header of thirty bytes can claim pixels of gigabytes. Two limits stand before every decoder. A file must have as
//! many bytes as its format needs for so many pixels, however simple they are: this refuses no image that is whole. And
//! the memory that a decoder takes for the whole image must be in proportion to the file.
//!
//! The walkers also find files whose end is missing: each format announces lengths, of chunks, segments or the whole,
//! that then reach past the end of the file. Decoders let some of these pass: a cut JPEG is grey.

mod avif;
mod jpeg;
mod plain;
mod png;
mod webp;

use super::ffmpeg::Reason;
use crate::files::gib;
use image::ImageFormat;
use image::metadata::Orientation;
use std::io::{BufRead, Seek, SeekFrom};

/// Bytes that decoding a whole image may take, however large its file: 16K x 16K pixels with room for a decoder's own
/// buffers.
pub const MOST_MEMORY: u64 = 4 << 30;

/// Bytes that decoding a whole image may take, however small its file ...
const FREE_MEMORY: u64 = 256 << 20;

/// ... and for each byte of its file beside. An image of one colour is the extreme: JPEG makes 2048 bytes of one at
/// most.
const MEMORY_PER_BYTE: u64 = 4096;

/// Bytes at a file's start that [`check_other`] looks at.
pub const HEAD: u64 = avif::HEAD;

/// Bytes of EXIF that are looked at; the orientation is near its start.
const EXIF: usize = 64 << 10;

/// What is known of an image before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Header {
    pub format: ImageFormat,
    /// Width of the upright image.
    pub width: usize,
    /// Height of the upright image.
    pub height: usize,
    /// How the decoded image must be turned to be upright.
    pub orientation: Orientation,
    /// It is a PNG whose lines can be decoded one after another.
    pub by_lines: bool,
    /// Bytes that its decoder takes: for the whole image or, by lines, for a line.
    pub memory: u64,
}

/// What a format's walker finds.
struct Found {
    /// Width and height as coded.
    size: [u64; 2],
    orientation: Orientation,
    /// Several pictures in a row.
    animated: bool,
    by_lines: bool,
    /// Bytes of the file that hold pixels.
    data: u64,
    /// Bytes that so many pixels take at least in this format.
    least: u64,
    /// Bytes that a decoder of the whole image allocates, the image included.
    memory: u64,
}

/// The kind of still image that a file's first bytes announce, if the image crate reads it; none for anything else.
pub fn sniff(head: &[u8]) -> Option<ImageFormat> {
    use ImageFormat::{Bmp, Jpeg, Png, Pnm, Tiff, WebP};
    let format = image::guess_format(head).ok()?;
    // A portable map has a blank behind its number: other texts begin with P1, too.
    let blank = head.get(2).is_some_and(u8::is_ascii_whitespace);
    (matches!(format, Bmp | Jpeg | Png | Tiff | WebP) || format == Pnm && blank).then_some(format)
}

/// Reads the header of an image file of `length` bytes, from its first byte.
///
/// # Errors
/// The reason why it cannot be used: it is cut short, animated, or claims more than its bytes can hold or memory
/// should.
pub fn read(mut file: impl BufRead + Seek, length: u64, format: ImageFormat) -> Reason<Header> {
    file.seek(SeekFrom::Start(0)).map_err(|e| format!("it cannot be read ({e})"))?;
    let damaged = || "it is cut short or damaged".to_owned();
    let found = match format {
        ImageFormat::Png => png::walk(&mut file, length).ok_or_else(damaged)?,
        ImageFormat::Jpeg => jpeg::walk(&mut file, length).ok_or_else(damaged)??,
        ImageFormat::WebP => webp::walk(&mut file, length).ok_or_else(damaged)?,
        ImageFormat::Tiff => plain::tiff(&mut file, length)?,
        _ => plain::map(&mut file, length, format)?,
    };
    if found.animated {
        return Err("it is an animated image: convert it to a video".to_owned());
    }
    let [width, height] = found.size;
    if width == 0 || height == 0 {
        return Err(format!("it is damaged: it claims {width}x{height} pixels"));
    }
    if found.data < found.least {
        let (data, least) = (found.data, found.least);
        return Err(format!("it claims {width}x{height} pixels, which take {least} bytes at least; it holds {data}"));
    }
    afford(found.size, found.memory, length)?;
    let turned = found.orientation.to_exif() >= 5;
    let (width, height) = if turned { (height, width) } else { (width, height) };
    let by_lines = found.by_lines && found.orientation == Orientation::NoTransforms;
    let orientation = found.orientation;
    let memory = if by_lines { 16 * width } else { found.memory };
    Ok(Header { format, width: width as usize, height: height as usize, orientation, by_lines, memory })
}

/// Checks a file of `length` bytes that FFmpeg decodes and that begins with `head`: a GIF's canvas, an AVIF's claims
/// and parts. Returns whether it is a still image.
///
/// # Errors
/// The reason why it cannot be used.
pub fn check_other(head: &[u8], length: u64) -> Reason<bool> {
    let still = avif::is_still(head);
    let size = match head {
        _ if still => avif::check(head)?,
        [b'G', b'I', b'F', b'8', _, _, w0, w1, h0, h1, ..] => {
            [[*w0, *w1], [*h0, *h1]].map(|side| u64::from(u16::from_le_bytes(side)))
        }
        _ => return Ok(false),
    };
    afford(size, size[0].saturating_mul(size[1]).saturating_mul(4), length)?;
    Ok(still)
}

/// Refuses to decode `size` pixels of a file of `length` bytes that would take `memory` bytes.
fn afford([width, height]: [u64; 2], memory: u64, length: u64) -> Reason<()> {
    let allowed = length.saturating_mul(MEMORY_PER_BYTE).saturating_add(FREE_MEMORY).min(MOST_MEMORY);
    if memory > allowed {
        return Err(format!(
            "it claims {width}x{height} pixels: decoding them would take {}, a file of {length} bytes may take {}",
            gib(memory),
            gib(allowed)
        ));
    }
    Ok(())
}

/// The orientation in a block of EXIF, which some programs begin with a marker of JPEG.
fn orientation(exif: &[u8]) -> Orientation {
    let tiff = exif.strip_prefix(b"Exif\0\0").unwrap_or(exif);
    Orientation::from_exif_chunk(tiff).unwrap_or(Orientation::NoTransforms)
}

/// The next `N` bytes.
fn take<const N: usize>(file: &mut impl BufRead) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

/// Up to [`EXIF`] of the next `length` bytes.
fn exif(file: &mut impl BufRead, length: u64) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length.min(EXIF as u64) as usize];
    file.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
