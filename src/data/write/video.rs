//! MP4, WebM and animated WebP frame by frame, through FFmpeg.
//!
//! MP4 is H.264 where FFmpeg can, else MPEG-4 part 2; WebM is VP9. Their colours are BT.709 in limited range, one
//! chroma sample for 2x2 pixels, and the file says so. WebP takes RGB as it is. swscale converts.

use ffmpeg_next as ffmpeg;

use ffmpeg::codec::{self, encoder};
use ffmpeg::format::{self, Pixel};
use ffmpeg::software::scaling;
use ffmpeg::util::color;
use ffmpeg::{Dictionary, Packet, Rational, frame};
use std::path::{Path, PathBuf};

use super::{check_fps, frame_count};
use crate::data::ffmpeg::{Reason, set_colors};
use crate::data::scale::context;
use crate::files::NewFile;
use crate::{Error, Result, bail};

/// A kind of file that FFmpeg writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// H.264 at a quality that shows no loss (x264's CRF 16), 4:2:0, with the index in front so that browsers can start
    /// at once.
    Mp4,
    /// VP9 at a quality that shows hardly a loss (CRF 20), 4:2:0.
    WebM,
    /// An animation that repeats for ever, at quality 90 of 100.
    WebP,
}

impl Container {
    /// Its name among FFmpeg's formats, and the files' extension.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Mp4 => "mp4",
            Self::WebM => "webm",
            Self::WebP => "webp",
        }
    }

    /// Encoders in order of preference. All are free of licence fees to use and part of common builds of FFmpeg.
    fn encoders(self) -> &'static [&'static str] {
        match self {
            Self::Mp4 => &["libx264", "libopenh264", "mpeg4"],
            Self::WebM => &["libvpx-vp9"],
            Self::WebP => &["libwebp_anim"],
        }
    }

    /// The highest height or width: of H.264's largest level, and WebP's own.
    fn largest(self) -> usize {
        match self {
            Self::Mp4 | Self::WebM => 16384,
            Self::WebP => 16383,
        }
    }

    /// What pixels are encoded.
    fn pixel(self) -> Pixel {
        match self {
            Self::Mp4 | Self::WebM => Pixel::YUV420P,
            Self::WebP => Pixel::BGRA,
        }
    }

    /// Refuses to write `path`, for which this FFmpeg has no encoder.
    ///
    /// # Errors
    /// That; it says what the encoders are called.
    pub fn check_encoder(self, path: &Path) -> Result<()> {
        find(path, self.encoders()).map(drop)
    }
}

/// The first of `encoders` that this FFmpeg has, for the file `name`.
fn find(name: &Path, encoders: &[&str]) -> Result<ffmpeg::Codec> {
    start_ffmpeg(name)?;
    match encoders.iter().find_map(|encoder| encoder::find_by_name(encoder)) {
        Some(codec) => Ok(codec),
        None => bail!(
            Environment,
            "{}: this FFmpeg has no encoder for it ({}); use .gif or another kind, or an FFmpeg built with it",
            name.display(),
            encoders.join(", ")
        ),
    }
}

/// Writes a video or animation while its frames come in, so that no second copy of a long clip is needed.
///
/// The file has its temporary name until [`finish`](Self::finish); a writer dropped before that leaves nothing behind.
/// In MP4 and WebM a height or width that is odd gains one line that repeats the last: 4:2:0 knows only even sizes.
pub struct VideoWriter {
    encoder: FrameEncoder,
    file: NewFile,
}

impl VideoWriter {
    /// Starts the file `path` for frames of `height` x `width` pixels shown at `fps` frames per second.
    pub fn create(path: &Path, container: Container, height: usize, width: usize, fps: f64) -> Result<Self> {
        let file = NewFile::begin(path)?;
        let encoder = FrameEncoder::open(file.path(), path, container, [height, width], fps, container.encoders())?;
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
    /// From RGB to what the encoder takes.
    conversion: scaling::Context,
    name: PathBuf, // for messages
    height: usize,
    width: usize,
    time_base: Rational,
    count: i64,
}

impl FrameEncoder {
    /// Writes to `path`; messages speak of `name`.
    fn open(
        path: &Path,
        name: &Path,
        container: Container,
        [height, width]: [usize; 2],
        fps: f64,
        encoders: &[&str],
    ) -> Result<Self> {
        check_fps(fps)?;
        let largest = container.largest();
        if height == 0 || width == 0 || height.max(width) > largest {
            bail!(Data, "{}: a video cannot have {width}x{height} pixels; 1 to {largest} are possible", name.display());
        }
        if path.to_str().is_none() {
            bail!(Config, "{}: FFmpeg can only write to paths in UTF-8", name.display());
        }
        let codec = find(name, encoders)?;
        let mut output = format::output_as(&path, container.name()).map_err(|e| failed(name, e))?;
        let mut video = codec::Context::new_with_codec(codec).encoder().video().map_err(|e| failed(name, e))?;
        let rate = rational(fps);
        let time_base = Rational(rate.denominator(), rate.numerator());
        let even = if container.pixel() == Pixel::YUV420P { 2 } else { 1 };
        video.set_width(width.next_multiple_of(even) as u32);
        video.set_height(height.next_multiple_of(even) as u32);
        video.set_format(container.pixel());
        video.set_frame_rate(Some(rate));
        video.set_time_base(time_base);
        if container.pixel() == Pixel::YUV420P {
            video.set_colorspace(color::Space::BT709);
            video.set_color_range(color::Range::MPEG);
            video.set_color_primaries(color::Primaries::BT709);
            video.set_color_transfer_characteristic(color::TransferCharacteristic::BT709);
        }
        let mut flags = codec::Flags::GLOBAL_HEADER; // the containers keep the codec's headers in their own
        let mut options = Dictionary::new();
        match codec.name() {
            "libx264" => options.set("crf", "16"),
            "libvpx-vp9" => {
                video.set_bit_rate(0); // otherwise it would limit the quality
                for (key, value) in [("crf", "20"), ("row-mt", "1"), ("cpu-used", "2")] {
                    options.set(key, value);
                }
            }
            "libwebp_anim" => options.set("quality", "90"),
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
        match container {
            Container::Mp4 => header.set("movflags", "+faststart"),
            Container::WebM => {}
            Container::WebP => header.set("loop", "0"), // for ever
        }
        output.write_header_with(header).map_err(|e| failed(name, e))?;
        let conversion = from_rgb(encoder.format(), (encoder.width(), encoder.height()));
        let conversion = conversion.map_err(|reason| Error::Data(format!("{}: {reason}", name.display())))?;
        Ok(Self { output, encoder, conversion, name: name.to_owned(), height, width, time_base, count: 0 })
    }

    fn push(&mut self, frames: &[u8]) -> Result<()> {
        frame_count(frames, self.height, self.width)?;
        for rgb in frames.chunks_exact(self.height * self.width * 3) {
            let mut padded = frame::Video::new(Pixel::RGB24, self.encoder.width(), self.encoder.height());
            fill(&mut padded, rgb, self.height, self.width);
            let mut picture = frame::Video::empty();
            self.conversion.run(&padded, &mut picture).map_err(|e| failed(&self.name, e))?;
            picture.set_pts(Some(self.count));
            self.count += 1;
            self.encoder.send_frame(&picture).map_err(|e| failed(&self.name, e))?;
            self.drain()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        if self.count == 0 {
            bail!(Data, "{}: a clip without frames cannot be written", self.name.display());
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

/// Copies `rgb` [height, width, 3] into `picture`, which may be one line or column larger: that repeats the last.
fn fill(picture: &mut frame::Video, rgb: &[u8], height: usize, width: usize) {
    let (stride, line) = (picture.stride(0), width * 3);
    let padded = picture.width() as usize * 3;
    for (y, out) in picture.data_mut(0).chunks_mut(stride).enumerate() {
        out[..line].copy_from_slice(&rgb[y.min(height - 1) * line..][..line]);
        out.copy_within(line - 3..line - 3 + (padded - line), line);
    }
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
        other => Error::Data(format!("{}: FFmpeg could not write the video: {other}", name.display())),
    }
}

/// swscale, from RGB to frames of the same `size` (width, height) to be written: YUV is BT.709 in limited range.
fn from_rgb(format: Pixel, size: (u32, u32)) -> Reason<scaling::Context> {
    let mut context = context((Pixel::RGB24, size.0, size.1), format, size)?;
    set_colors(&mut context, ffmpeg::ffi::SWS_CS_ITU709, None, false);
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Y of grey 90 in limited range: 16 + 219 * 90 / 255.
    const LUMA_OF_90: u8 = 93;

    fn encode(path: &Path, encoders: &[&str]) -> Result<()> {
        let name = Path::new("clip.mp4");
        let mut encoder = FrameEncoder::open(path, name, Container::Mp4, [64, 64], 24.0, encoders)?;
        encoder.push(&[90; 40 * 64 * 64 * 3])?;
        encoder.finish()
    }

    #[test]
    fn a_full_disk_and_a_missing_encoder_are_errors() {
        let full = encode(Path::new("/dev/full"), Container::Mp4.encoders()).unwrap_err().to_string();
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
                assert!((0..64).all(|i| picture.data(0)[i * picture.stride(0) + i].abs_diff(LUMA_OF_90) <= 1));
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
    fn colours_follow_bt709() {
        let mut conversion = from_rgb(Pixel::YUV420P, (2, 2)).unwrap();
        for r in (0..=255u8).step_by(15) {
            for g in (0..=255u8).step_by(15) {
                for b in (0..=255u8).step_by(15) {
                    let (mut rgb, mut picture) = (frame::Video::new(Pixel::RGB24, 2, 2), frame::Video::empty());
                    fill(&mut rgb, &[r, g, b], 1, 1);
                    conversion.run(&rgb, &mut picture).unwrap();
                    let [fr, fg, fb] = [r, g, b].map(|v| f64::from(v) / 255.0);
                    let y = 0.2126 * fr + 0.7152 * fg + 0.0722 * fb;
                    let exact =
                        [16.0 + 219.0 * y, 128.0 + 224.0 * (fb - y) / 1.8556, 128.0 + 224.0 * (fr - y) / 1.5748];
                    for (plane, exact) in exact.into_iter().enumerate() {
                        let found = picture.data(plane)[0];
                        assert!((f64::from(found) - exact).abs() < 1.0, "{r} {g} {b}: {found} is not {exact}");
                    }
                    assert!(r != g || g != b || [1, 2].map(|plane| picture.data(plane)[0]) == [128; 2], "grey {r}");
                }
            }
        }
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
}
