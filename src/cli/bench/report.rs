//! Prints a bench's results: a short table, or one line of JSON with the same values.

use candle_core::Device;
use serde_json::{Map, Value, json};
use std::fmt::Write;

use crate::observe::process::memory;
use crate::train::device::used_at_most;

/// What was measured, and on what.
pub struct Report {
    what: &'static str,
    /// The shape and the setting, in order.
    facts: Vec<(&'static str, Value)>,
    rows: Vec<Row>,
    /// Tokens that a pass takes; 0 where there are none.
    tokens: usize,
    /// FLOP/s that the same threads reached just before.
    peak: Option<f64>,
    /// Further numbers: JSON key, what a line of the table calls it (nothing: not there), value.
    more: Vec<(&'static str, &'static str, f64)>,
}

/// A line of the table.
struct Row {
    name: String,
    /// What its JSON keys start with.
    key: String,
    seconds: f64,
    flop: f64,
}

impl Report {
    pub fn new(what: &'static str, facts: Vec<(&'static str, Value)>) -> Self {
        Self { what, facts, rows: vec![], tokens: 0, peak: None, more: vec![] }
    }

    /// Takes passes over `tokens` tokens on threads that reach `peak` FLOP/s.
    pub fn against(self, peak: f64, tokens: usize) -> Self {
        Self { peak: Some(peak), tokens, ..self }
    }

    /// Says how much memory of `device` tensors had in use at most, if that is a GPU.
    pub fn on(self, device: &Device) -> Self {
        match used_at_most(device) {
            Some(bytes) => self.with("gpu_gib", "tensors on the GPU at most, GiB", gib(bytes)),
            None => self,
        }
    }

    /// A pass of `flop` operations: `{key}_s`, `{key}_gflops` and `{key}_share` in JSON.
    pub fn pass(mut self, name: impl Into<String>, key: impl Into<String>, seconds: f64, flop: f64) -> Self {
        self.rows.push(Row { name: name.into(), key: key.into(), seconds, flop });
        self
    }

    /// Forward, and forward and backward: seconds and operations of each.
    pub fn passes(self, forward: [f64; 2], both: [f64; 2]) -> Self {
        self.pass("forward", "fwd", forward[0], forward[1]).pass("forward+backward", "fwdbwd", both[0], both[1])
    }

    /// A further number, in a line of its own called `name` unless that is empty.
    pub fn with(mut self, key: &'static str, name: &'static str, value: f64) -> Self {
        self.more.push((key, name, value));
        self
    }

    pub fn json(&self) -> String {
        let mut map: Map<String, Value> =
            self.facts.iter().map(|(key, value)| ((*key).into(), value.clone())).collect();
        let mut put = |key: String, value: f64| map.insert(key, json!(value));
        for Row { key, seconds, flop, .. } in &self.rows {
            put(format!("{key}_s"), *seconds);
            put(format!("{key}_gflops"), flop / seconds / 1e9);
            if let Some(peak) = self.peak {
                put(format!("{key}_share"), flop / seconds / peak);
                put("peak_gflops".into(), peak / 1e9);
            }
        }
        for (key, _, value) in &self.more {
            put((*key).into(), *value);
        }
        put("peak_rss_gib".into(), peak_rss_gib());
        map.insert("what".into(), json!(self.what));
        Value::Object(map).to_string()
    }

    pub fn table(&self) -> String {
        // Text without its quotes.
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let facts: Vec<String> = self.facts.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
        let mut text = format!("{}: {}\n", self.what, facts.join(", "));
        if let Some(peak) = self.peak {
            let _ = writeln!(text, "{:18}{:>12}{:>12}{:>10}{:>12}", "", "seconds", "GFLOP/s", "of peak", "tokens/s");
            for Row { name, seconds, flop, .. } in &self.rows {
                let (rate, share) = (flop / seconds / 1e9, 100.0 * flop / seconds / peak);
                let tokens = self.tokens as f64 / seconds;
                let _ = writeln!(text, "{name:18}{seconds:12.5}{rate:12.1}{share:9.1}%{tokens:12.0}");
            }
            let _ = writeln!(text, "{:18}{:12}{:12.1}", "peak", "", peak / 1e9);
        }
        let memory = ("", "memory at most, GiB", peak_rss_gib());
        for (_, name, value) in self.more.iter().chain([&memory]).filter(|more| !more.1.is_empty()) {
            let _ = writeln!(text, "{name:30}{value:12.3}");
        }
        text.pop(); // the last line's end is who prints it's
        text
    }
}

/// The most memory that this process has held.
fn peak_rss_gib() -> f64 {
    gib(memory().peak)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}
