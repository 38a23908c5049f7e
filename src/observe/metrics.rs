//! A run's measurements as JSON lines: one object a step, appended as the run goes.
//!
//! The file is the run's record: the loss curve and every table are made from it. Each line is written at once, so the
//! file is good up to the last step whatever ends the process; with each checkpoint it is synced, so that a crash of
//! the machine cannot take steps that a checkpoint counts. TensorBoard's files, for those who watch with it, are a
//! copy.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use super::history;
use crate::files::{check_target, failed, open_target, parent, sync_folder};
use crate::{Error, Result, bail};

/// How often the clips have been gone through by the end of a step: the name of this among a record's other
/// measurements.
pub const EPOCH: &str = "epoch";

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

/// Bytes of lines that wait for room on the disk at most; at 600 bytes a line some 30,000 steps.
const WAITING: usize = 16 << 20;

/// A longer line, in bytes, is no record: a damaged file may be one line of gigabytes.
const LONGEST: u64 = 1 << 20;

/// Appends records to a file of JSON lines.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
    path: PathBuf,
    last: u64,
    /// Lines that could not be written yet.
    unwritten: Vec<u8>,
}

impl MetricsLog {
    /// Starts a new file. One that holds records already is an error: it belongs to another run.
    pub fn create(path: &Path) -> Result<Self> {
        check_target(path)?;
        match std::fs::metadata(path) {
            Ok(there) if there.len() > 0 => {
                bail!(
                    Checkpoint,
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

    /// Continues the file of a run that resumes after `step`, once it agrees with that: lines of later steps, which
    /// will come again, go to `metrics-cut.jsonl`, as do lines that are no records; repeated steps are there once, and
    /// in order. Each fault is logged with the numbers of its lines. A file that is not there is started.
    ///
    /// # Errors
    /// Those of reading and writing; the file is as it was then.
    pub fn resume(path: &Path, step: u64) -> Result<Self> {
        let last = history::mend(path, step)?;
        Self::open(path, last)
    }

    fn open(path: &Path, last: u64) -> Result<Self> {
        // Appending mode: each line goes to the end, wherever a cut has put it.
        let file = open_target(path, OpenOptions::new().create(true).append(true))?;
        sync_folder(parent(path))?;
        Ok(Self { file, path: path.to_owned(), last, unwritten: vec![] })
    }

    /// Appends one line. Steps must rise and all numbers be finite: JSON has no other.
    ///
    /// # Errors
    /// Those, or the file cannot be written. A line that found no room is kept, and goes out before the next one: see
    /// [`waits`](Self::waits).
    pub fn write(&mut self, record: &Record) -> Result<()> {
        if record.step <= self.last {
            bail!(Checkpoint, "{}: step {} comes after step {}", self.path.display(), record.step, self.last);
        }
        if let Some((name, value)) = record.values().into_iter().find(|(_, v)| !v.is_finite()) {
            return Err(Error::NonFinite { step: record.step, tensor: name.to_owned(), value });
        }
        serde_json::to_writer(&mut self.unwritten, record).map_err(|e| Error::Checkpoint(format!("metrics: {e}")))?;
        self.unwritten.push(b'\n');
        self.last = record.step;
        self.flush()
    }

    /// Whether lines wait for room on the disk, and there is memory for more of them.
    pub fn waits(&self) -> bool {
        (1..WAITING).contains(&self.unwritten.len())
    }

    /// Makes all lines durable.
    ///
    /// # Errors
    /// There is still no room for those that wait, or the disk fails.
    pub fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.sync_data().map_err(|e| failed(&self.path, e))
    }

    fn flush(&mut self) -> Result<()> {
        while !self.unwritten.is_empty() {
            match self.file.write(&self.unwritten) {
                Ok(0) => return Err(failed(&self.path, ErrorKind::WriteZero.into())),
                Ok(written) => drop(self.unwritten.drain(..written)), // a line is one system call, so none is torn by a kill
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(failed(&self.path, e)),
            }
        }
        Ok(())
    }
}

/// The records of a file in order; a last line that was torn when a run ended is left out.
pub fn read(path: &Path) -> Result<Vec<Record>> {
    let mut records = vec![];
    each(path, |record| records.push(record))?;
    Ok(records)
}

/// Reads a file's records one after another, as whatever part of a [`Record`] is wanted. A torn last line is left out.
///
/// # Errors
/// The file cannot be read, or a line is no record; names the line.
pub(crate) fn each<R: DeserializeOwned>(path: &Path, mut take: impl FnMut(R)) -> Result<()> {
    lines(path, |line, text| {
        if line.ended {
            let record = serde_json::from_slice(text).map_err(|e| {
                Error::Checkpoint(format!("{}, line {}: not a record of metrics: {e}", path.display(), line.number))
            })?;
            take(record);
        }
        Ok(())
    })
}

/// Where a line of a file is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// From 1.
    pub number: u64,
    /// Its first byte in the file.
    pub start: u64,
    /// Its bytes, with the newline if there is one.
    pub bytes: u64,
    /// Whether there is one.
    pub ended: bool,
}

/// Calls `take` with each line of a file and its text without the newline; of a line of more than a mebibyte, with its
/// start.
pub(super) fn lines(path: &Path, mut take: impl FnMut(Line, &[u8]) -> Result<()>) -> Result<()> {
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(|e| Error::io(path, e))?);
    let (mut text, mut start) = (vec![], 0);
    for number in 1.. {
        text.clear();
        let mut read = |text: &mut Vec<u8>| {
            let count = file.by_ref().take(LONGEST).read_until(b'\n', text).map_err(|e| Error::io(path, e))?;
            Ok::<_, Error>((count as u64, text.last() == Some(&b'\n')))
        };
        let (mut bytes, mut ended) = read(&mut text)?;
        if bytes == 0 {
            break;
        }
        let mut rest = vec![];
        let mut count = bytes;
        while !ended && count == LONGEST {
            rest.clear();
            (count, ended) = read(&mut rest)?;
            bytes += count;
        }
        take(Line { number, start, bytes, ended }, text.strip_suffix(b"\n").unwrap_or(&text))?;
        start += bytes;
    }
    Ok(())
}
