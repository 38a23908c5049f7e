//! Prints a bench's results: a short table, or one line of JSON with the same values.

use candle_core::Device;
use serde_json::{Map, Value, json};
use std::fmt::Write;

use crate::observe::process::memory;
use crate::train::device::used_at_most;

const GIB: f64 = (1u64 << 30) as f64;

/// What was measured, and on what.
pub struct Report {
    json: Map<String, Value>,
    /// The table's parts, of which all lines but the first begin with a newline: the shape and the setting, passes,
    /// further numbers.
    head: String,
    passes: String,
    more: String,
    /// FLOP/s that the same threads reached just before.
    peak: f64,
    /// Tokens that a pass takes.
    tokens: usize,
}

impl Report {
    pub fn new(what: &'static str, facts: Vec<(&'static str, Value)>) -> Self {
        // Text without its quotes.
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let words: Vec<String> = facts.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect();
        let mut json: Map<String, Value> = facts.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        json.insert("what".to_owned(), json!(what));
        let head = format!("{what}: {}", words.join(", "));
        Self { json, head, passes: String::new(), more: String::new(), peak: 0.0, tokens: 0 }
    }

    fn put(&mut self, key: String, value: f64) {
        self.json.insert(key, json!(value));
    }

    /// Takes passes over `tokens` tokens on threads that reach `peak` FLOP/s.
    pub fn against(mut self, peak: f64, tokens: usize) -> Self {
        self.put("peak_gflops".to_owned(), peak / 1e9);
        Self { peak, tokens, ..self }
    }

    /// Says how much memory of `device` tensors had in use at most, if that is a GPU.
    pub fn on(self, device: &Device) -> Self {
        match used_at_most(device) {
            Some(bytes) => self.with("gpu_gib", "tensors on the GPU at most, GiB", bytes as f64 / GIB),
            None => self,
        }
    }

    /// A pass of `flop` operations: `{key}_s`, `{key}_gflops` and `{key}_share` in JSON.
    pub fn pass(mut self, name: &str, key: &str, seconds: f64, flop: f64) -> Self {
        let (rate, share, tokens) = (flop / seconds / 1e9, flop / seconds / self.peak, self.tokens as f64 / seconds);
        let values = [("s", seconds), ("gflops", rate), ("share", share)];
        values.into_iter().for_each(|(of, value)| self.put(format!("{key}_{of}"), value));
        let share = 100.0 * share;
        let _ = write!(self.passes, "\n{name:18}{seconds:12.5}{rate:12.1}{share:9.1}%{tokens:12.0}");
        self
    }

    /// Forward, and forward and backward: seconds and operations of each.
    pub fn passes(self, forward: [f64; 2], both: [f64; 2]) -> Self {
        self.pass("forward", "fwd", forward[0], forward[1]).pass("forward+backward", "fwdbwd", both[0], both[1])
    }

    /// A further number, in a line of its own called `name` unless that is empty.
    pub fn with(mut self, key: &str, name: &str, value: f64) -> Self {
        self.put(key.to_owned(), value);
        if !name.is_empty() {
            let _ = write!(self.more, "\n{name:30}{value:12.3}");
        }
        self
    }

    /// Says the most memory that this process has held.
    fn with_memory(self) -> Self {
        self.with("peak_rss_gib", "memory at most, GiB", memory().peak as f64 / GIB)
    }

    pub fn json(self) -> String {
        Value::Object(self.with_memory().json).to_string()
    }

    pub fn table(self) -> String {
        let Self { head, passes, more, peak, .. } = self.with_memory();
        if passes.is_empty() {
            return head + &more;
        }
        let names = format!("\n{:18}{:>12}{:>12}{:>10}{:>12}", "", "seconds", "GFLOP/s", "of peak", "tokens/s");
        head + &names + &passes + &format!("\n{:18}{:12}{:12.1}", "peak", "", peak / 1e9) + &more
    }
}
