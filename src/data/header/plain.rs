//! Reads the headers of BMP, TIFF and the portable maps (PBM, PGM, PPM, PAM), whose decoders read a header alone.

use super::{Found, MOST_MEMORY};
use crate::data::ffmpeg::Reason;
use crate::terminal::one_line;
use image::metadata::Orientation;
use image::{ImageDecoder, ImageFormat, ImageReader};
use std::io::{BufRead, Read, Seek, SeekFrom};
use tiff::tags::Tag;

const CUT: &str = "it is cut short or damaged";

/// The header of a BMP or a portable map.
pub fn map(file: &mut (impl BufRead + Seek), length: u64, format: ImageFormat) -> Reason<Found> {
    let mut head = Vec::new();
    file.by_ref().take(34).read_to_end(&mut head).map_err(|_| CUT)?;
    let head: [u8; 34] = std::array::from_fn(|i| head.get(i).copied().unwrap_or(0)); // a map of four pixels is shorter
    let (size, orientation, bytes) = decoded(file, format)?;
    let least = match (format, head) {
        (ImageFormat::Bmp, _) => bmp_bytes(&head, size),
        (_, [_, b'4', ..]) => size[0].div_ceil(8).saturating_mul(size[1]),
        _ => bytes, // a byte of text or more for each sample, or its bytes
    };
    if length < least {
        return Err(CUT.to_owned());
    }
    let memory = bytes.saturating_mul(2);
    Ok(Found { size, orientation, animated: false, by_lines: false, data: length, least, memory })
}

/// Bytes that the file of a BMP of `size` has at least; those that compress it can leave anything out.
fn bmp_bytes(head: &[u8; 34], size: [u64; 2]) -> u64 {
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (start, core) = (u64::from(word(10)), word(14) == 12);
    let bits = u64::from(if core { word(22) >> 16 } else { word(26) >> 16 });
    let compressed = !core && matches!(word(30), 1 | 2);
    let line = (size[0] * bits).div_ceil(32) * 4;
    // Some programs leave the last line's padding out.
    if compressed { 0 } else { start.saturating_add(line.saturating_mul(size[1])).saturating_sub(3) }
}

/// The header of a TIFF's first picture.
pub fn tiff(file: &mut (impl BufRead + Seek), length: u64) -> Reason<Found> {
    let (size, orientation, bytes) = decoded(file, ImageFormat::Tiff)?;
    file.seek(SeekFrom::Start(0)).map_err(|_| CUT)?;
    let broken = |e: tiff::TiffError| format!("it cannot be read as an image ({})", one_line(e));
    let mut decoder = tiff::decoder::Decoder::new(file).map_err(broken)?;
    let mut list = |tag: Tag| decoder.find_tag_unsigned_vec::<u64>(tag).map_err(broken);
    let (mut starts, mut counts) = (list(Tag::StripOffsets)?, list(Tag::StripByteCounts)?);
    if starts.is_none() {
        (starts, counts) = (list(Tag::TileOffsets)?, list(Tag::TileByteCounts)?);
    }
    let (starts, counts) = (starts.ok_or(CUT)?, counts.ok_or(CUT)?);
    if starts.iter().zip(&counts).any(|(start, count)| start.saturating_add(*count) > length) {
        return Err(CUT.to_owned());
    }
    let data = counts.iter().fold(0u64, |sum, &n| sum.saturating_add(n));
    let copies = if orientation == Orientation::NoTransforms { 3 } else { 4 };
    // Fax codes make a line of one bit: the memory is what limits a TIFF.
    Ok(Found {
        size,
        orientation,
        animated: false,
        by_lines: false,
        data,
        least: 1,
        memory: bytes.saturating_mul(copies),
    })
}

/// Width and height, orientation, and bytes of the decoded image, from the header that the image crate's decoder reads.
fn decoded(file: &mut (impl BufRead + Seek), format: ImageFormat) -> Reason<([u64; 2], Orientation, u64)> {
    file.seek(SeekFrom::Start(0)).map_err(|_| CUT)?;
    let broken = |e: image::ImageError| format!("it cannot be read as an image ({})", one_line(e));
    let mut reader = ImageReader::with_format(file, format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let orientation = decoder.orientation().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    Ok(([u64::from(width), u64::from(height)], orientation, decoder.total_bytes()))
}
