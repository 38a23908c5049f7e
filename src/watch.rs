//! [`Watch`]: how far a rank is with its step, what it is at, where the time went, and whether it is to stop.
//!
//! The rank's own work tells it, other threads ask it. Work is counted in operations, one relaxed addition for hundreds of rows of
//! attention or a tile, so watching costs nothing that could be measured. Time always belongs to exactly one [`Part`], so parts add
//! up to the step. Who shows any of it, and who decides to stop, is not known here.
//!
//! Stopping is a matter of each rank alone and never an error: work that is left is skipped, results are then garbage, but messages
//! are sent as ever, so that no rank waits for one that has stopped. [`Watch::skipped`] says that a step's numbers mean nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A list of names, an enum's variants in order.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($variant:ident: $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($variant,)* }

        impl $name {
            /// All, in order.
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$variant),*];

            /// Its name for people.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// What a rank spends its time on.
    Part {
        Data: "waiting for clips",
        Embed: "embedding",
        Before: "before attention",
        Attention: "attention",
        After: "after attention",
        Head: "head and loss",
        AfterBackward: "after attention, backward",
        AttentionBackward: "attention, backward",
        BeforeBackward: "before attention, backward",
        EmbedBackward: "embedding, backward",
        Exchange: "exchanges between ranks",
        Stash: "waiting for the stash",
        Optimizer: "optimizer",
        Rest: "other",
    }
}

named! {
    /// What bytes leave a rank by, or pass to and from its stash.
    Way {
        AllToAll: "all-to-all",
        AllGather: "all-gather",
        ReduceScatter: "reduce-scatter",
        AllReduce: "all-reduce",
        Broadcast: "broadcast",
        StashWritten: "stash, written",
        StashRead: "stash, read",
    }
}

/// Where a step's time went, by [`Part::ALL`], and its bytes, by [`Way::ALL`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spent {
    pub time: [Duration; Part::ALL.len()],
    pub bytes: [u64; Way::ALL.len()],
}

impl Spent {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        self.time.iter_mut().zip(other.time).for_each(|(sum, x)| *sum += x);
        self.bytes.iter_mut().zip(other.bytes).for_each(|(sum, x)| *sum += x);
    }

    /// The time of one part.
    pub fn of(&self, part: Part) -> Duration {
        self.time[part as usize]
    }

    /// The bytes of one way.
    pub fn moved(&self, way: Way) -> u64 {
        self.bytes[way as usize]
    }
}

/// What a rank is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub part: Part,
    /// Number of the block, from 0.
    pub block: Option<usize>,
    /// When its step began; none between steps.
    pub began: Option<Instant>,
}

/// Watches one rank. Any thread may ask; `begin`, `during` and `end` are for the rank's own.
#[derive(Debug)]
pub struct Watch {
    /// Operations of the step that are done, and all of them.
    done: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
    skipped: AtomicBool,
    clock: Mutex<Clock>,
}

#[derive(Debug)]
struct Clock {
    now: Now,
    /// Since when the part runs.
    since: Instant,
    spent: Spent,
}

impl Default for Watch {
    /// Between steps, not asked to stop.
    fn default() -> Self {
        let now = Now { part: Part::Rest, block: None, began: None };
        Self {
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            skipped: AtomicBool::new(false),
            clock: Mutex::new(Clock { now, since: Instant::now(), spent: Spent::default() }),
        }
    }
}

impl Watch {
    /// A step of `total` operations begins: counts and times start from nothing.
    pub fn begin(&self, total: u64) {
        let mut clock = self.clock();
        self.done.store(0, Relaxed);
        self.total.store(total, Relaxed);
        let start = Instant::now();
        clock.now = Now { part: Part::Rest, block: None, began: Some(start) };
        (clock.since, clock.spent) = (start, Spent::default());
    }

    /// The step has ended: where its time went.
    pub fn end(&self) -> Spent {
        let mut clock = self.clock();
        clock.switch(Part::Rest);
        clock.now = Now { part: Part::Rest, block: None, began: None };
        clock.spent.clone()
    }

    /// Where time went so far, since the step began, or ever where none has.
    pub fn spent(&self) -> Spent {
        let mut clock = self.clock();
        let part = clock.now.part;
        clock.switch(part);
        clock.spent.clone()
    }

    /// Counts `operations` as done.
    pub fn add(&self, operations: u64) {
        self.done.fetch_add(operations, Relaxed);
    }

    /// Counts `bytes` as moved.
    pub fn moved(&self, way: Way, bytes: u64) {
        self.clock().spent.bytes[way as usize] += bytes;
    }

    /// Operations of the step: done, and all.
    pub fn work(&self) -> [u64; 2] {
        [self.done.load(Relaxed), self.total.load(Relaxed)]
    }

    /// Does `work`, whose time belongs to `part`; afterwards time belongs to what it belonged to before.
    pub fn during<T>(&self, part: Part, work: impl FnOnce() -> T) -> T {
        let before = self.clock().switch(part);
        let result = work();
        self.clock().switch(before);
        result
    }

    /// The rank comes to this block, or leaves all of them.
    pub fn at(&self, block: Option<usize>) {
        self.clock().now.block = block;
    }

    /// What the rank is at.
    pub fn now(&self) -> Now {
        self.clock().now
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

    /// Whether work was skipped: the step's numbers mean nothing.
    pub fn skipped(&self) -> bool {
        self.skipped.load(Relaxed)
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        // No code under the lock panics half-way through a change.
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock {
    /// Gives the time since the last switch to the part that ran, and lets `part` run; returns the one that did.
    fn switch(&mut self, part: Part) -> Part {
        let now = Instant::now();
        self.spent.time[self.now.part as usize] += now - self.since;
        self.since = now;
        std::mem::replace(&mut self.now.part, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::sleep;

    #[test]
    fn time_belongs_to_one_part_at_a_time() {
        let (watch, pause) = (Watch::default(), Duration::from_millis(20));
        watch.begin(10);
        let start = Instant::now();
        watch.during(Part::Attention, || {
            sleep(pause);
            watch.during(Part::Exchange, || sleep(3 * pause)); // within attention, and not attention's
            assert_eq!(watch.now().part, Part::Attention);
            sleep(pause);
        });
        sleep(pause);
        let (spent, whole) = (watch.end(), start.elapsed());
        let share = |part| spent.of(part).as_secs_f64() / pause.as_secs_f64();
        for (part, least) in [(Part::Attention, 2.0), (Part::Exchange, 3.0), (Part::Rest, 1.0)] {
            assert!((least..least + 0.9).contains(&share(part)), "{}: {}", part.name(), share(part));
        }
        let sum: Duration = spent.time.iter().sum();
        assert!(sum.abs_diff(whole) < Duration::from_millis(2), "{sum:?} of {whole:?}");
        watch.begin(5);
        assert_eq!((watch.work(), watch.spent().moved(Way::AllToAll)), ([0, 5], 0));
        assert!(watch.spent().time.iter().sum::<Duration>() < pause, "a step starts from nothing");
    }

    #[test]
    fn who_was_never_asked_has_skipped_nothing() {
        let watch = Watch::default();
        assert!(!watch.stops() && !watch.skipped());
        watch.ask_to_stop();
        assert!(!watch.skipped(), "asked, but all work was done");
        assert!(watch.stops() && watch.skipped());
    }
}
