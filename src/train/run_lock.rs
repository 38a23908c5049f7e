//! Locks a run's folder for one process at a time: two that train there would mix their measurements and remove each
//! other's checkpoints.
//!
//! The lock is an advisory one (`flock`) on the file `OUT/lock`, which says who holds it. The kernel frees it when the
//! process ends, however it ends, so a file that is left means nothing. Linux passes such locks on to NFS servers (as
//! locks of the whole file), and cluster file systems that have them (GPFS, CephFS; Lustre mounted with `-o flock`)
//! keep processes on other hosts out too. Where a file system has no locks, the run goes on with a warning.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::files::{create_folders, open_target};
use crate::observe::lock::{Holder, LOCK, read_holder};
use crate::{Error, Result, terminal};

/// How often the second process tries again, and how long it waits each time: `longreel status` holds the lock together
/// with others for a moment, to see whether anybody else does.
const LOOKS: u32 = 10;
const LOOK: Duration = Duration::from_millis(5);

/// How long the second process waits for the first one to have written who it is.
const INTRODUCTION: Duration = Duration::from_millis(200);

/// Holds a run's folder until it is dropped, or the process ends.
#[derive(Debug)]
pub struct RunLock {
    path: PathBuf,
    /// Locked, where the file system has locks.
    _file: File,
    /// Folders that were made for the lock, innermost first: they go with it if nothing else has come into them.
    made: Vec<PathBuf>,
}

impl RunLock {
    /// Takes the lock of the run in the folder `root`, which is made if need be.
    ///
    /// # Errors
    /// Another process holds it: the error says which, and since when. Or the folder cannot be written to.
    pub fn take(root: &Path) -> Result<Self> {
        let missing = root.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
        let made = missing.map(Path::to_path_buf).collect();
        create_folders(root)?;
        let path = root.join(LOCK);
        let mut looks = 0;
        loop {
            let mut file = open_target(&path, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) if looks < LOOKS => {
                    looks += 1;
                    std::thread::sleep(LOOK);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(taken(root, &path)),
                Err(TryLockError::Error(e)) if lacks_locks(&e) => tracing::warn!(
                    "{}: this file system has no locks ({e}): nothing keeps a second process out of this run",
                    path.display()
                ),
                Err(TryLockError::Error(e)) => return Err(Error::io(&path, e)),
            }
            // Who held it before may have removed the file when it ended, after this one was opened: then it locks
            // nobody out.
            if !is_named(&file, &path) {
                continue;
            }
            introduce(&mut file).map_err(|e| Error::io(&path, e))?;
            return Ok(Self { path, _file: file, made });
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        // While it is still locked: whoever opens the next file finds it free, and whoever has this one open finds it
        // gone.
        let _ = fs::remove_file(&self.path);
        for folder in &self.made {
            let _ = fs::remove_dir(folder); // fails if there is anything in it
        }
    }
}

/// Whether `file` is still what has the name `path`.
fn is_named(file: &File, path: &Path) -> bool {
    let id = |there: fs::Metadata| (there.dev(), there.ino());
    let (Ok(own), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    id(own) == id(named)
}

/// Whether the error of locking is that there are no locks.
fn lacks_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let kinds = [Errno::NOLCK, Errno::OPNOTSUPP, Errno::NOTSUP, Errno::NOSYS, Errno::INVAL];
    error.raw_os_error().is_some_and(|code| kinds.iter().any(|kind| kind.raw_os_error() == code))
}

/// Writes who holds the lock into it.
fn introduce(file: &mut File) -> io::Result<()> {
    let command: Vec<_> = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let holder = Holder {
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        pid: std::process::id(),
        since: terminal::utc().replace('T', " ").replace('Z', " UTC"),
        command: command.join(" "),
    };
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(format!("{}\n", serde_json::to_string(&holder)?).as_bytes())
}

/// The error of a second process.
fn taken(root: &Path, path: &Path) -> Error {
    let read = || read_holder(&File::open(path)?);
    let start = SystemTime::now();
    let holder = loop {
        match read() {
            Ok(holder) => break Some(holder),
            Err(_) if start.elapsed().is_ok_and(|waited| waited > INTRODUCTION) => break None,
            Err(_) => std::thread::sleep(Duration::from_millis(5)), // it is about to say
        }
    };
    let who = holder.map_or("another process".to_owned(), |Holder { host, pid, since, command }| {
        format!("process {pid} on {host} ({command}), since {since}")
    });
    Error::Environment(format!(
        "{}: a process is at work in this run: {who}; wait until it has ended, or end it, or choose another run.out",
        root.display()
    ))
}
