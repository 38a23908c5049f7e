//! FFmpeg behind a safe face: opening a file, one video stream's packets and frames in order, seeking, and what the
//! stream says of orientation and pixel shape.
//!
//! All `unsafe` of the room is here and in nobody else's way; which frames are wanted, and why, is `decode`'s business.
//! FFmpeg prints nothing: its log is off and its errors come back as text for a message that names the file.

use ff::ffi;
use ff::format::context::Input;
use ff::{codec, frame, media, packet};
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
    "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,mpegvideo,flv,ogg,asf,m4v,h264,hevc,ivf,yuv4mpegpipe,nut";

/// How often in a row a damaged packet is passed over before the file counts as over.
const PATIENCE: usize = 64;

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
pub struct PacketInfo {
    pub pts: Option<i64>,
    pub key: bool,
    /// Decoded but not shown (an edit list cuts it off).
    pub hidden: bool,
}

/// One video stream of a file, open for reading.
pub struct Reader<'a> {
    input: Input,
    decoder: codec::decoder::Video,
    stream: usize,
    packet: packet::Packet,
    draining: bool,
    stop: Option<&'a AtomicBool>,
    /// The first thing that went wrong since the last [`seek`](Self::seek), though reading went on.
    pub trouble: Option<String>,
    /// Timestamps of the packets that could not be decoded since then; none where that is not known. A decoder goes on
    /// after such a packet and may hand out grey frames without a word: what leans on it is not to be trusted.
    pub lost: Vec<Option<i64>>,
}

impl<'a> Reader<'a> {
    /// Opens the first video stream that is not a cover picture. Once `stop` is set, reading ends with an error.
    pub fn open(path: &Path, stop: Option<&'a AtomicBool>) -> Reason<Self> {
        init();
        let name = path.to_str().ok_or("its name is not UTF-8: rename it")?;
        let mut options = ff::Dictionary::new();
        options.set("protocol_whitelist", "file");
        options.set("format_whitelist", FORMATS);
        let mut input = ff::format::input_with_dictionary(&format!("file:{name}"), options)
            .map_err(|e| format!("it cannot be read as a video ({e})"))?;
        let cover = ff::format::stream::Disposition::ATTACHED_PIC;
        let is_video =
            |s: &ff::Stream| s.parameters().medium() == media::Type::Video && !s.disposition().contains(cover);
        let Some(stream) = input.streams().find(is_video).map(|s| s.index()) else {
            let audio = input.streams().any(|s| s.parameters().medium() == media::Type::Audio);
            return Err(if audio { "it has sound only, no video stream" } else { "it has no video stream" }.to_owned());
        };
        for other in 0..input.nb_streams() as usize {
            if other != stream {
                // SAFETY: `other` is below nb_streams, so the pointer is that of a live stream of this context.
                unsafe { (**(*input.as_mut_ptr()).streams.add(other)).discard = ffi::AVDiscard::AVDISCARD_ALL };
            }
        }
        let parameters = input.stream(stream).ok_or("its video stream is gone")?.parameters();
        let id = parameters.id();
        let decoder = codec::Context::from_parameters(parameters)
            .and_then(|context| context.decoder().video())
            .map_err(|e| format!("its video codec {} cannot be opened ({e})", id.name()))?;
        Ok(Self {
            input,
            decoder,
            stream,
            packet: packet::Packet::empty(),
            draining: false,
            stop,
            trouble: None,
            lost: Vec::new(),
        })
    }

    fn stream(&self) -> Option<ff::Stream<'_>> {
        self.input.stream(self.stream)
    }

    /// The video codec.
    pub fn codec(&self) -> codec::Id {
        self.decoder.id()
    }

    /// Whether the container is GIF, whose frames build upon one another without key frames that seeking could use.
    pub fn is_gif(&self) -> bool {
        self.decoder.id() == codec::Id::GIF
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

    /// Goes to the last key frame whose timestamp is not above `pts`.
    pub fn seek(&mut self, pts: i64) -> Reason<()> {
        // SAFETY: the context is alive and the stream's index was checked in `open`.
        let status = unsafe {
            let backward = ffi::AVSEEK_FLAG_BACKWARD as c_int;
            ffi::av_seek_frame(self.input.as_mut_ptr(), self.stream as c_int, pts, backward)
        };
        if status < 0 {
            return Err(format!("it cannot be searched ({})", ff::Error::from(status)));
        }
        self.decoder.flush();
        self.draining = false;
        self.trouble = None;
        self.lost.clear();
        Ok(())
    }

    /// Remembers that something is missing: the packet at `pts`, or nobody knows what.
    fn note(&mut self, what: impl Into<String>, pts: Option<i64>) {
        self.trouble.get_or_insert_with(|| what.into());
        if self.lost.last() != Some(&pts) {
            self.lost.push(pts);
        }
    }

    fn note_undecodable(&mut self, error: ff::Error) {
        self.note(format!("it cannot be decoded ({error})"), self.packet.pts());
    }

    /// Reads the stream's next packet into `self.packet`; false at the end. Damage is noted and passed over.
    fn read(&mut self) -> Reason<bool> {
        for _ in 0..PATIENCE {
            loop {
                if self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                    return Err("stopped".to_owned());
                }
                // Reading overwrites a packet without releasing what it holds: a new one, or every packet's data leaks.
                self.packet = packet::Packet::empty();
                match self.packet.read(&mut self.input) {
                    Ok(()) if self.packet.stream() != self.stream => {}
                    Ok(()) => {
                        if self.packet.is_corrupt() {
                            self.note("it is cut short or damaged", self.packet.pts());
                        }
                        return Ok(true);
                    }
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

    /// The next packet, undecoded; none at the end.
    pub fn next_packet(&mut self) -> Reason<Option<PacketInfo>> {
        Ok(self.read()?.then(|| {
            // SAFETY: the packet is alive; `flags` is a plain integer, whose bit for hidden packets ffmpeg-next does
            // not name.
            let flags = unsafe { (*packet::Ref::as_ptr(&self.packet)).flags };
            PacketInfo {
                pts: self.packet.pts(),
                key: self.packet.is_key(),
                hidden: flags & ffi::AV_PKT_FLAG_DISCARD != 0,
            }
        }))
    }

    /// Decodes the next frame, in the order of display, into `frame`; false at the end.
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
            let sent = if self.read()? {
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

/// Whether the decoder had to make parts of `frame` up.
pub fn is_damaged(frame: &frame::Video) -> bool {
    frame.is_corrupt() || frame.has_decode_errors()
}

/// Whether the frame's pixels can be transparent.
pub fn has_alpha(format: ff::format::Pixel) -> bool {
    // SAFETY: FFmpeg returns null or a descriptor that lives as long as the library.
    unsafe {
        let descriptor = ffi::av_pix_fmt_desc_get(format.into());
        !descriptor.is_null() && (*descriptor).flags & ffi::AV_PIX_FMT_FLAG_ALPHA as u64 != 0
    }
}

/// Tells `context` which matrix made the source's YUV, and which range it has; `full` none: as the pixel format
/// implies.
pub fn set_colors(context: &mut ff::software::scaling::Context, matrix: c_int, full: Option<bool>) {
    let (mut source, mut target) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (mut source_full, mut target_full, mut brightness, mut contrast, mut saturation) = (0, 0, 0, 0, 0);
    // SAFETY: the context is alive, all pointers are to live integers, the tables FFmpeg's own constants. The return
    // value says only that colours do not apply (RGB to RGB).
    unsafe {
        let c = context.as_mut_ptr();
        ffi::sws_getColorspaceDetails(
            c,
            &mut source,
            &mut source_full,
            &mut target,
            &mut target_full,
            &mut brightness,
            &mut contrast,
            &mut saturation,
        );
        let table = ffi::sws_getCoefficients(matrix);
        let full = full.map_or(source_full, c_int::from);
        ffi::sws_setColorspaceDetails(c, table, full, table, 1, 0, 1 << 16, 1 << 16);
    }
}
