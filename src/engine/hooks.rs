//! Calls hooks before and after the engine uses a unit's parameters, to gather and release sharded parameters.
//!
//! The engine goes through the model a unit at a time, forward and then backward. So of parameters and gradients that
//! are sharded over ranks, no more than a unit need be gathered at once. How they are sharded is not known here.

use super::Engine;
use crate::Result;
use crate::model::UnitId;

/// What a unit is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Its parameters.
    Forward,
    /// Its parameters, and its gradient to add to.
    Backward,
}

/// The owner of a model's parameters and gradients.
///
/// All ranks call the same hooks in the same order, so that a hook may call collectives.
pub trait ParamHooks {
    /// Called before the engine uses the unit (FSDP: unshard).
    fn before_use(&self, unit: UnitId, pass: Pass) -> Result<()>;

    /// Called after the engine has used the unit (FSDP: reshard). After [`Pass::Backward`], its gradient is that of
    /// this micro-batch on this rank.
    fn after_use(&self, unit: UnitId, pass: Pass) -> Result<()>;
}

impl Engine<'_> {
    /// Does `work`, which uses `unit` and its adapters.
    pub(super) fn with_unit<T>(&self, unit: UnitId, pass: Pass, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(hooks) = self.hooks else { return work() };
        let mut units: Vec<UnitId> = [Some(unit), self.model.unit(unit).adapter].into_iter().flatten().collect();
        if pass == Pass::Backward {
            units.reverse(); // each unit's turn is where the last pass leads to
        }
        units.iter().try_for_each(|&unit| hooks.before_use(unit, pass))?;
        let result = work()?;
        units.iter().try_for_each(|&unit| hooks.after_use(unit, pass))?;
        Ok(result)
    }
}
