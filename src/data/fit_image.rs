//! Fits a still image to a clip's lines: resized to cover, cropped and mirrored.
//!
//! The image comes from top to bottom and is never whole here: an image that already has the size is copied line by
//! line, any other is shrunk as its lines come. Reading ends with the last line asked for.

use super::ffmpeg::Reason;
use super::image_reader::ImageReader;
use super::scale::{corner, cover};
use super::shrink::Shrink;
use super::shuffle::Augment;
use std::io::{BufRead, Seek};
use std::ops::Range;

/// Writes lines `lines` of the clip's frame of [height, width], [lines, width, 3], to `out`.
pub fn fit_image<R: BufRead + Seek>(
    image: &mut ImageReader<R>,
    [height, width]: [usize; 2],
    augment: &Augment,
    lines: Range<usize>,
    out: &mut [u8],
) -> Reason<()> {
    let source = (image.width, image.height);
    if source.0 < width || source.1 < height {
        return Err(format!("it is too small: {}x{} (width x height), a clip is {width}x{height}", source.0, source.1));
    }
    let size = cover(source, (width, height));
    let [top, left] = corner(size, [height, width], augment);
    let first = top + lines.start;
    let mut shrink = Shrink::new(source, size, left..left + width, first);
    let mut line = vec![0; source.0 * 3];
    let mut read = 0;
    for out in out.chunks_exact_mut(width * 3).take(lines.len()) {
        loop {
            image.read(&mut line)?;
            read += 1;
            if size != source {
                if shrink.push(&line, out) {
                    break;
                }
            } else if read > first {
                out.copy_from_slice(&line[left * 3..(left + width) * 3]);
                break;
            }
        }
        if augment.flip {
            out.as_chunks_mut::<3>().0.reverse();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_of_the_clips_size_is_copied_unscaled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        // Noise with some structure, so that no two lines are alike.
        let pixel = |x: u32, y: u32| {
            let hash = (x ^ (y << 9)).wrapping_mul(0x9e37_79b9) >> 24;
            image::Rgb([hash as u8, (x * 7 + y) as u8, (y * 3) as u8])
        };
        let image = image::RgbImage::from_fn(150, 210, pixel);
        image.save(&path).unwrap();
        for (flip, lines) in [(false, 0..180), (true, 33..34), (false, 179..180)] {
            let augment = Augment { flip, crop: [0.9, 0.4] };
            let mut out = vec![0; lines.len() * 150 * 3];
            fit_image(&mut ImageReader::open(&path).unwrap(), [180, 150], &augment, lines.clone(), &mut out).unwrap();
            for (y, line) in lines.zip(out.chunks_exact(150 * 3)) {
                let plain = &image.as_raw()[(y + 27) * 450..][..450]; // floor(0.9 * 31)
                let expected: Vec<u8> = match flip {
                    true => plain.rchunks_exact(3).flatten().copied().collect(),
                    false => plain.to_vec(),
                };
                assert!(line == expected, "line {y}, flip {flip}");
            }
        }
    }
}
