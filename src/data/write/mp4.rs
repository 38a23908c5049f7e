//! MP4 frame by frame, through FFmpeg: H.264 where it can, else MPEG-4 part 2.
//!
//! Colours become BT.709 in limited range, and the file says so; FFmpeg's own scaler would take BT.601 whatever the
//! file says. The arithmetic is that of ITU-R BT.709-6, section 3, with one chroma sample for 2x2 pixels.

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{self, encoder};
use ffmpeg::format::{self, Pixel};
use ffmpeg::util::color;
use ffmpeg::{Dictionary, Packet, Rational, frame};
use std::path::{Path, PathBuf};

use super::{check_fps, frame_count};
use crate::files::NewFile;
use crate::{Error, Result, bail};

/// Encoders in order of preference. All are free of licence fees to use and part of common builds of FFmpeg.
const ENCODERS: [&str; 3] = ["libx264", "libopenh264", "mpeg4"];
/// The highest height or width of H.264's largest level.
const LARGEST: usize = 16384;

/// Writes an MP4 while its frames come in, so that no second copy of a long clip is needed.
///
/// The file has its temporary name until [`finish`](Self::finish); a writer dropped before that leaves nothing behind.
/// H.264 at a quality that shows no loss (x264's CRF 16), 4:2:0, with the index in front so that browsers can start at
/// once. A height or width that is odd gains one line that repeats the last: 4:2:0 knows only even sizes.
pub struct VideoWriter {
    encoder: FrameEncoder,
    file: NewFile,
}

impl VideoWriter {
    /// Starts the file `path` for frames of `height` x `width` pixels shown at `fps` frames per second.
    pub fn create(path: &Path, height: usize, width: usize, fps: f64) -> Result<Self> {
        let file = NewFile::begin(path)?;
        let encoder = FrameEncoder::open(file.path(), path, height, width, fps, &ENCODERS)?;
        Ok(Self { encoder, file })
    }

    /// Appends `frames` [n, height, width, 3] (RGB), n >= 1.
    pub fn push(&mut self, frames: &[u8]) -> Result<()> {
        self.encoder.push(frames)
    }

    /// Frames so far.
    pub fn len(&self) -> usize {
        self.encoder.count as usize
    }

    /// Whether there is no frame yet.
    pub fn is_empty(&self) -> bool {
        self.encoder.count == 0
    }

    /// Completes the file and gives it its name. Fails without frames.
    pub fn finish(self) -> Result<()> {
        self.encoder.finish()?;
        self.file.publish()
    }
}

/// The encoder and the file it writes to, without the care for its name.
struct FrameEncoder {
    output: format::context::Output,
    encoder: encoder::video::Encoder,
    name: PathBuf, // for messages
    height: usize,
    width: usize,
    time_base: Rational,
    count: i64,
}

impl FrameEncoder {
    /// Writes to `path`; messages speak of `name`.
    fn open(path: &Path, name: &Path, height: usize, width: usize, fps: f64, encoders: &[&str]) -> Result<Self> {
        check_fps(fps)?;
        if height == 0 || width == 0 || height.max(width) > LARGEST {
            bail!("{}: a video cannot have {width}x{height} pixels; 1 to {LARGEST} are possible", name.display());
        }
        if path.to_str().is_none() {
            bail!("{}: FFmpeg can only write to paths in UTF-8", name.display());
        }
        start_ffmpeg(name)?;
        let Some(codec) = encoders.iter().find_map(|e| encoder::find_by_name(e)) else {
            bail!("{}: this FFmpeg has none of the encoders {}", name.display(), encoders.join(", "));
        };
        let mut output = format::output_as(&path, "mp4").map_err(|e| failed(name, e))?;
        let mut video = codec::Context::new_with_codec(codec).encoder().video().map_err(|e| failed(name, e))?;
        let rate = rational(fps);
        let time_base = Rational(rate.denominator(), rate.numerator());
        video.set_width(width.next_multiple_of(2) as u32);
        video.set_height(height.next_multiple_of(2) as u32);
        video.set_format(Pixel::YUV420P);
        video.set_frame_rate(Some(rate));
        video.set_time_base(time_base);
        video.set_colorspace(color::Space::BT709);
        video.set_color_range(color::Range::MPEG);
        video.set_color_primaries(color::Primaries::BT709);
        video.set_color_transfer_characteristic(color::TransferCharacteristic::BT709);
        let mut flags = codec::Flags::GLOBAL_HEADER; // MP4 keeps the codec's headers in its own
        let mut options = Dictionary::new();
        match codec.name() {
            "libx264" => options.set("crf", "16"),
            "libopenh264" => video.set_bit_rate(quality_bits(height, width, fps, 0.5)),
            _ => {
                flags |= codec::Flags::QSCALE;
                video.set_global_quality(2 * 118); // quantiser 2, the finest that is safe; FF_QP2LAMBDA is 118
            }
        }
        video.set_flags(flags);
        let encoder = video.open_with(options).map_err(|e| failed(name, e))?;
        {
            let mut stream = output.add_stream(codec).map_err(|e| failed(name, e))?;
            stream.set_parameters(&encoder);
            stream.set_time_base(time_base);
            stream.set_avg_frame_rate(rate);
        }
        let mut header = Dictionary::new();
        header.set("movflags", "+faststart");
        output.write_header_with(header).map_err(|e| failed(name, e))?;
        Ok(Self { output, encoder, name: name.to_owned(), height, width, time_base, count: 0 })
    }

    fn push(&mut self, frames: &[u8]) -> Result<()> {
        frame_count(frames, self.height, self.width)?;
        for rgb in frames.chunks_exact(self.height * self.width * 3) {
            let mut picture = frame::Video::new(Pixel::YUV420P, self.encoder.width(), self.encoder.height());
            fill_luma(&mut picture, rgb, self.height, self.width);
            fill_chroma(&mut picture, rgb, self.height, self.width);
            picture.set_pts(Some(self.count));
            self.count += 1;
            self.encoder.send_frame(&picture).map_err(|e| failed(&self.name, e))?;
            self.drain()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.count == 0 {
            bail!("{}: a clip without frames cannot be written", self.name.display());
        }
        self.encoder.send_eof().map_err(|e| failed(&self.name, e))?;
        self.drain()?;
        self.output.write_trailer().map_err(|e| failed(&self.name, e))
    }

    /// Writes what the encoder has ready.
    fn drain(&mut self) -> Result<()> {
        let mut packet = Packet::empty();
        loop {
            match self.encoder.receive_packet(&mut packet) {
                Ok(()) => {}
                Err(ffmpeg::Error::Eof | ffmpeg::Error::Other { errno: ffmpeg::error::EAGAIN }) => return Ok(()),
                Err(e) => return Err(failed(&self.name, e)),
            }
            packet.set_stream(0);
            packet.set_duration(1); // of the last frame, too: said here rather than left to the muxer to guess
            let base = self.output.stream(0).map_or(self.time_base, |s| s.time_base());
            packet.rescale_ts(self.time_base, base);
            packet.write_interleaved(&mut self.output).map_err(|e| failed(&self.name, e))?;
        }
    }
}

/// Y of each pixel; the picture may be one line or column larger than `rgb` [height, width, 3].
fn fill_luma(picture: &mut frame::Video, rgb: &[u8], height: usize, width: usize) {
    let (stride, padded) = (picture.stride(0), picture.width() as usize);
    let plane = picture.data_mut(0);
    for y in 0..height.next_multiple_of(2) {
        let line = &rgb[y.min(height - 1) * width * 3..][..width * 3];
        let out = &mut plane[y * stride..][..padded];
        for (y, pixel) in out.iter_mut().zip(line.chunks_exact(3)) {
            *y = luma(pixel[0] as i32, pixel[1] as i32, pixel[2] as i32);
        }
        out[padded - 1] = out[width - 1];
    }
}

/// Cb and Cr of each 2x2 pixels, from their mean.
fn fill_chroma(picture: &mut frame::Video, rgb: &[u8], height: usize, width: usize) {
    for (index, chroma) in [(1, cb as fn(i32, i32, i32) -> u8), (2, cr)] {
        let stride = picture.stride(index);
        let plane = picture.data_mut(index);
        for y in 0..height.div_ceil(2) {
            for x in 0..width.div_ceil(2) {
                let mut sum = [2; 3]; // half of the four pixels divided by below
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let at = (2 * y + dy).min(height - 1) * width + (2 * x + dx).min(width - 1);
                    for (s, &v) in sum.iter_mut().zip(&rgb[at * 3..at * 3 + 3]) {
                        *s += v as i32;
                    }
                }
                plane[y * stride + x] = chroma(sum[0] / 4, sum[1] / 4, sum[2] / 4);
            }
        }
    }
}

/// Luma in 16..=235: 219/255 of (0.2126, 0.7152, 0.0722), times 2^16.
fn luma(r: i32, g: i32, b: i32) -> u8 {
    ((11966 * r + 40254 * g + 4064 * b + (16 << 16) + (1 << 15)) >> 16) as u8
}

/// (B - Y) / 1.8556 in 16..=240, times 2^16; the factors sum to nought, so that grey is exactly 128.
fn cb(r: i32, g: i32, b: i32) -> u8 {
    ((-6596 * r - 22188 * g + 28784 * b + (128 << 16) + (1 << 15)) >> 16) as u8
}

/// (R - Y) / 1.5748 in 16..=240, times 2^16.
fn cr(r: i32, g: i32, b: i32) -> u8 {
    ((28784 * r - 26145 * g - 2639 * b + (128 << 16) + (1 << 15)) >> 16) as u8
}

/// `fps` as a fraction: whole, half, or a rate over 1001 where it is one, else in thousandths.
fn rational(fps: f64) -> Rational {
    for denominator in [1, 2, 1001] {
        let numerator = (fps * denominator as f64).round();
        if (numerator / denominator as f64 - fps).abs() < 1e-5 * fps {
            return Rational(numerator as i32, denominator);
        }
    }
    Rational((fps * 1000.0).round() as i32, 1000)
}

/// Bits per second for encoders that have no constant quality.
fn quality_bits(height: usize, width: usize, fps: f64, bits_per_pixel: f64) -> usize {
    ((height * width) as f64 * fps * bits_per_pixel).max(200_000.0) as usize
}

/// Starts FFmpeg once and keeps it from writing to the terminal; errors come back as values.
fn start_ffmpeg(name: &Path) -> Result<()> {
    ffmpeg::init().map_err(|e| failed(name, e))?;
    ffmpeg::log::set_level(ffmpeg::log::Level::Quiet);
    Ok(())
}

/// An error of FFmpeg about the file `name`.
fn failed(name: &Path, error: ffmpeg::Error) -> Error {
    match error {
        ffmpeg::Error::Other { errno } => Error::io(name, std::io::Error::from_raw_os_error(errno)),
        other => Error::Invalid(format!("{}: FFmpeg could not write the video: {other}", name.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(path: &Path, encoders: &[&str]) -> Result<()> {
        let mut encoder = FrameEncoder::open(path, Path::new("clip.mp4"), 64, 64, 24.0, encoders)?;
        encoder.push(&[90; 40 * 64 * 64 * 3])?;
        encoder.finish()
    }

    #[test]
    fn a_full_disk_and_a_missing_encoder_are_errors() {
        let full = encode(Path::new("/dev/full"), &ENCODERS).unwrap_err().to_string();
        assert!(full.contains("clip.mp4") && full.contains("No space left"), "{full}");
        let none = encode(Path::new("/dev/null"), &["nosuch", "neither"]).unwrap_err().to_string();
        assert!(none.contains("clip.mp4") && none.contains("nosuch, neither"), "{none}");
    }

    #[test]
    fn without_x264_it_is_mpeg4() {
        let file = tempfile::NamedTempFile::new().unwrap();
        encode(file.path(), &["nosuch", "mpeg4"]).unwrap();
        let mut input = format::input(file.path()).unwrap();
        let stream = input.streams().next().unwrap();
        assert_eq!(stream.parameters().id(), codec::Id::MPEG4);
        assert_eq!(stream.avg_frame_rate(), Rational(24, 1));
        let mut decoder = codec::Context::from_parameters(stream.parameters()).unwrap().decoder().video().unwrap();
        let (mut count, mut picture) = (0, frame::Video::empty());
        let mut take = |decoder: &mut codec::decoder::Video| {
            while decoder.receive_frame(&mut picture).is_ok() {
                assert!((0..64).all(|i| picture.data(0)[i * picture.stride(0) + i].abs_diff(luma(90, 90, 90)) <= 1));
                count += 1;
            }
        };
        for (_, packet) in input.packets() {
            decoder.send_packet(&packet).unwrap();
            take(&mut decoder);
        }
        decoder.send_eof().unwrap();
        take(&mut decoder);
        assert_eq!(count, 40);
    }

    #[test]
    fn frame_rates_become_the_usual_fractions() {
        for (fps, n, d) in
            [(24.0, 24, 1), (12.5, 25, 2), (23.976, 24000, 1001), (29.97, 30000, 1001), (7.3, 7300, 1000)]
        {
            let rate = rational(fps);
            assert_eq!((rate.numerator() * d, rate.denominator() * n), (n * rate.denominator(), d * rate.numerator()));
            assert!((rate.numerator() as f64 / rate.denominator() as f64 - fps).abs() < 1e-4);
        }
    }

    #[test]
    fn colours_follow_bt709() {
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(15) {
                    let [fr, fg, fb] = [r, g, b].map(|v| v as f64 / 255.0);
                    let y = 0.2126 * fr + 0.7152 * fg + 0.0722 * fb;
                    let exact =
                        [16.0 + 219.0 * y, 128.0 + 224.0 * (fb - y) / 1.8556, 128.0 + 224.0 * (fr - y) / 1.5748];
                    for (ours, exact) in [luma(r, g, b), cb(r, g, b), cr(r, g, b)].into_iter().zip(exact) {
                        assert!((ours as f64 - exact).abs() < 0.51, "{r} {g} {b}: {ours} is not {exact}");
                    }
                }
            }
        }
    }
}
