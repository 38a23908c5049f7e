//! What a network's clips are made of: pixels, or the latents of a VAE.

use crate::{Result, bail};

/// Channels and grid of a network's clips. Sizes of clips are pixels everywhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Channels of an element: 3, or the latents'.
    pub channels: usize,
    /// Frames of an element but the first: 1, or 4.
    pub time: usize,
    /// Pixels of an element's side: 1, or 8 or 16.
    pub side: usize,
}

impl Space {
    /// RGB.
    pub const PIXELS: Self = Self { channels: 3, time: 1, side: 1 };

    /// Whether there is a VAE between pixels and network.
    pub fn is_latent(self) -> bool {
        self != Self::PIXELS
    }

    /// Frames, height and width in elements of a clip of so many in pixels, for a network whose patches have so many
    /// elements.
    ///
    /// # Errors
    /// The clip is not made of whole elements, or its sides not of whole patches; it names the nearest that is.
    pub fn size(self, pixels: [usize; 3], patch: [usize; 3]) -> Result<[usize; 3]> {
        if !self.is_latent() {
            return Ok(pixels);
        }
        let [frames, height, width] = pixels;
        let sides = [self.side * patch[1], self.side * patch[2]];
        let whole = frames > 0 && (frames - 1).is_multiple_of(self.time);
        if !whole || !height.is_multiple_of(sides[0]) || !width.is_multiple_of(sides[1]) {
            let nearest = |n: usize, step: usize| ((n + step / 2) / step.max(1)).max(1) * step;
            let near = 1 + (frames.max(1) - 1 + self.time / 2) / self.time * self.time;
            bail!(
                Shape,
                "a clip of {frames} frames of {width}x{height} (width x height) makes no whole latents in whole patches: \
                 frames must be {} k + 1, the height a multiple of {}, the width of {}; the nearest is {near} frames of {}x{}",
                self.time,
                sides[0],
                sides[1],
                nearest(width, sides[1]),
                nearest(height, sides[0])
            );
        }
        Ok([1 + (frames - 1) / self.time, height / self.side, width / self.side])
    }
}
