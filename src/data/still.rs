//! A still image to some lines of a clip: resized to cover, cropped and mirrored.
//!
//! The image comes from top to bottom and is never whole here: an image that already has the size is copied line by line, any
//! other goes through swscale in bands, and only what swscale makes of it, the u8 picture at its new size, is held. Reading
//! ends with the last line asked for.

use super::av::{self, Reason};
use super::order::Augment;
use super::picture::Picture;
use super::scale::{corner, cover, resizing};
use ffmpeg_next::format::Pixel;
use ffmpeg_next::frame;
use std::ops::Range;

/// Lines of a band.
const BAND: usize = 64;

/// A picture that shrinks by more than this goes through swscale at once: far beyond, swscale works in two passes, and cannot
/// take bands.
const MOST_SHRINK: usize = 16;

/// Writes lines `lines` of the clip's frame of [height, width], [lines, width, 3], to `out`.
pub fn fit(
    mut picture: Picture,
    [height, width]: [usize; 2],
    augment: &Augment,
    lines: Range<usize>,
    out: &mut [u8],
) -> Reason<()> {
    let source = (picture.width, picture.height);
    let size = cover(source, (width, height));
    let [top, left] = corner(size, [height, width], augment);
    let wanted = top + lines.start..top + lines.end;
    let mut out = out.chunks_exact_mut(width * 3);
    let mut take = |line: &[u8]| {
        let Some(out) = out.next() else { return };
        let line = &line[left * 3..(left + width) * 3];
        if augment.flip {
            out.chunks_exact_mut(3).zip(line.rchunks_exact(3)).for_each(|(out, pixel)| out.copy_from_slice(pixel));
        } else {
            out.copy_from_slice(line);
        }
    };
    if size == source {
        let mut line = vec![0; source.0 * 3];
        for y in 0..wanted.end {
            picture.read(&mut line)?;
            if y >= wanted.start {
                take(&line);
            }
        }
        return Ok(());
    }
    let shrunk = source.0 > MOST_SHRINK * size.0 || source.1 > MOST_SHRINK * size.1;
    let resized = resize(&mut picture, size, if shrunk { source.1 } else { BAND }, wanted.end)?;
    let stride = resized.stride(0);
    wanted.for_each(|y| take(&resized.data(0)[y * stride..]));
    Ok(())
}

/// The picture at `size` (width, height), `band` lines of it at a time, until `enough` lines of the result are there.
fn resize(picture: &mut Picture, size: (usize, usize), band: usize, enough: usize) -> Reason<frame::Video> {
    let (width, height) = (picture.width, picture.height);
    let mut context = resizing((Pixel::RGB24, width as u32, height as u32), size)?;
    let mut target = frame::Video::new(Pixel::RGB24, size.0 as u32, size.1 as u32);
    let mut lines = frame::Video::new(Pixel::RGB24, width as u32, band.min(height) as u32);
    let stride = lines.stride(0);
    let (mut read, mut ready) = (0, 0);
    while read < height && ready < enough {
        let count = band.min(height - read);
        for line in lines.data_mut(0).chunks_exact_mut(stride).take(count) {
            picture.read(&mut line[..width * 3])?;
        }
        ready += av::scale_band(&mut context, &lines, read..read + count, &mut target)?;
        read += count;
    }
    if ready < enough {
        return Err(format!("it cannot be resized: {ready} of {} lines came out", size.1));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A PNG of noise with some structure, so that no two lines are alike.
    fn noise(path: &std::path::Path, width: usize, height: usize) {
        let pixel = |x: u32, y: u32| {
            let hash = (x ^ (y << 9)).wrapping_mul(0x9e37_79b9) >> 24;
            image::Rgb([hash as u8, (x * 7 + y) as u8, (y * 3) as u8])
        };
        image::RgbImage::from_fn(width as u32, height as u32, pixel).save(path).unwrap();
    }

    #[test]
    fn bands_resize_as_the_whole_does() {
        let folder = tempfile::tempdir().unwrap();
        for (i, (source, size)) in
            [((301, 517), (97, 167)), ((640, 333), (639, 332)), ((777, 1030), (64, 85)), ((200, 130), (200, 65))]
                .into_iter()
                .enumerate()
        {
            let path = folder.path().join(format!("{i}.png"));
            noise(&path, source.0, source.1);
            let open = || Picture::open(&path).unwrap();
            let whole = resize(&mut open(), size, source.1, size.1).unwrap();
            let stride = whole.stride(0);
            for band in [1, 7, BAND] {
                for enough in [size.1, size.1 / 3] {
                    let banded = resize(&mut open(), size, band, enough).unwrap();
                    for y in 0..enough {
                        let line = y * stride..y * stride + size.0 * 3;
                        assert!(banded.data(0)[line.clone()] == whole.data(0)[line], "{source:?} in {band}: line {y}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_picture_of_the_size_is_what_swscale_would_leave_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        noise(&path, 150, 210);
        let resized = resize(&mut Picture::open(&path).unwrap(), (150, 210), 64, 210).unwrap();
        for (flip, lines) in [(false, 0..180), (true, 33..34), (false, 179..180)] {
            let augment = Augment { flip, crop: [0.9, 0.4] };
            let mut out = vec![0; lines.len() * 150 * 3];
            fit(Picture::open(&path).unwrap(), [180, 150], &augment, lines.clone(), &mut out).unwrap();
            for (y, line) in lines.zip(out.chunks_exact(150 * 3)) {
                let plain = &resized.data(0)[(y + 27) * resized.stride(0)..][..150 * 3]; // floor(0.9 * 31)
                let expected: Vec<u8> = match flip {
                    true => plain.rchunks_exact(3).flatten().copied().collect(),
                    false => plain.to_vec(),
                };
                assert!(line == expected, "line {y}, flip {flip}");
            }
        }
    }
}
