//! Sorts out what a folder holds beside clips: captions, texts about the dataset, what systems leave, and what does not
//! belong.

use super::captions;
use super::skipped::Skipped;
use super::walk::{Folder, has_extension};
use crate::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Kinds of media that cannot be read, by extension, and why.
const UNREADABLE: [(&[&str], &str); 5] = [
    (&["heic", "heif", "hif"], "HEIF images are not read: convert it to PNG or JPEG"),
    (&["jxl"], "JPEG XL images are not read: convert it to PNG or JPEG"),
    (&["jp2", "j2k"], "JPEG 2000 images are not read: convert it to PNG or JPEG"),
    (&["exr", "hdr"], "images of high dynamic range are not read: convert it to PNG or JPEG"),
    (
        &["dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "psd", "svg", "tga", "ico", "qoi", "pam"],
        "images of this kind are not read: convert it to PNG or JPEG",
    ),
];

/// Names, without extension, of texts that say where a dataset comes from; they are no clips and need no mention.
const ABOUT: [&str; 7] = ["readme", "license", "licence", "attribution", "notice", "credits", "copying"];

/// What systems and tools leave in folders; it needs no mention either. Beside these, names that begin with `._`
/// (macOS).
const JUNK: [&str; 17] = [
    ".ds_store",
    ".spotlight-v100",
    ".fseventsd",
    ".trashes",
    "__macosx",
    "thumbs.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
    ".git",
    ".gitattributes",
    ".gitignore",
    ".gitkeep",
    ".ipynb_checkpoints",
    ".directory",
];

/// Extensions of files that a browser or downloader has not finished.
const UNFINISHED: [&str; 4] = ["part", "partial", "crdownload", "download"];

impl Folder {
    /// Tells captions and texts about the dataset from files that do not belong.
    pub(super) fn sort_out(&mut self, others: Vec<PathBuf>) -> Result<()> {
        let stems: BTreeSet<PathBuf> = self.media.iter().map(|path| path.with_extension("")).collect();
        for path in others {
            if path.file_name().is_some_and(|name| name == captions::METADATA) {
                self.captions.read_metadata(&path)?;
            } else if has_extension(&path, &["txt"]) && stems.contains(&path.with_extension("")) {
                self.captions.read_text(&path);
            } else if let Some((_, why)) = UNREADABLE.iter().find(|(kinds, _)| has_extension(&path, kinds)) {
                self.skipped.push(Skipped::new(path, *why));
            } else if has_extension(&path, &UNFINISHED) {
                self.skipped.push(Skipped::new(path, "it is an unfinished download"));
            } else if !is_about(&path) {
                self.skipped.push(Skipped::new(path, "it is not a video or image"));
            }
        }
        let unclaimed = self.captions.unclaimed(&self.media);
        self.skipped.extend(unclaimed.into_iter().map(|(path, reason)| Skipped { path, reason }));
        Ok(())
    }
}

pub fn is_junk(name: &str) -> bool {
    name.starts_with("._") || JUNK.contains(&name.to_lowercase().as_str())
}

fn is_about(path: &Path) -> bool {
    let text = path.extension().is_none() || has_extension(path, &["txt", "md", "rst"]);
    text && path.file_stem().is_some_and(|stem| ABOUT.iter().any(|known| stem.eq_ignore_ascii_case(known)))
}
