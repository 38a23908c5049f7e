//! [`Keeper`]: who holds the parameters is told when a unit is wanted and when it is not any more.
//!
//! The engine walks through the model a unit at a time, forward and then back, so of parameters and gradients that are sharded over
//! ranks no more than a unit need be there at once. How they are sharded is not known here.

use super::Engine;
use crate::Result;

/// What a unit is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Its parameters.
    Forward,
    /// Its parameters, and its gradient to add to.
    Backward,
}

/// Holds a model's parameters and gradients. Units are numbered as in [`Model::units`](crate::model::Model::units).
///
/// All ranks are told the same in the same order, so that a keeper may call collectives.
pub trait Keeper {
    /// The unit is used from here on.
    fn begin(&self, unit: usize, pass: Pass) -> Result<()>;

    /// It is not used any more; after [`Pass::Backward`], its gradient is that of this micro-batch on this rank.
    fn end(&self, unit: usize, pass: Pass) -> Result<()>;
}

impl Engine<'_> {
    /// Does `work`, which uses unit number `unit`.
    pub(super) fn with_unit<T>(&self, unit: usize, pass: Pass, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(keeper) = self.keeper else { return work() };
        keeper.begin(unit, pass)?;
        let result = work()?;
        keeper.end(unit, pass)?;
        Ok(result)
    }

    /// The head's unit; the embedding's is 0, block i's is i + 1.
    pub(super) fn head_unit(&self) -> usize {
        self.model.units.len() - 1
    }
}
