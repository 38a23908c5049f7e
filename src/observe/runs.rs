//! [`find`] finds runs below the folders that a user names, and says of each how far it is.
//!
//! A folder is a run's if it holds a `config.toml` or a `metrics.jsonl`. Symbolic links below the named folders are not
//! followed.

use crate::files::to_hex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use walkdir::WalkDir;

use super::folder::RunDir;
use super::follow::last_record;

pub(super) const CONFIG: &str = "config.toml";
pub(super) const METRICS: &str = "metrics.jsonl";

/// A longer config is not read.
pub(super) const LONGEST_CONFIG: u64 = 1 << 20;

/// Folders below a named one in which runs are looked for, and runs, at most.
const DEPTH: usize = 4;
const MOST_FOLDERS: usize = 20_000;
const MOST_RUNS: usize = 500;

/// A run that can be looked at.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// What the page calls it in addresses: it follows from its path.
    pub id: String,
    /// What people call it: no other run found has the same name.
    pub name: String,
    pub dir: RunDir,
}

/// The runs at and below `places`, by path, each once.
pub(super) fn find(places: &[PathBuf]) -> Vec<Run> {
    let mut found: BTreeMap<PathBuf, usize> = BTreeMap::new(); // with the number of parts of its name
    for place in places {
        let Ok(place) = place.canonicalize() else { continue };
        if is_run(&place) {
            found.entry(place).or_insert(1);
            continue;
        }
        let above = place.components().count();
        let mut folders = WalkDir::new(&place).min_depth(1).max_depth(DEPTH).into_iter();
        for _ in 0..MOST_FOLDERS {
            let Some(entry) = folders.next() else { break };
            let Ok(entry) = entry.map(walkdir::DirEntry::into_path) else { continue };
            let hidden = entry.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."));
            if hidden && entry.is_dir() {
                folders.skip_current_dir();
            } else if is_run(&entry) {
                let parts = entry.components().count() - above;
                found.entry(entry).or_insert(parts);
                folders.skip_current_dir();
            }
        }
    }
    let found: Vec<_> = found.into_iter().take(MOST_RUNS).collect();
    let named = |(path, parts): &(PathBuf, usize)| ending(path, *parts);
    let mut names: Vec<String> = found.iter().map(named).collect();
    for more in 1..DEPTH * 4 {
        let again: Vec<bool> =
            names.iter().map(|name| names.iter().filter(|other| *other == name).count() > 1).collect();
        for (i, (path, parts)) in found.iter().enumerate().filter(|(i, _)| again[*i]) {
            names[i] = ending(path, parts + more);
        }
    }
    let id = |path: &Path| to_hex(&Sha256::digest(path.as_os_str().as_bytes())[..8]);
    found.into_iter().zip(names).map(|((path, _), name)| Run { id: id(&path), name, dir: RunDir::new(path) }).collect()
}

fn is_run(path: &Path) -> bool {
    let is_file = |name| path.join(name).symlink_metadata().is_ok_and(|about| about.is_file());
    path.symlink_metadata().is_ok_and(|about| about.is_dir()) && (is_file(METRICS) || is_file(CONFIG))
}

/// The last `parts` parts of a path.
fn ending(path: &Path, parts: usize) -> String {
    let all: Vec<_> = path.components().collect();
    let last = &all[all.len().saturating_sub(parts)..];
    last.iter().collect::<PathBuf>().to_string_lossy().into_owned()
}

impl Run {
    /// Its name, how far it is, and when it wrote last.
    pub fn summary(&self) -> Value {
        let metrics = self.dir.open(METRICS);
        let written = metrics.as_ref().ok().and_then(|file| file.metadata().ok()?.modified().ok());
        let last = metrics.ok().and_then(|file| last_record(&file).ok()?);
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut summary = json!({
            "id": self.id, "name": self.name, "path": self.dir.path().to_string_lossy(),
            "steps": self.config()["train"]["steps"], "written": written.map(seconds),
        });
        for key in ["step", "loss", "tokens_per_s", "seconds"] {
            summary[key] = last.as_ref().map_or(Value::Null, |last| last[key].clone());
        }
        summary
    }

    /// Its config; null where there is none, or it cannot be read.
    pub fn config(&self) -> Value {
        let text = self.dir.text(CONFIG, LONGEST_CONFIG).unwrap_or_default();
        toml::from_str(&text).unwrap_or(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn runs_are_found_once_with_names_that_differ() {
        let place = tempfile::tempdir().unwrap();
        for run in ["a/x", "b/x", "b/y/z", "b/.hidden/w", "c/x/checkpoints/step-00000001/x"] {
            fs::create_dir_all(place.path().join(run)).unwrap();
            fs::write(place.path().join(run).join(METRICS), "").unwrap();
        }
        fs::write(place.path().join("c/x").join(CONFIG), "[train]\nsteps = 7\n").unwrap();
        std::os::unix::fs::symlink(place.path().join("a"), place.path().join("link")).unwrap();
        let at = |name: &str| place.path().join(name);
        let runs = find(&[at(""), at("a/x"), at("nowhere")]);
        let names: Vec<&str> = runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["a/x", "b/x", "b/y/z", "c/x"]);
        assert_eq!(runs[3].summary()["steps"], 7);
        let names: Vec<String> = find(&[at("a/x"), at("b/x"), at("b/y/z")]).into_iter().map(|run| run.name).collect();
        assert_eq!(names, ["a/x", "b/x", "z"]);
    }
}
