//! Formats what a run's steps were made of: seconds by section, bytes moved.

use std::fmt::Write;

use crate::files::gib;
use crate::observe::meter::{Section, StepTimes, Traffic};
use crate::terminal::counted;

/// A table of `steps` steps that took `spent` together, each of `tokens` tokens.
pub fn table(spent: &StepTimes, steps: u64, tokens: u64) -> String {
    let times = steps.max(1) as f64;
    let seconds = |section: Section| spent.of(section).as_secs_f64() / times;
    let whole: f64 = Section::ALL.into_iter().map(seconds).sum();
    let tokens = counted(tokens, "token", "tokens");
    let mut text =
        format!("a step of {tokens}: {whole:.3} s, on rank 0, the mean of {}", counted(steps, "step", "steps"));
    for section in Section::ALL.into_iter().filter(|&section| seconds(section) > 0.0) {
        let (name, s) = (section.name(), seconds(section));
        let _ = write!(text, "\n  {name:28}{s:>12.3} s {:5.1} %", 100.0 * s / whole);
    }
    for traffic in Traffic::ALL.into_iter().filter(|&traffic| spent.moved(traffic) > 0) {
        let (name, bytes) = (traffic.name(), (spent.moved(traffic) as f64 / times) as u64);
        let _ = write!(text, "\n  moved: {name:21}{:>12}", gib(bytes));
    }
    text
}

/// Names and values of a step for its record: `seconds_SECTION`, `bytes_TRAFFIC`; what is 0 is left out.
pub fn values(spent: &StepTimes) -> impl Iterator<Item = (String, f64)> {
    let key = |kind: &str, name: &str| format!("{kind}_{}", name.replace(", ", "_").replace([' ', '-'], "_"));
    let times =
        Section::ALL.into_iter().map(move |section| (key("seconds", section.name()), spent.of(section).as_secs_f64()));
    let bytes =
        Traffic::ALL.into_iter().map(move |traffic| (key("bytes", traffic.name()), spent.moved(traffic) as f64));
    times.chain(bytes).filter(|(_, value)| *value > 0.0)
}
