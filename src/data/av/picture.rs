//! Pictures in FFmpeg's hands: what a frame says of itself, and swscale where its safe interface does not reach.

use ff::ffi;
use ff::format::Pixel;
use ff::frame;
use ff::software::scaling::Context;
use ffmpeg_next as ff;
use std::os::raw::c_int;

/// Whether the decoder had to make parts of `frame` up.
pub fn is_damaged(frame: &frame::Video) -> bool {
    frame.is_corrupt() || frame.has_decode_errors()
}

/// Whether the frame's pixels can be transparent.
pub fn has_alpha(format: Pixel) -> bool {
    // SAFETY: FFmpeg returns null or a descriptor that lives as long as the library.
    unsafe {
        let descriptor = ffi::av_pix_fmt_desc_get(format.into());
        !descriptor.is_null() && (*descriptor).flags & ffi::AV_PIX_FMT_FLAG_ALPHA as u64 != 0
    }
}

/// Tells `context` which matrix made the source's YUV, and which range it has; `full` none: as the pixel format
/// implies.
pub fn set_colors(context: &mut Context, matrix: c_int, full: Option<bool>) {
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
