//! What a video holds: how many frames, when each is shown, and from where each can be reached.
//!
//! Frame counts are counted, never read from a header. For codecs whose packets are frames, one for one, the packets'
//! timestamps are the index, checked by decoding the first frame and the last group of pictures; where that does not
//! come out even, and for all other codecs, the whole file is decoded. A file that shows damage on the way is refused:
//! what lies behind it would be missing without anybody knowing.

use super::av::{self, Reader, Reason};
use super::scale::Shape;
use super::whole;
use ffmpeg_next::codec::Id;
use ffmpeg_next::frame;
use std::fs::File;
use std::path::Path;

/// The frames of a video in the order of display.
#[derive(Clone, Debug)]
pub struct VideoIndex {
    /// When each frame is shown, in units of `tick`; strictly increasing.
    pub pts: Vec<i64>,
    /// Which frames decoding can start at, increasing. Empty: only the file's start.
    pub keys: Vec<u32>,
    /// Seconds a unit of `pts`.
    pub tick: f64,
    pub shape: Shape,
    /// Width and height of the first frame as shown.
    pub shown: (usize, usize),
    /// Frames per second, from first to last frame; none for a single frame.
    pub rate: Option<f64>,
}

/// Codecs of which every packet is one frame that is shown.
const FRAME_A_PACKET: [Id; 14] = [
    Id::H264,
    Id::HEVC,
    Id::VP9,
    Id::AV1,
    Id::MPEG4,
    Id::MSMPEG4V3,
    Id::MPEG1VIDEO,
    Id::MPEG2VIDEO,
    Id::MJPEG,
    Id::PNG,
    Id::PRORES,
    Id::DNXHD,
    Id::FFV1,
    Id::RAWVIDEO,
];

impl VideoIndex {
    /// Indexes the video at `path`.
    pub fn probe(path: &Path) -> Reason<Self> {
        let file = File::open(path).map_err(|e| format!("it cannot be read ({e})"))?;
        let length = file.metadata().map_err(|e| format!("it cannot be read ({e})"))?.len();
        let mut reader = Reader::open(path, None)?;
        if whole::matroska(file, length).is_none() {
            return Err("it is cut short".to_owned());
        }
        let frames = if FRAME_A_PACKET.contains(&reader.codec()) { from_packets(path, &mut reader)? } else { None };
        let frames = match frames {
            Some(frames) => frames,
            None => from_decoding(path)?,
        };
        frames.finish(&reader)
    }

    /// The last key frame at or before frame `n`; 0, the file's start, where there is none.
    pub fn key_before(&self, n: u32) -> u32 {
        match self.keys.partition_point(|&key| key <= n) {
            0 => 0,
            i => self.keys[i - 1],
        }
    }

    /// Decodes the whole file and compares: an error says where it is damaged.
    pub fn verify(&self, path: &Path) -> Reason<()> {
        let found = from_decoding(path)?.pts.len();
        if found != self.pts.len() {
            return Err(format!("{found} frames can be decoded of {}", self.pts.len()));
        }
        Ok(())
    }

    /// When each frame is shown, in seconds.
    pub fn times(&self) -> Vec<f64> {
        self.pts.iter().map(|&pts| pts as f64 * self.tick).collect()
    }
}

/// What both ways of indexing find.
struct Found {
    pts: Vec<i64>,
    keys: Vec<u32>,
    /// Overrides the stream's time base, where timestamps had to be made up.
    tick: Option<f64>,
    size: (usize, usize),
    aspect: f64,
}

impl Found {
    fn finish(self, reader: &Reader) -> Reason<VideoIndex> {
        let tick = self.tick.unwrap_or_else(|| reader.time_base());
        let shape = Shape { orientation: reader.orientation(), aspect: self.aspect };
        let intervals = self.pts.len() - 1;
        let span = (self.pts[intervals] as f64 - self.pts[0] as f64) * tick;
        let rate = (intervals > 0 && span > 0.0).then(|| intervals as f64 / span).or(reader.claimed_rate());
        // Timestamps are rounded to ticks. The header's rate is taken where it is the same up to that rounding.
        let rate = match (rate, reader.claimed_rate()) {
            (Some(counted), Some(claimed)) if (claimed / counted - 1.0).abs() * span <= 2.0 * tick => Some(claimed),
            (counted, _) => counted,
        };
        Ok(VideoIndex {
            pts: self.pts,
            keys: self.keys,
            tick,
            shape,
            shown: shape.shown(self.size.0, self.size.1),
            rate,
        })
    }
}

/// The index by packets, or none where they do not tell or decoding contradicts them.
fn from_packets(path: &Path, reader: &mut Reader) -> Reason<Option<Found>> {
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet()? {
        match packet.pts {
            Some(_) if packet.hidden => {}
            Some(pts) => packets.push((pts, packet.key)),
            None => return Ok(None),
        }
    }
    if let Some(trouble) = &reader.trouble {
        return Err(format!("{trouble}: {} frames can be read", packets.len()));
    }
    packets.sort_by_key(|p| p.0);
    if packets.is_empty() || packets.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Ok(None);
    }
    let pts: Vec<i64> = packets.iter().map(|p| p.0).collect();
    let keys: Vec<u32> = (0..).zip(&packets).filter(|(_, p)| p.1).map(|(i, _)| i).collect();

    let mut reader = Reader::open(path, None)?;
    let mut frame = frame::Video::empty();
    if !reader.next_frame(&mut frame)? || frame.pts() != pts.first().copied() {
        return Ok(None);
    }
    let (size, aspect) = ((frame.width() as usize, frame.height() as usize), reader.pixel_aspect(&mut frame));
    let mut next = 1;
    if let Some(&last_key) = keys.last().filter(|&&key| key > 0) {
        if reader.seek(pts[last_key as usize]).is_err() {
            return Ok(None);
        }
        next = last_key as usize;
    }
    let from = pts[next.min(pts.len() - 1)];
    while reader.next_frame(&mut frame)? {
        if frame.pts().is_some_and(|pts| pts < from) {
            continue; // the seek went further back than asked
        }
        if frame.pts() != pts.get(next).copied() || av::is_damaged(&frame) {
            return Ok(None);
        }
        next += 1;
    }
    let whole = next == pts.len() && reader.trouble.is_none();
    Ok(whole.then_some(Found { pts, keys, tick: None, size, aspect }))
}

/// The index by decoding everything.
fn from_decoding(path: &Path) -> Reason<Found> {
    let mut reader = Reader::open(path, None)?;
    let mut frame = frame::Video::empty();
    let (mut shown, mut guessed, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let (mut size, mut aspect) = ((0, 0), 1.0);
    while reader.next_frame(&mut frame)? {
        if shown.is_empty() {
            size = (frame.width() as usize, frame.height() as usize);
            aspect = reader.pixel_aspect(&mut frame);
        }
        if av::is_damaged(&frame) {
            reader.trouble.get_or_insert_with(|| "it is damaged".to_owned());
        }
        if let Some(trouble) = &reader.trouble {
            return Err(format!("{trouble}: {} frames can be decoded", shown.len()));
        }
        if frame.is_key() {
            keys.push(shown.len() as u32);
        }
        shown.push(frame.pts());
        guessed.push(frame.timestamp());
    }
    if let Some(trouble) = &reader.trouble {
        return Err(format!("{trouble}: {} frames can be decoded", shown.len()));
    }
    if shown.is_empty() {
        return Err("it holds no frames".to_owned());
    }
    // Seeking needs timestamps that the file itself gives to each frame.
    if let Some(pts) = increasing(shown) {
        let keys = if reader.is_gif() { Vec::new() } else { keys };
        return Ok(Found { pts, keys, tick: None, size, aspect });
    }
    let count = guessed.len() as i64;
    let (pts, tick) = match increasing(guessed) {
        Some(pts) => (pts, None),
        None => ((0..count).collect(), Some(1.0 / reader.claimed_rate().unwrap_or(25.0))),
    };
    Ok(Found { pts, keys: Vec::new(), tick, size, aspect })
}

/// The timestamps, if all are there and each is above the one before.
fn increasing(pts: Vec<Option<i64>>) -> Option<Vec<i64>> {
    let pts: Vec<i64> = pts.into_iter().collect::<Option<_>>()?;
    pts.windows(2).all(|pair| pair[0] < pair[1]).then_some(pts)
}
