//! Records the sizes of a video's frames, which may change on the way.

use super::ffmpeg::Reader;
use super::scale::Shape;
use ffmpeg_next::frame;

/// From which frame on pictures have which size.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes(pub(super) Vec<(u32, Size)>);

/// Size of decoded pictures, and how they are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Size {
    width: usize,
    height: usize,
    pub shape: Shape,
}

impl Size {
    pub fn of(frame: &mut frame::Video, reader: &mut Reader) -> Self {
        let opaque = reader.is_padded();
        let shape = Shape { orientation: reader.orientation(), aspect: reader.pixel_aspect(frame), opaque };
        Self { width: frame.width() as usize, height: frame.height() as usize, shape }
    }

    /// Width and height as shown.
    pub fn shown(&self) -> (usize, usize) {
        self.shape.shown(self.width, self.height)
    }
}

impl Sizes {
    /// Frame `n`, behind all noted so far, has `size`.
    pub fn note(&mut self, n: usize, size: Size) {
        if self.0.last().is_none_or(|last| last.1 != size) {
            self.0.push((n as u32, size));
        }
    }

    /// The size of frame `n`.
    pub fn of(&self, n: u32) -> Size {
        self.0[self.0.partition_point(|run| run.0 <= n) - 1].1
    }

    /// Runs of frames of one size, as the frame each begins with and its size.
    pub fn runs(&self) -> &[(u32, Size)] {
        &self.0
    }
}
