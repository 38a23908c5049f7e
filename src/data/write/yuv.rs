//! RGB to BT.709 in limited range, 4:2:0: FFmpeg's own scaler would take BT.601 whatever the file says.
//!
//! The arithmetic is that of ITU-R BT.709-6, section 3, with one chroma sample for 2x2 pixels.

use ffmpeg_next::frame;

/// Y of each pixel; the picture may be one line or column larger than `rgb` [height, width, 3].
pub(super) fn fill_luma(picture: &mut frame::Video, rgb: &[u8], height: usize, width: usize) {
    let (stride, padded) = (picture.stride(0), picture.width() as usize);
    let plane = picture.data_mut(0);
    for y in 0..height.next_multiple_of(2) {
        let line = &rgb[y.min(height - 1) * width * 3..][..width * 3];
        let out = &mut plane[y * stride..][..padded];
        for (y, pixel) in out.iter_mut().zip(line.chunks_exact(3)) {
            *y = luma(pixel[0] as i32, pixel[1] as i32, pixel[2] as i32);
        }
        out[padded - 1] = out[width - 1];
    }
}

/// Cb and Cr of each 2x2 pixels, from their mean.
pub(super) fn fill_chroma(picture: &mut frame::Video, rgb: &[u8], height: usize, width: usize) {
    for (index, chroma) in [(1, cb as fn(i32, i32, i32) -> u8), (2, cr)] {
        let stride = picture.stride(index);
        let plane = picture.data_mut(index);
        for y in 0..height.div_ceil(2) {
            for x in 0..width.div_ceil(2) {
                let mut sum = [2; 3]; // half of the four pixels divided by below
                for (dy, dx) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let at = (2 * y + dy).min(height - 1) * width + (2 * x + dx).min(width - 1);
                    for (s, &v) in sum.iter_mut().zip(&rgb[at * 3..at * 3 + 3]) {
                        *s += v as i32;
                    }
                }
                plane[y * stride + x] = chroma(sum[0] / 4, sum[1] / 4, sum[2] / 4);
            }
        }
    }
}

/// Luma in 16..=235: 219/255 of (0.2126, 0.7152, 0.0722), times 2^16.
pub(super) fn luma(r: i32, g: i32, b: i32) -> u8 {
    ((11966 * r + 40254 * g + 4064 * b + (16 << 16) + (1 << 15)) >> 16) as u8
}

/// (B - Y) / 1.8556 in 16..=240, times 2^16; the factors sum to nought, so that grey is exactly 128.
fn cb(r: i32, g: i32, b: i32) -> u8 {
    ((-6596 * r - 22188 * g + 28784 * b + (128 << 16) + (1 << 15)) >> 16) as u8
}

/// (R - Y) / 1.5748 in 16..=240, times 2^16.
fn cr(r: i32, g: i32, b: i32) -> u8 {
    ((28784 * r - 26145 * g - 2639 * b + (128 << 16) + (1 << 15)) >> 16) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_follow_bt709() {
        for r in (0..=255).step_by(15) {
            for g in (0..=255).step_by(15) {
                for b in (0..=255).step_by(15) {
                    let [fr, fg, fb] = [r, g, b].map(|v| v as f64 / 255.0);
                    let y = 0.2126 * fr + 0.7152 * fg + 0.0722 * fb;
                    let exact =
                        [16.0 + 219.0 * y, 128.0 + 224.0 * (fb - y) / 1.8556, 128.0 + 224.0 * (fr - y) / 1.5748];
                    for (ours, exact) in [luma(r, g, b), cb(r, g, b), cr(r, g, b)].into_iter().zip(exact) {
                        assert!((ours as f64 - exact).abs() < 0.51, "{r} {g} {b}: {ours} is not {exact}");
                    }
                }
            }
        }
    }
}
