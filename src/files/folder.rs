//! Folders that appear, change and go as a whole, and what a crash leaves of them.

use super::{TEMPORARY, failed, parent, temporary_prefix, within_temporary};
use crate::{Error, Result, bail};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder in the making: it has a temporary name beside its target until [`publish`](Self::publish) renames it.
/// Dropped before that, it is removed.
#[derive(Debug)]
pub struct NewFolder {
    staged: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Starts a folder that shall be called `target`; missing parents are created.
    ///
    /// # Errors
    /// `target` is there and no folder, or is a symbolic link; or those of the system.
    pub fn begin(target: &Path) -> Result<Self> {
        if fs::symlink_metadata(target).is_ok_and(|there| !there.is_dir()) {
            bail!(Config, "{}: is not a folder, and is not written over: name another one", target.display())
        }
        create_folders(parent(target))?;
        Ok(Self { staged: temporary_folder(target)?, target: target.to_owned() })
    }

    /// Where to put the folder's files for now; each must be on disk already (as after
    /// [`atomic_write`](super::atomic_write)).
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Gives the folder its name. An older folder of that name is an error, or with `replace` is removed, once the new
    /// one has taken its place; an empty one gives way in any case.
    pub fn publish(self, replace: bool) -> Result<()> {
        let Self { staged, target } = self;
        for entry in walkdir::WalkDir::new(staged.path()).contents_first(true) {
            let entry = entry.map_err(|e| failed(&target, e.into()))?;
            if entry.file_type().is_dir() {
                sync_folder(entry.path())?;
            }
        }
        let occupied = fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_some());
        if occupied && !replace {
            bail!(Config, "{}: exists already; remove it or choose another name", target.display());
        }
        if occupied {
            return replaced(staged, &target);
        }
        fs::rename(staged.path(), &target).map_err(|e| failed(&target, e))?;
        let _ = staged.keep(); // renamed: there is nothing left to remove
        sync_folder(parent(&target))
    }
}

/// Gives `staged` the name of the folder `target`, and removes that one.
fn replaced(staged: TempDir, target: &Path) -> Result<()> {
    match renameat_with(CWD, staged.path(), CWD, target, RenameFlags::EXCHANGE) {
        Ok(()) => return sync_folder(parent(target)), // `staged`, dropped, removes the old one
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {} // NFS and others cannot
        Err(e) => return Err(failed(target, e.into())),
    }
    // For an instant nothing has the name. Both are whole, and if the process ends there, `remove_leftovers` gives the
    // old one its name back.
    let aside = temporary_folder(target)?;
    let old = aside.path().join(target.file_name().unwrap_or_default());
    fs::rename(target, &old).map_err(|e| failed(target, e))?;
    if let Err(e) = fs::rename(staged.path(), target) {
        fs::rename(&old, target).map_err(|e| failed(target, e))?;
        return Err(failed(target, e));
    }
    let _ = staged.keep();
    sync_folder(parent(target))
}

/// A new folder beside `target`, with one of its temporary names.
fn temporary_folder(target: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(&temporary_prefix(target)?)
        .suffix(TEMPORARY)
        .permissions(Permissions::from_mode(0o777)) // less the umask, like any other folder
        .tempdir_in(parent(target))
        .map_err(|e| failed(target, e))
}

/// Removes a folder. It loses its name first, at once: nobody can take what is left of it for the whole, whatever
/// happens meanwhile.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    let aside = temporary_folder(folder)?;
    fs::rename(folder, aside.path()).map_err(|e| failed(folder, e))?;
    sync_folder(parent(folder))?;
    aside.close().map_err(|e| failed(folder, e))
}

/// Makes a folder and those it lies in, as far as they are missing, so that they survive a power cut.
pub(crate) fn create_folders(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.is_dir()).collect();
    fs::create_dir_all(folder).map_err(|e| failed(folder, e))?;
    missing.into_iter().try_for_each(|made| sync_folder(parent(made)))
}

/// Writes a file to a folder, and removes it: whether that can be done.
#[cfg(feature = "media")]
pub(crate) fn try_to_write(folder: &Path) -> std::io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".").suffix(TEMPORARY).tempfile_in(folder)?;
    std::io::Write::write_all(&mut file, &[0])
}

/// Removes temporary files and folders that a crash left directly in `folder`. Nobody else may be writing there.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = within_temporary(&name) else { continue };
        // Of a folder that was about to be replaced, see `replaced`.
        let target = name.rsplit_once('-').map_or(name, |(target, _)| target);
        let (old, target) = (path.join(target), folder.join(target));
        if old.is_dir() && !target.exists() {
            fs::rename(&old, &target).map_err(|e| Error::io(&old, e))?;
            tracing::warn!("{}: was about to be replaced when a run was killed; it is back", target.display());
        }
        let folder = fs::symlink_metadata(&path).is_ok_and(|there| there.is_dir());
        match if folder { fs::remove_dir_all(&path) } else { fs::remove_file(&path) } {
            Ok(()) => tracing::warn!("{}: left by a run that was killed while saving; removed", path.display()),
            // It harms nobody. On network file systems a file that somebody still reads keeps its folder from going.
            Err(e) => tracing::warn!("{}: left by a run that was killed, cannot be removed: {e}", path.display()),
        }
    }
    Ok(())
}

/// Makes a rename within `folder` survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(folder, e))
}
