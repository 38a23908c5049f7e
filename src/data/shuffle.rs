//! Shuffles clips over the positions of a run, and draws how each is cropped and mirrored there.
//!
//! Positions count the clips of a run, epoch after epoch; each epoch goes through all clips once, in an order of its
//! own. A position names everything, so a resume is a number, and data ranks need only take different positions.

use super::Dataset;
use super::options::{ClipOptions, Crop};
use crate::rng::{Key, Purpose};
use parking_lot::Mutex;
use std::sync::Arc;

/// How a clip is cropped and mirrored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Augment {
    /// Where the crop lies in what the resized frame leaves over, (down, across), each in [0, 1].
    pub crop: [f64; 2],
    /// Mirrored left to right.
    pub flip: bool,
}

impl Augment {
    /// The crop in the middle, not mirrored: for held-out clips and reports.
    pub const PLAIN: Self = Self { crop: [0.5; 2], flip: false };

    /// What `sample` (a clip, in a dataset without repeats) gets in `epoch` of a run with `seed`.
    pub fn draw(options: &ClipOptions, seed: u64, epoch: u64, sample: u64) -> Self {
        let key = |purpose| Key { seed, purpose, step: epoch, sample };
        let crop = match options.crop {
            Crop::Center => Self::PLAIN.crop,
            Crop::Random => {
                let mut stream = key(Purpose::Crop).stream(0);
                [stream.uniform(), stream.uniform()]
            }
        };
        Self { crop, flip: options.flip && key(Purpose::Flip).stream(0).below(2) == 1 }
    }
}

/// A clip to be decoded, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Request {
    /// Index of the bucket that the dataset is of; 0 where there is one.
    pub bucket: usize,
    /// Index of the clip in its dataset.
    pub clip: usize,
    /// Which time the clips are gone through, from 0.
    pub epoch: u64,
    /// How it is cropped and mirrored.
    pub augment: Augment,
}

/// Permutations of the epochs last asked for.
#[derive(Debug, Default)]
pub(super) struct Shuffles(Mutex<Vec<Shuffle>>);

#[derive(Debug)]
struct Shuffle {
    seed: u64,
    epoch: u64,
    clips: Arc<Vec<usize>>,
}

impl Shuffles {
    fn get(&self, seed: u64, epoch: u64, number: u64, count: usize) -> Arc<Vec<usize>> {
        let mut known = self.0.lock();
        if let Some(shuffle) = known.iter().find(|o| (o.seed, o.epoch) == (seed, epoch)) {
            return shuffle.clips.clone();
        }
        let key = Key { seed, purpose: Purpose::Order, step: epoch, sample: number };
        let clips = Arc::new(key.stream(0).permutation(count));
        if known.len() == 2 {
            known.remove(0); // a batch lies in two epochs at most, unless there are fewer clips than that
        }
        known.push(Shuffle { seed, epoch, clips: clips.clone() });
        clips
    }
}

impl Dataset {
    /// The clip at `position` of a run with `seed`, and its epoch.
    pub fn clip_at(&self, seed: u64, position: u64) -> (usize, u64) {
        let (clip, _, epoch) = self.repeat_at(seed, position);
        (clip, epoch)
    }

    /// The clip at `position`, which of its repeats that is, and the epoch.
    fn repeat_at(&self, seed: u64, position: u64) -> (usize, usize, u64) {
        let count = self.clips_of_an_epoch();
        let (epoch, place) = (position / count as u64, (position % count as u64) as usize);
        let (clip, repeat) = self.repeated(self.shuffles.get(seed, epoch, self.number, count)[place]);
        (clip, repeat, epoch)
    }

    /// What is trained on at `position` of a run with `seed`.
    pub fn training(&self, seed: u64, position: u64) -> Request {
        let (clip, repeat, epoch) = self.repeat_at(seed, position);
        // Numbers of clips are below 2^32, and each repeat and each bucket draws for itself.
        let sample = clip as u64 + ((repeat as u64) << 32) + (self.number << 52);
        let options = &self.files[self.file_of(clip)].options;
        Request { bucket: self.number as usize, clip, epoch, augment: Augment::draw(options, seed, epoch, sample) }
    }

    /// `clip` as it is, for held-out loss and reports.
    pub fn plain(&self, clip: usize) -> Request {
        Request { bucket: self.number as usize, clip, epoch: 0, augment: Augment::PLAIN }
    }
}
