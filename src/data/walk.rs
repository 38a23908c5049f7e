//! Lists a folder's files, sorted: those that may be clips, those that go with them, and all others with a reason.
//!
//! The order is that of the paths' bytes, so it does not depend on the file system. Symbolic links are followed (a
//! hub's cache is made of them). Contents are not looked at here, except for captions.

use super::apart::Apart;
use super::captions::Captions;
use super::others::is_junk;
use super::skipped::Skipped;
use crate::{Error, Result, bail};
use std::path::{Path, PathBuf};
use walkdir::WalkDir;

const VIDEOS: [&str; 18] = [
    "mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "gif", "mpg", "mpeg", "vob", "ts", "mts", "m2ts", "wmv", "flv",
    "ogv", "mxf",
];
const IMAGES: [&str; 14] =
    ["png", "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "bmp", "tif", "tiff", "pbm", "pgm", "ppm", "pnm"];

/// What a folder holds, in the order of paths.
#[derive(Debug, Default)]
pub(super) struct Folder {
    pub media: Vec<PathBuf>,
    pub captions: Captions,
    pub skipped: Vec<Skipped>,
}

impl Folder {
    /// Walks `root`, a folder or a single file, but for what is `apart`.
    ///
    /// # Errors
    /// `root` is not there or cannot be read; a metadata.jsonl is malformed.
    pub fn walk(root: &Path, apart: &Apart) -> Result<Self> {
        let about = std::fs::metadata(root).map_err(|e| Error::io(root, e))?;
        if about.is_dir() {
            std::fs::read_dir(root).map_err(|e| Error::io(root, e))?;
        } else if !about.is_file() {
            bail!(Data, "{}: a dataset is a folder or a file, this is neither", root.display());
        }
        let (mut folder, mut others) = (Self::default(), Vec::new());
        let mut entries = WalkDir::new(root).follow_links(true).into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => {
                    let path = e.path().unwrap_or(root).to_owned();
                    let why = match e.io_error() {
                        Some(io) => format!("it cannot be read ({io})"),
                        None => "it is a link to a folder that it lies in".to_owned(),
                    };
                    folder.skipped.push(Skipped::new(path, why));
                    continue;
                }
            };
            let path = entry.path();
            if entry.depth() > 0 && is_junk(&entry.file_name().to_string_lossy()) {
                if entry.file_type().is_dir() {
                    entries.skip_current_dir();
                }
                continue;
            }
            let below = Some(&entry).filter(|entry| entry.depth() > 0);
            let hidden = entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".");
            if entry.file_type().is_dir() {
                let why =
                    if hidden { Some("it is a hidden folder") } else { below.and_then(|entry| apart.reason(entry)) };
                if let Some(why) = why {
                    folder.skipped.push(Skipped::new(path, why));
                    entries.skip_current_dir();
                }
            } else if let Some(why) = below.and_then(|entry| apart.reason(entry)) {
                folder.skipped.push(Skipped::new(path, why));
            } else if hidden {
                folder.skipped.push(Skipped::new(path, "it is a hidden file"));
            } else if !entry.file_type().is_file() {
                folder.skipped.push(Skipped::new(path, "it is not a regular file"));
            } else if has_extension(path, &VIDEOS) || has_extension(path, &IMAGES) {
                folder.media.push(path.to_owned());
            } else {
                others.push(path.to_owned());
            }
        }
        folder.media.sort_by(|a, b| bytes(a).cmp(bytes(b)));
        others.sort_by(|a, b| bytes(a).cmp(bytes(b)));
        folder.sort_out(others)?;
        Ok(folder)
    }
}

fn bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_encoded_bytes()
}

pub(super) fn has_extension(path: &Path, known: &[&str]) -> bool {
    path.extension().is_some_and(|e| known.iter().any(|k| e.eq_ignore_ascii_case(k)))
}
