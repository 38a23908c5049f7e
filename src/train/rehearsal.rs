//! Rehearses a run: steps without attention's arithmetic, whose memory, the process's peak and the buffers in use by
//! phase, is compared with the plan.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::rank::Rank;
use super::setup::{RunSetup, Start};
use crate::config::RunConfig;
use crate::data::Turn;
use crate::engine::{Engine, stash};
use crate::observe::meter::{Phase, Section, StepTimes};
use crate::observe::process::memory;
use crate::parallel::Launch;
use crate::plan::{Plan, REHEARSED};
use crate::{Result, allocator};

/// Runs steps as `config` says, but without attention's arithmetic: memory, messages and stash are unchanged, values
/// mean nothing. Saves nothing.
pub fn rehearse(mut config: RunConfig, launch: &Launch) -> Result<Rehearsal> {
    config.run.out.push("rehearsal"); // never made; a run that is there already is no hindrance
    let setup = RunSetup::open(config, Start::New, launch, None)?;
    let plan = Plan::with_decoding(&setup.largest_config()?, &setup.model, true, Some(&setup.decoding()))?;
    stash::check_room(&setup.config.stash, setup.model.num_layers, &setup.stashed()?)?;
    let done = launch.run(setup.config.parallel.ranks, |comm| Rank::new(&setup, comm, Arc::default())?.rehearse())?;
    let (spent, seen): (Vec<StepTimes>, Vec<Seen>) = done.into_iter().unzip();
    let (steps, tokens) = (REHEARSED.min(setup.config.train.steps), setup.tokens_of(setup.largest()?)?);
    tracing::info!("{}", spent[0].table(steps, tokens));
    Ok(Rehearsal::new(&plan, &seen))
}

impl Rank<'_> {
    /// Two steps without attention's arithmetic; where their time went, and what memory they had in use.
    fn rehearse(&self) -> Result<(StepTimes, Seen)> {
        let phases = Phases::default();
        let enter = |phase| phases.enter(phase);
        // The largest clips need most.
        let largest = self.setup.largest()?;
        let engines: Vec<Engine> =
            self.engines()?.into_iter().map(|engine| engine.on_phase(&enter).rehearsing()).collect();
        let steps = REHEARSED.min(self.setup.config.train.steps);
        let batch = self.global_batch();
        let turns = (0..steps).map(move |step| Turn { bucket: largest, position: step * batch });
        let mut loader = self.loader(&engines, turns)?;
        let mut spent = StepTimes::default();
        for step in 0..steps {
            let loss = self.gradients(&engines[largest], largest, &mut loader, step)?;
            self.meter.during(Section::Optimizer, || self.update(step, loss, 0.0))?;
            spent.add(&self.meter.end());
        }
        drop((engines, loader));
        Ok((spent, phases.finish()))
    }
}

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
