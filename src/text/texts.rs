//! Holds the hidden states of all texts while their layers pass by, and hands them out in runs of a few at a time.

use crate::Result;

/// Tokens of a run: few enough that what lies between them takes little memory. A layer's weights are kept while there
/// are further runs.
const RUN: usize = 2048;

/// Hidden states of texts, `[n, width]` each.
pub(super) struct Texts<'a> {
    runs: Vec<Run>,
    width: usize,
    /// Calls of [`each_run`](Self::each_run) until all is done.
    passes: usize,
    done: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

/// Texts that are computed together.
struct Run {
    /// Rows one text after the other.
    state: Vec<f32>,
    /// Tokens of each.
    lengths: Vec<usize>,
}

impl<'a> Texts<'a> {
    /// Of texts of ids, with the states that `embed` gives to some of them, one after the other. `progress` is told the
    /// runs that are done and all there will be in `passes`.
    ///
    /// # Errors
    /// Those of `embed`.
    pub fn new(
        texts: &[Vec<u32>],
        width: usize,
        embed: impl Fn(&[&[u32]]) -> Result<Vec<f32>>,
        passes: usize,
        progress: &'a mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let mut groups: Vec<Vec<&[u32]>> = vec![];
        let mut tokens = 0;
        for ids in texts {
            match groups.last_mut() {
                Some(group) if tokens + ids.len() <= RUN => group.push(ids),
                _ => {
                    groups.push(vec![ids]);
                    tokens = 0;
                }
            }
            tokens += ids.len();
        }
        let run = |group: Vec<&[u32]>| {
            Ok(Run { state: embed(&group)?, lengths: group.iter().map(|ids| ids.len()).collect() })
        };
        let runs = groups.into_iter().map(run).collect::<Result<_>>()?;
        Ok(Self { runs, width, passes, done: 0, progress })
    }

    /// How many runs there are.
    pub fn runs(&self) -> usize {
        self.runs.len()
    }

    /// Tokens of the longest text.
    pub fn longest(&self) -> usize {
        self.runs.iter().flat_map(|run| &run.lengths).copied().max().unwrap_or(1)
    }

    /// Replaces the states of each run of texts by what `pass` makes of them: rows one text after the other, and the
    /// texts' lengths.
    ///
    /// # Errors
    /// Those of `pass`.
    pub fn each_run(&mut self, pass: impl Fn(Vec<f32>, &[usize]) -> Result<Vec<f32>>) -> Result<()> {
        let all = self.passes * self.runs.len();
        for run in &mut self.runs {
            run.state = pass(std::mem::take(&mut run.state), &run.lengths)?;
            self.done += 1;
            (self.progress)(self.done, all);
        }
        Ok(())
    }

    /// The state of each text.
    pub fn into_states(self) -> Vec<Vec<f32>> {
        let mut states = vec![];
        for Run { state, lengths } in self.runs {
            let mut rest = state.as_slice();
            for n in lengths {
                let (own, others) = rest.split_at(n * self.width);
                states.push(own.to_vec());
                rest = others;
            }
        }
        states
    }
}
