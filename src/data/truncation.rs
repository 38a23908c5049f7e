//! Finds truncated video files by the lengths that their own structure announces, without decoding anything.
//!
//! A format announces lengths: of chunks, segments, or the whole. None means that they reach past the end of the
//! file, or make no sense. FFmpeg lets some of these pass: a cut Matroska file just ends.

use std::io::Read;

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
