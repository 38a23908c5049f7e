//! Files that matter: written so that a crash, a full disk or Ctrl-C never leaves half of one, nor harms the old one.
//!
//! [`atomic_write`] does it for a file, [`NewFolder`] for a folder: write beside the target under a temporary name, fsync,
//! rename, fsync the parent. (Rename is atomic; without the first fsync a crash may leave a name without contents, without
//! the second the name may be lost.) [`Tensors`] and [`write_tensors`] read and write safetensors.
//! `scratch` is for the opposite, a file that nobody shall find.
//!
//! Nothing here knows what the files mean.

mod home;
mod scratch;
mod tensors;

use crate::{Error, Result, bail};
use std::ffi::OsString;
use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::{NamedTempFile, TempDir};

pub use home::expand_home;
pub(crate) use scratch::Scratch;
pub use tensors::{Tensors, write_pieces, write_tensors};

/// Marks temporary names, so that leftovers of a crash can be told from anything else.
const TEMPORARY: &str = ".longreel-tmp";

/// Creates or replaces the file `path` with what `write` writes; on an error the old file, if any, is as it was.
///
/// # Errors
/// What `write` returned, or the system: no such folder, no permission, a full disk.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    NewFile::begin(path)?.write(|out| write(out).map_err(|e| failed(path, e)))
}

/// A file in the making: it has a temporary name beside its target until [`publish`](Self::publish) renames it. Dropped before that,
/// it is removed, and what has the target's name is as it was.
#[derive(Debug)]
pub(crate) struct NewFile {
    staged: NamedTempFile,
    target: PathBuf,
}

impl NewFile {
    /// Starts a file that shall be called `target`.
    pub fn begin(target: &Path) -> Result<Self> {
        let (prefix, suffix) = temporary_name(target)?;
        let staged = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(&suffix)
            .permissions(Permissions::from_mode(0o666)) // less the umask, like any other file
            .tempfile_in(parent(target))
            .map_err(|e| failed(target, e))?;
        Ok(Self { staged, target: target.to_owned() })
    }

    /// The file, to be written to.
    pub fn file(&self) -> &File {
        self.staged.as_file()
    }

    /// What it will be called.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where it is for now.
    pub fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Lets `write` fill the file, and gives it its name.
    pub fn write(self, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, self.file());
        write(&mut out)?;
        out.flush().map_err(|e| failed(&self.target, e))?;
        drop(out);
        self.publish()
    }

    /// Makes the file durable and gives it its name.
    pub fn publish(self) -> Result<()> {
        let Self { staged, target } = self;
        staged.as_file().sync_all().map_err(|e| failed(&target, e))?;
        staged.persist(&target).map_err(|e| failed(&target, e.error))?;
        sync_folder(parent(&target))
    }
}

/// A folder in the making: it has a temporary name beside its target until [`publish`](Self::publish) renames it.
/// Dropped before that, it is removed.
#[derive(Debug)]
pub struct NewFolder {
    staged: TempDir,
    target: PathBuf,
}

impl NewFolder {
    /// Starts a folder that shall be called `target`; missing parents are created.
    pub fn begin(target: &Path) -> Result<Self> {
        let parent = parent(target);
        std::fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
        let (prefix, suffix) = temporary_name(target)?;
        let staged = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(&suffix)
            .permissions(Permissions::from_mode(0o777))
            .tempdir_in(parent)
            .map_err(|e| failed(target, e))?;
        Ok(Self { staged, target: target.to_owned() })
    }

    /// Where to put the folder's files for now; each must be on disk already (as after [`atomic_write`]).
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
        let occupied = std::fs::read_dir(&target).is_ok_and(|mut entries| entries.next().is_some());
        let mut old = None;
        if occupied {
            if !replace {
                bail!("{}: exists already; remove it or choose another name", target.display());
            }
            // Two renames: for an instant neither folder has the name, but both are whole.
            let aside = NewFolder::begin(&target)?;
            std::fs::rename(&target, aside.path().join("old")).map_err(|e| failed(&target, e))?;
            old = Some(aside);
        }
        if let Err(e) = std::fs::rename(staged.path(), &target) {
            if let Some(aside) = &old {
                std::fs::rename(aside.path().join("old"), &target).map_err(|e| failed(&target, e))?;
            }
            return Err(failed(&target, e));
        }
        let _ = staged.keep(); // renamed: there is nothing left to remove
        sync_folder(parent(&target))
    }
}

/// Removes temporary files and folders that a crash left directly in `folder`. Nobody else may be writing there.
pub fn remove_leftovers(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY) {
            tracing::warn!("{}: left by a run that was killed while saving; removed", path.display());
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

/// An I/O error about writing `path`, with what to do where the disk is full.
pub(crate) fn failed(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    let kind = error.kind();
    if matches!(kind, StorageFull | QuotaExceeded | FileTooLarge) {
        let message = format!("{error}; nothing was overwritten: make room and try again");
        return Error::io(path, io::Error::new(kind, message));
    }
    Error::io(path, error)
}

/// Makes a rename within `folder` survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| failed(folder, e))
}

/// The folder of `path`; of a bare name, the current one.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Bytes for people.
pub fn gib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

fn temporary_name(path: &Path) -> Result<(OsString, String)> {
    let Some(name) = path.file_name() else {
        bail!("{}: not a name that can be written to", path.display());
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push("-");
    Ok((prefix, TEMPORARY.to_owned()))
}
