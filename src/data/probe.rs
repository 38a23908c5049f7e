//! Indexes a video: how many frames it has, when each is shown, and from where each can be reached.
//!
//! Frame counts are counted, never read from a header. For codecs whose packets are frames, one for one, the packets'
//! timestamps are the index, checked by decoding the first frame and the last group of pictures; where that does not
//! come out even, and for all other codecs, the whole file is decoded. A file that shows damage on the way is refused:
//! what lies behind it would be missing without anybody knowing.
//!
//! The index names frames by their packets, not by their timestamps, which need not be different or in order.

mod decoding;

use super::ffmpeg::{self, PacketId, PacketInfo, Reader, Reason};
use super::opacity;
use super::sizes::{Size, Sizes};
use super::{hdr, timing, truncation};
use crate::terminal::counted;
pub(super) use decoding::from_decoding;
use ffmpeg_next::codec::Id;
use ffmpeg_next::frame;
use std::fs::File;
use std::path::Path;

/// The frames of a video in the order of display.
#[derive(Clone, Debug)]
pub struct VideoIndex {
    /// When each frame is shown, in units of `tick`; strictly increasing.
    pub pts: Vec<i64>,
    /// Where decoding can start, increasing. Empty: only at the file's start.
    pub keys: Vec<Key>,
    /// Seconds a unit of `pts`.
    pub tick: f64,
    /// The file's packets, in its order.
    pub packets: Vec<PacketId>,
    /// Which frame each packet becomes, [`NONE`] for none; empty where decoding does not tell.
    pub frames: Vec<u32>,
    /// The sizes of the frames.
    pub sizes: Sizes,
    /// A frame that was looked at is interlaced.
    pub interlaced: bool,
    /// A frame that was looked at has high dynamic range.
    pub hdr: bool,
    /// Frames per second, from first to last frame; none for a single frame.
    pub rate: Option<f64>,
    /// What whoever looks at the file would want to know.
    pub notes: Vec<String>,
}

/// No frame.
pub const NONE: u32 = u32::MAX;

/// A frame that decoding can start at, and its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub frame: u32,
    pub packet: u32,
    /// The packet's timestamp, for the container's index.
    pub stamp: Option<i64>,
}

/// Codecs of which every packet is one frame that is shown.
const FRAME_A_PACKET: [Id; 14] = {
    use Id::*;
    [H264, HEVC, VP9, AV1, MPEG4, MSMPEG4V3, MPEG1VIDEO, MPEG2VIDEO, MJPEG, PNG, PRORES, DNXHD, FFV1, RAWVIDEO]
};

impl VideoIndex {
    /// Indexes the video at `path`.
    pub fn probe(path: &Path) -> Reason<Self> {
        let file = File::open(path).map_err(|e| format!("it cannot be read ({e})"))?;
        let length = file.metadata().map_err(|e| format!("it cannot be read ({e})"))?.len();
        let mut reader = Reader::open(path, None)?;
        if truncation::matroska(file, length).is_none() {
            return Err("it is cut short".to_owned());
        }
        let mut packets = Vec::new();
        while let Some(packet) = reader.next_packet()? {
            packets.push(packet);
        }
        if let Some(trouble) = &reader.trouble {
            return Err(format!("{trouble}: {} can be read", counted(packets.len(), "frame", "frames")));
        }
        let by_packets = if FRAME_A_PACKET.contains(&reader.codec()) { from_packets(path, &packets)? } else { None };
        let found = match by_packets {
            Some(found) => found,
            None => from_decoding(path, &ids(&packets))?,
        };
        let mut index = found.index(&packets, &reader);
        if reader.streams > 1 {
            let (width, height) = index.sizes.of(0).shown();
            let (count, number, codec) = (reader.streams, reader.stream_number(), reader.codec().name());
            index.notes.push(format!("of {count} video streams, number {number} is used ({codec}, {width}x{height})"));
        }
        if reader.is_avi() && opacity::is_invisible(path, &index)? {
            // Old codecs of AVI call 32-bit pixels transparent, of which Windows leaves the last byte unused.
            index.sizes.0.iter_mut().for_each(|run| run.1.shape.opaque = true);
        }
        Ok(index)
    }

    /// The last key frame at or before frame `n`; none: the file's start.
    pub fn key_before(&self, n: u32) -> Option<Key> {
        Some(self.keys[self.keys.partition_point(|key| key.frame <= n).checked_sub(1)?])
    }

    /// The frame that decoding for packet `number` starts at; none: the file's start.
    pub fn group_of(&self, number: usize) -> Option<Key> {
        Some(self.keys[self.keys.partition_point(|key| key.packet as usize <= number).checked_sub(1)?])
    }

    /// When each frame is shown, in seconds.
    pub fn times(&self) -> Vec<f64> {
        self.pts.iter().map(|&pts| pts as f64 * self.tick).collect()
    }
}

fn ids(packets: &[PacketInfo]) -> Vec<PacketId> {
    packets.iter().map(|packet| packet.id).collect()
}

/// What both ways of indexing find.
pub(super) struct Found {
    /// The packets of the frames, in the order of display; none where decoding does not tell.
    pub order: Vec<Option<usize>>,
    pub sizes: Sizes,
    pub looks: Looks,
}

/// What some frame of a file is.
#[derive(Clone, Copy, Default)]
pub(super) struct Looks {
    pub interlaced: bool,
    pub hdr: bool,
}

impl Looks {
    fn note(&mut self, frame: &frame::Video) {
        self.interlaced |= frame.is_interlaced();
        self.hdr |= hdr::Transfer::of(frame).is_some();
    }
}

impl Found {
    fn index(self, packets: &[PacketInfo], reader: &Reader) -> VideoIndex {
        let Self { order, sizes, looks: Looks { interlaced, hdr } } = self;
        let mut frames = vec![NONE; packets.len()];
        let mut numbered = true;
        for (n, number) in order.iter().enumerate() {
            match number.and_then(|number| frames.get_mut(number)) {
                Some(frame) if *frame == NONE => *frame = n as u32,
                _ => numbered = false, // no number, or the same twice
            }
        }
        let keys = (0..).zip(&order).filter_map(|(frame, number)| {
            let packet = (*number)?;
            let info = &packets[packet];
            info.key.then_some(Key { frame, packet: packet as u32, stamp: info.pts.or(info.dts) })
        });
        // Of key frames that are out of order, those count that come after all others so far, in the file and on the
        // screen.
        let mut last = None;
        let keys = keys.filter(|key| last.replace(key.packet).is_none_or(|before| before < key.packet)).collect();
        if !numbered {
            frames.clear();
        }
        let (pts, tick) = times(&order, packets, reader);
        let intervals = pts.len() - 1;
        let span = (pts[intervals] as f64 - pts[0] as f64) * tick;
        let rate = (intervals > 0 && span > 0.0).then(|| intervals as f64 / span).or(reader.claimed_rate());
        // Timestamps are rounded to ticks. The header's rate is taken where it is the same up to that rounding.
        let rate = match (rate, reader.claimed_rate()) {
            (Some(counted), Some(claimed)) if (claimed / counted - 1.0).abs() * span <= 2.0 * tick => Some(claimed),
            (counted, _) => counted,
        };
        VideoIndex {
            pts,
            keys: if numbered && !reader.is_gif() { keys } else { Vec::new() },
            tick,
            packets: ids(packets),
            frames,
            sizes,
            interlaced,
            hdr,
            rate,
            notes: Vec::new(),
        }
    }
}

/// When each frame is shown, and the unit of that: by presentation times, else by decoding times (AVI has no others),
/// else at the rate that the header claims.
fn times(order: &[Option<usize>], packets: &[PacketInfo], reader: &Reader) -> (Vec<i64>, f64) {
    let tick = reader.time_base();
    let stamps: Vec<Option<i64>> = order.iter().map(|number| packets[(*number)?].pts).collect();
    let mut decoded: Vec<Option<i64>> = order.iter().map(|number| packets[(*number)?].dts).collect();
    decoded.sort();
    let times = timing::increasing(&stamps, 1.0 / tick).or_else(|| timing::increasing(&decoded, 1.0 / tick));
    match times.filter(|_| tick > 0.0) {
        Some(times) => (times, tick),
        None => ((0..order.len() as i64).collect(), 1.0 / reader.claimed_rate().unwrap_or(25.0)),
    }
}

/// The index by packets, or none where they do not tell or decoding contradicts them.
fn from_packets(path: &Path, packets: &[PacketInfo]) -> Reason<Option<Found>> {
    let mut order: Vec<usize> = (0..packets.len()).filter(|&number| !packets[number].hidden).collect();
    order.sort_by_key(|&number| packets[number].pts);
    let repeated = |pair: &[usize]| packets[pair[0]].pts == packets[pair[1]].pts;
    if order.is_empty() || packets[order[0]].pts.is_none() || order.windows(2).any(repeated) {
        return Ok(None);
    }
    // Decoding times out of order, or after the presentation, are made from presentation times that are not right.
    let late = |packet: &PacketInfo| packet.dts.zip(packet.pts).is_some_and(|(dts, pts)| dts > pts);
    let falls = |pair: &[PacketInfo]| pair[0].dts.zip(pair[1].dts).is_some_and(|(a, b)| a > b);
    if packets.iter().any(|packet| late(packet) || packet.changes) || packets.windows(2).any(falls) {
        return Ok(None);
    }
    let ids = ids(packets);
    let mut reader = Reader::open(path, None)?.follow(&ids);
    let mut frame = frame::Video::empty();
    let number = |frame: &frame::Video| frame.pts().map(|number| number as usize);
    if !reader.next_frame(&mut frame)? || number(&frame) != Some(order[0]) {
        return Ok(None);
    }
    let mut sizes = Sizes(vec![(0, Size::of(&mut frame, &mut reader))]);
    let mut looks = Looks::default();
    looks.note(&frame);
    let mut next = 1;
    let last_key = (1..order.len()).rev().find(|&n| packets[order[n]].key);
    if let Some(key) = last_key {
        if reader.seek(order[key], packets[order[key]].pts).is_err() {
            return Ok(None);
        }
        next = key;
    }
    while reader.next_frame(&mut frame)? {
        let position = number(&frame).and_then(|number| order.iter().rposition(|&known| known == number));
        if position.is_some_and(|position| position < next) {
            continue; // the seek went further back than asked
        }
        if position != Some(next) || next >= order.len() || ffmpeg::is_damaged(&frame) {
            return Ok(None);
        }
        sizes.note(next, Size::of(&mut frame, &mut reader));
        looks.note(&frame);
        next += 1;
    }
    let order: Vec<Option<usize>> = order.into_iter().map(Some).collect();
    let whole = next == order.len() && reader.trouble.is_none() && sizes.0.len() == 1;
    Ok(whole.then_some(Found { order, sizes, looks }))
}

#[cfg(test)]
mod tests;
