//! The step meter counts a rank's operations, time and bytes during a step, and carries the request to stop.
//!
//! What a step is made of is in `section`: phases, in which the engine works, and sections, which the time belongs to.
//!
//! The rank's own work updates it, other threads read it. Work is counted in operations, one relaxed addition for
//! hundreds of rows of attention or a tile, so metering costs nothing that could be measured. Time always belongs to
//! exactly one [`Section`], so sections add up to the step. Who shows any of it, and who decides to stop, is not known
//! here.
//!
//! Each rank stops on its own, and stopping is never an error: remaining work is skipped and results are garbage, but
//! all messages are still sent, so that no rank waits for one that has stopped. [`StepMeter::skipped`] says that a
//! step's results are garbage.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

pub use super::section::{Phase, Section, StepTimes, Traffic};

/// What a rank is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// The phase that began last.
    pub phase: Option<Phase>,
    pub section: Section,
    /// Number of the block, from 0.
    pub block: Option<usize>,
    /// When its step began; none between steps.
    pub began: Option<Instant>,
}

/// Meters one rank, at first between steps, not asked to stop. Any thread may read it; `begin`, `during` and `end` are
/// for the rank's own thread.
#[derive(Debug, Default)]
pub struct StepMeter {
    /// Operations of the step that are done, and all of them.
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
    skipped: AtomicBool,
    /// No code under this lock panics half-way through a change.
    clock: Mutex<Clock>,
}

#[derive(Debug, Default)]
struct Clock {
    now: Now,
    /// When the current section began; none if no work did yet.
    since: Option<Instant>,
    spent: StepTimes,
}

impl StepMeter {
    /// A step of `total` operations begins: counts and times start from nothing.
    pub fn begin(&self, total: u64) {
        let mut clock = self.clock.lock();
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        let began = Some(Instant::now());
        *clock = Clock { now: Now { began, ..Now::default() }, since: began, spent: StepTimes::default() };
    }

    /// The step has ended: where its time went.
    pub fn end(&self) -> StepTimes {
        let mut clock = self.clock.lock();
        clock.switch(Section::Rest);
        clock.now = Now::default();
        clock.spent.clone()
    }

    /// Where time went so far, since the step began, or ever where none has.
    pub fn spent(&self) -> StepTimes {
        let mut clock = self.clock.lock();
        let section = clock.now.section;
        clock.switch(section);
        clock.spent.clone()
    }

    /// Counts `operations` as done.
    pub fn add(&self, operations: u64) {
        self.done.fetch_add(operations, Relaxed);
    }

    /// Counts `bytes` as moved.
    pub fn moved(&self, traffic: Traffic, bytes: u64) {
        self.clock.lock().spent.bytes[traffic as usize] += bytes;
    }

    /// Operations of the step: done, and all.
    pub fn work(&self) -> [u64; 2] {
        [self.done.load(Relaxed), self.total.load(Relaxed)]
    }

    /// Does `work`, whose time belongs to `section`; afterwards time belongs to what it belonged to before.
    pub fn during<T>(&self, section: Section, work: impl FnOnce() -> T) -> T {
        let before = self.clock.lock().switch(section);
        let result = work();
        self.clock.lock().switch(before);
        result
    }

    /// Says that a phase of the step begins.
    pub fn enter(&self, phase: Phase) {
        self.clock.lock().now.phase = Some(phase);
    }

    /// Does `work`, whose time belongs to the section of the phase that the rank is in.
    pub fn compute<T>(&self, work: impl FnOnce() -> T) -> T {
        let section = self.now().phase.map_or(Section::Rest, Phase::section);
        self.during(section, work)
    }

    /// Says that the rank enters this block, or leaves all blocks.
    pub fn enter_block(&self, block: Option<usize>) {
        self.clock.lock().now.block = block;
    }

    /// What the rank is at.
    pub fn now(&self) -> Now {
        self.clock.lock().now
    }

    /// Asks the rank to skip the rest of its step, for good.
    pub fn ask_to_stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// For work to ask before it goes on: if so, it must skip what is left of it.
    pub fn stops(&self) -> bool {
        let stops = self.stop.load(Relaxed);
        if stops {
            self.skipped.store(true, Relaxed);
        }
        stops
    }

    /// Whether work was skipped: the step's results are garbage.
    pub fn skipped(&self) -> bool {
        self.skipped.load(Relaxed)
    }
}

impl Clock {
    /// Adds the time since the last switch to the current section, and switches to `section`; returns the one before.
    fn switch(&mut self, section: Section) -> Section {
        let now = Instant::now();
        self.spent.time[self.now.section as usize] +=
            self.since.replace(now).map_or(Duration::ZERO, |since| now - since);
        std::mem::replace(&mut self.now.section, section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn times_of_sections_add_up_to_the_step() {
        let (meter, pause) = (StepMeter::default(), Duration::from_millis(20));
        meter.begin(10);
        let start = Instant::now();
        meter.during(Section::Attention, || {
            sleep(pause);
            meter.during(Section::Exchange, || sleep(3 * pause)); // within attention, and not attention's
            assert_eq!(meter.now().section, Section::Attention);
            sleep(pause);
        });
        sleep(pause);
        let (spent, whole) = (meter.end(), start.elapsed());
        let share = |section| spent.of(section).as_secs_f64() / pause.as_secs_f64();
        for (section, least) in [(Section::Attention, 2.0), (Section::Exchange, 3.0), (Section::Rest, 1.0)] {
            assert!((least..least + 0.9).contains(&share(section)), "{}: {}", section.name(), share(section));
        }
        let sum: Duration = spent.time.iter().sum();
        assert!(sum.abs_diff(whole) < Duration::from_millis(2), "{sum:?} of {whole:?}");
        meter.begin(5);
        assert_eq!((meter.work(), meter.spent().moved(Traffic::AllToAll)), ([0, 5], 0));
        assert!(meter.spent().time.iter().sum::<Duration>() < pause, "a step starts from nothing");
    }

    #[test]
    fn meter_that_is_not_asked_to_stop_skips_nothing() {
        let meter = StepMeter::default();
        assert!(!meter.stops() && !meter.skipped());
        meter.ask_to_stop();
        assert!(!meter.skipped(), "asked, but all work was done");
        assert!(meter.stops() && meter.skipped());
    }
}
