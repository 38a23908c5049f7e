//! Monitors a running step from a thread beside the ranks: shows its progress, and abandons it if the user wants to
//! stop and it would go on for long.
//!
//! It only reads the ranks' [`StepMeter`]s. The ranks themselves skip what is left of an abandoned step.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::progress::Progress;
use crate::Result;
use crate::observe::meter::{Now, Section, StepMeter};
use crate::parallel::thread_refused;

/// Time between two looks at the meters.
const TICK: Duration = Duration::from_millis(200);

/// A step that is longer than this is shown while it runs.
const LONG: Duration = Duration::from_secs(2);

/// How long a step may go on once the user wants to stop.
const GRACE: Duration = Duration::from_secs(10);

/// Fraction of a step's FLOPs after which its speed gives the ETA; earlier, attention (most of the work) has not
/// started.
const ETA_FROM: f64 = 1e-3;

/// Runs `ranks`, with the monitor's thread beside them. `blocks` is the network's number of blocks.
///
/// # Errors
/// Those of `ranks`; or the system refuses a thread.
pub fn with_monitor<T>(
    meters: &[Arc<StepMeter>],
    blocks: usize,
    progress: &Progress,
    interrupted: &AtomicBool,
    ranks: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let (end, ended) = mpsc::channel::<()>();
    let monitor = move || {
        let (mut eta, mut asked, mut abandoned) = (EtaEstimator::default(), None, false);
        while matches!(ended.recv_timeout(TICK), Err(RecvTimeoutError::Timeout)) {
            let now = Instant::now();
            if interrupted.load(Ordering::SeqCst) {
                asked.get_or_insert(now);
            }
            let at = meters[0].now();
            let Some(began) = at.began else { continue };
            let work = meters.iter().map(|meter| meter.work()).fold([0, 0], |a, b| [a[0] + b[0], a[1] + b[1]]);
            let left = eta.left(now, began, work);
            if now - began >= LONG {
                progress.within(share(work), &place(at, blocks), left);
            }
            if !abandoned && asked.is_some_and(|asked| now + left.unwrap_or_default() > asked + GRACE) {
                abandoned = true;
                meters.iter().for_each(|meter| meter.ask_to_stop());
            }
        }
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("monitor".into()).spawn_scoped(scope, monitor);
        thread.map_err(|e| thread_refused("a thread to watch the ranks", &e))?;
        let result = ranks();
        drop(end);
        result
    })
}

fn share([done, total]: [u64; 2]) -> f64 {
    (done as f64 / total.max(1) as f64).min(1.0)
}

/// "block 1/4, attention, backward".
fn place(now: Now, blocks: usize) -> String {
    let name = if now.section == Section::Rest { "" } else { now.section.name() };
    match now.block {
        Some(block) => format!("block {}/{blocks}, {name}", block + 1),
        None => name.to_owned(),
    }
}

/// Estimates when the running step ends, from its speed since [`ETA_FROM`].
#[derive(Debug, Default)]
struct EtaEstimator {
    began: Option<Instant>,
    /// From when on, and what was done by then.
    base: Option<(Instant, u64)>,
}

impl EtaEstimator {
    /// How long the step that began at `began` will go on, of whose operations `[done, all]` are done.
    fn left(&mut self, now: Instant, began: Instant, [done, total]: [u64; 2]) -> Option<Duration> {
        if self.began != Some(began) {
            *self = Self { began: Some(began), base: None };
        }
        if share([done, total]) < ETA_FROM {
            return None;
        }
        let (since, before) = *self.base.get_or_insert((now, done));
        let rate = (done.saturating_sub(before)) as f64 / (now - since).as_secs_f64(); // 0 / 0 at first
        let left = total.saturating_sub(done) as f64 / rate;
        Duration::try_from_secs_f64(left).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eta_starts_once_attention_has_begun() {
        let began = Instant::now();
        let at = |s: u64| began + Duration::from_secs(s);
        let mut eta = EtaEstimator::default();
        let mut left = |s: u64, done: u64| eta.left(at(s), began, [done, 100_000]);
        assert_eq!([left(1, 0), left(40, 99)], [None; 2], "the slow beginning tells nothing");
        assert_eq!(left(50, 1_000), None, "nor does a single look");
        assert_eq!(left(60, 2_000), Some(Duration::from_secs(980)));
        assert_eq!(left(60 + 490, 51_000), Some(Duration::from_secs(490)));
        assert_eq!(left(1040, 100_000), Some(Duration::ZERO));
        // The next step is another.
        assert_eq!(eta.left(at(2000), at(1990), [5_000, 100_000]), None);
    }

    #[test]
    fn interrupted_step_is_abandoned_only_if_it_is_long() {
        for (done, expected) in [(500, true), (99_900, false)] {
            let meter = Arc::new(StepMeter::default());
            let (progress, interrupted) = (Progress::new(1, 0), AtomicBool::new(false));
            meter.begin(100_000);
            let stopped = with_monitor(std::slice::from_ref(&meter), 1, &progress, &interrupted, || {
                meter.add(done);
                std::thread::sleep(2 * TICK);
                interrupted.store(true, Ordering::SeqCst);
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(2) && !meter.stops() {
                    meter.add(5); // a few hundred a second
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(meter.skipped())
            });
            assert_eq!(stopped.unwrap(), expected, "{done} of 100000 done");
        }
    }
}
