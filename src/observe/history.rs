//! Makes `metrics.jsonl` agree with the checkpoint that a run resumes from.
//!
//! A run that was killed has measured steps that its last checkpoint does not count; they come again. A machine that
//! crashed may have left a torn line, or bytes that are 0, and may have lost lines; other programs, or two runs in one
//! folder, may have left anything. Each step shall be there once, in order, and whatever was wrong is said. Lines that
//! go are kept in another file: they may be all that is left of a history that somebody wants to look at.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write, copy};
use std::path::Path;

use super::metrics::{Line, Record, lines};
use crate::files::{NewFile, check_target, failed, open_target};
use crate::terminal::counted;
use crate::{Error, Result};

/// The file beside the metrics that gets the lines that are cut out of them.
const CUT: &str = "metrics-cut.jsonl";

/// Faults of one kind that are named; of more, the number.
const NAMED: usize = 5;

/// Rewrites the metrics file `path` so that it holds one line for each step up to `step`, as far as it has them, and
/// returns the last of these steps. The new file takes the old one's place whole, after what is left out is safe in the
/// file for that.
///
/// # Errors
/// Those of reading and writing.
pub(super) fn mend(path: &Path, step: u64) -> Result<u64> {
    let shown = path.display();
    check_target(path)?; // a pipe would be waited for
    match std::fs::metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => {
            if step > 0 {
                tracing::warn!("{shown}: is not there; it begins anew with step {}", step + 1);
            }
            return Ok(0);
        }
        Err(e) => return Err(Error::io(path, e)),
    }
    let found = Found::read(path, step)?;
    found.faults(step).into_iter().for_each(|fault| tracing::warn!("{shown}: {fault}"));
    if found.whole() {
        return Ok(found.last());
    }
    let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
    let mut copy_line = |line: &Line, to: &mut dyn Write| -> std::io::Result<()> {
        file.seek(SeekFrom::Start(line.start))?;
        copy(&mut (&mut file).take(line.bytes), to)?;
        if line.ended { Ok(()) } else { to.write_all(b"\n") }
    };
    let cut = path.with_file_name(CUT);
    if !found.dropped.is_empty() {
        let mut out = open_target(&cut, OpenOptions::new().create(true).append(true))?;
        found.dropped.iter().try_for_each(|line| copy_line(line, &mut out)).map_err(|e| failed(&cut, e))?;
        out.sync_all().map_err(|e| failed(&cut, e))?;
        let (count, later) = (found.dropped.len(), found.later);
        let moved = counted(count, "line was", "lines were");
        tracing::info!("{shown}: {moved} moved to {CUT}, {later} of them of steps after {step}");
    }
    NewFile::begin(path)?
        .write(|out| found.kept.iter().try_for_each(|(_, line)| copy_line(line, out)).map_err(|e| failed(path, e)))?;
    Ok(found.last())
}

/// The lines of a file, sorted out.
#[derive(Default)]
struct Found {
    /// One line for each step, in order.
    kept: Vec<(u64, Line)>,
    dropped: Vec<Line>,
    /// How many lines are dropped because their step comes after the checkpoint's.
    later: usize,
    /// Lines that are no records, with the reason.
    damaged: Vec<(Line, String)>,
    /// Lines whose step comes again further on.
    repeated: Vec<(u64, Line)>,
    /// Lines whose step is below that of a line before.
    fallen: Vec<(u64, Line)>,
}

impl Found {
    fn read(path: &Path, step: u64) -> Result<Self> {
        let (mut found, mut highest) = (Self::default(), 0);
        lines(path, |line, text| {
            match parse(text) {
                Ok(at) if at > step => {
                    found.later += 1;
                    found.dropped.push(line);
                }
                Ok(at) => {
                    if at < highest {
                        found.fallen.push((at, line));
                    }
                    highest = highest.max(at);
                    found.kept.push((at, line));
                }
                Err(why) => {
                    let why = if line.ended { why } else { "was torn when the run ended".to_owned() };
                    found.damaged.push((line, why));
                    found.dropped.push(line);
                }
            }
            Ok(())
        })?;
        // Of lines of one step the last is that of the history that went on.
        found.kept.sort_by_key(|&(at, _)| at); // stable
        let mut once: Vec<(u64, Line)> = Vec::with_capacity(found.kept.len());
        for next in std::mem::take(&mut found.kept) {
            found.repeated.extend(once.pop_if(|last| last.0 == next.0));
            once.push(next);
        }
        found.kept = once;
        let again: BTreeSet<u64> = found.repeated.iter().map(|&(at, _)| at).collect();
        found.fallen.retain(|(at, _)| !again.contains(at));
        found.repeated.sort_by_key(|(_, line)| line.number);
        found.dropped.extend(found.repeated.iter().map(|&(_, line)| line));
        found.dropped.sort_by_key(|line| line.number);
        Ok(found)
    }

    /// Whether the file is as it should be.
    fn whole(&self) -> bool {
        self.dropped.is_empty() && self.fallen.is_empty() && self.kept.iter().all(|(_, line)| line.ended)
    }

    fn last(&self) -> u64 {
        self.kept.last().map_or(0, |&(at, _)| at)
    }

    /// What is wrong with the file of a run that has done `step` steps, a line each.
    fn faults(&self, step: u64) -> Vec<String> {
        let mut faults = few(self.damaged.iter().map(|(line, why)| format!("line {} {why}", line.number)));
        faults.extend(few(stretches(&self.repeated).map(|(lines, steps)| {
            format!("{} of {} come again further on; the later ones count", range("line", lines), range("step", steps))
        })));
        faults.extend(few(stretches(&self.fallen).map(|(lines, steps)| {
            format!("{} of {} come after a later step; put in order", range("line", lines), range("step", steps))
        })));
        let steps = self.kept.iter().map(|&(at, _)| at).chain([step + 1]);
        let mut next = 1;
        let gaps = steps.filter_map(|at| {
            let gap = (at > next).then_some([next, at - 1]);
            next = at + 1;
            gap
        });
        faults.extend(few(gaps.map(|gap| format!("has no line for {}", range("step", gap)))));
        faults
    }
}

/// The step of a record.
fn parse(text: &[u8]) -> std::result::Result<u64, String> {
    match serde_json::from_slice::<Record>(text) {
        Ok(record) if record.step > 0 => Ok(record.step),
        Ok(_) => Err("is of step 0, which no run has".to_owned()),
        Err(_) if text.contains(&0) => Err("holds NUL bytes, as a crash of the machine leaves them".to_owned()),
        Err(e) => Err(format!("is not a record of metrics: {e}")),
    }
}

/// First and last line, first and last step, of stretches of lines that follow each other in both.
fn stretches(lines: &[(u64, Line)]) -> impl Iterator<Item = ([u64; 2], [u64; 2])> {
    let follows = |a: &(u64, Line), b: &(u64, Line)| b.1.number == a.1.number + 1 && b.0 == a.0 + 1;
    lines.chunk_by(follows).map(|all| {
        let (first, last) = (all[0], all[all.len() - 1]);
        ([first.1.number, last.1.number], [first.0, last.0])
    })
}

fn range(what: &str, [first, last]: [u64; 2]) -> String {
    if first == last { format!("{what} {first}") } else { format!("{what}s {first} to {last}") }
}

/// The first few of many faults, and how many more there are.
fn few(faults: impl Iterator<Item = String>) -> Vec<String> {
    let mut faults: Vec<String> = faults.collect();
    let more = faults.len().saturating_sub(NAMED);
    faults.truncate(NAMED);
    if more > 0 {
        faults.push(format!("and {more} more like that"));
    }
    faults
}
