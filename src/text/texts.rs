//! Holds the hidden states of all texts while their layers pass by, and hands them out in runs of a few at a time.

use std::ops::Range;

use crate::Result;

/// Tokens of a run: enough for products of full speed, and little memory for what lies between them.
const RUN: usize = 1024;

/// Hidden states of texts, `[n, width]` each.
pub(super) struct Texts<'a> {
    states: Vec<Vec<f32>>,
    width: usize,
    /// Texts of each run.
    runs: Vec<Range<usize>>,
    /// Calls of [`each_run`](Self::each_run) until all is done.
    passes: usize,
    done: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl<'a> Texts<'a> {
    /// Of texts with these states. `progress` is told the runs that are done and all there will be in `passes`.
    pub fn new(states: Vec<Vec<f32>>, width: usize, passes: usize, progress: &'a mut dyn FnMut(usize, usize)) -> Self {
        let mut runs: Vec<Range<usize>> = vec![];
        let mut tokens = 0;
        for (i, state) in states.iter().enumerate() {
            let n = state.len() / width;
            match runs.last_mut() {
                Some(run) if tokens + n <= RUN => run.end = i + 1,
                _ => {
                    runs.push(i..i + 1);
                    tokens = 0;
                }
            }
            tokens += n;
        }
        Self { states, width, runs, passes, done: 0, progress }
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.states.iter().map(|state| state.len() / self.width).max().unwrap_or(0).max(1)
    }

    /// Replaces the states of each run of texts by what `pass` makes of them: rows one text after the other, and the
    /// texts' lengths.
    ///
    /// # Errors
    /// Those of `pass`.
    pub fn each_run(&mut self, pass: impl Fn(Vec<f32>, &[usize]) -> Result<Vec<f32>>) -> Result<()> {
        for run in self.runs.clone() {
            let states = &mut self.states[run];
            let lengths: Vec<usize> = states.iter().map(|state| state.len() / self.width).collect();
            let made = pass(states.concat(), &lengths)?;
            let mut rest = made.as_slice();
            for state in states {
                let (own, others) = rest.split_at(state.len());
                state.copy_from_slice(own);
                rest = others;
            }
            self.done += 1;
            (self.progress)(self.done, self.passes * self.runs.len());
        }
        Ok(())
    }

    /// The states.
    pub fn into_states(self) -> Vec<Vec<f32>> {
        self.states
    }
}
