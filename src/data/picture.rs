//! Still images: PNG, JPEG and WebP, upright and opaque, line by line.
//!
//! A PNG is decoded as its lines are asked for; of JPEG and WebP, interlaced PNGs, and what must be turned, the decoded u8 image
//! is held whole. At indexing only headers and the file's structure are read: an image that was cut short is found without
//! decoding it.

use super::av::Reason;
use super::scale::blend;
use super::whole;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

/// Bytes that decoding an image may take: a picture of 16K x 16K fits, a file that lies about its size does not.
const MEMORY: u64 = 4 << 30;

/// The same of one line of a PNG.
const LINE: usize = 64 << 20;

/// The kind of still image that the file's first bytes announce, whatever its name; none for anything else.
pub fn sniff(path: &Path) -> std::io::Result<Option<ImageFormat>> {
    let mut head = Vec::new();
    File::open(path)?.take(64).read_to_end(&mut head)?;
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP];
    Ok(image::guess_format(&head).ok().filter(|format| known.contains(format)))
}

/// Width and height of the upright image.
pub fn probe(path: &Path, format: ImageFormat) -> Reason<(usize, usize)> {
    let file = || File::open(path).map_err(|e| format!("it cannot be read ({e})"));
    let length = file()?.metadata().map_err(|e| format!("it cannot be read ({e})"))?.len();
    let complete = match format {
        ImageFormat::Png => whole::png(file()?, length),
        ImageFormat::Jpeg => whole::jpeg(BufReader::new(file()?)),
        _ => whole::webp(file()?, length),
    };
    if complete.is_none() {
        return Err("it is cut short or damaged".to_owned());
    }
    if is_animated(BufReader::new(file()?), format) {
        return Err("it is an animated image: convert it to a video".to_owned());
    }
    let broken = |e: image::ImageError| format!("it cannot be read as an image ({e})");
    let mut decoder = ImageReader::with_format(BufReader::new(file()?), format).into_decoder().map_err(broken)?;
    let turned = decoder.orientation().map_err(broken)?.to_exif() >= 5;
    let (width, height) = decoder.dimensions();
    let (width, height) = if turned { (height, width) } else { (width, height) };
    Ok((width as usize, height as usize))
}

fn is_animated(file: BufReader<File>, format: ImageFormat) -> bool {
    match format {
        ImageFormat::Png => {
            image::codecs::png::PngDecoder::new(file).and_then(|decoder| decoder.is_apng()).unwrap_or(false)
        } // the decoder's own error comes up again, with its text
        ImageFormat::WebP => image::codecs::webp::WebPDecoder::new(file).is_ok_and(|decoder| decoder.has_animation()),
        _ => false,
    }
}

/// An image being read from top to bottom: its upright lines over white, as RGB.
pub struct Picture {
    pub width: usize,
    pub height: usize,
    /// Lines that have been read.
    done: usize,
    source: Source,
}

enum Source {
    File(Box<PngLines>),
    /// Decoded, with 3 or 4 channels.
    Memory {
        pixels: Vec<u8>,
        channels: usize,
    },
}

impl Picture {
    /// Opens the image; unless it is a PNG that can be read line by line, decodes it.
    pub fn open(path: &Path) -> Reason<Self> {
        let unreadable = |e: std::io::Error| format!("it cannot be read ({e})");
        let file = || File::open(path).map(BufReader::new).map_err(unreadable);
        let reader = ImageReader::new(file()?).with_guessed_format().map_err(unreadable)?;
        if reader.format() == Some(ImageFormat::Png)
            && let Some(lines) = PngLines::open(file()?)?
        {
            let (width, height) = lines.reader.info().size();
            return Ok(Self {
                width: width as usize,
                height: height as usize,
                done: 0,
                source: Source::File(Box::new(lines)),
            });
        }
        Self::decoded(reader)
    }

    /// The whole image, decoded.
    fn decoded(mut reader: ImageReader<BufReader<File>>) -> Reason<Self> {
        let broken = |e: image::ImageError| format!("it cannot be decoded ({e})");
        let mut limits = image::Limits::default();
        limits.max_alloc = Some(MEMORY);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(broken)?;
        let orientation = decoder.orientation().map_err(broken)?;
        let mut image = DynamicImage::from_decoder(decoder).map_err(broken)?;
        image.apply_orientation(orientation);
        let (width, height) = (image.width() as usize, image.height() as usize);
        let (pixels, channels) = match image.color().has_alpha() {
            true => (image.into_rgba8().into_raw(), 4),
            false => (image.into_rgb8().into_raw(), 3),
        };
        Ok(Self { width, height, done: 0, source: Source::Memory { pixels, channels } })
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
    pub fn read_all(mut self) -> Reason<()> {
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

/// A PNG's lines, each decoded when it is asked for.
struct PngLines {
    reader: png::Reader<BufReader<File>>,
    channels: usize,
    /// Bytes of a sample, 1 or 2.
    depth: usize,
    /// A line as the decoder gives it, and its samples as bytes.
    line: Vec<u8>,
    samples: Vec<u8>,
}

impl PngLines {
    /// None for a PNG whose lines do not come in order, or must be turned.
    fn open(file: BufReader<File>) -> Reason<Option<Self>> {
        let mut decoder = png::Decoder::new(file);
        decoder.set_transformations(png::Transformations::EXPAND); // palettes, and less than 8 bits
        decoder.set_ignore_text_chunk(true);
        let reader = decoder.read_info().map_err(undecodable)?;
        let info = reader.info();
        let turn = info.exif_metadata.as_ref().and_then(|chunk| Orientation::from_exif_chunk(chunk));
        if info.interlaced || turn.is_some_and(|turn| turn != Orientation::NoTransforms) {
            return Ok(None);
        }
        let (color, depth) = reader.output_color_type();
        let depth = if depth == png::BitDepth::Sixteen { 2 } else { 1 };
        let Some(bytes) = reader.output_line_size(info.width).filter(|&bytes| bytes <= LINE) else {
            return Err(format!("it cannot be decoded (lines of {} pixels are too long)", info.width));
        };
        let (line, samples) = (vec![0; bytes], vec![0; bytes / depth]);
        Ok(Some(Self { reader, channels: color.samples(), depth, line, samples }))
    }

    fn read(&mut self, out: &mut [u8]) -> Reason<()> {
        if self.reader.read_row(&mut self.line).map_err(undecodable)?.is_none() {
            return Err("it cannot be decoded (lines are missing)".to_owned());
        }
        if self.depth == 1 {
            flatten(&self.line, self.channels, out);
            return Ok(());
        }
        for (sample, wide) in self.samples.iter_mut().zip(self.line.chunks_exact(2)) {
            let wide = u32::from(u16::from_be_bytes([wide[0], wide[1]]));
            *sample = ((wide + 128) / 257) as u8; // rounded, as the image crate does
        }
        flatten(&self.samples, self.channels, out);
        Ok(())
    }

    /// Reads to the end of the pixels' data.
    fn end(&mut self) -> Reason<()> {
        self.reader.next_row().map_err(undecodable).map(|_| ())
    }
}

fn undecodable(error: png::DecodingError) -> String {
    format!("it cannot be decoded ({error})")
}

/// Pixels of 1 to 4 `channels` (grey, grey and alpha, RGB, RGBA) over white, as RGB.
fn flatten(pixels: &[u8], channels: usize, out: &mut [u8]) {
    if channels == 3 {
        return out.copy_from_slice(pixels);
    }
    for (pixel, rgb) in pixels.chunks_exact(channels).zip(out.chunks_exact_mut(3)) {
        let color = if channels > 2 { [pixel[0], pixel[1], pixel[2]] } else { [pixel[0]; 3] };
        let alpha = if channels.is_multiple_of(2) { pixel[channels - 1] } else { 255 };
        for (target, value) in rgb.iter_mut().zip(color) {
            *target = blend(value, alpha);
        }
    }
}
