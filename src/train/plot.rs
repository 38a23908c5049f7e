//! The loss curve of a run as a PNG, from its metrics file.

use image::RgbImage;
use plotters::coord::Shift;
use plotters::prelude::*;
use std::path::Path;

use super::metrics::{self, Record};
use crate::data::sheet::{FONT, register_font};
use crate::data::write::write_image;
use crate::{Error, Result, bail};

const SIZE: (u32, u32) = (1200, 720);
const INK: RGBColor = RGBColor(60, 64, 72);
const FAINT: RGBColor = RGBColor(226, 229, 234);
const TRAINING: RGBColor = RGBColor(31, 105, 180);
const HELDOUT: RGBColor = RGBColor(214, 96, 20);
/// The smoothed curve is a moving mean whose memory is this share of the run, and so looks alike for every length.
const SMOOTHING: f64 = 0.02;

/// Draws training loss, raw and smoothed, and held-out loss over steps: `metrics` (JSON lines) to the PNG `out`.
/// Fails if there is no record yet.
pub fn loss_curve(metrics: &Path, out: &Path) -> Result<()> {
    let records = metrics::read(metrics)?;
    if records.is_empty() {
        bail!("{}: no step to draw yet", metrics.display());
    }
    let mut picture = RgbImage::from_pixel(SIZE.0, SIZE.1, image::Rgb([255, 255, 255]));
    {
        let area = BitMapBackend::with_buffer(&mut picture, SIZE).into_drawing_area();
        draw(&area, &records)
            .map_err(|e| Error::Invalid(format!("{}: drawing the curve failed: {e}", out.display())))?;
        area.present().map_err(|e| Error::Invalid(format!("{}: {e}", out.display())))?;
    }
    write_image(out, &picture)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(area: &DrawingArea<BitMapBackend<'_>, Shift>, records: &[Record]) -> Drawn {
    register_font();
    let text = |size: f64| TextStyle::from((FONT, size).into_font()).color(&INK);
    let raw: Vec<(f64, f64)> = records.iter().map(|r| (r.step as f64, r.loss)).collect();
    let smooth = smoothed(&raw);
    let heldout: Vec<(f64, f64)> = records.iter().filter_map(|r| Some((r.step as f64, r.heldout?))).collect();
    let (low, high) = range(&raw, &heldout);
    let (first, last) = (raw[0].0, raw[raw.len() - 1].0.max(raw[0].0 + 1.0));

    let mut chart = ChartBuilder::on(area)
        .margin(28)
        .x_label_area_size(52)
        .y_label_area_size(72)
        .build_cartesian_2d(first..last, low..high)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .bold_line_style(FAINT)
        .axis_style(INK.mix(0.5))
        .x_labels(10)
        .y_labels(8)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| label(*y, high - low))
        .label_style(text(17.0))
        .axis_desc_style(text(19.0))
        .x_desc("step")
        .y_desc("loss")
        .draw()?;

    chart.draw_series(LineSeries::new(raw.iter().copied(), TRAINING.mix(0.25)))?;
    let named =
        |name: &str, points: &[(f64, f64)]| format!("{name}  {}", label(points[points.len() - 1].1, high - low));
    let line =
        |color: RGBColor| move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 26, y)], color.stroke_width(3));
    chart
        .draw_series(LineSeries::new(smooth.iter().copied(), TRAINING.stroke_width(3)))?
        .label(named("training", &smooth))
        .legend(line(TRAINING));
    if smooth.len() == 1 {
        chart.draw_series(smooth.iter().map(|&p| Circle::new(p, 4, TRAINING.filled())))?; // a line of one point is none
    }
    if !heldout.is_empty() {
        chart
            .draw_series(LineSeries::new(heldout.iter().copied(), HELDOUT.stroke_width(3)))?
            .label(named("held out", &heldout))
            .legend(line(HELDOUT));
        if heldout.len() <= 60 {
            chart.draw_series(heldout.iter().map(|&p| Circle::new(p, 4, HELDOUT.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .margin(14)
        .legend_area_size(36)
        .background_style(WHITE.mix(0.85))
        .border_style(FAINT)
        .label_font(text(18.0))
        .draw()?;
    Ok(())
}

/// An exponential moving mean of the losses, without the pull of its start (divided by the sum of its weights).
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let memory = (points.len() as f64 * SMOOTHING).max(1.0);
    let (keep, mut sum, mut weight) = (1.0 - 1.0 / memory, 0.0, 0.0);
    let mean = |&(step, loss): &(f64, f64)| {
        sum = keep * sum + loss;
        weight = keep * weight + 1.0;
        (step, sum / weight)
    };
    points.iter().map(mean).collect()
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
