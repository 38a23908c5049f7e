//! Measures a rehearsal's memory, the process's peak and the buffers in use by phase of a step, to compare it with the
//! plan.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::allocator;
use crate::observe::meter::Phase;
use crate::observe::process::memory;
use crate::plan::Plan;

/// Predicted and measured bytes.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// The process's peak, resident.
    pub process: [u64; 2],
    /// Large blocks of memory in use, at most; measured in programs with [`allocator::Allocator`] only, as are phases.
    pub buffers: [u64; 2],
    /// The same in each phase of a step. Empty with several ranks, which are in different phases at a time.
    pub phases: Vec<(&'static str, [u64; 2])>,
}

impl Rehearsal {
    /// `plan` beside what the ranks have seen and the process's peak so far.
    pub(super) fn new(plan: &Plan, seen: &[Seen]) -> Self {
        let peak = seen.iter().flat_map(BTreeMap::values).max().copied().unwrap_or(0);
        let phases = match (&plan.ranks[..], seen) {
            ([rank], [seen]) => {
                let measured = |name| seen.iter().find(|(phase, _)| phase.is_some_and(|phase| phase.name() == name));
                let both = |phase: &crate::plan::Phase| Some((phase.name, [phase.bytes(), *measured(phase.name)?.1]));
                rank.phases.iter().filter_map(both).collect()
            }
            _ => vec![],
        };
        Self { process: [plan.total(), memory().peak], buffers: [plan.buffers(), peak], phases }
    }
}

/// The most in use in each phase; before the first one, under no name.
pub(super) type Seen = BTreeMap<Option<Phase>, u64>;

/// Keeps the most that each phase of a rank had in use. Ranks share what they measure: the most of all of them is the
/// process's.
#[derive(Default)]
pub(super) struct Phases {
    phase: Cell<Option<Phase>>,
    seen: RefCell<Seen>,
}

impl Phases {
    /// A phase begins: what was in use since the last call belongs to the one before.
    pub fn enter(&self, phase: Phase) {
        let peak = allocator::most_in_use() as u64;
        let mut seen = self.seen.borrow_mut();
        let entry = seen.entry(self.phase.replace(Some(phase))).or_default();
        *entry = peak.max(*entry);
    }

    /// All is done.
    pub fn finish(self) -> Seen {
        self.enter(Phase::Update);
        self.seen.into_inner()
    }
}
