//! Draws contact sheets: clips as captioned strips of frames on one PNG, to look at a dataset or at samples in one
//! glance.
//!
//! Which clips and frames are shown is the caller's business; the sheet scales them to one height and lays them out.

use image::imageops::{self, FilterType};
use image::{Rgb, RgbImage};
use plotters::prelude::*;
use std::path::Path;
use std::sync::Once;

use super::write;
use crate::{Result, bail};

/// One clip of a sheet.
#[derive(Clone, Debug)]
pub struct Strip {
    /// A file's path, before the caption; where it is wider than the frames its beginning gives way to an ellipsis.
    pub name: String,
    /// The line above the frames; its end gives way to an ellipsis.
    pub caption: String,
    /// Frames from left to right, at least one; sizes may differ.
    pub frames: Vec<RgbImage>,
}

/// How large frames are on a sheet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameScale {
    /// About 96 pixels high: larger ones are scaled down to that, small ones up by a whole factor.
    Row,
    /// As they are: a pixel of the clip is one of the sheet.
    Real,
}

/// The family name of the built-in font, for plotters.
pub(crate) const FONT: &str = "dejavu-sans";

const PAPER: Rgb<u8> = Rgb([250, 250, 250]);
const INK: RGBColor = RGBColor(70, 74, 82);
const CAPTION: f64 = 13.0; // pixels
const CAPTION_ROW: u64 = 19;
const MARGIN: u64 = 16;
const FRAME_GAP: u64 = 2;
const STRIP_GAP: u64 = 18;
/// Frames are scaled to be about so high.
const ROW: u32 = 96;
/// A caption has at least so much room.
const NARROWEST: u64 = 110;
/// The sheet's proportions, width to height, as near as whole strips allow.
const ASPECT: f64 = 1.4;
/// A larger sheet is refused: no viewer opens it.
const MOST_PIXELS: u64 = 200_000_000;

impl Strip {
    /// A frame at the size that it has on a sheet of rows.
    pub fn row_sized(frame: RgbImage) -> RgbImage {
        fit(frame, FrameScale::Row)
    }

    /// The clip `frames` [n, height, width, 3] as `count` frames at even distances, the first and the last among them,
    /// at the size that they have on a sheet.
    pub fn from_clip(
        caption: &str,
        frames: &[u8],
        height: usize,
        width: usize,
        count: usize,
        scale: FrameScale,
    ) -> Result<Self> {
        let n = write::frame_count(frames, height, width)?;
        let count = count.clamp(1, n);
        let pick = |i: usize| if count == 1 { 0 } else { (i * (n - 1) + (count - 1) / 2) / (count - 1) };
        let image = |i| write::frame_image(frames, height, width, pick(i)).map(|frame| fit(frame, scale));
        let images = (0..count).map(image).collect::<Result<_>>()?;
        Ok(Self { name: String::new(), caption: caption.to_owned(), frames: images })
    }
}

/// Writes `strips` to the PNG `path`, in columns from top to bottom.
///
/// Frames are scaled as `scale` says. Fails without strips, on a
/// strip without frames, where the sheet would be absurdly large, and where `path` cannot be written; then nothing
/// changes there.
pub fn contact_sheet(strips: &[Strip], scale: FrameScale, path: &Path) -> Result<()> {
    let sheet = draw(strips, scale)?;
    write::write_image(path, &sheet)
}

/// Refuses a sheet of `clips` clips, of `frames` frames of `height` x `width` pixels each, that [`contact_sheet`] would
/// refuse for its size: before the clips are there.
///
/// # Errors
/// That.
pub fn check_size(clips: usize, frames: usize, height: usize, width: usize, scale: FrameScale) -> Result<()> {
    let pixels = [width, height].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let (w, h) = fitted((pixels[0], pixels[1]), scale);
    let widest = (w as u64 + FRAME_GAP).saturating_mul(frames as u64) - FRAME_GAP;
    Layout::new(clips as u64, widest, h as u64).map(drop)
}

/// Where strips lie on a sheet, in pixels.
struct Layout {
    column: u64,
    row: u64,
    /// Strips below each other.
    rows: u64,
    /// Of the sheet: width, height.
    size: (u32, u32),
}

impl Layout {
    /// For so many strips, the widest and the highest of so many pixels.
    fn new(strips: u64, widest: u64, highest: u64) -> Result<Self> {
        let (column, row) = (widest.max(NARROWEST), CAPTION_ROW + highest);
        let (columns, rows) = grid(strips, column + STRIP_GAP, row + STRIP_GAP);
        let length =
            |count: u64, each: u64| count.saturating_mul(each + STRIP_GAP).saturating_add(2 * MARGIN - STRIP_GAP);
        let (width, height) = (length(columns, column), length(rows, row));
        if width.saturating_mul(height) > MOST_PIXELS {
            bail!(
                Config,
                "a contact sheet of {strips} clips would have {width}x{height} pixels: show fewer clips or frames"
            );
        }
        Ok(Self { column, row, rows, size: (width as u32, height as u32) })
    }
}

/// The sheet as an image.
fn draw(strips: &[Strip], scale: FrameScale) -> Result<RgbImage> {
    if strips.is_empty() {
        bail!(Data, "a contact sheet needs at least one clip");
    }
    if let Some(empty) = strips.iter().find(|s| s.frames.is_empty() || s.frames.iter().any(|f| f.is_empty())) {
        bail!(Data, "a contact sheet cannot show the clip {:?}: it has no frames, or empty ones", empty.caption);
    }
    let on_sheet = |strip: &Strip| strip.frames.iter().map(|frame| fitted(frame.dimensions(), scale)).collect();
    let sizes: Vec<Vec<(u32, u32)>> = strips.iter().map(on_sheet).collect();
    let width_of = |s: &Vec<(u32, u32)>| s.iter().map(|f| f.0 as u64 + FRAME_GAP).sum::<u64>() - FRAME_GAP;
    let widest = sizes.iter().map(width_of).max().unwrap_or(0);
    let highest = sizes.iter().flatten().map(|f| f.1 as u64).max().unwrap_or(0);
    let Layout { column, row, rows, size: (width, height) } = Layout::new(strips.len() as u64, widest, highest)?;
    let mut sheet = RgbImage::from_pixel(width, height, PAPER);
    let mut captions = Vec::new();
    for (i, (strip, sizes)) in strips.iter().zip(&sizes).enumerate() {
        let (c, r) = (i as u64 / rows, i as u64 % rows);
        let (mut x, y) = (MARGIN + c * (column + STRIP_GAP), MARGIN + r * (row + STRIP_GAP));
        captions.push((label(&strip.name, &strip.caption, column as u32)?, x as i32, y as i32));
        for (frame, &size) in strip.frames.iter().zip(sizes) {
            imageops::replace(&mut sheet, &resized(frame, size), x as i64, (y + CAPTION_ROW) as i64);
            x += size.0 as u64 + FRAME_GAP;
        }
    }
    let size = sheet.dimensions();
    let area = BitMapBackend::with_buffer(&mut sheet, size).into_drawing_area();
    for (text, x, y) in captions {
        area.draw_text(&text, &style().color(&INK), (x, y)).map_err(drawing)?;
    }
    area.present().map_err(drawing)?;
    drop(area);
    Ok(sheet)
}

/// Columns and rows of `n` cells such that the whole has about the proportions [`ASPECT`].
fn grid(n: u64, cell_width: u64, cell_height: u64) -> (u64, u64) {
    let ideal = (ASPECT * n as f64 * cell_height as f64 / cell_width as f64).sqrt();
    let rows = n.div_ceil((ideal.round() as u64).clamp(1, n));
    (n.div_ceil(rows), rows)
}

/// A frame's size on the sheet: as it is, or down to [`ROW`] lines, or up by the largest whole factor that stays
/// within.
fn fitted((w, h): (u32, u32), scale: FrameScale) -> (u32, u32) {
    if scale == FrameScale::Real {
        (w, h)
    } else if h > ROW {
        (((w as u64 * ROW as u64 + h as u64 / 2) / h as u64).max(1) as u32, ROW)
    } else {
        let factor = (ROW / h.max(1)).max(1);
        (w * factor, h * factor)
    }
}

/// `frame` at its size on the sheet.
fn fit(frame: RgbImage, scale: FrameScale) -> RgbImage {
    let size = fitted(frame.dimensions(), scale);
    if size == frame.dimensions() { frame } else { resized(&frame, size) }
}

/// `frame` at `size`: made smaller with smoothing, larger with its pixels left visible.
fn resized(frame: &RgbImage, size: (u32, u32)) -> RgbImage {
    let filter = if size.1 < frame.height() { FilterType::Triangle } else { FilterType::Nearest };
    imageops::resize(frame, size.0, size.1, filter)
}

/// `name` and `caption` in one line no wider than `width` pixels, cut where it must be: the caption at its end, the
/// name at its beginning, since a path's end tells more.
fn label(name: &str, caption: &str, width: u32) -> Result<String> {
    let plain = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let (name, caption) = (plain(name), plain(caption));
    let line = format!("{name}  {caption}").trim().to_owned();
    if fits(&line, width)? {
        return Ok(line);
    }
    if !fits(&format!("{name}…"), width)? {
        return longest(name.chars().count(), width, |n| {
            let skipped = name.chars().count() - n;
            format!("…{}", name.chars().skip(skipped).collect::<String>())
        });
    }
    longest(line.chars().count(), width, |n| format!("{}…", line.chars().take(n).collect::<String>().trim_end()))
}

/// The longest of `make(0)` to `make(most - 1)` that is no wider than `width` pixels, or `make(0)`.
fn longest(most: usize, width: u32, make: impl Fn(usize) -> String) -> Result<String> {
    let (mut low, mut high) = (0, most.clamp(1, 500)); // `low` characters fit, `high` do not
    while high - low > 1 {
        let middle = (low + high) / 2;
        if fits(&make(middle), width)? { low = middle } else { high = middle }
    }
    Ok(make(low))
}

fn fits(text: &str, width: u32) -> Result<bool> {
    style().font.box_size(text).map(|(w, _)| w <= width).map_err(drawing)
}

fn style() -> TextStyle<'static> {
    register_font();
    (FONT, CAPTION).into_font().into()
}

fn drawing(error: impl std::fmt::Display) -> crate::Error {
    crate::Error::Data(format!("drawing text on a contact sheet failed: {error}"))
}

/// Makes [`FONT`] known to plotters: the programme carries its font, so pictures look alike on every machine.
pub(crate) fn register_font() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // The bytes are part of the programme; a failure would show as an error at the first text drawn.
        let _ = plotters::style::register_font(FONT, FontStyle::Normal, dejavu::sans::regular());
        let _ = plotters::style::register_font(FONT, FontStyle::Bold, dejavu::sans::bold());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_label_keeps_the_paths_end_and_the_captions_beginning() {
        let path = "a/very/long/way/of/folders/down/to/where/it/lies/clip-0042.mp4";
        let short = label(path, "a cat", 150).unwrap();
        assert!(short.starts_with('…') && short.ends_with("/clip-0042.mp4") && short.len() < path.len(), "{short}");
        assert!(fits(&short, 150).unwrap());
        assert_eq!(label("clip.mp4", "a cat", 150).unwrap(), "clip.mp4  a cat");
        assert_eq!(label("", "sample 3: dog", 150).unwrap(), "sample 3: dog");
        let cut = label("clip.mp4", "a cat that walks over a long, long wall", 150).unwrap();
        assert!(cut.starts_with("clip.mp4  a cat") && cut.ends_with('…') && fits(&cut, 150).unwrap(), "{cut}");
        assert_eq!(label("a\nb", "", 150).unwrap(), "a b");
        assert!(label(&"x".repeat(100_000), "", 150).unwrap().chars().count() < 60);
    }
}
