//! Converts a decoded frame to the clip's pixels: colours, resize to cover, crop, orientation, mirror.
//!
//! swscale resizes with its area filter (each output pixel is the mean of the source pixels it covers, so nothing
//! aliases or rings, however large the source) and converts colours in the same pass, with rounding that is the same on
//! every processor. Transparent pixels are laid over white before that, so that their hidden colours do not bleed in.

use super::ffmpeg::{self, Orientation, Reason};
use super::hdr::Transfer;
use super::opacity::over_white;
use super::shuffle::Augment;
use ffmpeg_next::ffi;
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use ffmpeg_next::software::scaling::{Context, Flags};
use ffmpeg_next::util::color::{Range, Space};
use std::ops::Range as Lines;
use std::os::raw::c_int;

/// How a file's decoded pictures must be shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub orientation: Orientation,
    /// Width of a pixel divided by its height.
    pub aspect: f64,
    /// What the pixel format calls opacity is padding.
    pub opaque: bool,
}

impl Shape {
    /// Width and height of a decoded picture as shown.
    pub fn shown(&self, width: usize, height: usize) -> (usize, usize) {
        let wide = self.stretched(width);
        if self.orientation.transpose { (height, wide) } else { (wide, height) }
    }

    /// The width at which pixels are square.
    fn stretched(&self, width: usize) -> usize {
        ((width as f64 * self.aspect).round() as usize).max(1)
    }
}

/// The smallest size that covers `target` (both as width, height) with the source's aspect ratio, rounded.
pub fn cover(source: (usize, usize), target: (usize, usize)) -> (usize, usize) {
    let scale = (target.0 as f64 / source.0 as f64).max(target.1 as f64 / source.1 as f64);
    let side = |source: usize, target: usize| ((source as f64 * scale).round() as usize).max(target);
    (side(source.0, target.0), side(source.1, target.1))
}

/// Where a clip of `[height, width]` begins, [top, left], in a picture of `size` (width, height) that covers it.
pub fn corner(size: (usize, usize), [height, width]: [usize; 2], augment: &Augment) -> [usize; 2] {
    [(augment.crop[0], size.1 - height), (augment.crop[1], size.0 - width)]
        .map(|(share, rest)| ((share * (rest + 1) as f64) as usize).min(rest))
}

/// swscale, from frames of `source` (format, width, height) to `format` at `size` (width, height).
pub fn context(source: (Pixel, u32, u32), format: Pixel, size: (u32, u32)) -> Reason<Context> {
    let flags = Flags::AREA | Flags::ACCURATE_RND | Flags::FULL_CHR_H_INT | Flags::FULL_CHR_H_INP | Flags::BITEXACT;
    let ((kind, width, height), (w, h)) = (source, size);
    Context::get(kind, width, height, format, w, h, flags)
        .map_err(|_| format!("its {width}x{height} frames of {kind:?} cannot be resized to {w}x{h}"))
}

/// A conversion set up for frames of one kind, and the frame it writes to.
pub(super) struct Conversion {
    kind: (Pixel, u32, u32, c_int, Option<bool>),
    size: (u32, u32),
    context: Context,
    target: frame::Video,
}

impl Conversion {
    /// `source` in `format` at `size`, with the set-up of `cached` if it fits.
    pub fn run<'a>(
        cached: &'a mut Option<Self>,
        source: &frame::Video,
        format: Pixel,
        size: (u32, u32),
    ) -> Reason<&'a frame::Video> {
        let (width, height) = (source.width(), source.height());
        let matrix = matrix(source.color_space(), width, height);
        let kind = (source.format(), width, height, matrix, full_range(source));
        if !cached.as_ref().is_some_and(|c| (c.kind, c.size) == (kind, size)) {
            let mut context = context((kind.0, width, height), format, size)?;
            ffmpeg::set_colors(&mut context, matrix, kind.4, true);
            *cached = Some(Self { kind, size, context, target: frame::Video::new(format, size.0, size.1) });
        }
        let Some(Self { context, target, .. }) = cached else { return Err("it cannot be resized".to_owned()) };
        context.run(source, target).map_err(|e| format!("its frames cannot be resized ({e})"))?;
        Ok(target)
    }
}

/// The matrix of a frame's YUV; where the file does not say, BT.709 from 720 lines on and BT.601 below, as players
/// do.
fn matrix(space: Space, width: u32, height: u32) -> c_int {
    match space {
        Space::BT709 => ffi::SWS_CS_ITU709,
        Space::BT470BG | Space::SMPTE170M => ffi::SWS_CS_ITU601,
        Space::FCC => ffi::SWS_CS_FCC,
        Space::SMPTE240M => ffi::SWS_CS_SMPTE240M,
        Space::BT2020NCL | Space::BT2020CL => ffi::SWS_CS_BT2020,
        _ if height >= 720 || width >= 1280 => ffi::SWS_CS_ITU709,
        _ => ffi::SWS_CS_ITU601,
    }
}

/// Whether pixel values use the full range; none: as the format implies (YUV: limited).
fn full_range(frame: &frame::Video) -> Option<bool> {
    match frame.color_range() {
        Range::JPEG => Some(true),
        Range::MPEG => Some(false),
        Range::Unspecified => None,
    }
}

/// Makes clip pixels of frames; what it sets up is kept for frames of the same kind.
pub struct Scaler {
    /// High dynamic range is tone-mapped.
    tonemap: bool,
    opaque: Option<Conversion>,
    resize: Option<Conversion>,
}

impl Scaler {
    /// One that tone-maps high dynamic range, or not.
    pub fn new(tonemap: bool) -> Self {
        Self { tonemap, opaque: None, resize: None }
    }

    /// Writes `lines` of `source` as [height, width, 3] to `out`: turned as `shape` says, resized to cover, cropped and
    /// mirrored.
    pub fn fit(
        &mut self,
        source: &frame::Video,
        shape: Shape,
        [height, width]: [usize; 2],
        augment: &Augment,
        lines: Lines<usize>,
        out: &mut [u8],
    ) -> Reason<()> {
        let flat = if !shape.opaque && ffmpeg::has_alpha(source.format()) {
            let size = (source.width(), source.height());
            Some(over_white(Conversion::run(&mut self.opaque, source, Pixel::RGBA, size)?))
        } else {
            None
        };
        let source = flat.as_ref().unwrap_or(source);
        let turn = shape.orientation;
        let target = if turn.transpose { (height, width) } else { (width, height) };
        let size = cover((shape.stretched(source.width() as usize), source.height() as usize), target);
        let transfer = Transfer::of(source).filter(|_| self.tonemap);
        let format = if transfer.is_some() { Pixel::RGB48LE } else { Pixel::RGB24 };
        let resized = Conversion::run(&mut self.resize, source, format, (size.0 as u32, size.1 as u32))?;
        let in_sdr = transfer.map(|transfer| transfer.in_sdr(resized));
        let resized = in_sdr.as_ref().unwrap_or(resized);

        let (pixels, line) = (resized.data(0), resized.stride(0));
        let shown = if turn.transpose { (size.1, size.0) } else { size };
        let [top, left] = corner(shown, [height, width], augment);
        let mirrored = |at: usize, side: usize, mirror: bool| if mirror { side - 1 - at } else { at };
        for (y, row) in lines.zip(out.chunks_exact_mut(width * 3)) {
            let v = mirrored(top + y, shown.1, turn.mirror_y);
            // Where pixel `x` of the line lies in the resized frame.
            let place = |x: usize| {
                let u = mirrored(left + mirrored(x, width, augment.flip), shown.0, turn.mirror_x);
                if turn.transpose { u * line + v * 3 } else { v * line + u * 3 }
            };
            if !turn.transpose && turn.mirror_x == augment.flip {
                row.copy_from_slice(&pixels[place(0)..][..width * 3]);
            } else {
                for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
                    pixel.copy_from_slice(&pixels[place(x)..][..3]);
                }
            }
        }
        Ok(())
    }
}
