//! Wraps FFmpeg safely to read a file's video stream: packets and frames in order, seeking, orientation and pixel
//! shape.
//!
//! All `unsafe` of reading videos is here and in the modules below; which frames are wanted, and why, is `decode`'s
//! business. FFmpeg prints nothing: its log is off and its errors come back as text for a message that names the file.
//!
//! Packets are numbered in the order of the file, and a frame carries the number of its packet instead of a timestamp:
//! timestamps repeat, fall or are missing in files that play well, and numbers do not. After a seek, the number of the
//! packet that reading lands on comes from the list of the file's packets ([`Reader::follow`]).

mod open;
mod pixels;

pub use pixels::{has_alpha, is_damaged, samples, set_colors};

use ff::ffi;
use ff::format::context::Input;
use ff::{codec, frame, packet};
use ffmpeg_next as ff;
use std::os::raw::c_int;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

/// A result whose error is the reason alone; the caller adds the file's name.
pub type Reason<T> = std::result::Result<T, String>;

/// Containers that are opened, whatever the file is called. Playlists, scripts and text renderers are not among them: a
/// file of a dataset must not make FFmpeg open another one.
const FORMATS: &str =
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,m4v,h264,hevc,ivf,yuv4mpegpipe,nut";

/// Damaged packets in a row that are passed over before the file counts as over.
const MOST_DAMAGED: usize = 64;

/// So many packets in front of a key packet reading starts in a container without packets of its own.
const PARSED: usize = 3;

/// Sets FFmpeg up and silences it; any number of times, from any thread.
fn init() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let _ = ff::init(); // fills in the texts of errors; it cannot fail
        ff::log::set_level(ff::log::Level::Quiet);
    });
}

/// How the decoded picture must be turned to be shown: transposed first, then mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    pub transpose: bool,
    pub mirror_x: bool,
    pub mirror_y: bool,
}

impl Orientation {
    /// From a display matrix: (x', y') = (a x + c y, b x + d y), nine i32 of which a, b, c, d are 0, 1, 3 and 4. Turns
    /// that are no multiple of 90 degrees go to the nearest one.
    fn of_matrix(m: [i32; 9]) -> Self {
        let (a, b, c, d) = (m[0], m[1], m[3], m[4]);
        if a.unsigned_abs().max(d.unsigned_abs()) >= b.unsigned_abs().max(c.unsigned_abs()) {
            Self { transpose: false, mirror_x: a < 0, mirror_y: d < 0 }
        } else {
            Self { transpose: true, mirror_x: c < 0, mirror_y: b < 0 }
        }
    }
}

/// A packet as the index of a file sees it.
#[derive(Clone, Copy, Debug)]
pub struct PacketInfo {
    pub pts: Option<i64>,
    pub dts: Option<i64>,
    pub id: PacketId,
    pub key: bool,
    /// Decoded but not shown (an edit list cuts it off).
    pub hidden: bool,
    /// The stream's parameters, such as the size of its pictures, change here.
    pub changes: bool,
}

/// What a packet is recognised by.
#[derive(Clone, Copy, Debug)]
pub struct PacketId {
    /// Where it lies in the file, in bytes; negative where the container does not say. Several may begin in one place.
    position: i64,
    /// CRC-32C of its bytes.
    content: u32,
}

impl PacketId {
    fn is(&self, other: &Self) -> bool {
        let same_place = self.position == other.position || self.position < 0 || other.position < 0;
        same_place && self.content == other.content
    }
}

/// One video stream of a file, open for reading.
pub struct Reader<'a> {
    input: Input,
    decoder: codec::decoder::Video,
    stream: usize,
    /// How many video streams there are to choose from.
    pub streams: usize,
    packet: packet::Packet,
    /// `packet` was read but not decoded yet.
    pending: bool,
    draining: bool,
    /// The file's packets, once they are known; empty before.
    known: &'a [PacketId],
    /// Number of the last packet read; none where that is not known.
    number: Option<usize>,
    /// Number of the packet expected next.
    next: usize,
    stop: Option<&'a AtomicBool>,
    /// The first thing that went wrong since the last [`seek`](Self::seek), though reading went on.
    pub trouble: Option<String>,
    /// Numbers of the packets that could not be decoded since then; none where that is not known. A decoder goes on
    /// after such a packet and may hand out grey frames without a word: what leans on it is not to be trusted.
    pub lost: Vec<Option<usize>>,
}

impl<'a> Reader<'a> {
    /// Opens the best video stream. Once `stop` is set, reading ends with an error.
    pub fn open(path: &Path, stop: Option<&'a AtomicBool>) -> Reason<Self> {
        init();
        let pixels = open::pixel_limit(path);
        let mut input = open::input(path, pixels)?;
        let (stream, streams) = open::best_stream(&input)?;
        for other in 0..input.nb_streams() as usize {
            if other != stream {
                // SAFETY: `other` is below nb_streams, so the pointer is that of a live stream of this context.
                unsafe { (**(*input.as_mut_ptr()).streams.add(other)).discard = ffi::AVDiscard::AVDISCARD_ALL };
            }
        }
        let decoder = open::decoder(&input, stream, pixels)?;
        Ok(Self {
            input,
            decoder,
            stream,
            streams,
            packet: packet::Packet::empty(),
            pending: false,
            draining: false,
            known: &[],
            number: None,
            next: 0,
            stop,
            trouble: None,
            lost: Vec::new(),
        })
    }

    /// Numbers packets by `known`, the list of the file's packets, from here on: [`seek`](Self::seek) needs it.
    pub fn follow(mut self, known: &'a [PacketId]) -> Self {
        self.known = known;
        self
    }

    fn stream(&self) -> Option<ff::Stream<'_>> {
        self.input.stream(self.stream)
    }

    /// Which of the file's streams this is, counted from 0.
    pub fn stream_number(&self) -> usize {
        self.stream
    }

    /// The video codec.
    pub fn codec(&self) -> codec::Id {
        self.decoder.id()
    }

    /// Frames that the stream says may be looked back at; told by some codecs only, once a frame is decoded.
    pub fn references(&self) -> usize {
        self.decoder.references()
    }

    /// Frames that wait for their turn to be shown, at most; known once a frame is decoded.
    pub fn delay(&self) -> usize {
        // SAFETY: the decoder's context is alive; the field is a plain integer.
        unsafe { (*self.decoder.as_ptr()).has_b_frames.max(0) as usize }
    }

    /// Whether the container is GIF, whose frames build upon one another without key frames that seeking could use.
    pub fn is_gif(&self) -> bool {
        self.decoder.id() == codec::Id::GIF
    }

    /// Whether the container is AVI.
    pub fn is_avi(&self) -> bool {
        self.input.format().name() == "avi"
    }

    /// Whether the fourth component of pixels is padding, though the pixel format calls it opacity.
    pub fn is_padded(&self) -> bool {
        open::is_padded(&self.input, self.stream)
    }

    /// Seconds a unit of the timestamps.
    pub fn time_base(&self) -> f64 {
        let base = self.stream().map_or(ff::Rational(0, 1), |s| s.time_base());
        if base.denominator() == 0 { 0.0 } else { f64::from(base) }
    }

    /// The frame rate that the header claims, frames per second. A claim, good for rounding only.
    pub fn claimed_rate(&self) -> Option<f64> {
        let rate = self.stream()?.avg_frame_rate();
        (rate.numerator() > 0 && rate.denominator() > 0).then(|| f64::from(rate))
    }

    /// How the stream's display matrix turns the picture.
    pub fn orientation(&self) -> Orientation {
        let matrix = self.stream().and_then(|s| {
            let side = s.side_data().find(|d| d.kind() == packet::side_data::Type::DisplayMatrix)?;
            let words: Vec<i32> =
                side.data().chunks_exact(4).map(|b| i32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            words.try_into().ok()
        });
        matrix.map(Orientation::of_matrix).unwrap_or_default()
    }

    /// Width of a pixel divided by its height; 1 where nothing is said.
    pub fn pixel_aspect(&mut self, frame: &mut frame::Video) -> f64 {
        // SAFETY: context, stream (its index was checked in `open`) and frame are alive for the call, which only reads
        // them.
        let ratio = unsafe {
            let context = self.input.as_mut_ptr();
            ffi::av_guess_sample_aspect_ratio(context, *(*context).streams.add(self.stream), frame.as_mut_ptr())
        };
        let aspect = f64::from(ratio.num) / f64::from(ratio.den);
        if ratio.num > 0 && ratio.den > 0 && (0.01..100.0).contains(&aspect) { aspect } else { 1.0 }
    }

    /// Goes to the key packet `number` of the list that is followed, whose timestamp is `stamp`, or to one before it.
    ///
    /// # Errors
    /// The container cannot be searched, or reading landed behind that packet.
    pub fn seek(&mut self, number: usize, stamp: Option<i64>) -> Reason<()> {
        // These containers have no index, but places in them are exact. A parser splits them into frames: it gets a few
        // to find its feet.
        let (to, flag) = if matches!(self.input.format().name(), "mpegts" | "mpeg") {
            let earlier = self.known.get(..=number.saturating_sub(PARSED)).unwrap_or(&[]);
            let position = earlier.iter().rev().find(|known| known.position >= 0).map_or(0, |known| known.position);
            (position, ffi::AVSEEK_FLAG_BYTE)
        } else {
            (stamp.ok_or("it cannot be searched (a key frame without a timestamp)")?, ffi::AVSEEK_FLAG_BACKWARD)
        };
        // SAFETY: the context is alive and the stream's index was checked in `open`.
        let status = unsafe { ffi::av_seek_frame(self.input.as_mut_ptr(), self.stream as c_int, to, flag as c_int) };
        if status < 0 {
            return Err(format!("it cannot be searched ({})", ff::Error::from(status)));
        }
        self.decoder.flush();
        (self.draining, self.pending) = (false, false);
        self.land(number)?;
        self.trouble = None;
        self.lost.clear();
        Ok(())
    }

    /// Reads on to a key packet of the list, at `number` or before; nothing in front of it is decoded.
    fn land(&mut self, number: usize) -> Reason<()> {
        while self.read_packet()? {
            let id = self.packet_id();
            let found = self.known.get(..=number).and_then(|known| known.iter().rposition(|known| known.is(&id)));
            let Some(found) = found else {
                if self.known.iter().skip(number).any(|known| known.is(&id)) {
                    break;
                }
                continue;
            };
            if self.packet.is_key() {
                (self.number, self.next, self.pending) = (Some(found), found + 1, true);
                return Ok(());
            }
        }
        Err("it cannot be searched (a key frame is missed)".to_owned())
    }

    /// Remembers that something is missing: packet `number`, or nobody knows what.
    fn note(&mut self, what: impl Into<String>, number: Option<usize>) {
        self.trouble.get_or_insert_with(|| what.into());
        if self.lost.last() != Some(&number) {
            self.lost.push(number);
        }
    }

    fn note_undecodable(&mut self, error: ff::Error) {
        self.note(format!("it cannot be decoded ({error})"), self.number);
    }

    /// Reads the stream's next packet into `self.packet` and numbers it; false at the end. Damage is noted and passed
    /// over.
    fn read(&mut self) -> Reason<bool> {
        if !self.read_packet()? {
            return Ok(false);
        }
        self.number = match self.known {
            [] => Some(self.next),
            known => {
                let id = self.packet_id();
                let ahead = known.get(self.next..).unwrap_or(&[]);
                ahead.iter().position(|known| known.is(&id)).map(|skipped| self.next + skipped)
            }
        };
        self.next = self.number.map_or(self.next, |number| number + 1);
        if self.packet.is_corrupt() {
            self.note("it is cut short or damaged", self.number);
        }
        Ok(true)
    }

    /// Reads the stream's next packet into `self.packet`; false at the end.
    fn read_packet(&mut self) -> Reason<bool> {
        for _ in 0..MOST_DAMAGED {
            loop {
                if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                    return Err("stopped".to_owned());
                }
                // Reading overwrites a packet without releasing what it holds: a new one, or every packet's data leaks.
                self.packet = packet::Packet::empty();
                match self.packet.read(&mut self.input) {
                    Ok(()) if self.packet.stream() != self.stream => {}
                    Ok(()) => return Ok(true),
                    Err(ff::Error::Eof) => return Ok(false),
                    Err(ff::Error::InvalidData) => break self.note("it is cut short or damaged", None),
                    Err(e) => {
                        self.note(format!("it is cut short or damaged ({e})"), None);
                        return Ok(false);
                    }
                }
            }
        }
        Ok(false)
    }

    fn packet_id(&self) -> PacketId {
        let content = crc32c::crc32c(self.packet.data().unwrap_or(&[]));
        PacketId { position: self.packet.position() as i64, content }
    }

    fn packet_info(&self) -> PacketInfo {
        // SAFETY: the packet is alive; `flags` is a plain integer, whose bit for hidden packets ffmpeg-next does not
        // name.
        let flags = unsafe { (*packet::Ref::as_ptr(&self.packet)).flags };
        let changed = [packet::side_data::Type::NewExtraData, packet::side_data::Type::ParamChange];
        PacketInfo {
            pts: self.packet.pts(),
            dts: self.packet.dts(),
            id: self.packet_id(),
            key: self.packet.is_key(),
            hidden: flags & ffi::AV_PKT_FLAG_DISCARD != 0,
            changes: self.packet.side_data().any(|side| changed.contains(&side.kind())),
        }
    }

    /// The next packet, undecoded; none at the end.
    pub fn next_packet(&mut self) -> Reason<Option<PacketInfo>> {
        Ok(self.read()?.then(|| self.packet_info()))
    }

    /// Decodes the next frame, in the order of display, into `frame`; false at the end. Its pts is its packet's number.
    pub fn next_frame(&mut self, frame: &mut frame::Video) -> Reason<bool> {
        loop {
            match self.decoder.receive_frame(frame) {
                Ok(()) => return Ok(true),
                Err(ff::Error::Eof) => return Ok(false),
                Err(ff::Error::Other { errno: ff::error::EAGAIN }) if !self.draining => {}
                Err(e) if self.draining => {
                    self.note_undecodable(e);
                    return Ok(false);
                }
                Err(e) => self.note_undecodable(e),
            }
            let read = std::mem::take(&mut self.pending) || self.read()?;
            let sent = if read {
                self.packet.set_pts(self.number.map(|number| number as i64));
                self.decoder.send_packet(&self.packet)
            } else {
                self.draining = true;
                self.decoder.send_eof()
            };
            if let Err(e) = sent {
                self.note_undecodable(e);
            }
        }
    }
}
