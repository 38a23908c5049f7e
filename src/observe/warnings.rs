//! [`KeepWarnings`] keeps a run's warnings in a file of its folder, so that they are seen where the terminal is long
//! gone.
//!
//! It is a layer of the program's log. Warnings that come before the run has a folder wait for it. A warning is a line
//! of JSON: `{"time": "2026-11-30T01:02:03Z", "message": ".."}`.

use parking_lot::Mutex;
use serde_json::json;
use std::fmt::{Debug, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::files::open_target;
use crate::{Result, terminal};

/// Warnings that wait for a folder, and that one process writes, at most: a fault that comes with every step shall fill
/// no disk.
const MOST_WAITING: usize = 100;
const MOST_WRITTEN: usize = 1000;

/// What is known of warnings in this process.
#[derive(Debug)]
struct Kept {
    waiting: Vec<String>,
    file: Option<File>,
    written: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept { waiting: vec![], file: None, written: 0 });

/// A layer for `tracing_subscriber` that keeps warnings; see [`keep_in`].
#[derive(Clone, Copy, Debug, Default)]
pub struct KeepWarnings;

impl<S: Subscriber> Layer<S> for KeepWarnings {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() > Level::WARN {
            return; // less than a warning
        }
        let mut message = Message(String::new());
        event.record(&mut message);
        KEPT.lock().take(json!({ "time": terminal::utc(), "message": terminal::message(&message.0) }).to_string());
    }
}

/// Until it is dropped, warnings go to a run's file.
#[derive(Debug)]
pub struct Keeping(());

/// Appends warnings to the file `path`, those first that have waited for it.
///
/// # Errors
/// It cannot be written.
pub fn keep_in(path: &Path) -> Result<Keeping> {
    let file = open_target(path, OpenOptions::new().create(true).append(true))?;
    let mut kept = KEPT.lock();
    (kept.file, kept.written) = (Some(file), 0);
    std::mem::take(&mut kept.waiting).into_iter().for_each(|line| kept.take(line));
    Ok(Keeping(()))
}

impl Drop for Keeping {
    fn drop(&mut self) {
        KEPT.lock().file = None;
    }
}

impl Kept {
    fn take(&mut self, line: String) {
        match &mut self.file {
            None if self.waiting.len() < MOST_WAITING => self.waiting.push(line),
            Some(file) if self.written < MOST_WRITTEN => {
                self.written += 1;
                // With a newline in front too: the line before may be torn. One that finds no room is in the log.
                let _ = file.write_all(format!("\n{line}\n").as_bytes());
            }
            _ => {}
        }
    }
}

/// The text of an event: its message, then its other fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::layer::SubscriberExt;

    #[test]
    fn warnings_from_before_and_after_the_folder_are_kept_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("warnings.jsonl");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(KeepWarnings), || {
            tracing::warn!("early {}", 1);
            let keeping = keep_in(&path).unwrap();
            tracing::warn!(step = 3, "late \"quoted\"");
            tracing::info!("no warning");
            drop(keeping);
            tracing::warn!("of no run");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        let messages: Vec<&str> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["early 1", "late \"quoted\" step=3"]);
    }
}
