//! `~`, where a shell has left it as it is: in a config, after `=`, in an environment variable.

use crate::{Result, bail};
use std::path::{Path, PathBuf};

/// `path`, its leading `~` or `~/` replaced by the home folder: `$HOME`, or else the user database's.
///
/// # Errors
/// There is no home folder, or `path` begins with `~user`: other users' folders are not looked up. (A folder that is
/// really called `~x` is written `./~x`.)
pub fn expand_home(path: impl AsRef<Path>) -> Result<PathBuf> {
    let path = path.as_ref();
    let Some(first) = path.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned()) else {
        return Ok(path.to_owned());
    };
    if first != "~" {
        if first.starts_with('~') {
            bail!(Config, "{}: the home folder of another user is not looked up: write the path out", path.display());
        }
        return Ok(path.to_owned());
    }
    match std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
        Some(home) => Ok(home.components().chain(path.components().skip(1)).collect()),
        None => bail!(Environment, "{}: there is no home folder: set HOME, or write the path out", path.display()),
    }
}
