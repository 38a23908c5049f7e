//! Maps a rank's rows to modulations where tokens of one sample have different times, as in a clip whose first frame is
//! given.
//!
//! A sample has few times (two, where a frame is given), so it has few modulations, and its tokens a number each; not a
//! modulation a token, which would be six rows of the network's width. Tiles end where the time changes, so that all
//! rows of a tile have one modulation.

use std::ops::Range;

use crate::ops::Rows;
use crate::{Result, bail};

/// Which of its sample's times each token has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeGroups {
    /// How many times each sample has.
    pub count: usize,
    /// The group of each token of each sample, `[B, N]`, a number below `count`.
    pub of_token: Vec<usize>,
}

impl TimeGroups {
    /// Groups tokens of equal times: `timesteps` `[B, N]` has one a token. Returns the times of each sample's groups
    /// too, `[B, count]`; a sample of fewer times than another repeats its first.
    pub fn of_timesteps(timesteps: &[f64], tokens: usize) -> (Self, Vec<f64>) {
        let mut of_token = Vec::with_capacity(timesteps.len());
        let mut times: Vec<Vec<f64>> = vec![];
        for sample in timesteps.chunks_exact(tokens) {
            let mut distinct: Vec<f64> = vec![];
            for &time in sample {
                let found = distinct.iter().position(|&other| other == time);
                of_token.push(found.unwrap_or(distinct.len()));
                if found.is_none() {
                    distinct.push(time);
                }
            }
            times.push(distinct);
        }
        let count = times.iter().map(Vec::len).max().unwrap_or(0);
        times.iter_mut().for_each(|times| times.resize(count, times[0]));
        (Self { count, of_token }, times.concat())
    }

    /// The groups of a rank's rows: those of `local` of each of `batch` samples of `tokens` tokens.
    ///
    /// # Errors
    /// There is not a group below `count` for each token.
    pub fn of_rows(&self, batch: usize, tokens: usize, local: Range<usize>) -> Result<RowGroups> {
        let given = self.of_token.len();
        if given != batch * tokens {
            bail!(Shape, "{given} groups of times; one for each of {tokens} tokens of {batch} samples is wanted")
        }
        if let Some(group) = self.of_token.iter().find(|&&group| group >= self.count) {
            bail!(Shape, "a token is of group {group} of times; each sample has {}", self.count)
        }
        let mut runs: Vec<(Range<usize>, usize)> = vec![];
        for row in 0..batch * local.len() {
            let (sample, token) = (row / local.len(), local.start + row % local.len());
            let modulation = sample * self.count + self.of_token[sample * tokens + token];
            match runs.last_mut() {
                Some((rows, last)) if *last == modulation => rows.end = row + 1,
                _ => runs.push((row..row + 1, modulation)),
            }
        }
        Ok(RowGroups { count: self.count, runs })
    }
}

/// The modulation of each of a rank's rows.
#[derive(Debug)]
pub struct RowGroups {
    /// How many times each sample has.
    pub count: usize,
    /// Runs of rows of one modulation, in order, and its number.
    runs: Vec<(Range<usize>, usize)>,
}

impl RowGroups {
    /// Runs of rows of one modulation, in order.
    pub fn runs(&self) -> impl Iterator<Item = Range<usize>> {
        self.runs.iter().map(|(rows, _)| rows.clone())
    }

    /// The rows of a tile that lies within a run, as rows of its modulation.
    pub fn modulations(&self, tile: Rows) -> Rows {
        let run = self.runs.partition_point(|(rows, _)| rows.end <= tile.start);
        let (rows, modulation) = &self.runs[run];
        Rows { start: modulation * rows.len() + tile.start - rows.start, tokens: rows.len() }
    }
}
