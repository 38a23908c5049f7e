//! Makes a picture smaller: each pixel is the mean of the area that it covers, exactly, rounded once.
//!
//! Lines go in from top to bottom and come out as soon as they are complete. Nothing but one line of sums is held, so
//! there is no size that a picture, or the result, may not have. Sums are whole numbers: the result is the same on
//! every processor.

use std::ops::Range;

/// What one line or column of the result covers of the source: `head` parts of source line `first`, all of those up to
/// `last`, and `tail` parts of `last`. A source line has as many parts as the result has lines.
#[derive(Clone, Copy, Debug)]
struct Cover {
    first: usize,
    last: usize,
    head: u64,
    tail: u64,
}

impl Cover {
    /// That of `target` lines' number `at`, of `source` lines.
    fn of(at: usize, source: usize, target: usize) -> Self {
        let (begin, end, parts) = ((at * source) as u64, ((at + 1) * source) as u64, target as u64);
        let (first, last) = (begin / parts, (end - 1) / parts);
        let head = end.min((first + 1) * parts) - begin;
        let tail = if last > first { end - last * parts } else { 0 };
        Self { first: first as usize, last: last as usize, head, tail }
    }
}

/// Shrinks lines of RGB to some columns of a smaller picture.
pub struct Shrink {
    /// Height of the source and of the result.
    heights: (usize, usize),
    /// What each column covers.
    columns: Vec<Cover>,
    /// Parts of a source pixel, along the line.
    parts: u64,
    /// Parts that a pixel of the result covers, along the line and in all.
    area: u64,
    /// The next line of the result, and what lines that have been read add to it.
    next: usize,
    sums: Vec<u64>,
    /// Source lines that have been read.
    read: usize,
}

impl Shrink {
    /// From a picture of `source` (width, height) to columns `columns` of one of `size`, which is not larger; its first
    /// line is line `first`.
    pub fn new(source: (usize, usize), size: (usize, usize), columns: Range<usize>, first: usize) -> Self {
        let count = columns.len();
        Self {
            heights: (source.1, size.1),
            columns: columns.map(|at| Cover::of(at, source.0, size.0)).collect(),
            parts: size.0 as u64,
            area: source.0 as u64 * source.1 as u64,
            next: first,
            sums: vec![0; count * 3],
            read: 0,
        }
    }

    /// Takes the next line of the source, and writes to `out` the line of the result that it completes, if any.
    pub fn push(&mut self, line: &[u8], out: &mut [u8]) -> bool {
        let y = self.read;
        self.read += 1;
        let cover = Cover::of(self.next, self.heights.0, self.heights.1);
        if y < cover.first {
            return false;
        }
        let whole = self.heights.1 as u64;
        let weight = if y == cover.first {
            cover.head
        } else if y == cover.last {
            cover.tail
        } else {
            whole
        };
        self.add(line, weight);
        if y < cover.last {
            return false;
        }
        let half = self.area / 2;
        for (value, sum) in out.iter_mut().zip(&mut self.sums) {
            *value = ((*sum + half) / self.area) as u8;
            *sum = 0;
        }
        self.next += 1;
        if whole > weight && self.next < self.heights.1 {
            self.add(line, whole - weight); // the rest of this line begins the next one
        }
        true
    }

    fn add(&mut self, line: &[u8], weight: u64) {
        let pixels = line.as_chunks::<3>().0;
        for (cover, sums) in self.columns.iter().zip(self.sums.as_chunks_mut::<3>().0) {
            let mut whole = [0u64; 3];
            for pixel in pixels.get(cover.first + 1..cover.last).unwrap_or_default() {
                whole[0] += u64::from(pixel[0]);
                whole[1] += u64::from(pixel[1]);
                whole[2] += u64::from(pixel[2]);
            }
            let (first, last) = (pixels[cover.first], pixels[cover.last]);
            for c in 0..3 {
                let ends = cover.head * u64::from(first[c]) + cover.tail * u64::from(last[c]);
                sums[c] += weight * (whole[c] * self.parts + ends);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mean of what pixel (x, y) of the result covers, by floating-point numbers.
    fn mean(pixels: &[u8], source: (usize, usize), size: (usize, usize), (x, y): (usize, usize), c: usize) -> f64 {
        let overlap = |at: usize, i: usize, source: usize, size: usize| {
            let (begin, end) = (at as f64 * source as f64 / size as f64, (at + 1) as f64 * source as f64 / size as f64);
            (end.min(i as f64 + 1.0) - begin.max(i as f64)).max(0.0)
        };
        let (mut sum, mut area) = (0.0, 0.0);
        for v in 0..source.1 {
            for u in 0..source.0 {
                let weight = overlap(x, u, source.0, size.0) * overlap(y, v, source.1, size.1);
                sum += weight * f64::from(pixels[(v * source.0 + u) * 3 + c]);
                area += weight;
            }
        }
        sum / area
    }

    #[test]
    fn every_pixel_is_the_mean_of_the_area_it_covers() {
        for (source, size) in [
            ((7, 5), (7, 5)),
            ((7, 5), (3, 2)),
            ((64, 48), (1, 1)),
            ((31, 17), (30, 16)),
            ((20, 40), (5, 10)),
            ((9, 1), (2, 1)),
        ] {
            let (w, h) = source;
            let pixels: Vec<u8> = (0..w * h * 3).map(|i| ((i as u32).wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
            for first in [0, size.1 / 2] {
                for columns in [0..size.0, size.0 / 2..size.0] {
                    let mut shrink = Shrink::new(source, size, columns.clone(), first);
                    let mut lines = Vec::new();
                    let mut out = vec![0; columns.len() * 3];
                    for line in pixels.chunks_exact(w * 3) {
                        if shrink.push(line, &mut out) {
                            lines.push(out.clone());
                        }
                    }
                    assert_eq!(lines.len(), size.1 - first, "{source:?} to {size:?} from {first}");
                    for (y, line) in (first..).zip(&lines) {
                        for (i, &value) in line.iter().enumerate() {
                            let expected = mean(&pixels, source, size, (columns.start + i / 3, y), i % 3);
                            let off = (f64::from(value) - expected).abs();
                            assert!(off <= 0.5 + 1e-9, "{source:?} to {size:?}: {value}, not {expected}");
                        }
                    }
                }
            }
        }
    }
}
