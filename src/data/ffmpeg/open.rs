//! Opens a file's container, chooses its video stream, and opens the decoder for it, under limits.

use super::{FORMATS, Reason};
use ff::codec::{self, Id, Parameters};
use ff::format::context::Input;
use ff::{Dictionary, decoder, ffi, media};
use ffmpeg_next as ff;
use std::ffi::CString;
use std::os::raw::c_int;
use std::path::Path;

/// Pixels of a frame that any file may have: 8K.
const PIXELS: u64 = 1 << 25;

/// Pixels of a frame that a large file may have: 16K.
const MOST_PIXELS: u64 = 1 << 27;

/// Pixels that a byte of a file is believed to hold: many more than even a black picture has.
const PIXELS_A_BYTE: u64 = 4096;

/// The most pixels that a frame of the file at `path` may have. A header of some bytes can claim gigabytes, so a claim
/// above 8K has to be in proportion to the file.
pub fn pixel_limit(path: &Path) -> i64 {
    let bytes = std::fs::metadata(path).map_or(0, |about| about.len());
    bytes.saturating_mul(PIXELS_A_BYTE).clamp(PIXELS, MOST_PIXELS) as i64
}

/// Opens the container at `path` and finds out what its streams are; decoding a first frame for that keeps to `pixels`.
pub fn input(path: &Path, pixels: i64) -> Reason<Input> {
    let name = path.to_str().ok_or("its name is not UTF-8: rename it")?;
    let url = CString::new(format!("file:{name}")).map_err(|_| "its name holds a zero byte")?;
    let mut options = Dictionary::new();
    options.set("protocol_whitelist", "file");
    options.set("format_whitelist", FORMATS);
    let unreadable = |status: c_int| format!("it cannot be read as a video ({})", ff::Error::from(status));
    let mut context = std::ptr::null_mut();
    // SAFETY: the url is a C string that outlives the call; FFmpeg takes the options' entries that it knows and hands
    // the rest back, which `own` frees; the context is null, so FFmpeg allocates it, and frees it where it fails.
    let status = unsafe {
        let mut options = options.disown();
        let status = ffi::avformat_open_input(&mut context, url.as_ptr(), std::ptr::null(), &mut options);
        Dictionary::own(options);
        status
    };
    if status < 0 {
        return Err(unreadable(status));
    }
    // SAFETY: opening succeeded, so the context is alive and nobody else's; `Input` closes it.
    let mut input = unsafe { Input::wrap(context) };
    let mut limits: Vec<*mut ffi::AVDictionary> = (0..input.nb_streams())
        .map(|_| {
            let mut limit = Dictionary::new();
            limit.set("max_pixels", &pixels.to_string());
            // SAFETY: what is let go of here is taken back and freed below.
            unsafe { limit.disown() }
        })
        .collect();
    // SAFETY: the context is alive, and there is a dictionary for each stream that it has now, as FFmpeg asks.
    let status = unsafe { ffi::avformat_find_stream_info(input.as_mut_ptr(), limits.as_mut_ptr()) };
    for limit in limits {
        // SAFETY: each is a dictionary, or null, that nobody else holds.
        drop(unsafe { Dictionary::own(limit) });
    }
    if status < 0 { Err(unreadable(status)) } else { Ok(input) }
}

/// The video stream that is the film, and how many it was chosen from: no cover picture, no thumbnails; rather one that
/// is more than a single frame, then one marked as default, then the one of more pixels, then the first.
///
/// FFmpeg's `av_find_best_stream` takes a thumbnail that is the first stream, or marked as default, for the film.
pub fn best_stream(input: &Input) -> Reason<(usize, usize)> {
    let mut films = Vec::new();
    for stream in input.streams().filter(|s| s.parameters().medium() == media::Type::Video) {
        // SAFETY: the stream is alive; the field is a plain integer, of whose bits ffmpeg-next does not name all.
        let disposition = unsafe { (*stream.as_ptr()).disposition };
        let is = |flag: c_int| disposition & flag != 0;
        if !is(ffi::AV_DISPOSITION_ATTACHED_PIC) && !is(ffi::AV_DISPOSITION_TIMED_THUMBNAILS) {
            let moves = stream.frames() != 1 && !is(ffi::AV_DISPOSITION_STILL_IMAGE);
            let (width, height) = claimed_size(&stream.parameters());
            films.push(((moves, is(ffi::AV_DISPOSITION_DEFAULT), width * height), stream.index()));
        }
    }
    match films.iter().max_by_key(|(rank, index)| (*rank, std::cmp::Reverse(*index))) {
        Some(&(_, best)) => Ok((best, films.len())),
        None => {
            let audio = input.streams().any(|s| s.parameters().medium() == media::Type::Audio);
            Err(if audio { "it has sound only, no video stream" } else { "it has no video stream" }.to_owned())
        }
    }
}

/// Opens the decoder of stream `stream`, for frames of at most `pixels`.
pub fn decoder(input: &Input, stream: usize, pixels: i64) -> Reason<decoder::Video> {
    let stream = input.stream(stream).ok_or("its video stream is gone")?;
    let parameters = stream.parameters();
    let id = parameters.id();
    let (width, height) = claimed_size(&parameters);
    if width * height > pixels {
        return Err(format!(
            "it claims frames of {width}x{height} (width x height), {} million pixels; a file of its size may have {}",
            width * height / 1_000_000,
            pixels / 1_000_000
        ));
    }
    let cannot = |e: ff::Error| format!("its video codec {} cannot be opened ({e})", id.name());
    let mut context = codec::Context::from_parameters(parameters).map_err(cannot)?;
    // SAFETY: the context is alive and not yet open; the field is a plain integer.
    unsafe { (*context.as_mut_ptr()).max_pixels = pixels };
    let decoder = context.decoder();
    let transparent = stream.metadata().get("alpha_mode") == Some("1");
    let library = match id {
        Id::VP8 if transparent => "libvpx",
        Id::VP9 if transparent => "libvpx-vp9",
        _ => return decoder.video().map_err(cannot),
    };
    // FFmpeg's own decoders of VP8 and VP9 do not look at the transparency, which is a second picture beside each
    // frame.
    let Some(codec) = decoder::find_by_name(library) else {
        return Err(format!("it is transparent {}, which needs an FFmpeg with {library}", id.name()));
    };
    decoder.open_as(codec).and_then(|opened| opened.video()).map_err(cannot)
}

/// Width and height that the container's or codec's header claims.
fn claimed_size(parameters: &Parameters) -> (i64, i64) {
    // SAFETY: the parameters are those of a live stream; the fields are plain integers.
    let (width, height) = unsafe { ((*parameters.as_ptr()).width, (*parameters.as_ptr()).height) };
    (i64::from(width.max(0)), i64::from(height.max(0)))
}

/// Whether the decoder's fourth component is padding, whatever the pixel format says: 32 bits of an uncompressed AVI
/// without a code of its own (BI_RGB, BI_BITFIELDS, "DIB "), of which Windows leaves the last byte unused.
pub fn is_padded(input: &Input, stream: usize) -> bool {
    let Some(stream) = input.stream(stream) else { return false };
    // SAFETY: the parameters are those of a live stream; the field is a plain integer.
    let tag = unsafe { (*stream.parameters().as_ptr()).codec_tag };
    let windows = [0, 3, u32::from_le_bytes(*b"DIB "), u32::from_le_bytes(*b"RGB "), u32::from_le_bytes(*b"raw ")];
    input.format().name() == "avi" && stream.parameters().id() == Id::RAWVIDEO && windows.contains(&tag)
}
