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

    /// What `clip` gets in `epoch` of a run with `seed`.
    pub fn draw(options: &ClipOptions, seed: u64, epoch: u64, clip: usize) -> Self {
        let key = |purpose| Key { seed, purpose, step: epoch, sample: clip as u64 };
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
    fn get(&self, seed: u64, epoch: u64, count: usize) -> Arc<Vec<usize>> {
        let mut known = self.0.lock();
        if let Some(shuffle) = known.iter().find(|o| (o.seed, o.epoch) == (seed, epoch)) {
            return shuffle.clips.clone();
        }
        let key = Key { seed, purpose: Purpose::Order, step: epoch, sample: 0 };
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
        let count = self.len() as u64;
        let epoch = position / count;
        (self.shuffles.get(seed, epoch, self.len())[(position % count) as usize], epoch)
    }

    /// What is trained on at `position` of a run with `seed`.
    pub fn training(&self, seed: u64, position: u64) -> Request {
        let (clip, epoch) = self.clip_at(seed, position);
        Request { clip, epoch, augment: Augment::draw(self.options(), seed, epoch, clip) }
    }

    /// `clip` as it is, for held-out loss and reports.
    pub fn plain(&self, clip: usize) -> Request {
        Request { clip, epoch: 0, augment: Augment::PLAIN }
    }
}
