//! What a run's steps were made of, as text: seconds by part, bytes moved, memory against its plan.

use std::fmt::Write;

use crate::files::gib;
use crate::terminal::counted;
use crate::watch::{Part, Spent, Way};

/// A table of `steps` steps that took `spent` together, each of `tokens` tokens.
pub fn table(spent: &Spent, steps: u64, tokens: u64) -> String {
    let times = steps.max(1) as f64;
    let seconds = |part: Part| spent.of(part).as_secs_f64() / times;
    let whole: f64 = Part::ALL.into_iter().map(seconds).sum();
    let tokens = counted(tokens, "token", "tokens");
    let mut text =
        format!("a step of {tokens}: {whole:.3} s, on rank 0, the mean of {}", counted(steps, "step", "steps"));
    for part in Part::ALL.into_iter().filter(|&part| seconds(part) > 0.0) {
        let (name, s) = (part.name(), seconds(part));
        let _ = write!(text, "\n  {name:28}{s:>12.3} s {:5.1} %", 100.0 * s / whole);
    }
    for way in Way::ALL.into_iter().filter(|&way| spent.moved(way) > 0) {
        let (name, bytes) = (way.name(), (spent.moved(way) as f64 / times) as u64);
        let _ = write!(text, "\n  moved: {name:21}{:>12}", gib(bytes));
    }
    text
}

/// Names and numbers of a step for its record: `seconds_PART`, `bytes_WAY`; what is 0 is left out.
pub fn values(spent: &Spent) -> impl Iterator<Item = (String, f64)> {
    let key = |kind: &str, name: &str| format!("{kind}_{}", name.replace(", ", "_").replace([' ', '-'], "_"));
    let times = Part::ALL.into_iter().map(move |part| (key("seconds", part.name()), spent.of(part).as_secs_f64()));
    let bytes = Way::ALL.into_iter().map(move |way| (key("bytes", way.name()), spent.moved(way) as f64));
    times.chain(bytes).filter(|(_, value)| *value > 0.0)
}
