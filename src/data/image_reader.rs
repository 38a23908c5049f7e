//! Reads still images upright and opaque, line by line.
//!
//! A PNG is decoded as its lines are asked for; of other formats, interlaced PNGs, and what must be turned, the decoded
//! u8 image is held whole. At indexing only headers and the file's structure are read. Every decoder stands behind the
//! limits of [`header`].

use super::ffmpeg::Reason;
use super::header::{self, Header, MOST_MEMORY};
use super::opacity::blend;
use crate::terminal::one_line;
use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageFormat};
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

/// Bytes of a line of a PNG.
const LINE: usize = 64 << 20;

/// What a file is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A still image that the image crate reads.
    Image(ImageFormat),
    /// A still image that FFmpeg reads.
    Avif,
    /// Anything else: a video, if FFmpeg reads it.
    Other,
}

/// What the file's first bytes say that it is.
///
/// # Errors
/// The reason why it cannot be read, or, where FFmpeg would decode it, that it claims too much.
pub fn sniff(path: &Path) -> Reason<Kind> {
    let (file, length) = opened(path)?;
    let mut head = Vec::new();
    file.take(header::HEAD).read_to_end(&mut head).map_err(|e| format!("it cannot be read ({e})"))?;
    match header::sniff(&head) {
        Some(format) => Ok(Kind::Image(format)),
        None if header::check_other(&head, length)? => Ok(Kind::Avif),
        None => Ok(Kind::Other),
    }
}

/// Decodes an image file of which `bytes` are all; returns width and height of the upright image.
///
/// # Errors
/// The reason why it cannot be used: also where FFmpeg would decode it, which this does not.
pub fn check_image(bytes: &[u8]) -> Reason<(usize, usize)> {
    header::check_other(bytes, bytes.len() as u64)?;
    let reader = ImageReader::read_from(Cursor::new(bytes), bytes.len() as u64)?;
    let size = (reader.width, reader.height);
    reader.finish().map(|()| size)
}

/// Width and height of the upright image.
pub fn probe(path: &Path, format: ImageFormat) -> Reason<(usize, usize)> {
    let (mut file, length) = opened(path)?;
    let header = header::read(&mut file, length, format)?;
    rewind(&mut file)?;
    if format == ImageFormat::Png {
        PngLines::open(file)?; // its palette and the like
    } else {
        decoder(file, format).map_err(|e| format!("it cannot be read as an image ({})", one_line(e)))?;
    }
    Ok((header.width, header.height))
}

/// Bytes that decoding the image takes, as its header has it.
pub fn memory(path: &Path) -> Reason<u64> {
    let Kind::Image(format) = sniff(path)? else { return Err("it is not an image any more".to_owned()) };
    let (mut file, length) = opened(path)?;
    Ok(header::read(&mut file, length, format)?.memory)
}

fn opened(path: &Path) -> Reason<(BufReader<File>, u64)> {
    let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
    let file = File::open(path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    Ok((BufReader::new(file), length))
}

fn rewind(file: &mut impl Seek) -> Reason<()> {
    file.seek(SeekFrom::Start(0)).map(|_| ()).map_err(|e| format!("it cannot be read ({e})"))
}

fn decoder<'a>(file: impl BufRead + Seek + 'a, format: ImageFormat) -> image::ImageResult<impl ImageDecoder + 'a> {
    let mut reader = image::ImageReader::with_format(file, format);
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MOST_MEMORY);
    reader.limits(limits);
    reader.into_decoder()
}

/// An image being read from top to bottom: its upright lines over white, as RGB.
pub struct ImageReader<R: BufRead + Seek = BufReader<File>> {
    pub width: usize,
    pub height: usize,
    /// Lines that have been read.
    done: usize,
    source: Source<R>,
}

enum Source<R: BufRead + Seek> {
    File(Box<PngLines<R>>),
    /// Decoded, with 1 to 4 channels.
    Memory {
        pixels: Vec<u8>,
        channels: usize,
    },
}

impl ImageReader {
    /// Opens the image; unless it is a PNG that can be read line by line, decodes it.
    pub fn open(path: &Path) -> Reason<Self> {
        let (file, length) = opened(path)?;
        Self::read_from(file, length)
    }
}

impl<R: BufRead + Seek> ImageReader<R> {
    /// As [`open`](ImageReader::open), of a file of `length` bytes that is at its first one.
    pub fn read_from(mut file: R, length: u64) -> Reason<Self> {
        let head = file.fill_buf().map_err(|e| format!("it cannot be read ({e})"))?;
        let format = header::sniff(&head[..head.len().min(64)]).ok_or("it is not an image that is read by itself")?;
        let found = header::read(&mut file, length, format)?;
        rewind(&mut file)?;
        let Header { width, height, .. } = found;
        let source = if found.by_lines {
            Source::File(Box::new(PngLines::open(file)?))
        } else {
            let image = if format == ImageFormat::Png { PngLines::open(file)?.whole()? } else { whole(file, format)? };
            let (pixels, channels) = upright(image, found.orientation);
            if pixels.len() != width * height * channels {
                return Err(format!("it cannot be decoded (its pixels are not {width}x{height})"));
            }
            Source::Memory { pixels, channels }
        };
        Ok(Self { width, height, done: 0, source })
    }

    /// Reads the next line, [width, 3], to `out`, whose length is that.
    pub fn read(&mut self, out: &mut [u8]) -> Reason<()> {
        if self.done == self.height {
            return Err("it has no more lines".to_owned());
        }
        match &mut self.source {
            Source::File(lines) => lines.read(out)?,
            Source::Memory { pixels, channels } => {
                let bytes = self.width * *channels;
                flatten(&pixels[self.done * bytes..][..bytes], *channels, out);
            }
        }
        self.done += 1;
        Ok(())
    }

    /// Reads what is left, to see whether it can be.
    pub fn finish(mut self) -> Reason<()> {
        let mut line = vec![0; self.width * 3];
        while self.done < self.height {
            self.read(&mut line)?;
        }
        match &mut self.source {
            Source::File(lines) => lines.end(),
            Source::Memory { .. } => Ok(()),
        }
    }
}

/// The whole image that is not a PNG.
fn whole(file: impl BufRead + Seek, format: ImageFormat) -> Reason<DynamicImage> {
    decoder(file, format).and_then(DynamicImage::from_decoder).map_err(undecodable)
}

/// The pixels of the image turned upright, in u8, and their channels.
fn upright(mut image: DynamicImage, orientation: Orientation) -> (Vec<u8>, usize) {
    image.apply_orientation(orientation);
    match image {
        DynamicImage::ImageLuma8(image) => (image.into_raw(), 1),
        DynamicImage::ImageLumaA8(image) => (image.into_raw(), 2),
        image if image.color().has_alpha() => (image.into_rgba8().into_raw(), 4),
        image => (image.into_rgb8().into_raw(), 3),
    }
}

/// A PNG's lines, each decoded when it is asked for.
struct PngLines<R: BufRead + Seek> {
    reader: png::Reader<R>,
    channels: usize,
    /// Bytes of a sample, 1 or 2.
    depth: usize,
    /// A line as the decoder gives it, and its samples as bytes.
    line: Vec<u8>,
    samples: Vec<u8>,
}

impl<R: BufRead + Seek> PngLines<R> {
    fn open(file: R) -> Reason<Self> {
        let mut decoder = png::Decoder::new(file);
        decoder.set_transformations(png::Transformations::EXPAND); // palettes, and less than 8 bits
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true); // a profile is not applied, and may unpack to a thousand times its bytes
        let reader = decoder.read_info().map_err(undecodable)?;
        let width = reader.info().width;
        let (color, depth) = reader.output_color_type();
        let depth = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
        let Some(bytes) = reader.output_line_size(width).filter(|&bytes| bytes <= LINE) else {
            return Err(format!("it cannot be decoded (lines of {width} pixels are too long)"));
        };
        let (line, samples) = (vec![0; bytes], vec![0; bytes / depth]);
        Ok(Self { reader, channels: color.samples(), depth, line, samples })
    }

    fn read(&mut self, out: &mut [u8]) -> Reason<()> {
        if self.reader.read_row(&mut self.line).map_err(undecodable)?.is_none() {
            return Err("it cannot be decoded (lines are missing)".to_owned());
        }
        if self.depth == 1 {
            flatten(&self.line, self.channels, out);
            return Ok(());
        }
        for (sample, wide) in self.samples.iter_mut().zip(self.line.as_chunks::<2>().0) {
            *sample = narrow(*wide);
        }
        flatten(&self.samples, self.channels, out);
        Ok(())
    }

    /// Reads to the end of the pixels' data.
    fn end(&mut self) -> Reason<()> {
        self.reader.next_row().map_err(undecodable).map(|_| ())
    }

    /// All lines at once, whatever order they are in.
    fn whole(mut self) -> Reason<DynamicImage> {
        let (width, height) = self.reader.info().size();
        let size = self.reader.output_buffer_size().ok_or("it cannot be decoded (it is too large)")?;
        let mut pixels = vec![0; size];
        self.reader.next_frame(&mut pixels).map_err(undecodable)?;
        if self.depth == 2 {
            for i in 0..size / 2 {
                pixels[i] = narrow([pixels[2 * i], pixels[2 * i + 1]]);
            }
            pixels.truncate(size / 2);
        }
        let image = match self.channels {
            1 => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8),
            2 => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageLumaA8),
            3 => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8),
            _ => ImageBuffer::from_raw(width, height, pixels).map(DynamicImage::ImageRgba8),
        };
        image.ok_or_else(|| "it cannot be decoded (pixels are missing)".to_owned())
    }
}

/// A sample of 16 bits in 8, rounded, as the image crate does.
fn narrow(wide: [u8; 2]) -> u8 {
    ((u32::from(u16::from_be_bytes(wide)) + 128) / 257) as u8
}

fn undecodable(error: impl std::fmt::Display) -> String {
    format!("it cannot be decoded ({})", one_line(error))
}

/// Pixels of 1 to 4 `channels` (grey, grey and alpha, RGB, RGBA) over white, as RGB.
fn flatten(pixels: &[u8], channels: usize, out: &mut [u8]) {
    match channels {
        1 => return out.as_chunks_mut::<3>().0.iter_mut().zip(pixels).for_each(|(rgb, &value)| *rgb = [value; 3]),
        3 => return out.copy_from_slice(pixels),
        _ => {}
    }
    for (pixel, rgb) in pixels.chunks_exact(channels).zip(out.chunks_exact_mut(3)) {
        let color = if channels > 2 { [pixel[0], pixel[1], pixel[2]] } else { [pixel[0]; 3] };
        let alpha = if channels.is_multiple_of(2) { pixel[channels - 1] } else { 255 };
        for (target, value) in rgb.iter_mut().zip(color) {
            *target = blend(value, alpha);
        }
    }
}
