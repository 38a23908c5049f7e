//! The chunks of a WebP. RFC 9649.

use super::{Found, exif, orientation, take};
use image::metadata::Orientation;
use std::io::{BufRead, Seek, SeekFrom};

/// Walks the chunks that the RIFF header announces; none if they do not lie in the file.
pub fn walk(file: &mut (impl BufRead + Seek), length: u64) -> Option<Found> {
    let [.., a, b, c, d] = take::<8>(file)?;
    let end = u64::from(u32::from_le_bytes([a, b, c, d])) + 8;
    if end > length {
        return None;
    }
    let (mut at, mut turn, mut animated) = (12, Orientation::NoTransforms, false);
    let (mut canvas, mut picture, mut data, mut memory) = (None, None, 0, 0);
    while at + 8 <= end {
        file.seek(SeekFrom::Start(at)).ok()?;
        let [k0, k1, k2, k3, a, b, c, d] = take::<8>(file)?;
        let size = u64::from(u32::from_le_bytes([a, b, c, d]));
        at += 8 + size + size % 2;
        if at > length + size % 2 {
            return None;
        }
        match &[k0, k1, k2, k3] {
            b"VP8X" => {
                let [flags, _, _, _, sides @ ..] = take::<10>(file)?;
                let [w0, w1, w2, h0, h1, h2] = sides.map(u64::from);
                animated = flags & 2 != 0;
                canvas = Some([w0 + (w1 << 8) + (w2 << 16) + 1, h0 + (h1 << 8) + (h2 << 16) + 1]);
            }
            b"VP8 " if picture.is_none() => {
                let [.., w0, w1, h0, h1] = take::<10>(file)?;
                picture = Some([[w0, w1], [h0, h1]].map(|side| u64::from(u16::from_le_bytes(side) & 0x3fff)));
                (data, memory) = (data + size, memory + 5); // RGB and the planes of YUV
            }
            b"VP8L" if picture.is_none() => {
                let bits = u32::from_le_bytes(take::<5>(file)?[1..].try_into().ok()?);
                picture = Some([bits & 0x3fff, bits >> 14 & 0x3fff].map(|side| u64::from(side) + 1));
                (data, memory) = (data + size, memory + 8); // RGBA, and what is given out
            }
            b"ALPH" => (data, memory) = (data + size, memory + 7), // RGBA of the alpha alone, and alpha beside RGB
            b"EXIF" => turn = orientation(&exif(file, size)?),
            b"ANMF" => animated = true,
            _ => {}
        }
    }
    if animated {
        picture = picture.or(canvas);
    }
    let size = canvas.or(picture)?;
    let picture = picture?;
    let pixels = (size[0] * size[1]).max(picture[0] * picture[1]);
    let copies = if turn == Orientation::NoTransforms { 0 } else { 4 };
    // Pixels of one colour take no bits at all: the memory is what limits a WebP.
    Some(Found {
        size,
        orientation: turn,
        animated,
        by_lines: false,
        data,
        least: 1,
        memory: if animated { 0 } else { pixels.saturating_mul(memory + copies) + data },
    })
}
