//! A run's measurements as JSON lines: one object a step, appended as the run goes.
//!
//! The file is the run's record: the loss curve and every table are made from it. Each line is written at once, so
//! the file is good up to the last step whatever ends the run. TensorBoard's files, for those who watch with it, are
//! a copy.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::files::{check_target, open_target};
use crate::{Error, Result, bail};

/// What one optimizer step measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The step, from 1.
    pub step: u64,
    /// Training loss: the mean over the step's tokens, on all ranks.
    pub loss: f64,
    /// Held-out loss, on the steps that measure it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heldout: Option<f64>,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate of this step.
    pub lr: f64,
    /// Tokens of all ranks through forward, backward and update, per second.
    pub tokens_per_s: f64,
    /// Seconds the step took.
    pub seconds: f64,
    /// Share of the step, in 0..=1, that waited for data.
    pub waited: f64,
    /// Highest resident memory of the process so far, in bytes.
    pub peak_rss: u64,
    /// Anything else by name, such as the held-out loss at each noise level.
    #[serde(flatten)]
    pub more: BTreeMap<String, f64>,
}

impl Record {
    /// Every measurement with its name, in the order of the fields; the step itself is not one.
    pub fn values(&self) -> Vec<(&str, f64)> {
        let mut values = vec![("loss", self.loss)];
        values.extend(self.heldout.map(|v| ("heldout", v)));
        values.extend([("grad_norm", self.grad_norm), ("lr", self.lr), ("tokens_per_s", self.tokens_per_s)]);
        values.extend([("seconds", self.seconds), ("waited", self.waited), ("peak_rss", self.peak_rss as f64)]);
        values.extend(self.more.iter().map(|(name, &v)| (name.as_str(), v)));
        values
    }
}

/// Appends records to a file of JSON lines.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    last: u64,
}

impl MetricsLog {
    /// Starts a new file. One that holds records already is an error: it belongs to another run.
    pub fn create(path: &Path) -> Result<Self> {
        check_target(path)?;
        match std::fs::metadata(path) {
            Ok(there) if there.len() > 0 => {
                bail!(
                    "{} holds the metrics of an earlier run: resume that run, or choose another folder",
                    path.display()
                )
            }
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(path, e)),
        }
        Self::open(path, 0)
    }

    /// Continues the file of a run that resumes after `step`: the lines of later steps, which will come again, are cut
    /// off, as is a line that was torn when the run ended. A file that is not there is started.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        check_target(path)?; // a pipe would be waited for
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Self::open(path, 0),
            Err(e) => return Err(Error::io(path, e)),
        };
        let mut log = Self { last: 0, ..Self::open(path, 0)? };
        let mut keep = 0;
        for line in whole_lines(&text) {
            let record = parse(line, path, keep, &text)?;
            if record.step > step {
                break;
            }
            keep += line.len() + 1;
            log.last = record.step;
        }
        if keep < text.len() {
            log.file.set_len(keep as u64).and_then(|()| log.file.sync_all()).map_err(|e| Error::io(path, e))?;
        }
        Ok(log)
    }

    fn open(path: &Path, last: u64) -> Result<Self> {
        // Appending mode: each line goes to the end, wherever a cut has put it.
        let file = open_target(path, OpenOptions::new().create(true).append(true))?;
        Ok(Self { file, path: path.to_owned(), last })
    }

    /// Appends one line. Steps must rise and all numbers be finite: JSON has no other.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        if record.step <= self.last {
            bail!("{}: step {} comes after step {}", self.path.display(), record.step, self.last);
        }
        if let Some((name, value)) = record.values().into_iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::NonFinite { step: record.step, tensor: name.to_owned(), value });
        }
        let mut line = serde_json::to_string(record).map_err(|e| Error::Invalid(format!("metrics: {e}")))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, e))?; // one system call: no torn lines
        self.last = record.step;
        Ok(())
    }
}

/// The records of a file in order; a last line that was torn when a run ended is left out.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    let mut at = 0;
    whole_lines(&text)
        .map(|line| {
            let record = parse(line, path, at, &text);
            at += line.len() + 1;
            record
        })
        .collect()
}

/// The lines that end in a newline, without it.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&b| b == b'\n').filter_map(|line| line.strip_suffix(b"\n"))
}

/// The record on `line`, which starts at byte `at` of `text`.
fn parse(line: &[u8], path: &Path, at: usize, text: &[u8]) -> Result<Record> {
    serde_json::from_slice(line).map_err(|e| {
        let number = 1 + text[..at].iter().filter(|&&b| b == b'\n').count();
        Error::Invalid(format!("{}, line {number}: not a record of metrics: {e}", path.display()))
    })
}
