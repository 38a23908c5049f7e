//! Reads the segments of a JPEG (ITU-T T.81, annex B) to check its header.

use super::{Found, exif, orientation, take};
use crate::data::ffmpeg::Reason;
use image::metadata::Orientation;
use std::io::{BufRead, Seek, SeekFrom};

/// A progressive picture comes in ten scans or so; each costs a decoder a walk over all blocks, however few bytes it
/// has.
const SCANS: usize = 500;

/// Bytes that may lie between segments where nothing belongs.
const STRAY: u64 = 1 << 20;

/// The frame header (SOF).
struct Frame {
    marker: u8,
    precision: u8,
    size: [u64; 2],
    /// Horizontal and vertical sampling factors of each component.
    sampling: Vec<[u64; 2]>,
}

impl Frame {
    fn parse(marker: u8, body: &[u8]) -> Option<Self> {
        let (&[precision, h0, h1, w0, w1, count], components) = body.split_first_chunk()?;
        let components = components.chunks_exact(3).take(usize::from(count));
        let sampling: Vec<_> = components.map(|c| [u64::from(c[1] >> 4), u64::from(c[1] & 15)]).collect();
        if sampling.is_empty() || sampling.len() < usize::from(count) || sampling.iter().flatten().any(|&n| n == 0) {
            return None;
        }
        let size = [u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1])].map(u64::from);
        Some(Self { marker, precision, size, sampling })
    }

    /// Blocks of 8x8 samples, of all components.
    fn blocks(&self) -> u64 {
        let most = [0, 1].map(|axis| self.sampling.iter().map(|s| s[axis]).max().unwrap_or(1));
        let along = |factors: &[u64; 2], axis: usize| (self.size[axis] * factors[axis]).div_ceil(8 * most[axis]);
        self.sampling.iter().map(|factors| along(factors, 0) * along(factors, 1)).sum()
    }
}

/// Walks the segments to the end-of-image marker; none if they do not reach it. Entropy-coded bytes hold no marker but
/// RST0 to RST7.
pub fn walk(file: &mut (impl BufRead + Seek), length: u64) -> Option<Reason<Found>> {
    take::<2>(file)?; // SOI
    let (mut frame, mut scans, mut turn) = (None, 0, None);
    let mut budget = STRAY; // of bytes between segments: those of the pixels, and what does not belong there
    loop {
        let marker = next_marker(file, &mut budget)?;
        if marker == 0xd9 {
            break;
        }
        let body = u64::from(u16::from_be_bytes(take(file)?)).saturating_sub(2);
        let end = file.stream_position().ok()? + body;
        match marker {
            0xc0..=0xcf if !matches!(marker, 0xc4 | 0xc8 | 0xcc) && frame.is_none() => {
                let found = Frame::parse(marker, &exif(file, body)?)?;
                budget = STRAY + 64 * 16 * found.blocks(); // 16 bytes a coefficient are far beyond any code
                frame = Some(found);
            }
            0xe1 if turn.is_none() => {
                let body = exif(file, body)?;
                turn = body.starts_with(b"Exif\0\0").then(|| orientation(&body));
            }
            0xda => scans += 1,
            _ => {}
        }
        if end > length {
            return None;
        }
        file.seek(SeekFrom::Start(end)).ok()?;
    }
    let frame = frame?;
    if scans > SCANS {
        return Some(Err(format!("its picture comes in {scans} scans; at most {SCANS} are read")));
    }
    if !matches!(frame.marker, 0xc0..=0xc2) || frame.precision != 8 {
        let what = format!("process {} with {} bits a sample", frame.marker - 0xc0, frame.precision);
        return Some(Err(format!(
            "it cannot be read as an image (a JPEG of {what}; baseline and progressive with 8 are)"
        )));
    }
    let orientation = turn.unwrap_or(Orientation::NoTransforms);
    let ([width, height], blocks) = (frame.size, frame.blocks());
    let out = width * height * if frame.sampling.len() == 1 { 1 } else { 3 };
    let coefficients = if frame.marker == 0xc2 { 128 * blocks } else { 0 };
    let copies = if orientation == Orientation::NoTransforms { 1 } else { 2 };
    Some(Ok(Found {
        size: frame.size,
        orientation,
        animated: false,
        by_lines: false,
        data: length,
        least: blocks / 8, // a bit a block: its mean, or that it is that of the block before
        memory: copies * out + coefficients + length,
    }))
}

/// Reads to the next marker, not counting RST0 to RST7 and stuffed bytes, through at most `budget` bytes.
fn next_marker(file: &mut impl BufRead, budget: &mut u64) -> Option<u8> {
    let mut after_ff = false;
    loop {
        let buffer = file.fill_buf().ok().filter(|buffer| !buffer.is_empty())?;
        let mut used = 0;
        let mut found = None;
        while used < buffer.len() {
            if !after_ff {
                match buffer[used..].iter().position(|&byte| byte == 0xff) {
                    Some(at) => (used, after_ff) = (used + at + 1, true),
                    None => used = buffer.len(),
                }
                continue;
            }
            let byte = buffer[used];
            used += 1;
            after_ff = byte == 0xff;
            if !matches!(byte, 0 | 0xff | 0xd0..=0xd7) {
                found = Some(byte);
                break;
            }
        }
        file.consume(used);
        *budget = budget.checked_sub(used as u64)?;
        if found.is_some() {
            return found;
        }
    }
}
