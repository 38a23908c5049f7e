//! Whether a file's own structure says that its end is missing, found without decoding anything.
//!
//! Each format announces lengths: of chunks, segments, or the whole. None means that they reach past the end of the
//! file, or make no sense. FFmpeg and image decoders let some of these pass: a cut Matroska file just ends, a cut JPEG
//! is grey.

use std::io::{BufRead, Read, Seek, SeekFrom};

/// The chunks of a PNG of `length` bytes reach its IEND.
pub fn png(mut file: impl Read + Seek, length: u64) -> Option<()> {
    let mut at = 8;
    loop {
        let mut head = [0; 8];
        file.seek(SeekFrom::Start(at)).ok()?;
        file.read_exact(&mut head).ok()?;
        let [a, b, c, d, kind @ ..] = head;
        at += u64::from(u32::from_be_bytes([a, b, c, d])) + 12;
        if kind == *b"IEND" {
            return (at <= length).then_some(());
        }
    }
}

/// The segments of a JPEG reach its end-of-image marker; entropy-coded bytes hold no marker but RST0 to RST7.
pub fn jpeg(file: impl BufRead) -> Option<()> {
    let mut bytes = file.bytes().map_while(|byte| byte.ok()).skip(2);
    let mut before = 0;
    loop {
        let byte = bytes.next()?;
        if before != 0xff || matches!(byte, 0 | 0xff | 0xd0..=0xd7) {
            before = byte;
            continue;
        }
        if byte == 0xd9 {
            return Some(());
        }
        let length = u16::from_be_bytes([bytes.next()?, bytes.next()?]);
        for _ in 2..length {
            bytes.next()?;
        }
        before = 0;
    }
}

/// All of the bytes that a WebP's RIFF header announces are among its `length`.
pub fn webp(mut file: impl Read, length: u64) -> Option<()> {
    let mut head = [0; 8];
    file.read_exact(&mut head).ok()?;
    let [.., a, b, c, d] = head;
    (u64::from(u32::from_le_bytes([a, b, c, d])) + 8 <= length).then_some(())
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
