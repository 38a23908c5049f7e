//! Computes the sizes that clips are cut to, and chooses the size that fits a file best.
//!
//! Clips of one size make a bucket, and a step takes one bucket. Pure arithmetic; nothing here opens a file.

use std::fmt::{self, Display, Formatter};

/// The size of the clips of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Frames of a clip; 1 of images.
    pub frames: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl Bucket {
    /// Frames, height, width.
    pub fn size(&self) -> [usize; 3] {
        [self.frames, self.height, self.width]
    }

    /// Pixels of a frame.
    pub fn pixels(&self) -> usize {
        self.height * self.width
    }
}

impl From<[usize; 3]> for Bucket {
    fn from([frames, height, width]: [usize; 3]) -> Self {
        Self { frames, height, width }
    }
}

impl Display for Bucket {
    /// `832x480x81`: width, height, frames, as `data.buckets` has them.
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        write!(f, "{}x{}x{}", self.width, self.height, self.frames)
    }
}

/// The sizes of clips that a network takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClipGrid {
    /// Frames, height and width are multiples of these, frames less `surplus`.
    multiple: [usize; 3],
    surplus: usize,
}

impl ClipGrid {
    /// Clips of pixels in patches of (frames, height, width).
    pub fn of_patches(patch: [usize; 3]) -> Self {
        Self { multiple: patch.map(|n| n.max(1)), surplus: 0 }
    }

    /// Clips of latents in patches. A latent stands for `scale` pixels along each axis, and the first frame for itself
    /// alone: 4k + 1 frames where a latent has four.
    pub fn of_latents(patch: [usize; 3], scale: [usize; 3]) -> Self {
        Self { multiple: std::array::from_fn(|i| (patch[i] * scale[i]).max(1)), surplus: scale[0].max(1) - 1 }
    }

    /// The size on the grid that is nearest to `bucket`.
    pub fn nearest(&self, bucket: Bucket) -> Bucket {
        let round = |n: usize, m: usize| (n + m / 2) / m;
        self.at(bucket, round)
    }

    /// The largest size on the grid that lies within `bucket`, or the smallest there is.
    pub fn floor(&self, bucket: Bucket) -> Bucket {
        self.at(bucket, |n, m| n / m)
    }

    fn at(&self, bucket: Bucket, cells: impl Fn(usize, usize) -> usize) -> Bucket {
        let [frames, height, width] = self.multiple;
        Bucket {
            frames: cells(bucket.frames + self.surplus, frames).max(1) * frames - self.surplus,
            height: cells(bucket.height, height).max(1) * height,
            width: cells(bucket.width, width).max(1) * width,
        }
    }

    /// Why `bucket` is no size of the network's, with the nearest one; none where it is one.
    pub fn refuse(&self, bucket: Bucket) -> Option<String> {
        let nearest = self.nearest(bucket);
        let [frames, height, width] = self.multiple;
        let frames = match self.surplus {
            0 => format!("frames a multiple of {frames}"),
            surplus => {
                format!("frames {frames}k - {surplus}, such as {} or {}", frames - surplus, 2 * frames - surplus)
            }
        };
        (nearest != bucket).then(|| {
            format!(
                "the network takes clips of width a multiple of {width}, height a multiple of {height} and {frames}; the \
                 nearest to {bucket} is {nearest} (width x height x frames)"
            )
        })
    }
}

/// Buckets by area and aspect ratio.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolutions {
    /// Sides of the squares of the areas, in pixels. A file gives clips for each.
    pub sides: Vec<usize>,
    /// Aspect ratios (width over height) of each area, evenly spaced in their logarithm.
    pub aspects: usize,
    /// The least and the greatest of them.
    pub aspect_range: [f64; 2],
    /// Frames of clips. Images have one; videos get the most that they have frames for.
    pub frame_counts: Vec<usize>,
}

impl Resolutions {
    /// The buckets of each area, on the grid: areas are never exceeded.
    pub fn groups(&self, grid: &ClipGrid) -> Vec<Vec<Bucket>> {
        let [low, high] = self.aspect_range.map(f64::ln);
        let aspect = |i: usize| match self.aspects {
            0 | 1 => f64::midpoint(low, high),
            count => low + (high - low) * i as f64 / (count - 1) as f64,
        };
        let group = |&side: &usize| {
            let mut group: Vec<Bucket> = vec![];
            for log in (0..self.aspects.max(1)).map(aspect) {
                // A thousandth of a pixel, so that rounding does not take a cell from a size that is on the grid.
                let [height, width] = [-log, log].map(|log| (side as f64 * (log / 2.0).exp() + 1e-3) as usize);
                for &frames in &self.frame_counts {
                    let bucket = Bucket { frames, ..grid.floor(Bucket { frames, height, width }) };
                    if !group.contains(&bucket) {
                        group.push(bucket);
                    }
                }
            }
            group
        };
        self.sides.iter().map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(width: usize, height: usize, frames: usize) -> Bucket {
        Bucket { frames, height, width }
    }

    #[test]
    fn sizes_off_the_grid_are_told_the_nearest() {
        let grid = ClipGrid::of_latents([1, 2, 2], [4, 8, 8]);
        assert_eq!(grid.refuse(bucket(832, 480, 81)), None);
        assert_eq!(grid.refuse(bucket(832, 480, 1)), None);
        let said = grid.refuse(bucket(830, 470, 80)).unwrap();
        assert!(said.contains("830x470x80 is 832x464x81") || said.contains("830x470x80 is 832x480x81"), "{said}");
        assert!(said.contains("4k - 3, such as 1 or 5"), "{said}");
        let pixels = ClipGrid::of_patches([2, 8, 8]);
        assert_eq!(pixels.nearest(bucket(3, 100, 1)), bucket(8, 104, 2));
        assert_eq!(pixels.floor(bucket(63, 47, 9)), bucket(56, 40, 8));
    }

    #[test]
    fn areas_are_kept_for_every_aspect_and_never_exceeded() {
        let options =
            Resolutions { sides: vec![512, 256], aspects: 7, aspect_range: [0.5, 2.0], frame_counts: vec![1, 33] };
        let groups = options.groups(&ClipGrid::of_latents([1, 2, 2], [4, 8, 8]));
        assert_eq!((groups.len(), groups[0].len()), (2, 14));
        assert!(groups[0].contains(&bucket(512, 512, 33)) && groups[1].contains(&bucket(256, 256, 1)));
        for (group, area) in groups.iter().zip([512.0 * 512.0, 256.0 * 256.0]) {
            for bucket in group {
                assert!(bucket.pixels() as f64 <= area && bucket.pixels() as f64 > 0.85 * area, "{bucket}");
                assert!(bucket.width.is_multiple_of(16) && bucket.height.is_multiple_of(16), "{bucket}");
            }
        }
    }
}
