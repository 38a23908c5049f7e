//! Decodes exactly the wanted frames of a video: forward from the key frame before them, dropping all others
//! unconverted.
//!
//! A frame is known by its packet. If one does not come (a group of pictures that leans on the one before it, a demuxer
//! that misses its mark), decoding starts again one key frame earlier, then at the file's start; then it is an error.

use super::ffmpeg::{self, Reader, Reason};
use super::probe::{NONE, VideoIndex};
use ffmpeg_next::frame;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Decodes the frames `wanted` (strictly increasing) and gives each to `take` with its place in `wanted`.
///
/// # Errors
/// The reason why a frame cannot be decoded; `stop` was set; or `take`'s own.
pub fn frames(
    path: &Path,
    index: &VideoIndex,
    wanted: &[u32],
    stop: Option<&AtomicBool>,
    mut take: impl FnMut(usize, &frame::Video) -> Reason<()>,
) -> Reason<()> {
    let mut frame = frame::Video::empty();
    let reader = Reader::open(path, stop)?.follow(&index.packets);
    let mut walk = Walk { path, index, stop, reader, next: 0, fresh: true };
    let (mut done, mut attempt, mut placed) = (0, 0, false);
    let mut trouble = None;
    while let Some(&want) = wanted.get(done) {
        if !placed {
            placed = true;
            if let Err(why) = walk.place(want, attempt) {
                trouble.get_or_insert(why);
            }
        }
        let found = walk.step(&mut frame)?;
        if found.is_some_and(|n| n < want) {
            continue;
        }
        if found == Some(want) && !ffmpeg::is_damaged(&frame) && !walk.leans_on_lost(want) {
            take(done, &frame)?;
            (done, attempt) = (done + 1, 0);
            // Where the next frame has a key frame of its own, going there is cheaper than decoding what lies between.
            placed = wanted.get(done).is_none_or(|&next| index.key_before(next).is_none_or(|key| key.frame <= want));
            continue;
        }
        trouble = trouble.or_else(|| walk.reader.trouble.clone());
        if attempt == 2 {
            let why = trouble.unwrap_or_else(|| "decoding passes it by".to_owned());
            return Err(format!("frame {want} cannot be decoded: {why}"));
        }
        (attempt, placed) = (attempt + 1, false);
    }
    Ok(())
}

/// A reader and where it stands.
struct Walk<'a> {
    path: &'a Path,
    index: &'a VideoIndex,
    stop: Option<&'a AtomicBool>,
    reader: Reader<'a>,
    /// Where frames do not tell their packets: which frame comes next, counted from the start.
    next: u32,
    /// Nothing has been read yet.
    fresh: bool,
}

impl Walk<'_> {
    /// Goes to where decoding for frame `want` starts, the further back the more attempts were in vain.
    fn place(&mut self, want: u32, attempt: usize) -> Reason<()> {
        let key = self.index.key_before(want);
        let key = match attempt {
            0 => key,
            1 => key.and_then(|key| self.index.key_before(key.frame.checked_sub(1)?)),
            _ => None,
        };
        if let Some(key) = key.filter(|key| key.packet > 0) {
            self.fresh = false;
            return self.reader.seek(key.packet as usize, key.stamp);
        }
        if !self.fresh {
            self.reader = Reader::open(self.path, self.stop)?.follow(&self.index.packets);
            self.next = 0;
        }
        Ok(())
    }

    /// Whether a packet of frame `n`'s group of pictures is lost.
    fn leans_on_lost(&self, n: u32) -> bool {
        let Self { index, reader, .. } = self;
        let leans = |lost: usize| index.keys.is_empty() || index.group_of(lost) == index.key_before(n);
        reader.lost.iter().any(|lost| lost.is_none_or(leans))
    }

    /// Decodes a frame: its number, or none at the end.
    fn step(&mut self, frame: &mut frame::Video) -> Reason<Option<u32>> {
        self.fresh = false;
        loop {
            if !self.reader.next_frame(frame)? {
                return Ok(None);
            }
            if self.index.frames.is_empty() {
                self.next += 1;
                return Ok(Some(self.next - 1));
            }
            // A frame that the index does not know (before the start that an edit list sets) is passed over.
            let number = frame.pts().and_then(|number| self.index.frames.get(number as usize).copied());
            if let Some(n) = number.filter(|&n| n != NONE) {
                return Ok(Some(n));
            }
        }
    }
}
