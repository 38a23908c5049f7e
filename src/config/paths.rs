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
        ("vae.cache", config.vae.cache.as_mut()),
        ("text.cache", config.text.cache.as_mut()),
    ];
    for (key, path) in folders.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        *path = expanded(key, path)?;
    }
    let sections = config.data.iter_mut().zip(0..);
    let named = sections.flat_map(|(section, number)| {
        [("data.path", number, Some(&mut section.path)), ("data.heldout", number, section.heldout.as_mut())]
    });
    let names = named.chain([
        ("model.from", 0, config.model.from.as_mut()),
        ("lora.from", 0, config.lora.from.as_mut()),
        ("vae.from", 0, config.vae.from.as_mut()),
        ("text.from", 0, config.text.from.as_mut()),
    ]);
    for (key, number, name) in names.filter_map(|(key, number, name)| Some((key, number, name?))) {
        if name.starts_with('~') {
            let path = expanded(key, name.as_ref()).map_err(|problem| problem.of_section(number))?;
            let text = path.into_os_string().into_string();
            let why = "the home folder's name is not UTF-8: write the path out";
            *name = text.map_err(|_| problem(key, &name, why).of_section(number))?;
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
