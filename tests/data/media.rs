//! Makes media whose frames say which frame they are, and reads that back.

use longreel::data::{Augment, Clip, ClipOptions, Dataset, Frames};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

pub const BITS: usize = 8;

/// A config for clips of (frames, height, width), all else as a user gets it.
pub fn config(frames: usize, height: usize, width: usize) -> ClipOptions {
    ClipOptions::new([frames, height, width])
}

pub fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Frame `n`: bars for the bits of n, highest first, over red and blue halves (so left, right, up and down can be
/// told).
pub fn coded_frame(n: usize, width: usize, height: usize) -> Vec<u8> {
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let bit = n >> (BITS - 1 - x * BITS / width) & 1;
            pixels.extend(match (y * 2 < height, x * 2 < width) {
                (true, _) => [bit as u8 * 255; 3],
                (false, true) => [230, 20, 20],
                (false, false) => [20, 20, 230],
            });
        }
    }
    pixels
}

/// The number in an upright, uncropped frame.
pub fn code(pixels: &[u8], width: usize, height: usize) -> usize {
    assert_eq!(pixels.len(), width * height * 3);
    (0..BITS).fold(0, |n, bit| {
        let (x, y) = ((2 * bit + 1) * width / (2 * BITS), height / 4);
        n << 1 | usize::from(pixels[(y * width + x) * 3 + 1] > 127)
    })
}

/// The numbers in all frames held.
pub fn codes(frames: &Frames) -> Vec<usize> {
    (0..frames.count()).map(|i| code(frames.frame(i), frames.width, frames.height)).collect()
}

/// Writes `count` coded frames at 24 a second through ffmpeg, with `args` between input and output.
pub fn video(path: impl AsRef<Path>, count: usize, (width, height): (usize, usize), args: &[&str]) -> PathBuf {
    let frames: Vec<u8> = (0..count).flat_map(|n| coded_frame(n, width, height)).collect();
    let size = format!("{width}x{height}");
    let input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &size, "-r", "24", "-i", "pipe:0"];
    ffmpeg(path, &input, args, &frames)
}

/// Runs ffmpeg with `stdin` as its input's bytes.
pub fn ffmpeg(path: impl AsRef<Path>, input: &[&str], args: &[&str], stdin: &[u8]) -> PathBuf {
    let path = path.as_ref();
    let mut child = Command::new("ffmpeg")
        .args(["-v", "error", "-nostdin", "-y", "-threads", "1"])
        .args(input)
        .args(args)
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("the tests need the ffmpeg command line");
    let mut pipe = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || pipe.write_all(stdin));
        assert!(child.wait().unwrap().success(), "ffmpeg could not make {}", path.display());
    });
    path.to_owned()
}

/// H.264 with key frames every 12, up to 3 B-frames between, like most files that users have.
pub const H264: [&str; 10] = ["-c:v", "libx264", "-preset", "fast", "-g", "12", "-bf", "3", "-pix_fmt", "yuv420p"];

pub fn open(config: &ClipOptions, path: &Path) -> Dataset {
    Dataset::open(config, path).unwrap()
}

pub fn whole(dataset: &Dataset, clip: &Clip) -> Frames {
    dataset.frames(clip, &Augment::PLAIN, 0..dataset.options().frames).unwrap()
}

/// The reasons why files are skipped, by name.
pub fn skipped(dataset: &Dataset) -> Vec<(String, String)> {
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    dataset.skipped().iter().map(|s| (name(&s.path), s.reason.clone())).collect()
}

/// The message of an error.
pub fn message<T>(result: longreel::Result<T>) -> String {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(e) => e.to_string(),
    }
}
