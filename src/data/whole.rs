//! Whether a file's own structure says that its end is missing, found without decoding anything.
//!
//! Each format announces lengths: of chunks, segments, or the whole. None means that they reach past the end of the
//! file, or make no sense. FFmpeg and image decoders let some of these pass: a cut Matroska file just ends, a cut JPEG
//! is grey.

use std::io::Read;

/// The chunks of a PNG reach its IEND.
pub fn png(bytes: &[u8]) -> Option<()> {
    let mut at = 8;
    loop {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        let kind = bytes.get(at + 4..at + 8)?;
        at = at.checked_add(length)?.checked_add(12)?;
        if kind == b"IEND" {
            return (at <= bytes.len()).then_some(());
        }
    }
}

/// The segments of a JPEG reach its end-of-image marker; entropy-coded bytes hold no marker but RST0 to RST7.
pub fn jpeg(bytes: &[u8]) -> Option<()> {
    let mut at = 2;
    loop {
        at += bytes.get(at..)?.windows(2).position(|w| w[0] == 0xff && !matches!(w[1], 0 | 0xff | 0xd0..=0xd7))?;
        if bytes[at + 1] == 0xd9 {
            return Some(());
        }
        let length = u16::from_be_bytes(bytes.get(at + 2..at + 4)?.try_into().ok()?) as usize;
        at += 2 + length.max(2);
    }
}

/// All bytes that a WebP's RIFF header announces are there.
pub fn webp(bytes: &[u8]) -> Option<()> {
    let length = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    (length.checked_add(8)? <= bytes.len()).then_some(())
}

/// A Matroska or WebM file of `length` bytes holds all of its segment; any other file passes, as does a segment that
/// was written as a stream, without a length.
pub fn matroska(file: impl Read, length: u64) -> Option<()> {
    let mut head = Vec::new();
    file.take(4096).read_to_end(&mut head).ok()?;
    let Some(after_id) = head.strip_prefix(&[0x1a, 0x45, 0xdf, 0xa3]) else { return Some(()) };
    let (header, used) = ebml_size(after_id)?;
    let segment = 4 + used + usize::try_from(header?).ok()?;
    let after_id = head.get(segment..)?.strip_prefix(&[0x18, 0x53, 0x80, 0x67])?;
    let (size, used) = ebml_size(after_id)?;
    size.is_none_or(|size| size.saturating_add((segment + 4 + used) as u64) <= length).then_some(())
}

/// An EBML length and how many bytes it takes; all ones mean that the length is not known.
fn ebml_size(bytes: &[u8]) -> Option<(Option<u64>, usize)> {
    let used = bytes.first()?.leading_zeros() as usize + 1;
    let value = bytes.get(..used)?.iter().fold(0u64, |value, &byte| value << 8 | byte as u64);
    let mask = (1u64 << (7 * used as u32)) - 1;
    Some(((value & mask != mask).then_some(value & mask), used))
}
