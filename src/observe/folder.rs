//! [`RunDir`] opens files of one run's folder for reading, and nothing outside it; [`end_of`] reads the end of one.
//!
//! A name is split into plain parts, and each part is opened in the folder before it, never through a symbolic link. So
//! neither `..` nor a link that somebody put into the folder leads out of it, and a pipe is not waited for.

use rustix::fs::{CWD, Dir, Mode, OFlags, openat};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// A run's folder.
#[derive(Clone, Debug)]
pub(super) struct RunDir(PathBuf);

impl RunDir {
    /// The folder `root`, a path without symbolic links.
    pub fn new(root: PathBuf) -> Self {
        Self(root)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Opens the regular file `name`, whose parts are joined by `/`.
    ///
    /// # Errors
    /// Kind `InvalidInput`: `name` has a part that is empty, hidden, or holds a NUL or backslash. Otherwise the
    /// system's: it is not there, is a symbolic link or behind one, or is no regular file.
    pub fn open(&self, name: &str) -> io::Result<File> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        let file = openat(self.folder(folder)?, plain(file)?, OFlags::NONBLOCK | READ, Mode::empty())?;
        let file = File::from(file);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(ErrorKind::InvalidInput.into()),
        }
    }

    /// The first `most` bytes of the file `name`, as text; what is not UTF-8 is replaced.
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and of reading.
    pub fn text(&self, name: &str, most: u64) -> io::Result<String> {
        let mut bytes = vec![];
        self.open(name)?.take(most).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Names in the folder `name`, at most `most` of them, unsorted; those that [`open`](Self::open) would refuse are
    /// left out.
    ///
    /// # Errors
    /// The system's: the folder is not there, or is a symbolic link or behind one.
    pub fn names(&self, name: &str, most: usize) -> io::Result<Vec<String>> {
        let entries = Dir::read_from(self.folder(name)?)?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned));
        Ok(names.filter(|name| plain(name).is_ok()).take(most).collect())
    }

    /// Opens the folder `name`; "" is the run's own.
    fn folder(&self, name: &str) -> io::Result<OwnedFd> {
        let mut folder = openat(CWD, &self.0, OFlags::DIRECTORY | READ, Mode::empty())?;
        for part in name.split('/').filter(|_| !name.is_empty()) {
            folder = openat(&folder, plain(part)?, OFlags::DIRECTORY | READ, Mode::empty())?;
        }
        Ok(folder)
    }
}

/// The last `most` bytes of a file, and whether there are more before them.
///
/// # Errors
/// The system's.
pub(super) fn end_of(mut file: &File, most: u64) -> io::Result<(Vec<u8>, bool)> {
    let size = file.metadata()?.len();
    let start = size.saturating_sub(most);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = vec![];
    file.take(size - start).read_to_end(&mut bytes)?;
    Ok((bytes, start > 0))
}

const READ: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// `part` if it names something in a folder: no way up, nothing hidden (temporary files are).
fn plain(part: &str) -> io::Result<&str> {
    match part.is_empty() || part.starts_with('.') || part.contains(['/', '\\', '\0']) {
        true => Err(ErrorKind::InvalidInput.into()),
        false => Ok(part),
    }
}
