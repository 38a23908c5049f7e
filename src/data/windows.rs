//! Cuts a file's frames into windows, one a clip, and resamples the frame rate before that.
//!
//! Pure arithmetic on counts and timestamps; nothing here opens a file.

use super::options::ClipOptions;

/// How clips are cut from a run of frames.
///
/// Clip w takes the frames `w * frames * stride + i * stride` for i in 0..frames. Clips do not overlap, none reaches
/// past the end, and what is left over at the end is less than a clip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Frames of a clip; at least 1.
    pub frames: usize,
    /// Every `stride`-th frame is taken; at least 1.
    pub stride: usize,
}

impl Windows {
    /// Those that `options` ask for.
    pub(super) fn of(options: &ClipOptions) -> Self {
        Self { frames: options.frames, stride: options.stride }
    }

    /// Frames from a clip's first to its last, both included: what a file must at least have.
    pub fn span(&self) -> usize {
        (self.frames - 1).saturating_mul(self.stride).saturating_add(1)
    }

    /// Frames from one clip's first to the next one's.
    pub fn step(&self) -> usize {
        self.frames.saturating_mul(self.stride)
    }

    /// How many clips `n` frames give.
    pub fn count(&self, n: usize) -> usize {
        if n < self.span() { 0 } else { (n - self.span()) / self.step() + 1 }
    }

    /// By how many frames `n` are too few for one clip; 0: enough.
    pub fn missing(&self, n: usize) -> usize {
        self.span().saturating_sub(n)
    }

    /// Which of the file's frames is frame `i` of clip `w`.
    pub fn frame(&self, w: usize, i: usize) -> usize {
        w * self.step() + i * self.stride
    }
}

/// The frames that a steady `fps` picks from frames shown at `times` (seconds, strictly increasing).
///
/// The grid starts at the first frame and goes on while a frame of the source is due: grid time k is `times[0] + k /
/// fps`, the last is at most `tick` past the last frame, since timestamps are rounded to units of `tick` seconds. Each
/// grid time takes the frame nearest to it, the earlier of two equally near. A rate above the source's repeats frames.
pub fn resample(times: &[f64], tick: f64, fps: f64) -> Vec<u32> {
    let (Some(&first), Some(&last)) = (times.first(), times.last()) else { return Vec::new() };
    let count = ((last - first + tick) * fps).floor() as usize + 1;
    let mut picks = Vec::with_capacity(count.min(1 << 24));
    let mut near = 0;
    for k in 0..count {
        let time = first + k as f64 / fps;
        // Rounding must not decide a tie: the later frame has to be nearer by a thousandth of a grid interval.
        while near + 1 < times.len()
            && (times[near + 1] <= time || times[near + 1] - time + 1e-3 / fps < time - times[near])
        {
            near += 1;
        }
        picks.push(near as u32);
    }
    picks
}
