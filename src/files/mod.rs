//! Files that matter: written so that a crash, a full disk or Ctrl-C never leaves half of one, nor harms the old one.
//!
//! [`atomic_write`] does it for a file, [`NewFolder`] for a folder: write beside the target under a temporary name,
//! fsync, rename, fsync the parent. (Rename is atomic; without the first fsync a crash may leave a name without
//! contents, without the second the name may be lost.) [`Tensors`] and [`write_tensors`] read and write safetensors,
//! [`read_text`] reads text, [`model_folder`] a model's folder. `scratch` makes files without a name, for what a
//! process puts aside.
//!
//! What is written over is a regular file, or nothing: a device, a pipe or a symbolic link under the name of a result
//! is a mistake, and a rename would destroy it. Folders on the way may be symbolic links.
//!
//! Nothing here knows what the files mean.

mod check_names;
mod digest;
mod elements;
mod folder;
mod header;
mod home;
mod known_hashes;
pub mod model_folder;
mod pickle;
mod pth;
mod scratch;
mod storage;
mod sum;
mod tensors;
mod text;
mod weight_file;
mod write_tensors;

use crate::{Error, Result, bail};
use rustix::fs::OFlags;
use rustix::process::{Resource, getrlimit};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

pub use check_names::check_names;
#[cfg(any(feature = "hub", feature = "media"))]
pub(crate) use digest::digest_of;
pub(crate) use digest::to_hex;
#[cfg(feature = "media")]
pub(crate) use folder::try_to_write;
pub use folder::{NewFolder, remove_leftovers};
pub(crate) use folder::{create_folders, remove_folder, sync_folder};
pub use header::{Header, TensorPlace};
pub use home::expand_home;
pub use known_hashes::KnownHashes;
pub use pth::PthTensors;
pub(crate) use scratch::Scratch;
pub use storage::Place;
pub use sum::FileSum;
pub(crate) use sum::Summed;
use sum::Summing;
pub use tensors::Tensors;
pub use text::{decode_text, read_text};
pub use weight_file::WeightFile;
pub use write_tensors::{write_bytes, write_pieces, write_tensors, write_tensors_with};

/// Marks temporary names, so that leftovers of a crash can be told from anything else.
const TEMPORARY: &str = ".longreel-tmp";

/// Creates or replaces the file `path` with what `write` writes; on an error the old file, if any, is as it was.
///
/// # Errors
/// What `write` returned, or the system: no such folder, no permission, a full disk; `path` is there and no regular
/// file.
pub fn atomic_write(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    write_summed(path, write).map(drop)
}

/// As [`atomic_write`]; returns the checksum of what was written.
pub fn write_summed(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<FileSum> {
    let new = NewFile::begin(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, Summing::new(new.file()));
    write(&mut out).and_then(|()| out.flush()).map_err(|e| failed(path, e))?;
    let sum = out.get_ref().summed.sum();
    drop(out);
    new.publish()?;
    Ok(sum)
}

/// Refuses to write over what is no regular file.
///
/// # Errors
/// `path` is a folder, a symbolic link, a device, a pipe or a socket. Whether it can be written to is not asked.
pub fn check_target(path: &Path) -> Result<()> {
    let Ok(there) = std::fs::symlink_metadata(path) else { return Ok(()) };
    let kind = there.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_symlink() {
        let to = std::fs::read_link(path).map_or_else(|_| String::new(), |to| format!(" to {}", to.display()));
        format!("a symbolic link{to}")
    } else if kind.is_dir() {
        "a folder".to_owned()
    } else if kind.is_fifo() {
        "a pipe".to_owned()
    } else if kind.is_socket() {
        "a socket".to_owned()
    } else {
        "a device".to_owned()
    };
    bail!(Config, "{}: is {what}, not a regular file, and is not written over: name another file", path.display())
}

/// Opens a file to write to, which `options` may create; what is no regular file is refused, and never waited for.
///
/// # Errors
/// Those of [`check_target`], and of the system.
pub(crate) fn open_target(path: &Path, options: &OpenOptions) -> Result<File> {
    check_target(path)?;
    // For what takes the name between the check and this call.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
    let file = options.clone().custom_flags(flags).open(path).map_err(|e| failed(path, e))?;
    if !file.metadata().map_err(|e| Error::io(path, e))?.is_file() {
        bail!(Config, "{}: is not a regular file, and is not written to", path.display())
    }
    Ok(file)
}

/// A file in the making: it has a temporary name beside its target until [`publish`](Self::publish) renames it. Dropped
/// before that, it is removed, and what has the target's name is as it was.
#[derive(Debug)]
pub(crate) struct NewFile {
    staged: NamedTempFile,
    target: PathBuf,
}

impl NewFile {
    /// Starts a file that shall be called `target`.
    pub fn begin(target: &Path) -> Result<Self> {
        let prefix = temporary_prefix(target)?;
        check_target(target)?;
        let staged = tempfile::Builder::new()
            .prefix(&prefix)
            .suffix(TEMPORARY)
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
    #[cfg(feature = "media")]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where it is for now.
    #[cfg(feature = "media")]
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
        check_target(&target)?;
        staged.persist(&target).map_err(|e| failed(&target, e.error))?;
        sync_folder(parent(&target))
    }
}

/// An I/O error about writing `path`, with what to do where there is no room.
pub(crate) fn failed(path: &Path, error: io::Error) -> Error {
    match advice(error.kind()) {
        Some(advice) => {
            let message = format!("{error}; nothing was overwritten: {advice} and try again");
            Error::io(path, io::Error::new(error.kind(), message))
        }
        None => Error::io(path, error),
    }
}

/// What to do about a write that found no room; none for other errors.
pub(crate) fn advice(kind: io::ErrorKind) -> Option<String> {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match kind {
        StorageFull | QuotaExceeded => Some("make room".to_owned()),
        FileTooLarge => Some(match getrlimit(Resource::Fsize).current {
            Some(limit) => {
                format!("this process may write files of {limit} bytes at most: raise the limit (`ulimit -f`)")
            }
            None => "choose a folder whose file system takes larger files".to_owned(),
        }),
        _ => None,
    }
}

/// Bytes that the user may still write to the file system of an open file or folder.
pub(crate) fn free_space(on: impl AsFd) -> io::Result<u64> {
    let space = rustix::fs::fstatvfs(on)?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// The folder of `path`; of a bare name, the current one.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Bytes of memory for people: in GiB, whatever they are, so that numbers on a page can be compared at a glance.
pub fn gib(bytes: u64) -> String {
    let value = bytes as f64 / f64::from(1 << 30);
    match value {
        1.0.. => format!("{value:.2} GiB"),
        0.01.. => format!("{value:.3} GiB"),
        _ => format!("{value:.4} GiB"),
    }
}

/// Bytes of files for people, which may be of any size: in KiB, MiB or GiB.
pub fn file_size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// What a temporary name has between its dot and its end; none of any other name.
pub(crate) fn within_temporary(name: &str) -> Option<&str> {
    name.strip_prefix('.')?.strip_suffix(TEMPORARY)
}

/// How the temporary name of `path` begins; it ends with [`TEMPORARY`].
fn temporary_prefix(path: &Path) -> Result<OsString> {
    let Some(name) = path.file_name() else {
        bail!(Config, "{}: not a name that can be written to", path.display());
    };
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push("-");
    Ok(prefix)
}
