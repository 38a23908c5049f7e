//! The chunks of a PNG. <https://www.w3.org/TR/png-3/>

use super::{Found, exif, orientation, take};
use image::metadata::Orientation;
use std::io::{BufRead, Seek, SeekFrom};

/// Deflate makes at most so many bytes of one: 258 from two bits.
const DEFLATE: u64 = 1032;

/// Walks the chunks to IEND; none if they do not reach it, or are no chunks: zeros are not walked to the end of the
/// file.
pub fn walk(file: &mut (impl BufRead + Seek), length: u64) -> Option<Found> {
    let (mut at, mut data, mut turn) = (8, 0, Orientation::NoTransforms);
    let (mut header, mut animated, mut transparent) = (None, false, false);
    loop {
        file.seek(SeekFrom::Start(at)).ok()?;
        let [a, b, c, d, kind @ ..] = take::<8>(file)?;
        let size = u64::from(u32::from_be_bytes([a, b, c, d]));
        at += size + 12;
        if at > length || !kind.iter().all(u8::is_ascii_alphabetic) {
            return None;
        }
        match &kind {
            b"IHDR" if header.is_none() && size == 13 => header = Some(take::<13>(file)?),
            b"IDAT" => data += size,
            b"acTL" => animated |= data == 0, // behind the pixels it counts for nothing
            b"tRNS" => transparent = true,
            b"eXIf" => turn = orientation(&exif(file, size)?),
            b"IEND" => break,
            _ => {}
        }
    }
    let [w0, w1, w2, w3, h0, h1, h2, h3, depth, color, _, _, interlaced] = header?;
    let [width, height] = [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(|side| u64::from(u32::from_be_bytes(side)));
    let samples = match color {
        0 | 3 => 1,
        4 => 2,
        2 => 3,
        6 => 4,
        _ => return None,
    };
    let bits = width.checked_mul(samples * u64::from(depth))?;
    let raw = if interlaced == 0 { bits.div_ceil(8).checked_mul(height)? } else { bits.checked_mul(height)? / 8 };
    // Decoded, a palette has its colours' channels, and any sample a byte at least. Turning the picture takes a second
    // copy.
    let samples = if color == 3 { 3 } else { samples } + u64::from(transparent);
    let whole = width.checked_mul(height)?.checked_mul(samples * u64::from(depth).div_ceil(8))?;
    let by_lines = interlaced == 0;
    let copies = if turn == Orientation::NoTransforms { u64::from(!by_lines) } else { 2 };
    Some(Found {
        size: [width, height],
        orientation: turn,
        animated,
        by_lines,
        data,
        least: raw.div_ceil(DEFLATE),
        memory: whole.checked_mul(copies)?,
    })
}
