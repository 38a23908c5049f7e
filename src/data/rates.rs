//! Frame rates of clips: the one that samples have, and whether rates are mixed.

use super::dataset::Dataset;
use super::sets::ClipSets;
use super::source::SourceFile;

/// Rates that differ by less than this share count as one: 23.976 and 24 do, 24 and 25 do not.
const SAME: f64 = 0.01;

impl Dataset {
    /// Frames per second of its clips, which is that of samples too: `data.fps`, else the files' own, of which the
    /// median clip has it, divided by `data.stride`. None if all are images.
    pub fn rate(&self) -> Option<f64> {
        let of_clips = |file: &SourceFile| Some((rate(file)? / file.options.stride as f64, file.clips * file.repeats));
        let mut rates: Vec<(f64, usize)> = self.files().iter().filter_map(of_clips).collect();
        rates.sort_by(|a, b| a.0.total_cmp(&b.0));
        let clips: usize = rates.iter().map(|rate| rate.1).sum();
        let mut before = 0;
        let median = rates.iter().find(|rate| {
            before += rate.1;
            2 * before >= clips
        });
        median.map(|rate| rate.0)
    }

    /// Says that files of several frame rates are mixed, where `data.fps` does not make them one: the same motion is
    /// then shown at several speeds.
    pub fn mixed_rates(&self) -> Option<String> {
        mixed(self.files().iter())
    }
}

impl ClipSets {
    /// The same of all its buckets together.
    pub fn mixed_rates(&self) -> Option<String> {
        mixed(self.buckets().iter().flat_map(|dataset| dataset.files()))
    }
}

/// Frames per second that a video is shown at before frames are left out.
fn rate(file: &SourceFile) -> Option<f64> {
    Some(file.options.fps.unwrap_or(file.rate?))
}

fn mixed<'a>(files: impl Iterator<Item = &'a SourceFile>) -> Option<String> {
    let videos: Vec<&SourceFile> = files.filter(|file| file.options.frames > 1).collect();
    let mut rates: Vec<f64> = videos.iter().filter_map(|file| rate(file)).collect();
    rates.sort_by(f64::total_cmp);
    let mut kinds: Vec<f64> = Vec::new();
    for rate in rates {
        if kinds.last().is_none_or(|known| rate > known * (1.0 + SAME)) {
            kinds.push(rate);
        }
    }
    if kinds.len() < 2 || videos.iter().all(|file| file.options.fps.is_some()) {
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
