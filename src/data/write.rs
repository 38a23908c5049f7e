//! Writes clips and images: MP4, WebM, GIF, WebP, PNG or a folder of PNGs, chosen by the path's extension.
//!
//! What is written appears under its name only when whole: until then it has a temporary name beside it, and a failure
//! leaves whatever was there as it was. Reading is the business of the other files of this room.

mod png;
mod video;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, ImageFormat, RgbImage};
use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::time::Duration;

use crate::files::{NewFile, NewFolder, check_target, failed};
use crate::{Error, Result, bail};
pub use png::PngWriter;
pub use video::{Container, VideoWriter};

/// A GIF frame's palette is learnt from about so many of its pixels: all of a small frame's, a sample of a large one's.
const GIF_SAMPLE: usize = 50_000;

/// What a path's extension asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A video or animation that FFmpeg writes.
    Video(Container),
    /// Animation with 256 colours a frame.
    Gif,
    /// One picture; of several frames, all of them side by side.
    Png,
    /// A folder of numbered PNGs.
    Folder,
}

impl Kind {
    /// The kind `path` names: `.mp4`, `.webm`, `.webp`, `.gif`, `.png`, or a folder: a path that ends with `/`, has no
    /// extension, or is one already. Any other extension is an error, and so is what is there but neither a regular
    /// file nor a folder. Lets a command refuse a path before it works for hours.
    pub fn of(path: &Path) -> Result<Self> {
        if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
            return Ok(Self::Folder);
        }
        check_target(path)?;
        match path.extension().map(|e| e.to_string_lossy().to_lowercase()).as_deref() {
            Some("mp4") => Ok(Self::Video(Container::Mp4)),
            Some("webm") => Ok(Self::Video(Container::WebM)),
            Some("webp") => Ok(Self::Video(Container::WebP)),
            Some("gif") => Ok(Self::Gif),
            Some("png") => Ok(Self::Png),
            None if path.file_name().is_some() => Ok(Self::Folder),
            None => bail!(Config, "{}: not a path to write to", path.display()),
            Some(other) => bail!(
                Config,
                "{}: cannot write files of the kind .{other}; use .mp4, .webm, .gif, .webp, .png, or a folder (a name that ends \
                 with /, or without extension)",
                path.display()
            ),
        }
    }

    /// Refuses to write `path` if it takes an encoder that this FFmpeg has not.
    ///
    /// # Errors
    /// That.
    pub fn check_encoder(self, path: &Path) -> Result<()> {
        match self {
            Self::Video(container) => container.check_encoder(path),
            _ => Ok(()),
        }
    }
}

/// Writes the clip `frames` [n, height, width, 3] (RGB, n >= 1) to `path`, as its extension says.
///
/// - `.mp4`, `.webm`, `.webp`: see [`Container`].
/// - `.gif`: 256 colours a frame, repeating for ever; delays are whole hundredths of a second whose sum is right. GIF
///   knows nothing faster than 50 frames per second.
/// - `.png`: one frame is that picture. Several are laid side by side in reading order, unscaled, on a sheet about as
///   wide as it is high, the rest of it black.
/// - a folder: `00000.png`, `00001.png` and so on. It must not exist or be empty.
///
/// Fails on another extension, on `frames` that are not whole frames, without frames, and where the file cannot be
/// written.
pub fn write_video(path: &Path, frames: &[u8], height: usize, width: usize, fps: f64) -> Result<()> {
    let n = frame_count(frames, height, width)?;
    match Kind::of(path)? {
        Kind::Video(container) => {
            let mut writer = VideoWriter::create(path, container, height, width, fps)?;
            writer.push(frames)?;
            writer.finish()
        }
        Kind::Gif => write_gif(path, frames, height, width, fps),
        Kind::Png => write_image(path, &tile(frames, height, width, n)?),
        Kind::Folder => write_folder(path, frames, height, width, n),
    }
}

/// Writes `image` as a PNG, whatever the path's extension.
pub fn write_image(path: &Path, image: &RgbImage) -> Result<()> {
    write_file(path, |out| image.write_to(out, ImageFormat::Png).map_err(|e| encoding(path, e)))
}

/// Writes a file through `write` under a temporary name, then fsyncs and renames it to `path`.
/// On an error, `write`'s or the system's, `path` stays as it was and the temporary file is gone.
pub fn write_file(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    NewFile::begin(path)?.write(write)
}

/// How many frames [n, height, width, 3] holds; an error if that is not a whole number of at least one.
pub(super) fn frame_count(frames: &[u8], height: usize, width: usize) -> Result<usize> {
    let frame = height.saturating_mul(width).saturating_mul(3);
    if frame == 0 {
        bail!(Data, "a clip of {width}x{height} pixels cannot be written");
    }
    if frames.is_empty() {
        bail!(Data, "a clip without frames cannot be written");
    }
    if !frames.len().is_multiple_of(frame) {
        bail!(Shape, "{} bytes are not a whole number of {width}x{height} RGB frames of {frame} bytes", frames.len());
    }
    Ok(frames.len() / frame)
}

/// Frame `i` of [n, height, width, 3] as an image.
pub(super) fn frame_image(frames: &[u8], height: usize, width: usize, i: usize) -> Result<RgbImage> {
    let bytes = height * width * 3;
    let pixels = frames[i * bytes..(i + 1) * bytes].to_vec();
    match (u32::try_from(width), u32::try_from(height)) {
        (Ok(w), Ok(h)) => RgbImage::from_raw(w, h, pixels),
        _ => None,
    }
    .ok_or_else(|| Error::Data(format!("frames of {width}x{height} pixels are too large for a picture")))
}

/// All frames side by side in reading order, on a sheet about as wide as it is high.
fn tile(frames: &[u8], height: usize, width: usize, n: usize) -> Result<RgbImage> {
    let columns = (((n * height) as f64 / width as f64).sqrt().round() as usize).clamp(1, n);
    let columns = n.div_ceil(n.div_ceil(columns)); // no empty column
    let rows = n.div_ceil(columns);
    let stride = columns * width * 3;
    let mut sheet = vec![0; rows * height * stride];
    for (i, line) in frames.chunks_exact(width * 3).enumerate() {
        let (frame, y) = (i / height, i % height);
        let start = (frame / columns * height + y) * stride + frame % columns * width * 3;
        sheet[start..start + line.len()].copy_from_slice(line);
    }
    frame_image(&sheet, rows * height, columns * width, 0)
}

fn write_gif(path: &Path, frames: &[u8], height: usize, width: usize, fps: f64) -> Result<()> {
    check_fps(fps)?;
    if height.max(width) > u16::MAX as usize {
        bail!(Data, "{}: {width}x{height} pixels are too many for a GIF", path.display());
    }
    write_file(path, |out| encode_gif(out, frames, height, width, fps).map_err(|e| encoding(path, e)))
}

/// Encodes a clip as [`write_video`] does a `.gif`.
fn encode_gif(
    out: impl std::io::Write,
    frames: &[u8],
    height: usize,
    width: usize,
    fps: f64,
) -> image::ImageResult<()> {
    let speed = (height * width / GIF_SAMPLE).clamp(1, 30) as i32; // one pixel in so many is looked at
    let mut encoder = GifEncoder::new_with_speed(out, speed);
    encoder.set_repeat(Repeat::Infinite)?;
    let hundredths = |i: usize| (i as f64 * 100.0 / fps).round() as u64;
    for (i, rgb) in frames.chunks_exact(height * width * 3).enumerate() {
        let rgba = rgb.chunks_exact(3).flat_map(|pixel| [pixel[0], pixel[1], pixel[2], 255]).collect();
        let Some(picture) = image::RgbaImage::from_raw(width as u32, height as u32, rgba) else { continue };
        let delay = (hundredths(i + 1) - hundredths(i)).max(2); // players take less for "unset"
        let delay = Delay::from_saturating_duration(Duration::from_millis(10 * delay));
        encoder.encode_frame(image::Frame::from_parts(picture, 0, 0, delay))?;
    }
    Ok(())
}

/// A clip in memory for a page that shows pictures, no larger than that page needs.
#[derive(Clone, Debug)]
pub struct Preview {
    /// Height of a frame.
    pub height: usize,
    /// Width of a frame.
    pub width: usize,
    /// A GIF of several frames, or the PNG of one.
    pub encoded: Vec<u8>,
}

/// Pixels of all of a preview's frames at most.
pub const PREVIEW_PIXELS: usize = 4 << 20;

impl Preview {
    /// Of the clip `frames` [n, height, width, 3] at `fps` frames per second: made smaller where it has more than
    /// [`PREVIEW_PIXELS`].
    ///
    /// # Errors
    /// These are no frames; or they are too many for any preview.
    pub fn new(frames: &[u8], height: usize, width: usize, fps: f64) -> Result<Self> {
        let n = frame_count(frames, height, width)?;
        check_fps(fps)?;
        let scale = (PREVIEW_PIXELS as f64 / (n * height * width) as f64).sqrt().min(1.0);
        let [h, w] = [height, width].map(|side| (side as f64 * scale) as usize);
        if h == 0 || w == 0 || h.max(w) > u16::MAX as usize {
            bail!(Data, "a clip of {n} frames of {width}x{height} pixels has no preview");
        }
        let mut small = Vec::with_capacity(n * h * w * 3);
        for i in 0..n {
            let frame = frame_image(frames, height, width, i)?;
            match (h, w) == (height, width) {
                true => small.extend_from_slice(&frame),
                false => small.extend_from_slice(&image::imageops::thumbnail(&frame, w as u32, h as u32)),
            }
        }
        let mut encoded = std::io::Cursor::new(vec![]);
        let done = match n {
            1 => frame_image(&small, h, w, 0)?.write_to(&mut encoded, ImageFormat::Png),
            _ => encode_gif(&mut encoded, &small, h, w, fps),
        };
        done.map_err(|e| Error::Data(format!("a preview cannot be encoded: {e}")))?;
        Ok(Self { height: h, width: w, encoded: encoded.into_inner() })
    }
}

/// Refuses to write frames into a folder that holds something.
///
/// # Errors
/// That; or `path` is there and no folder.
pub fn check_empty_folder(path: &Path) -> Result<()> {
    let occupied = match fs::read_dir(path) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(path, e)),
    };
    if occupied {
        bail!(Config, "{}: the folder is not empty; name a new one for the frames", path.display());
    }
    Ok(())
}

fn write_folder(path: &Path, frames: &[u8], height: usize, width: usize, n: usize) -> Result<()> {
    check_empty_folder(path)?;
    let making = NewFolder::begin(path)?;
    for i in 0..n {
        write_image(&making.path().join(format!("{i:05}.png")), &frame_image(frames, height, width, i)?)?;
    }
    making.publish(false) // an empty folder there gives way
}

/// Refuses what no player shows.
///
/// # Errors
/// `fps` is not from 0.01 to 1000 frames per second.
pub fn check_fps(fps: f64) -> Result<()> {
    if !(fps.is_finite() && (0.01..=1000.0).contains(&fps)) {
        bail!(Config, "{fps} is not a frame rate; it must lie between 0.01 and 1000");
    }
    Ok(())
}

/// An error of the image library about `path`.
fn encoding(path: &Path, error: image::ImageError) -> Error {
    match error {
        image::ImageError::IoError(e) => failed(path, e),
        other => Error::Data(format!("{}: {other}", path.display())),
    }
}
