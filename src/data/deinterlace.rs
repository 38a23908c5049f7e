//! Turns interlaced frames into progressive ones: keeps the lines of one field, and makes those of the other from what
//! surrounds them.
//!
//! The method is that of FFmpeg's bwdif filter (Weston's three-field filter within yadif's bounds), bit for bit, one
//! frame for each frame. It needs the frames before and after, so they are decoded along: what comes out does not
//! depend on where decoding began. The filter goes down columns only, so any layout of samples within a line will do.

use super::decode;
use super::ffmpeg::{self, Reason};
use super::probe::VideoIndex;
use ffmpeg_next::frame;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// As [`decode::frames`], but frames that are interlaced come deinterlaced.
///
/// # Errors
/// As there; or samples are of a kind that is not deinterlaced.
pub fn frames(
    path: &Path,
    index: &VideoIndex,
    wanted: &[u32],
    stop: Option<&AtomicBool>,
    mut take: impl FnMut(usize, &frame::Video) -> Reason<()>,
) -> Reason<()> {
    let end = index.pts.len() as u32;
    let around = |&n: &u32| n.saturating_sub(1)..(n + 2).min(end);
    let mut needed: Vec<u32> = wanted.iter().flat_map(around).collect();
    needed.sort_unstable();
    needed.dedup();
    // The last frames decoded, without gaps: the one before, and the one that waits for its next.
    let mut last: Option<(u32, frame::Video)> = None;
    let mut before: Option<frame::Video> = None;
    let mut done = 0;
    decode::frames(path, index, &needed, stop, |i, frame| {
        let n = needed[i];
        let next = frame.clone();
        if let Some((m, current)) = last.take_if(|(m, _)| *m + 1 == n) {
            if wanted.get(done) == Some(&m) {
                take(done, &progressive(before.as_ref(), &current, Some(&next))?)?;
                done += 1;
            }
            before = Some(current);
        } else {
            before = None;
        }
        if n + 1 == end && wanted.get(done) == Some(&n) {
            take(done, &progressive(before.as_ref(), &next, Some(&next))?)?;
            done += 1;
        }
        last = Some((n, next));
        Ok(())
    })
}

/// `frame` without its second field; itself if it is progressive.
fn progressive(
    before: Option<&frame::Video>,
    frame: &frame::Video,
    after: Option<&frame::Video>,
) -> Reason<frame::Video> {
    let mut out = frame.clone();
    if !frame.is_interlaced() {
        return Ok(out);
    }
    let format = frame.format();
    let (bytes, most) = ffmpeg::samples(format).ok_or_else(|| {
        format!("its interlaced frames of {format:?} cannot be deinterlaced: data.deinterlace = false leaves them")
    })?;
    let kind = |f: &frame::Video| (f.format(), f.width(), f.height());
    let around = before.zip(after).filter(|(b, a)| kind(b) == kind(frame) && kind(a) == kind(frame));
    let kept_field = usize::from(!frame.is_top_first()); // the field that is shown first
    for plane in 0..frame.planes() {
        let picture = |f: &frame::Video| Plane::read(f, plane, bytes);
        let current = picture(frame);
        let around = around.map(|(b, a)| (picture(b), picture(a)));
        let stride = out.stride(plane);
        let lines = out.data_mut(plane).chunks_exact_mut(stride);
        for (y, line) in lines.enumerate().filter(|(y, _)| y % 2 != kept_field) {
            let near = Near::of(y, current.height, bytes);
            let values = (0..current.width).map(|x| match &around {
                Some((before, after)) => between(before, &current, after, x, &near, most),
                None => within(&current, x, &near, most),
            });
            match bytes {
                1 => line.iter_mut().zip(values).for_each(|(to, value)| *to = value as u8),
                _ => line
                    .chunks_exact_mut(2)
                    .zip(values)
                    .for_each(|(to, value)| to.copy_from_slice(&(value as u16).to_le_bytes())),
            }
        }
    }
    Ok(out)
}

/// A plane of samples.
struct Plane {
    width: usize,
    height: usize,
    samples: Vec<u16>,
}

impl Plane {
    fn read(frame: &frame::Video, plane: usize, bytes: usize) -> Self {
        let data = frame.data(plane);
        let samples: Vec<u16> = match bytes {
            1 => data.iter().map(|&value| u16::from(value)).collect(),
            _ => data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect(),
        };
        let width = frame.stride(plane) / bytes;
        Self { width, height: samples.len() / width, samples }
    }

    /// The sample in column `x`, `down` lines below line `y`.
    fn at(&self, x: usize, y: usize, down: isize) -> i32 {
        let line = y.saturating_add_signed(down).min(self.height - 1);
        i32::from(self.samples[line * self.width + x])
    }
}

/// A line, and how far from it those lines lie that stand for the ones 1 and 3 above and below, which an edge may cut
/// off.
struct Near {
    y: usize,
    above: isize,
    below: isize,
    above_3: isize,
    below_3: isize,
    /// So near an edge that lines further away are not there.
    edge: bool,
    /// Not so near that even those 2 away are not there.
    two: bool,
}

impl Near {
    /// Those of line `y` of `height`. As bwdif has it, an edge is as many lines thick as a sample has bytes.
    fn of(y: usize, height: usize, bytes: usize) -> Self {
        Self {
            y,
            above: if y >= bytes { -1 } else { 1 },
            below: if y + bytes < height { 1 } else { -1 },
            above_3: if y >= 3 * bytes { -3 } else { 1 },
            below_3: if y + 3 * bytes < height { 3 } else { -1 },
            edge: y < 4 || y + 5 > height,
            two: y >= 2 && y + 3 <= height,
        }
    }
}

// bwdif's filters, in 1/8192: low and high frequencies with the fields around, and one field alone.
const LOW: [i32; 2] = [4309, 213];
const HIGH: [i32; 3] = [5570, 3801, 1016];
const SPACE: [i32; 2] = [5077, 981];

/// A sample from its own field alone.
fn within(current: &Plane, x: usize, near: &Near, most: i32) -> i32 {
    let at = |down: isize| current.at(x, near.y, down);
    let value = SPACE[0] * (at(near.above) + at(near.below)) - SPACE[1] * (at(near.above_3) + at(near.below_3));
    (value >> 13).clamp(0, most)
}

/// A sample from its own field and those of its lines just before (of `before`) and just after (of `current`).
fn between(before: &Plane, current: &Plane, after: &Plane, x: usize, near: &Near, most: i32) -> i32 {
    let at = |plane: &Plane, down: isize| plane.at(x, near.y, down);
    let both = |down: isize| at(before, down) + at(current, down); // the fields of the missing lines
    let (above, below) = (at(current, near.above), at(current, near.below));
    let middle = both(0) >> 1;
    let change = (at(before, 0) - at(current, 0)).abs();
    let moved = |plane: &Plane| ((at(plane, near.above) - above).abs() + (at(plane, near.below) - below).abs()) >> 1;
    let mut bound = (change >> 1).max(moved(before)).max(moved(after));
    if bound == 0 {
        return middle;
    }
    if near.two || !near.edge {
        let (b, f) = ((both(-2) >> 1) - above, (both(2) >> 1) - below);
        let (c, e) = (middle - above, middle - below);
        let upper = e.max(c).max(b.min(f));
        let lower = e.min(c).min(b.max(f));
        bound = bound.max(lower).max(-upper);
    }
    let far = || at(current, -3) + at(current, 3);
    let value = if near.edge {
        (above + below) >> 1
    } else if (above - below).abs() > change {
        let high = HIGH[0] * both(0) - HIGH[1] * (both(-2) + both(2)) + HIGH[2] * (both(-4) + both(4));
        ((high >> 2) + LOW[0] * (above + below) - LOW[1] * far()) >> 13
    } else {
        (SPACE[0] * (above + below) - SPACE[1] * far()) >> 13
    };
    value.clamp(middle - bound, middle + bound).clamp(0, most)
}
