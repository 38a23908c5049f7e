//! Runs the samplers tile by tile: the same steps as [`Sampler::run`], the plain form of them, with the state changed
//! in place.
//!
//! A step is the same for every element, and the network has read the whole state before it gives its first velocity.
//! So each tile of velocities moves its tile of the state at once, and nothing of the state's size is held but the
//! state and what the sampler remembers: nothing for Euler, the velocity at the step's start for Heun, the last
//! prediction for DPM-Solver++, and two predictions and the state that they led from for UniPC. Both forms do the same
//! arithmetic, so results have the same bits.

use super::Sampler;
use super::options::SamplerKind;
use super::sampler::{Prediction, combine, correct, predict};
use crate::ops::bytes::set_rows;
use crate::{Result, bail};
use candle_core::Tensor;
use std::ops::Range;

/// Makes some rows of a state.
pub type Make<'a> = &'a dyn Fn(&Range<usize>) -> Result<Tensor>;

/// Takes some rows: which, the state there, and its velocity.
pub type Take<'a> = &'a mut dyn FnMut(Range<usize>, &Tensor, Tensor) -> Result<()>;

/// The velocity of a state that is made and moved tile by tile.
pub trait Velocity {
    /// Calls `take(rows, x, v)` for runs of rows, in any order, that together are all rows once: `x` is the state there
    /// as `state(rows)` gives it, `v` its velocity at `sigma`, which is above 0.
    ///
    /// `take` changes what `state` gives for its rows. So whatever is needed of all of the state is read before the
    /// first `take`, and after it only the rows that have not been taken.
    ///
    /// # Errors
    /// Those of `state`, `take` and the network.
    fn tiles(&mut self, state: Make, sigma: f64, take: Take) -> Result<()>;
}

/// A tensor `[rows, width]` of which runs of rows are read and written in place.
pub(crate) struct State(Tensor);

impl State {
    /// `x`, whose memory must not be used elsewhere from now on.
    pub(crate) fn new(x: Tensor) -> Result<Self> {
        Ok(Self(x.contiguous()?))
    }

    /// Zeros of the shape and dtype of `other`.
    pub(crate) fn like(other: &Tensor) -> Result<Self> {
        Ok(Self(other.zeros_like()?))
    }

    /// The rows: a view, good until they are set.
    pub(crate) fn rows(&self, rows: &Range<usize>) -> Result<Tensor> {
        Ok(self.0.narrow(0, rows.start, rows.len())?)
    }

    pub(crate) fn set(&self, rows: &Range<usize>, values: &Tensor) -> Result<()> {
        set_rows(&self.0, values, rows.start)
    }
}

impl SamplerKind {
    /// How many tensors of the state's size [`Sampler::run_in_tiles`] holds, the state itself counted.
    pub fn states(self) -> usize {
        match self {
            Self::Euler | Self::FlowEuler => 1,
            Self::Heun | Self::Dpmpp => 2,
            Self::Unipc | Self::WanUnipc => 4,
        }
    }
}

impl Sampler {
    /// Integrates from `x`, `[rows, width]` (f32 or f64), at the first sigma to the last, in the memory of `x`: nobody
    /// else may use it. The result has the bits of [`run`](Self::run)'s.
    ///
    /// # Errors
    /// Those of `velocity`, and a velocity of another shape or dtype.
    pub fn run_in_tiles(&self, x: Tensor, velocity: &mut dyn Velocity) -> Result<Tensor> {
        let x = State::new(x)?;
        match self.kind {
            SamplerKind::Euler | SamplerKind::FlowEuler => self.tiled_euler(&x, velocity)?,
            SamplerKind::Heun => self.tiled_heun(&x, velocity)?,
            SamplerKind::Dpmpp => self.tiled_dpmpp(&x, velocity)?,
            SamplerKind::Unipc | SamplerKind::WanUnipc => self.tiled_unipc(&x, velocity)?,
        }
        Ok(x.0)
    }

    fn tiled_euler(&self, x: &State, velocity: &mut dyn Velocity) -> Result<()> {
        for (from, to) in self.steps() {
            visit(velocity, &|rows| x.rows(rows), from, &mut |rows, state, v| {
                x.set(&rows, &combine(&[(1.0, state), (to - from, &v)])?)
            })?;
        }
        Ok(())
    }

    fn tiled_heun(&self, x: &State, velocity: &mut dyn Velocity) -> Result<()> {
        let first = State::like(&x.0)?;
        for (from, to) in self.steps() {
            visit(velocity, &|rows| x.rows(rows), from, &mut |rows, state, v| match to {
                0.0 => x.set(&rows, &combine(&[(1.0, state), (to - from, &v)])?),
                _ => first.set(&rows, &v),
            })?;
            if to == 0.0 {
                continue;
            }
            // The step's end is made when it is asked for: x is still needed.
            let end = |rows: &Range<usize>| combine(&[(1.0, &x.rows(rows)?), (to - from, &first.rows(rows)?)]);
            let half = 0.5 * (to - from);
            visit(velocity, &end, to, &mut |rows, _, v_end| {
                let (start, v) = (x.rows(&rows)?, first.rows(&rows)?);
                x.set(&rows, &combine(&[(1.0, &start), (half, &v), (half, &v_end)])?)
            })?;
        }
        Ok(())
    }

    fn tiled_dpmpp(&self, x: &State, velocity: &mut dyn Velocity) -> Result<()> {
        let clean = State::like(&x.0)?; // what was predicted at `previous`
        let mut previous: Option<f64> = None;
        for (from, to) in self.steps() {
            visit(velocity, &|rows| x.rows(rows), from, &mut |rows, state, v| {
                let current = Prediction::of(state, from, &v)?;
                let old = at(previous, &clean, &rows)?;
                x.set(&rows, &predict(state, &current, old.as_ref(), to)?)?;
                clean.set(&rows, &current.clean)
            })?;
            previous = Some(from);
        }
        Ok(())
    }

    fn tiled_unipc(&self, x: &State, velocity: &mut dyn Velocity) -> Result<()> {
        // Where the last step left from; the prediction there, `last`, and the one before, `previous`.
        let start = State::like(&x.0)?;
        let (mut newer, mut older) = (State::like(&x.0)?, State::like(&x.0)?);
        let (mut last, mut previous): (Option<f64>, Option<f64>) = (None, None);
        for (from, to) in self.steps() {
            visit(velocity, &|rows| x.rows(rows), from, &mut |rows, state, v| {
                let current = Prediction::of(state, from, &v)?;
                let at_start = at(last, &newer, &rows)?;
                let corrected = match &at_start {
                    Some(at_start) => {
                        let before = at(previous, &older, &rows)?;
                        correct(&start.rows(&rows)?, &current, at_start, before.as_ref())?
                    }
                    None => state.clone(),
                };
                let end = predict(&corrected, &current, at_start.as_ref(), to)?;
                start.set(&rows, &corrected)?;
                older.set(&rows, &current.clean)?; // the one before has been used
                x.set(&rows, &end)
            })?;
            std::mem::swap(&mut newer, &mut older);
            (previous, last) = (last, Some(from));
        }
        Ok(())
    }
}

/// Calls `velocity`, whose tiles must be as the state's.
fn visit(velocity: &mut dyn Velocity, state: Make, sigma: f64, take: Take) -> Result<()> {
    velocity.tiles(state, sigma, &mut |rows, x, v| {
        if v.shape() != x.shape() || v.dtype() != x.dtype() {
            let (got, want) = ((v.shape(), v.dtype()), (x.shape(), x.dtype()));
            bail!(Shape, "sampling at sigma = {sigma}, rows {rows:?}: the velocity is {got:?}, the state {want:?}");
        }
        take(rows, x, v)
    })
}

/// The rows of a prediction made at `sigma`, if there was one.
fn at(sigma: Option<f64>, clean: &State, rows: &Range<usize>) -> Result<Option<Prediction>> {
    sigma.map(|sigma| Ok(Prediction { sigma, clean: clean.rows(rows)? })).transpose()
}
