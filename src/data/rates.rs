//! Frame rates of a dataset's clips: the one that samples have, and whether rates are mixed.

use super::dataset::Dataset;

/// Rates that differ by less than this share count as one: 23.976 and 24 do, 24 and 25 do not.
const SAME: f64 = 0.01;

impl Dataset {
    /// Frames per second of its clips, which is that of samples too: `data.fps`, else the files' own, of which the
    /// median clip has it, divided by `data.stride`. None if all are images.
    pub fn rate(&self) -> Option<f64> {
        let rates = rates(self);
        let clips: usize = rates.iter().map(|rate| rate.1).sum();
        let mut before = 0;
        let median = rates.iter().find(|rate| {
            before += rate.1;
            2 * before >= clips
        });
        let source = self.options().fps.filter(|_| !rates.is_empty()).or(median.map(|rate| rate.0))?;
        Some(source / self.options().stride as f64)
    }

    /// Says that files of several frame rates are mixed, where `data.fps` does not make them one: the same motion is
    /// then shown at several speeds.
    pub fn mixed_rates(&self) -> Option<String> {
        let mut kinds: Vec<f64> = Vec::new();
        for (rate, _) in rates(self) {
            if kinds.last().is_none_or(|known| rate > known * (1.0 + SAME)) {
                kinds.push(rate);
            }
        }
        if self.options().fps.is_some() || self.options().frames == 1 || kinds.len() < 2 {
            return None;
        }
        let text =
            |rate: f64| if (rate - rate.round()).abs() < 0.005 { format!("{rate:.0}") } else { format!("{rate:.2}") };
        let shown = match &kinds[..] {
            [few @ .., last] if few.len() < 5 => {
                let few: Vec<String> = few.iter().map(|&rate| text(rate)).collect();
                format!("{} and {}", few.join(", "), text(*last))
            }
            many => format!("{} to {}", text(many[0]), text(many[many.len() - 1])),
        };
        let lowest = text(kinds[0]);
        Some(format!(
            "files of {shown} frames per second are mixed, so motion is seen at several speeds: data.fps = {lowest} makes \
             them one"
        ))
    }
}

/// The rates of the videos, increasing, each with its clips.
fn rates(dataset: &Dataset) -> Vec<(f64, usize)> {
    let mut rates: Vec<(f64, usize)> =
        dataset.files().iter().filter_map(|file| Some((file.rate?, file.clips))).collect();
    rates.sort_by(|a, b| a.0.total_cmp(&b.0));
    rates
}
