//! What a run's folder says of the run: how far it is, how it goes, what is saved, whether a process is at work in it.
//!
//! Only files are read, of runs that go on, have ended, were killed or are damaged. As long as the folder is a run's,
//! what cannot be read is a note beside what can. Whatever their lengths, a bounded part of the files is read.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use toml::{Table, Value};

use super::folder::end_of;
use super::lock::{Holder, LOCK, Lock, look};
use super::metrics::Record;
use super::runs::{CONFIG, LONGEST_CONFIG, METRICS};
use crate::{Error, Result, bail};

const CHECKPOINTS: &str = "checkpoints";
const STATE: &str = "state.json";

/// Bytes of the metrics that are read from the end: at first, then so many times more until a held-out loss is among
/// them, and at most.
const TAIL: u64 = 1 << 20;
const LONGER: u64 = 8;
const LONGEST_TAIL: u64 = 64 << 20;

/// The last steps whose mean is the pace.
const PACE: usize = 50;

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// A process is at work and has not finished a step yet.
    Starting,
    /// A process is at work.
    Running,
    /// All steps are done and saved.
    Ended,
    /// It has ended before its last step, as it was asked to or with an error.
    Stopped,
    /// Its process is gone without having ended the run.
    Killed,
    /// The file system does not tell whether a process is at work.
    Unknown,
}

impl Activity {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
            Self::Unknown => "unknown",
        }
    }
}

/// A checkpoint that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    pub step: u64,
    pub folder: PathBuf,
    /// How long ago it was completed, if the system tells.
    pub age: Option<Duration>,
}

/// What is known of a run.
#[derive(Clone, Debug)]
pub struct RunStatus {
    pub root: PathBuf,
    pub activity: Activity,
    /// The process at work.
    pub holder: Option<Holder>,
    /// `train.steps`.
    pub steps: Option<u64>,
    /// What the last step measured, and how long ago it was written.
    pub last: Option<Record>,
    pub last_age: Option<Duration>,
    /// Seconds of a step, the mean of the last ones.
    pub pace: Option<f64>,
    /// The last held-out loss, and its step.
    pub heldout: Option<(u64, f64)>,
    pub checkpoint: Option<Saved>,
    /// What is damaged or cannot be read, a line each.
    pub notes: Vec<String>,
}

impl RunStatus {
    /// Reads the folder of a run.
    ///
    /// # Errors
    /// It is not there, or holds nothing that a run's folder has.
    pub fn read(root: &Path) -> Result<Self> {
        let about = fs::metadata(root).map_err(|e| Error::io(root, e))?;
        if !about.is_dir() {
            bail!(Checkpoint, "{}: is not a folder; name a run's, which is run.out in its config", root.display())
        }
        let parts = [CONFIG, METRICS, CHECKPOINTS, LOCK];
        if parts.iter().all(|part| root.join(part).symlink_metadata().is_err()) {
            bail!(Checkpoint, "{}: is not a run's folder: it has none of {}", root.display(), parts.join(", "))
        }
        // The lock first: a run that ends meanwhile has its last lines and checkpoint there when they are read.
        let lock = look(root);
        let mut notes = vec![];
        let config = noted(&mut notes, CONFIG, read_config(&root.join(CONFIG)));
        let steps =
            config.as_ref().and_then(|config| u64::try_from(value(config, "train", "steps")?.as_integer()?).ok());
        // Without held-out clips no line has their loss; without a config it is looked for.
        let heldout = config.as_ref().is_none_or(|config| value(config, "data", "heldout").is_some());
        let alive = matches!(lock, Lock::Held(_));
        let metrics = noted(&mut notes, METRICS, Metrics::read(&root.join(METRICS), heldout)).unwrap_or_default();
        notes.extend(metrics.fault(alive));
        let (checkpoint, damaged) = noted(&mut notes, CHECKPOINTS, newest(&root.join(CHECKPOINTS))).unwrap_or_default();
        if !alive {
            notes.extend(damaged); // a living run may be about to remove one
        }
        let done = checkpoint.as_ref().map_or(0, |saved| saved.step);
        let activity = match &lock {
            Lock::Held(_) if metrics.recent.is_empty() => Activity::Starting,
            Lock::Held(_) => Activity::Running,
            Lock::Left => Activity::Killed,
            Lock::Free if steps.is_some_and(|steps| done >= steps) => Activity::Ended,
            Lock::Free => Activity::Stopped,
            Lock::Unknown(why) => {
                notes.push(format!("{LOCK}: whether a process is at work is not known: {why}"));
                Activity::Unknown
            }
        };
        Ok(Self {
            root: root.to_owned(),
            activity,
            holder: if let Lock::Held(holder) = lock { holder } else { None },
            steps,
            pace: metrics.pace(),
            last: metrics.recent.into_iter().next_back(),
            last_age: metrics.age,
            heldout: metrics.heldout,
            checkpoint,
            notes,
        })
    }

    /// Whether a process is at work.
    pub fn is_alive(&self) -> bool {
        matches!(self.activity, Activity::Starting | Activity::Running)
    }

    /// How long a run that goes on will, held-out losses, samples and checkpoints apart; none where that is not known.
    pub fn left(&self) -> Option<Duration> {
        let steps = self.steps?.saturating_sub(self.last.as_ref()?.step);
        self.is_alive().then(|| Duration::try_from_secs_f64(self.pace? * steps as f64).ok()).flatten()
    }

    /// How often the clips have been gone through, and how often they will have at the end; none where the metrics do
    /// not say.
    pub fn epochs(&self) -> Option<(f64, Option<f64>)> {
        let last = self.last.as_ref()?;
        let epoch = *last.more.get(super::metrics::EPOCH)?;
        Some((epoch, self.steps.map(|steps| epoch / last.step as f64 * steps as f64)))
    }
}

/// `result`'s value; an error becomes a note.
fn noted<T>(notes: &mut Vec<String>, name: &str, result: io::Result<T>) -> Option<T> {
    result.map_err(|e| notes.push(format!("{name}: {e}"))).ok()
}

/// Opens a regular file; none where there is none.
fn open(path: &Path) -> io::Result<Option<File>> {
    match fs::metadata(path) {
        Ok(about) if about.is_file() => File::open(path).map(Some),
        Ok(_) => Err(io::Error::new(ErrorKind::InvalidInput, "is no regular file")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn read_config(path: &Path) -> io::Result<Table> {
    let Some(file) = open(path)? else { return Err(io::Error::new(ErrorKind::NotFound, "is not there")) };
    let mut text = String::new();
    file.take(LONGEST_CONFIG).read_to_string(&mut text)?;
    text.parse()
        .map_err(|e: toml::de::Error| io::Error::new(ErrorKind::InvalidData, crate::terminal::one_line(e.message())))
}

fn value<'a>(config: &'a Table, section: &str, key: &str) -> Option<&'a Value> {
    config.get(section)?.get(key)
}

/// The end of a metrics file.
#[derive(Default)]
struct Metrics {
    /// The last records, oldest first.
    recent: Vec<Record>,
    heldout: Option<(u64, f64)>,
    /// How long ago the file was written to.
    age: Option<Duration>,
    /// Lines, of those that were read, that are no records.
    damaged: usize,
    /// Whether the last line has no end.
    torn: bool,
}

impl Metrics {
    /// Reads it, and so much of it that the last held-out loss is found if one is to be `wanted`.
    fn read(path: &Path, wanted: bool) -> io::Result<Self> {
        let Some(file) = open(path)? else { return Ok(Self::default()) };
        let about = file.metadata()?;
        let age = about.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
        let mut tail = TAIL;
        loop {
            let (bytes, cut) = end_of(&file, tail)?;
            let metrics = Self { age, ..Self::of(&bytes, cut) };
            let enough = !metrics.recent.is_empty() && (metrics.heldout.is_some() || !wanted);
            if enough || !cut || tail >= LONGEST_TAIL {
                return Ok(metrics);
            }
            tail *= LONGER;
        }
    }

    /// Of the end of a file; where it is `cut`, its first line has lost its beginning.
    fn of(bytes: &[u8], cut: bool) -> Self {
        let mut metrics = Self { torn: bytes.last().is_some_and(|&last| last != b'\n'), ..Self::default() };
        let lines = bytes.split(|&byte| byte == b'\n').skip(usize::from(cut));
        let mut lines: Vec<&[u8]> = lines.collect();
        lines.pop(); // torn, or nothing
        for line in lines {
            match serde_json::from_slice::<Record>(line) {
                Ok(record) => {
                    metrics.heldout = record.heldout.map(|loss| (record.step, loss)).or(metrics.heldout);
                    metrics.recent.push(record);
                }
                Err(_) => metrics.damaged += 1,
            }
        }
        metrics.recent.drain(..metrics.recent.len().saturating_sub(PACE));
        metrics
    }

    fn pace(&self) -> Option<f64> {
        let sum: f64 = self.recent.iter().map(|record| record.seconds).sum();
        (!self.recent.is_empty()).then(|| sum / self.recent.len() as f64)
    }

    /// What is wrong with it; of a run that is `alive` a last line may be on its way.
    fn fault(&self, alive: bool) -> Option<String> {
        let damaged = (self.damaged > 0).then(|| {
            let lines = crate::terminal::counted(self.damaged, "line is no record", "lines are no records");
            format!("{METRICS}: {lines}")
        });
        damaged.or_else(|| (self.torn && !alive).then(|| format!("{METRICS}: its last line is torn")))
    }
}

/// The newest checkpoint that has a state.json, and what is wrong with newer ones.
fn newest(all: &Path) -> io::Result<(Option<Saved>, Vec<String>)> {
    let entries = match fs::read_dir(all) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok((None, vec![])),
        Err(e) => return Err(e),
    };
    let step = |name: &str| {
        let step = name.strip_prefix("step-")?.parse::<u64>().ok()?;
        (format!("step-{step:08}") == name).then_some(step)
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut found: Vec<(u64, PathBuf)> = names.filter_map(|name| Some((step(&name)?, all.join(&name)))).collect();
    found.sort();
    let mut damaged = vec![];
    for (step, folder) in found.into_iter().rev() {
        match fs::metadata(folder.join(STATE)) {
            Ok(about) if about.is_file() => {
                let age = about.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
                return Ok((Some(Saved { step, folder, age }), damaged));
            }
            _ => damaged.push(format!("{CHECKPOINTS}: that of step {step} has no {STATE}: it is damaged")),
        }
    }
    Ok((None, damaged))
}
