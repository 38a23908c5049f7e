//! Draws the loss curve of a run as a PNG, from its metrics file.

use image::RgbImage;
use image::imageops::{self, FilterType};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Deserialize;
use std::path::Path;

use crate::data::contact_sheet::{FONT, register_font};
use crate::data::write::write_image;
use crate::files::gib;
use crate::observe::metrics;
use crate::{Error, Result, bail};

const SIZE: (u32, u32) = (1200, 720);
/// Everything is drawn so many times larger and then scaled down: plotters' wide lines have jagged edges.
const FINE: u32 = 2;
const INK: RGBColor = RGBColor(60, 64, 72);
const FAINT: RGBColor = RGBColor(226, 229, 234);
const TRAINING: RGBColor = RGBColor(31, 105, 180);
const HELDOUT: RGBColor = RGBColor(214, 96, 20);
/// Each point of the smoothed curve is made from this share of the run's steps, so that it looks alike for every
/// length.
const WINDOW: f64 = 0.03;
/// The smoothed curve has no more points than this.
const POINTS: usize = 400;
/// Losses that are drawn at most. Of a longer run every second, fourth, ... is drawn, so that memory does not grow with
/// the run.
const DRAWN: usize = 20_000;
/// Losses above this are drawn as this: the search for round numbers beside the axis does not end for much larger ones.
const HIGHEST: f64 = 1e30;
/// Memory that drawing takes at most: the large picture, what shrinks it, the points.
const ROOM: usize = 64 << 20;

/// Draws training loss, raw and smoothed, and held-out loss over steps: `metrics` (JSON lines) to the PNG `out`.
///
/// # Errors
/// There is no record yet, or a damaged one; there is no memory for the picture; it cannot be written.
pub fn loss_curve(metrics: &Path, out: &Path) -> Result<()> {
    // Later, within the libraries that draw, a lack of memory would end the process.
    if Vec::<u8>::new().try_reserve_exact(ROOM).is_err() {
        bail!(
            Environment,
            "{}: there is no memory left to draw it, which takes up to {}",
            out.display(),
            gib(ROOM as u64)
        );
    }
    let (mut raw, mut heldout) = (Thinned::default(), Thinned::default());
    metrics::each(metrics, |Losses { step, loss, heldout: heldout_loss }| {
        raw.push((step as f64, loss.min(HIGHEST)));
        if let Some(loss) = heldout_loss {
            heldout.push((step as f64, loss.min(HIGHEST)));
        }
    })?;
    let (raw, heldout) = (raw.finish(), heldout.finish());
    if raw.is_empty() {
        bail!(Checkpoint, "{}: no step to draw yet", metrics.display());
    }
    let size = (SIZE.0 * FINE, SIZE.1 * FINE);
    let mut picture = RgbImage::from_pixel(size.0, size.1, image::Rgb([255, 255, 255]));
    {
        let area = BitMapBackend::with_buffer(&mut picture, size).into_drawing_area();
        draw(&area, &raw, &heldout)
            .map_err(|e| Error::Data(format!("{}: drawing the curve failed: {e}", out.display())))?;
        area.present().map_err(|e| Error::Data(format!("{}: {e}", out.display())))?;
    }
    write_image(out, &imageops::resize(&picture, SIZE.0, SIZE.1, FilterType::Triangle))
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// What is drawn of a record.
#[derive(Deserialize)]
struct Losses {
    step: u64,
    loss: f64,
    heldout: Option<f64>,
}

/// Some of a long row of points: each `1 << halved`-th, as few as it takes to have no more than [`DRAWN`].
#[derive(Default)]
struct Thinned {
    points: Vec<(f64, f64)>,
    seen: u64,
    halved: u32,
    last: Option<(f64, f64)>,
}

impl Thinned {
    fn push(&mut self, point: (f64, f64)) {
        if self.seen.is_multiple_of(1 << self.halved) {
            self.points.push(point);
        }
        (self.seen, self.last) = (self.seen + 1, Some(point));
        if self.points.len() > DRAWN {
            let mut number = 0;
            self.points.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            self.halved += 1;
        }
    }

    /// The points, the last one among them.
    fn finish(mut self) -> Vec<(f64, f64)> {
        self.points.extend(self.last.filter(|last| self.points.last() != Some(last)));
        self.points
    }
}

fn draw(area: &DrawingArea<BitMapBackend<'_>, Shift>, raw: &[(f64, f64)], heldout: &[(f64, f64)]) -> Drawn {
    register_font();
    let text = |size: f64| TextStyle::from((FONT, size * FINE as f64).into_font()).color(&INK);
    let smooth = smoothed(raw);
    let (low, high) = range(raw, heldout);
    let (first, last) = (raw[0].0 - 1.0, raw[raw.len() - 1].0);

    let mut chart = ChartBuilder::on(area)
        .margin(28 * FINE)
        .x_label_area_size(52 * FINE)
        .y_label_area_size(72 * FINE)
        .build_cartesian_2d(first..last, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.5))
        .x_labels((last - first + 1.0).min(10.0) as usize)
        .y_labels(8)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| label(*y, high - low))
        .label_style(text(17.0))
        .axis_desc_style(text(19.0))
        .x_desc("step")
        .y_desc("loss")
        .draw()?;

    chart.draw_series(LineSeries::new(raw.iter().copied(), TRAINING.mix(0.45)))?;
    let named = |name: &str, points: &[(f64, f64)]| {
        format!("{name}  {}", label(points[points.len() - 1].1, (high - low) / 100.0))
    };
    let line = |color: RGBColor| {
        move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 26 * FINE as i32, y)], color.stroke_width(2 * FINE))
    };
    chart
        .draw_series(LineSeries::new(smooth.iter().copied(), TRAINING.stroke_width(2 * FINE)))?
        .label(named("training", &smooth))
        .legend(line(TRAINING));
    if smooth.len() == 1 {
        // A line of one point would not be seen.
        chart.draw_series(smooth.iter().map(|&p| Circle::new(p, 4 * FINE, TRAINING.filled())))?;
    }
    if !heldout.is_empty() {
        chart
            .draw_series(LineSeries::new(heldout.iter().copied(), HELDOUT.stroke_width(2 * FINE)))?
            .label(named("held out", heldout))
            .legend(line(HELDOUT));
        if heldout.len() <= 60 {
            chart.draw_series(heldout.iter().map(|&p| Circle::new(p, 4 * FINE, HELDOUT.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(14 * FINE)
        .legend_area_size(36 * FINE)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(text(18.0))
        .draw()?;
    Ok(())
}

/// The losses without their noise, at even distances: for each point the mean of the middle half of the losses around
/// it, which neither lags behind a falling loss nor follows a spike. The window shrinks towards the start, where the
/// loss falls steeply, and is cut off at the end.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let n = points.len();
    let reach = (n as f64 * WINDOW / 2.0).ceil() as usize;
    let shown = n.min(POINTS);
    let around = |k: usize| {
        let i = if shown == 1 { 0 } else { k * (n - 1) / (shown - 1) };
        let reach = reach.min(i);
        let mut losses: Vec<f64> = points[i - reach..n.min(i + reach + 1)].iter().map(|p| p.1).collect();
        losses.sort_by(f64::total_cmp);
        let middle = &losses[losses.len() / 4..losses.len() - losses.len() / 4];
        (points[i].0, middle.iter().sum::<f64>() / middle.len() as f64)
    };
    (0..shown).map(around).collect()
}

/// The losses shown: all but the highest hundredth of the raw ones, so that a spike does not flatten the curve.
fn range(raw: &[(f64, f64)], heldout: &[(f64, f64)]) -> (f64, f64) {
    let mut losses: Vec<f64> = raw.iter().map(|p| p.1).collect();
    losses.sort_by(f64::total_cmp);
    let top = losses[(losses.len() - 1) * 99 / 100];
    let high = heldout.iter().map(|p| p.1).fold(top, f64::max);
    let low = heldout.iter().map(|p| p.1).fold(losses[0], f64::min);
    let room = (0.06 * (high - low)).max(1e-3 * high.abs()).max(1e-12);
    (low - room, high + room)
}

/// A number with as many decimals as a picture of `span` can tell apart.
fn label(value: f64, span: f64) -> String {
    let decimals = (2.0 - span.log10()).clamp(0.0, 9.0).floor() as usize;
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plot_thins_a_million_points_evenly() {
        for count in [1, 2, DRAWN, DRAWN + 1, 1_000_000] {
            let mut thinned = Thinned::default();
            (1..=count).for_each(|step| thinned.push((step as f64, 0.5)));
            let points = thinned.finish();
            assert!(points.len() <= DRAWN + 1 && points.len() >= count.min(DRAWN / 2), "{count}: {}", points.len());
            assert_eq!((points[0].0, points[points.len() - 1].0), (1.0, count as f64));
            let every = count.div_ceil(DRAWN).next_power_of_two() as f64;
            assert!(points.windows(2).rev().skip(1).all(|pair| pair[1].0 - pair[0].0 == every), "{count}: uneven");
        }
    }
}
