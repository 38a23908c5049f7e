//! Downloads a file of a repository into the cache. A partial file has a temporary name and is resumed; it gets its own
//! name once its bytes have the hash that the hub announced.
//!
//! Names are those of Python's huggingface_hub: `blobs/HASH` for the bytes, `blobs/HASH.incomplete` while they come,
//! `.locks/REPOSITORY/HASH.lock` against a second download, and `snapshots/COMMIT/NAME` as a link to the blob.

use super::address::range_start;
use super::client::Client;
use super::failure::{Failure, Result};
use super::hash::Hash;
use super::info::RepoFile;
use super::shown;
use crate::files::{create_folders, failed, file_size, free_space, open_target, parent, sync_folder};
use indicatif::ProgressBar;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A repository's folders in the cache.
pub(super) struct Place {
    /// `models--owner--name` in the cache.
    folder: PathBuf,
    locks: PathBuf,
}

impl Place {
    pub fn new(cache: &Path, repo: &hf_hub::Repo) -> Self {
        let name = repo.folder_name();
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(&name) }
    }

    pub fn refs(&self) -> PathBuf {
        self.folder.join("refs")
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    fn blob(&self, hash: &Hash) -> PathBuf {
        self.folder.join("blobs").join(hash.digits())
    }

    fn partial(&self, hash: &Hash) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", hash.digits()))
    }

    /// Whether a snapshot has a file: all its bytes, and those of this cache, not of whatever a link may lead to.
    pub fn has(&self, commit: &str, file: &RepoFile) -> bool {
        let target = self.snapshot(commit).join(&file.name);
        if !is_whole(&target, file.size) {
            return false;
        }
        let Ok(real) = target.canonicalize() else { return false };
        // Where a file system knows no links, Python puts the bytes themselves into the snapshot.
        let own = self.folder.join("snapshots").canonicalize().is_ok_and(|own| real.starts_with(own.join(commit)));
        own || match &file.hash {
            Some(hash) => self.blob(hash).canonicalize().is_ok_and(|blob| real == blob),
            None => self.folder.join("blobs").canonicalize().is_ok_and(|blobs| real.starts_with(blobs)),
        }
    }

    /// Fails if the disk has no room for what is still to come of `files`.
    pub fn check_space(&self, files: &[&RepoFile]) -> Result<()> {
        let blobs = self.folder.join("blobs");
        create_folders(&blobs)?;
        let missing = |file: &&RepoFile| {
            let length = |path: PathBuf| path.metadata().map_or(0, |m| m.len());
            let present = file.hash.as_ref().map_or(0, |h| length(self.blob(h)).max(length(self.partial(h))));
            file.size.unwrap_or(0).saturating_sub(present)
        };
        has_room(&blobs, files.iter().map(missing).fold(0, u64::saturating_add))
    }

    /// Downloads a file of a commit from `address`, if its blob is not there, and links the snapshot's file to it.
    pub fn download(
        &self,
        client: &Client,
        address: &str,
        commit: &str,
        file: &RepoFile,
        bar: &ProgressBar,
    ) -> Result<()> {
        let (hash, size) = identify(client, address, file)?;
        create_folders(&self.folder.join("blobs"))?;
        create_folders(&self.locks)?;
        let _lock = self.lock(&hash, file, client.limits.stall * 10)?;
        if !is_whole(&self.blob(&hash), size) {
            self.obtain(client, address, &hash, size, bar)?;
        }
        self.link(commit, &file.name, &hash)
    }

    /// A lock that one process at a time has; it goes with the process.
    fn lock(&self, hash: &Hash, file: &RepoFile, patience: Duration) -> Result<File> {
        let path = self.locks.join(format!("{}.lock", hash.digits()));
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(|e| local(&path, e))?;
        let (mut seen, mut since) = (None, None::<Instant>);
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(e)) => {
                    let path = path.display();
                    let text = format!("{path}: no lock ({e}): set HF_HOME to a folder of a file system with locks");
                    return Err(Failure::Other(text));
                }
                Err(TryLockError::WouldBlock) => {}
            }
            if since.is_none() {
                tracing::info!("{}: another process is downloading it: waiting", shown(&file.name));
            }
            let length = self.partial(hash).metadata().map(|m| m.len()).ok();
            if since.is_none() || length != seen {
                (seen, since) = (length, Some(Instant::now()));
            }
            if since.is_some_and(|since| since.elapsed() > patience) {
                let path = path.display();
                return Err(Failure::Other(format!(
                    "another process has locked {path} and has downloaded nothing for {patience:?}: end it \
                     and try again"
                )));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Downloads a blob; its lock must be held.
    fn obtain(&self, client: &Client, address: &str, hash: &Hash, size: Option<u64>, bar: &ProgressBar) -> Result<()> {
        let (path, blob) = (self.partial(hash), self.blob(hash));
        loop {
            // A link would lead to a file that is not the cache's; this refuses one.
            let mut partial =
                open_target(&path, OpenOptions::new().create(true).truncate(false).read(true).write(true))?;
            let resumed = transfer(client, address, &mut partial, &path, size, bar)?;
            let got = hash.of(&mut partial).map_err(|e| local(&path, e))?;
            if got == *hash {
                partial.sync_all().map_err(|e| local(&path, e))?;
                std::fs::rename(&path, &blob).map_err(|e| local(&blob, e))?;
                return Ok(sync_folder(&self.folder.join("blobs"))?);
            }
            std::fs::remove_file(&path).map_err(|e| local(&path, e))?;
            if !resumed {
                let (kind, got, said) = (hash.kind(), got.digits(), hash.digits());
                return Err(Failure::Other(format!(
                    "what came has the {kind} {got}, the hub says {said}; it was changed on the way and is removed: \
                     try again"
                )));
            }
            tracing::warn!("{}: left by an earlier download and damaged: starting anew", path.display());
        }
    }

    /// Makes the snapshot's file a link to the blob, in place of whatever link or file is there.
    fn link(&self, commit: &str, name: &str, hash: &Hash) -> Result<()> {
        let snapshots = self.folder.join("snapshots");
        let target = snapshots.join(commit).join(name);
        let parent = parent(&target);
        create_folders(parent)?;
        // A folder that is a link would let the file be written wherever it leads.
        let real = parent.canonicalize().map_err(|e| local(parent, e))?;
        let inside = snapshots.canonicalize().map_err(|e| local(&snapshots, e))?.join(commit).join(name);
        if inside.parent() != Some(&real) {
            let (parent, real) = (parent.display(), real.display());
            return Err(Failure::Other(format!(
                "{parent} leads to {real}, outside the cache: remove it and try again"
            )));
        }
        let up = "../".repeat(name.split('/').count() + 1);
        let blob = format!("{up}blobs/{}", hash.digits());
        let staged =
            tempfile::Builder::new().prefix(".link-").make_in(parent, |path| std::os::unix::fs::symlink(&blob, path));
        let staged = staged.map_err(|e| local(&target, e))?.into_temp_path();
        staged.persist(&target).map_err(|e| local(&target, e.error))
    }
}

/// A file's hash and size: as the repository's info says, else as the file's own headers do.
fn identify(client: &Client, address: &str, file: &RepoFile) -> Result<(Hash, Option<u64>)> {
    if let Some(hash) = &file.hash {
        return Ok((hash.clone(), file.size));
    }
    let answer = client.head(address)?;
    if answer.status >= 400 {
        return Err(answer.refused());
    }
    let Some(hash) = answer.header("x-linked-etag").or(answer.header("etag")).and_then(Hash::from_etag) else {
        return Err(answer.wrong("it names neither a SHA-256 nor a git hash of the file"));
    };
    let length = || answer.number("content-length").filter(|_| answer.status == 200);
    Ok((hash, file.size.or_else(|| answer.number("x-linked-size")).or_else(length)))
}

/// Downloads what is missing of a partial file. True if it began with bytes of an earlier try.
fn transfer(
    client: &Client,
    address: &str,
    file: &mut File,
    path: &Path,
    size: Option<u64>,
    bar: &ProgressBar,
) -> Result<bool> {
    let mut begin = file.metadata().map_err(|e| local(path, e))?.len();
    if size.is_some_and(|size| begin > size) {
        begin = 0;
    }
    if begin > 0 && size == Some(begin) {
        return Ok(true);
    }
    let mut answer = client.get(address, begin)?;
    let continues = answer.status == 206 && answer.header("content-range").and_then(range_start) == Some(begin);
    if begin > 0 && !continues && matches!(answer.status, 206 | 416) {
        begin = 0;
        answer = client.get(address, 0)?;
    }
    match answer.status {
        206 if begin > 0 => {}
        200 => begin = 0, // all of it, whatever was asked for
        206 => return Err(answer.wrong("it sends a part of the file where all of it was asked for")),
        _ => return Err(answer.refused()),
    }
    let announced = answer.number("content-length");
    let expected = size.map(|size| size - begin);
    if let (Some(announced), Some(expected)) = (announced, expected)
        && announced > expected
    {
        return Err(answer.wrong(format!("it announces {announced} bytes where {expected} should come")));
    }
    let limit = expected.or(announced).unwrap_or(client.limits.file_bytes);
    if let Some(expected) = expected.or(announced) {
        has_room(path, expected)?;
    }
    file.set_len(begin).map_err(|e| local(path, e))?;
    file.seek(SeekFrom::Start(begin)).map_err(|e| local(path, e))?;
    bar.set_position(begin);
    let from = answer.from.clone();
    let mut received = 0;
    client.receive(answer, |bytes| {
        received += bytes.len() as u64;
        if received > limit {
            file.set_len(0).map_err(|e| local(path, e))?; // whatever that is, it is not the file
            let text = format!("it sends more than the {limit} bytes that the file may have");
            return Err(Failure::Answer { from: from.clone(), text });
        }
        bar.inc(bytes.len() as u64);
        file.write_all(bytes).map_err(|e| local(path, e))
    })?;
    match size {
        Some(size) if begin + received != size => {
            Err(Failure::Windows(format!("{} bytes came where {size} should have", begin + received)))
        }
        _ => Ok(begin > 0),
    }
}

/// Fails if there is no room for `bytes` more beside or below `path`.
fn has_room(path: &Path, bytes: u64) -> Result<()> {
    let free = File::open(path).and_then(free_space).map_err(|e| local(path, e))?;
    if bytes > free {
        let (needed, free, folder) = (file_size(bytes), file_size(free), parent(path).display());
        return Err(Failure::Other(format!(
            "{needed} are to come into {folder}, where {free} are free: make room, or set HF_HOME to a folder of \
             another disk"
        )));
    }
    Ok(())
}

/// Whether a file is there with all its bytes.
fn is_whole(path: &Path, size: Option<u64>) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && size.is_none_or(|size| size == m.len()))
}

fn local(path: &Path, error: std::io::Error) -> Failure {
    failed(path, error).into()
}
