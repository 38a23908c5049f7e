//! Checking checkpoints as a whole, without loading them: every byte of every file.

use rayon::iter::{IntoParallelIterator, ParallelIterator};
use std::path::{Path, PathBuf};

use super::{CHECKPOINTS, Checkpoint, OPTIMIZER, STATE, list, step_of};
use crate::files::{FileSum, Tensors};
use crate::{Error, Result, bail};

/// What was found of a checkpoint.
#[derive(Debug)]
pub enum Verdict {
    /// Every file is what was saved. How many files, and bytes in them.
    Whole { files: usize, bytes: u64 },
    /// It has no checksums, as those of 0.1.0: its files can be opened, which is all that can be said.
    Unknown,
    /// What is wrong, file by file.
    Damaged(Vec<Error>),
    /// Its run has removed it meanwhile.
    Gone,
}

/// Checks the checkpoints of the run `path`, oldest first, or the one checkpoint that it is; `tell` is given each as it
/// is done.
///
/// # Errors
/// There is none, or `tell` fails.
pub fn verify(path: &Path, mut tell: impl FnMut(&Path, Verdict) -> Result<()>) -> Result<()> {
    let inner = path.join(CHECKPOINTS);
    let found: Vec<PathBuf> = if path.join(STATE).is_file() || (step_of(path).is_some() && path.is_dir()) {
        vec![path.to_owned()]
    } else {
        list(if inner.is_dir() { &inner } else { path })?.into_iter().map(|(_, dir)| dir).collect()
    };
    if found.is_empty() {
        bail!(Checkpoint, "{}: holds no checkpoint", path.display())
    }
    let mut run = None;
    for dir in found {
        let verdict = match verdict(&dir, &mut run) {
            Verdict::Damaged(_) if !dir.is_dir() => Verdict::Gone,
            verdict => verdict,
        };
        tell(&dir, verdict)?;
    }
    Ok(())
}

/// Of one checkpoint. `run` is the name of the run that the ones before are of.
fn verdict(dir: &Path, run: &mut Option<String>) -> Verdict {
    let checkpoint = match Checkpoint::at(dir) {
        Ok(checkpoint) => checkpoint,
        Err(e) => return Verdict::Damaged(vec![e]),
    };
    let mut wrong: Vec<Error> = checkpoint.check_names("").err().into_iter().collect();
    if let Some(own) = &checkpoint.state().run {
        let first = run.get_or_insert_with(|| own.clone());
        if first != own {
            let dir = dir.display();
            wrong.push(Error::Checkpoint(format!("{dir}: is of the run {own}, those before are of {first}")));
        }
    }
    if !checkpoint.has_sums() {
        let opened = [
            checkpoint.transformer().map(drop),
            checkpoint.ema().map(drop),
            Tensors::open(&dir.join(OPTIMIZER)).map(drop),
        ];
        wrong.extend(opened.into_iter().filter_map(Result::err));
        return if wrong.is_empty() { Verdict::Unknown } else { Verdict::Damaged(wrong) };
    }
    let files: Vec<_> = checkpoint.files().collect();
    let sums = files.into_par_iter().map(|(name, sum)| {
        let file = dir.join(name);
        FileSum::of(&file).and_then(|found| sum.check(found, &file))
    });
    let damages: Vec<Error> = sums.filter_map(Result::err).collect();
    // A file that is missing or of another length is told once.
    wrong.retain(|name| !damages.iter().any(|e| e.to_string() == name.to_string()));
    wrong.extend(damages);
    if !wrong.is_empty() {
        return Verdict::Damaged(wrong);
    }
    let (files, bytes) = checkpoint.files().fold((0, 0), |(n, bytes), (_, sum)| (n + 1, bytes + sum.bytes));
    Verdict::Whole { files, bytes }
}
