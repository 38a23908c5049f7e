//! Orders a run's steps over its buckets, from the seed alone.
//!
//! Steps come in rounds. In the long run a bucket of `n` clips an epoch gets `n / batch` steps a round, so that every
//! clip is seen equally often, whatever its bucket: by the end of round r the bucket has had `ceil((r + 1) n / batch)`
//! steps. A round's steps are shuffled. Within a bucket clips go on from step to step, so none is left out, and a
//! bucket smaller than a batch fills it with several of its epochs. The step's number names everything: a resume is a
//! number, and ranks need not talk.

use crate::rng::{Key, Purpose};
use parking_lot::Mutex;

/// Which bucket each step of a run takes, and where in that bucket's clips it begins.
#[derive(Debug)]
pub struct BucketOrder {
    seed: u64,
    /// Clips that each bucket has in an epoch.
    clips: Vec<u64>,
    /// Clips of a step.
    batch: u64,
    /// The round last asked for.
    last: Mutex<Option<Round>>,
}

/// What a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Index of the bucket.
    pub bucket: usize,
    /// The first of its positions in that bucket, as [`Dataset::training`](super::Dataset::training) counts them.
    pub position: u64,
}

#[derive(Debug)]
struct Round {
    number: u64,
    turns: Vec<Turn>,
}

impl BucketOrder {
    /// The order of steps of `batch` clips over buckets that have `clips` clips in an epoch.
    pub fn new(seed: u64, clips: Vec<u64>, batch: u64) -> Self {
        Self { seed, clips, batch: batch.max(1), last: Mutex::default() }
    }

    /// What the step takes that begins at `position`, which counts the clips of the run. Of a run of several buckets
    /// it is a multiple of the batch.
    pub fn at(&self, position: u64) -> Turn {
        if self.clips.len() == 1 {
            return Turn { bucket: 0, position };
        }
        let step = position / self.batch;
        let mut last = self.last.lock();
        let number = self.round_of(step);
        let round = match last.take() {
            Some(round) if round.number == number => round,
            _ => self.round(number),
        };
        let turn = round.turns[(step - self.steps_before(number)) as usize];
        *last = Some(round);
        turn
    }

    /// Steps that a bucket has before a round.
    fn steps_of(&self, bucket: usize, round: u64) -> u64 {
        let steps = (u128::from(round) * u128::from(self.clips[bucket])).div_ceil(u128::from(self.batch));
        u64::try_from(steps).unwrap_or(u64::MAX)
    }

    /// Steps before a round.
    fn steps_before(&self, round: u64) -> u64 {
        (0..self.clips.len()).fold(0, |sum, bucket| sum.saturating_add(self.steps_of(bucket, round)))
    }

    /// The round that a step lies in.
    fn round_of(&self, step: u64) -> u64 {
        // Each bucket has a step in the first round, and a batch of steps in as many rounds.
        let (mut low, mut high) = (0, (step + 1).saturating_mul(self.batch));
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if self.steps_before(middle) <= step { low = middle } else { high = middle }
        }
        low
    }

    fn round(&self, number: u64) -> Round {
        let mut done: Vec<u64> = (0..self.clips.len()).map(|bucket| self.steps_of(bucket, number)).collect();
        let steps = |bucket| self.steps_of(bucket, number + 1) - done[bucket];
        let buckets: Vec<usize> =
            (0..done.len()).flat_map(|bucket| std::iter::repeat_n(bucket, steps(bucket) as usize)).collect();
        let key = Key { seed: self.seed, purpose: Purpose::Buckets, step: number, sample: 0 };
        let turn = |i: usize| {
            let bucket = buckets[i];
            done[bucket] += 1;
            Turn { bucket, position: (done[bucket] - 1) * self.batch }
        };
        let turns = key.stream(0).permutation(buckets.len()).into_iter().map(turn).collect();
        Round { number, turns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bucket_goes_on_from_any_position() {
        let order = BucketOrder::new(3, vec![5], 4);
        for position in [0, 4, 7, 1 << 40] {
            assert_eq!(order.at(position), Turn { bucket: 0, position });
        }
    }

    #[test]
    fn every_clip_is_seen_equally_often_and_none_vanishes() {
        let (clips, batch) = (vec![1, 10, 33, 3], 4);
        let order = BucketOrder::new(7, clips.clone(), batch);
        let mut next = [0; 4];
        let steps = 47 * 100;
        for step in 0..steps {
            let turn = order.at(step * batch);
            // A bucket's clips go on where its last step ended.
            assert_eq!(turn.position, next[turn.bucket], "step {step}");
            next[turn.bucket] += batch;
        }
        for (seen, clips) in next.iter().zip(&clips) {
            let times = *seen as f64 / *clips as f64;
            assert!((times - 400.0).abs() <= 4.0, "{next:?}");
        }
        // The one clip of the first bucket comes in the first round.
        assert!((0..1 + 3 + 9 + 1).any(|step| order.at(step * batch).bucket == 0));
    }

    #[test]
    fn a_step_has_its_bucket_in_whatever_order_one_asks() {
        let order = || BucketOrder::new(1, vec![6, 2, 9], 4);
        let forward: Vec<Turn> = { (0..60).map(|step| order().at(step * 4)).collect() };
        let one = order();
        let backward: Vec<Turn> = (0..60).rev().map(|step| one.at(step * 4)).collect();
        assert!(forward.iter().rev().eq(&backward));
        let other: Vec<Turn> = (0..60).map(|step| BucketOrder::new(2, vec![6, 2, 9], 4).at(step * 4)).collect();
        assert_ne!(forward, other, "the seed decides");
        let buckets: Vec<usize> = forward.iter().map(|turn| turn.bucket).collect();
        assert!(!buckets.is_sorted(), "{buckets:?}");
    }

    #[test]
    fn buckets_far_below_a_batch_have_rounds_without_a_step() {
        let order = BucketOrder::new(1, vec![1, 1], 1000);
        let turns: Vec<Turn> = (0..4).map(|step| order.at(step * 1000)).collect();
        let firsts: Vec<u64> =
            (0..2).map(|bucket| turns.iter().filter(|turn| turn.bucket == bucket).count() as u64).collect();
        assert_eq!(firsts, [2, 2], "{turns:?}");
    }
}
