//! `~` in the paths of a config: expanded when it is read, so that what is kept of it (a run's config.toml) holds for
//! all times.

use super::check::{Problem, problem};
use super::run::RunConfig;
use crate::files::expand_home;
use std::path::PathBuf;

/// Replaces a leading `~` of every path by the home folder.
pub(super) fn expand(config: &mut RunConfig) -> Result<(), Problem> {
    let folders = [
        ("run.out", Some(&mut config.run.out)),
        ("stash.folder", config.stash.folder.as_mut()),
        ("vae.cache", Some(&mut config.vae.cache)),
    ];
    for (key, path) in folders.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        *path = expanded(key, path)?;
    }
    let names = [
        ("data.path", Some(&mut config.data.path)),
        ("data.heldout", config.data.heldout.as_mut()),
        ("model.from", config.model.from.as_mut()),
        ("vae.from", config.vae.from.as_mut()),
    ];
    for (key, name) in names.into_iter().filter_map(|(key, name)| Some((key, name?))) {
        if name.starts_with('~') {
            let path = expanded(key, name.as_ref())?;
            let text = path.into_os_string().into_string();
            *name = text.map_err(|_| problem(key, &name, "the home folder's name is not UTF-8: write the path out"))?;
        }
    }
    Ok(())
}

fn expanded(key: &'static str, path: &std::path::Path) -> Result<PathBuf, Problem> {
    expand_home(path).map_err(|e| {
        let reason = e.to_string();
        let reason = reason.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&reason);
        problem(key, path, reason)
    })
}
