//! Reads what FFmpeg says of a frame and its pixel format, and sets swscale's colours where its safe interface does not
//! reach.

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

/// Bytes of a sample and its largest value, where all samples of the format are whole bytes or little-endian pairs of
/// them.
pub fn samples(format: Pixel) -> Option<(usize, i32)> {
    let unlike = ffi::AV_PIX_FMT_FLAG_BE
        | ffi::AV_PIX_FMT_FLAG_PAL
        | ffi::AV_PIX_FMT_FLAG_BITSTREAM
        | ffi::AV_PIX_FMT_FLAG_HWACCEL
        | ffi::AV_PIX_FMT_FLAG_FLOAT;
    // SAFETY: FFmpeg returns null or a descriptor that lives as long as the library.
    let (flags, components) = unsafe {
        let descriptor = ffi::av_pix_fmt_desc_get(format.into());
        if descriptor.is_null() {
            return None;
        }
        ((*descriptor).flags, &(&(*descriptor).comp)[..usize::from((*descriptor).nb_components)])
    };
    let depth = components.first()?.depth;
    let alike = components.iter().all(|c| c.depth == depth && c.shift == 0);
    let bytes = if depth == 8 { 1 } else { 2 };
    (alike && flags & unlike as u64 == 0 && (8..=16).contains(&depth)).then_some((bytes, (1 << depth) - 1))
}

/// Tells `context` which matrix makes YUV of RGB, and which range the source has (none: as its pixel format implies)
/// and the target.
pub fn set_colors(context: &mut Context, matrix: c_int, full: Option<bool>, target_is_full: bool) {
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
        ffi::sws_setColorspaceDetails(c, table, full, table, c_int::from(target_is_full), 0, 1 << 16, 1 << 16);
    }
}
