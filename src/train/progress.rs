//! Shows a run's progress: one line that renews itself on a terminal, a log line now and then elsewhere.

use crate::files::gib;
use crate::observe::process::{Memory, memory};
use crate::observe::stderr::{LOG_EVERY, ProgressLine, bar};
use crate::terminal::{clock, epoch, rate};
use indicatif::ProgressBar;
use parking_lot::Mutex;
use std::time::{Duration, Instant};

/// Progress of a run: step, loss, tokens per second, memory and the time left; within a long step, how far that is.
/// Ranks and whoever watches them share it.
#[derive(Debug)]
pub struct Progress {
    line: ProgressLine,
    total: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Steps done.
    done: u64,
    step_time: StepTime,
    /// No step has been logged yet.
    first: bool,
}

/// The bar's length is the run's steps in thousandths.
const PARTS: u64 = 1000;

impl Progress {
    /// For a run of `total` steps of which `done` lie behind (0, or where it resumes).
    pub fn new(total: u64, done: u64) -> Self {
        Self::with(bar(total.saturating_mul(PARTS), done.saturating_mul(PARTS)), total, done, LOG_EVERY)
    }

    fn with(bar: Option<ProgressBar>, total: u64, done: u64, log_every: Duration) -> Self {
        let state = State { done, step_time: StepTime::new(Instant::now(), done), first: true };
        Self { line: ProgressLine::new(bar, log_every), total, state: Mutex::new(state) }
    }

    /// Reports that `step` is done, and with it the data gone through `times` times. Without a terminal this logs the
    /// first step, the last, and one now and then.
    pub fn update(&self, step: u64, times: f64, loss: f64, tokens_per_s: f64) {
        let mut state = self.state.lock();
        state.done = step;
        state.step_time.update(Instant::now(), step);
        let left = state.step_time.left(self.total.saturating_sub(step));
        let line = line([step, self.total], times, loss, tokens_per_s, memory(), left);
        let first = std::mem::take(&mut state.first);
        self.line.show(step.saturating_mul(PARTS), line, step >= self.total || first);
    }

    /// Reports that of the step after the last one reported a `share` (0 to 1) is done, that it is `at` something, and
    /// how long it will go on, if that is known. Without a terminal this logs now and then.
    pub fn within(&self, share: f64, at: &str, left: Option<Duration>) {
        let state = self.state.lock();
        let later = state.step_time.left(self.total.saturating_sub(state.done + 1));
        let line = within(state.done + 1, self.total, share, at, memory(), left, later);
        self.line.show(state.done.saturating_mul(PARTS) + (share * PARTS as f64) as u64, line, false);
    }

    /// Leaves the line as it stands; what is logged now comes below it.
    pub fn finish(&self) {
        self.line.finish(false);
    }
}

impl Drop for Progress {
    /// However the run ends.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Seconds a step takes: the mean at first, then a moving one, so that the first slow steps are forgotten.
#[derive(Debug)]
struct StepTime {
    last: Instant,
    step: u64,
    seen: f64,
    seconds: f64,
}

impl StepTime {
    fn new(now: Instant, step: u64) -> Self {
        Self { last: now, step, seen: 0.0, seconds: 0.0 }
    }

    fn update(&mut self, now: Instant, step: u64) {
        let steps = step.saturating_sub(self.step) as f64;
        if steps > 0.0 {
            self.seen += steps;
            let weight = (steps / self.seen).max(1.0 - 0.95f64.powf(steps));
            self.seconds += weight * ((now - self.last).as_secs_f64() / steps - self.seconds);
        }
        (self.last, self.step) = (now, step);
    }

    fn left(&self, steps: u64) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds * steps as f64).ok().filter(|_| self.seen > 0.0)
    }
}

fn line(
    [step, total]: [u64; 2],
    times: f64,
    loss: f64,
    tokens_per_s: f64,
    memory: Memory,
    left: Option<Duration>,
) -> String {
    let epochs = format!("epoch {}/{}", epoch(times), epoch(times / step.max(1) as f64 * total as f64));
    let (rate, memory_text) = (rate(tokens_per_s), memory_text(memory));
    let line = format!("step {step}/{total}  {epochs}  loss {loss:.4}  {rate} tokens/s{memory_text}");
    match left {
        Some(left) if step < total => line + "  ETA " + &clock(left),
        _ => line,
    }
}

/// A line within a step: `left` is what is left of it, `later` what comes after it.
fn within(
    step: u64,
    total: u64,
    share: f64,
    at: &str,
    memory: Memory,
    left: Option<Duration>,
    later: Option<Duration>,
) -> String {
    let line = format!("step {step}/{total}  {:.1} %  {at}{}", 100.0 * share, memory_text(memory));
    match (left, later) {
        (None, _) => line,
        (Some(left), Some(later)) if !later.is_zero() => {
            line + &format!("  ETA {} (step {})", clock(left + later), clock(left))
        }
        (Some(left), _) => line + "  ETA " + &clock(left),
    }
}

fn memory_text(memory: Memory) -> String {
    match memory.now {
        0 => String::new(),
        now => format!("  {} (peak {})", gib(now), gib(memory.peak)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    #[test]
    fn progress_line_has_step_loss_speed_memory_and_eta() {
        let memory = Memory { now: 3 << 29, peak: 2 << 30 };
        let left = Some(Duration::from_secs(200));
        let expected = "step 12/1000  epoch 1/9  loss 0.1235  18.2k tokens/s  1.50 GiB (peak 2.00 GiB)  ETA 3m 20s";
        assert_eq!(line([12, 1000], 0.1, 0.123456, 18_249.0, memory, left), expected);
        assert_eq!(
            line([9, 9], 4.5, 0.5, 1.0, Memory::default(), left),
            "step 9/9  epoch 5/5  loss 0.5000  1 tokens/s"
        );
        let later = Some(Duration::from_secs(3600));
        let expected = "step 2/9  41.3 %  block 1/4, attention  1.50 GiB (peak 2.00 GiB)  ETA 1h 03m (step 3m 20s)";
        assert_eq!(within(2, 9, 0.4129, "block 1/4, attention", memory, left, later), expected);
    }

    #[test]
    fn the_estimate_forgets_slow_first_steps_and_counts_from_a_resume() {
        let start = Instant::now();
        let at = |s: f64| start + Duration::from_secs_f64(s);
        let mut time = StepTime::new(start, 100);
        assert_eq!(time.left(5), None);
        time.update(at(10.0), 101);
        assert_eq!(time.left(5), Some(Duration::from_secs(50)));
        (1..=200).for_each(|i| time.update(at(10.0 + i as f64), 101 + i));
        let left = time.left(100).unwrap().as_secs_f64();
        assert!((left - 100.0).abs() < 1.0, "{left}");
        assert_eq!(time.left(0), Some(Duration::ZERO));
    }

    #[test]
    fn without_a_terminal_it_logs_now_and_then() {
        #[derive(Clone, Default)]
        struct Log(Arc<Mutex<Vec<u8>>>);
        impl Write for Log {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let run = |log_every: Duration| {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
            tracing::subscriber::with_default(subscriber, || {
                let progress = Progress::with(None, 50, 0, log_every);
                progress.within(0.25, "attention", None);
                (1..=49).for_each(|step| progress.update(step, 0.1, 0.5, 1e3));
                progress.within(0.125, "attention", Some(Duration::from_secs(61)));
                progress.update(50, 0.1, 0.5, 1e3);
            });
            let text = String::from_utf8(log.0.lock().clone()).unwrap();
            let lines = text.lines().map(|l| l[l.find("step ").unwrap()..].to_owned());
            lines.collect::<Vec<_>>()
        };
        let steps = |lines: &[String]| -> Vec<String> {
            lines.iter().map(|l| l.split_once("  ").unwrap().0.to_owned()).collect()
        };
        assert_eq!(steps(&run(Duration::from_secs(3600))), ["step 1/50", "step 50/50"]);
        let all = run(Duration::ZERO);
        assert_eq!(all.len(), 52);
        assert!(all[0].starts_with("step 1/50  25.0 %  attention") && !all[0].contains("ETA"), "{}", all[0]);
        assert!(all[50].starts_with("step 50/50  12.5 %  attention") && all[50].ends_with("ETA 1m 01s"), "{}", all[50]);
    }
}
