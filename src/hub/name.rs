//! Parses `hf://owner/name[@revision][/path]`, the name of a hub repository, or of a file or folder in one.

use crate::{Result, bail};
use hf_hub::{Repo, RepoType};
use std::path::{Path, PathBuf};

/// A parsed `hf://` name.
#[derive(Clone, Debug)]
pub struct Name {
    /// The whole name, as it was written.
    pub spec: String,
    /// `owner/name`.
    pub id: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A file or folder in the repository; empty: all of it.
    pub path: String,
    /// What it may be, in the order to try.
    pub(super) kinds: Vec<RepoType>,
}

/// Parses an `hf://` name.
///
/// # Errors
/// It is malformed, or its path or revision would lead out of the repository.
pub fn parse(spec: &str) -> Result<Name> {
    let Some(name) = spec.strip_prefix("hf://") else { return malformed(spec) };
    let mut parts: Vec<&str> = name.trim_end_matches('/').split('/').collect();
    let kinds = match parts.first() {
        Some(&"datasets") => vec![RepoType::Dataset],
        Some(&"models") => vec![RepoType::Model],
        _ => vec![RepoType::Model, RepoType::Dataset],
    };
    if kinds.len() == 1 {
        parts.remove(0);
    }
    let (owner, rest) = parts.split_first().unwrap_or((&"", &[]));
    let (last, path) = rest.split_first().unwrap_or((&"", &[]));
    let (repo, revision) = last.split_once('@').unwrap_or((last, "main"));
    // A branch such as refs/pr/1 is written refs%2Fpr%2F1.
    let revision = revision.replace("%2F", "/").replace("%2f", "/");
    let plain = |s: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !s.is_empty() && s.chars().all(allowed) && s != "." && s != ".."
    };
    if !plain(owner) || !plain(repo) || !is_inside(&revision) || !path.iter().all(|part| is_inside(part)) {
        return malformed(spec);
    }
    Ok(Name { spec: spec.to_owned(), id: format!("{owner}/{repo}"), revision, kinds, path: path.join("/") })
}

fn malformed(spec: &str) -> Result<Name> {
    bail!(
        Config,
        "{spec}: a hub name is written hf://owner/name, hf://owner/name@revision or hf://owner/name/path (and \
         hf://datasets/owner/name for a data set)"
    )
}

impl Name {
    /// Whether a file of the repository is meant; hidden ones (.gitattributes) only by their own name.
    pub fn holds(&self, file: &str) -> bool {
        let below = match file.strip_prefix(self.path.as_str()) {
            Some(rest) if self.path.is_empty() => rest,
            Some("") => return true,
            Some(rest) if rest.starts_with('/') => rest,
            _ => return false,
        };
        below.split('/').all(|part| !part.starts_with('.'))
    }

    /// Where the path lies below a snapshot's folder.
    pub(super) fn below(&self, snapshot: &Path) -> PathBuf {
        if self.path.is_empty() { snapshot.to_owned() } else { snapshot.join(&self.path) }
    }

    pub(super) fn repo(&self, kind: RepoType) -> Repo {
        Repo::with_revision(self.id.clone(), kind, self.revision.clone())
    }
}

/// Whether a relative path, its parts separated by `/`, stays inside the folder that it is relative to.
pub(super) fn is_inside(path: &str) -> bool {
    !path.contains('\0') && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}
