//! Captions: `NAME.txt` beside `NAME.mp4`, or a line of `metadata.jsonl` in a folder above it.
//!
//! A line of metadata.jsonl is `{"file_name": "clips/a.mp4", "text": "a caption"}`, the file's path relative to the
//! folder that metadata.jsonl lies in; other keys are passed over. Where both name a file, the text file wins.

use crate::files::{decode_text, read_text};
use crate::{Error, Result, bail};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

pub(super) const METADATA: &str = "metadata.jsonl";

/// Bytes that a caption's text file may have: a book of 200,000 words.
const CAPTION: u64 = 1 << 20;

/// The same of a metadata.jsonl: a line for each of some million clips.
const LINES: u64 = 1 << 30;

/// Captions by file.
#[derive(Debug, Default)]
pub(super) struct Captions {
    /// By the text file's path without extension: its text, or why it cannot be read.
    texts: BTreeMap<PathBuf, std::result::Result<String, String>>,
    /// By the media file's path: its text, and where that was written.
    lines: BTreeMap<PathBuf, (String, Place)>,
}

#[derive(Debug)]
struct Place {
    path: PathBuf,
    line: usize,
}

/// A line of a metadata.jsonl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptionLine {
    /// Its number, from 1.
    pub number: usize,
    /// The file that it is about, below the folder of metadata.jsonl.
    pub file: PathBuf,
    /// The caption, without blanks around it.
    pub text: String,
}

impl Captions {
    /// Reads a `NAME.txt`. One that cannot be read spoils only its own clip.
    pub fn read_text(&mut self, path: &Path) {
        let text = read_text(path, CAPTION).map(|text| text.trim().to_owned());
        self.texts.insert(path.with_extension(""), text.map_err(|e| e.to_string()));
    }

    /// Reads a `metadata.jsonl`.
    ///
    /// # Errors
    /// Those of [`caption_lines`]; or a line names a file again.
    pub fn read_metadata(&mut self, path: &Path) -> Result<()> {
        let text = read_text(path, LINES).map_err(|e| Error::io(path, e))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for CaptionLine { number, file, text } in parse(&text, path)? {
            let place = Place { path: path.to_owned(), line: number };
            if let Some((_, before)) = self.lines.insert(folder.join(&file), (text, place)) {
                bail!(
                    Data,
                    "{}:{number}: {file:?} has a caption already, in {}:{}",
                    path.display(),
                    before.path.display(),
                    before.line
                );
            }
        }
        Ok(())
    }

    /// The caption of `media`, if it has one that is not empty.
    ///
    /// # Errors
    /// The reason why its text file cannot be read.
    pub fn of(&self, media: &Path) -> std::result::Result<Option<String>, String> {
        let text = match self.texts.get(&media.with_extension("")) {
            Some(Ok(text)) => Some(text),
            Some(Err(e)) => return Err(format!("its caption in the text file beside it cannot be read ({e})")),
            None => self.lines.get(media).map(|(text, _)| text),
        };
        Ok(text.filter(|text| !text.is_empty()).cloned())
    }

    /// What lines of metadata name that is no file among `media`, and what to say of it.
    pub fn unclaimed(&self, media: &[PathBuf]) -> Vec<(PathBuf, String)> {
        let known: std::collections::BTreeSet<&PathBuf> = media.iter().collect();
        let unclaimed = self.lines.iter().filter(|(file, _)| !known.contains(file));
        let reason = |place: &Place| {
            let (line, path) = (place.line, place.path.display());
            format!("line {line} of {path} names it, but there is no such video or image")
        };
        unclaimed.map(|(file, (_, place))| (file.clone(), reason(place))).collect()
    }
}

/// The lines of a `metadata.jsonl` whose bytes are `bytes` and whose name is `path`; blank ones are passed over.
///
/// # Errors
/// They are no text, or a line is no JSON object with the strings file_name and text, or leaves the folder; names the
/// line.
pub fn caption_lines(bytes: Vec<u8>, path: &Path) -> Result<Vec<CaptionLine>> {
    let text = decode_text(bytes).map_err(|why| Error::Data(format!("{}: {why}", path.display())))?;
    parse(&text, path)
}

fn parse(text: &str, path: &Path) -> Result<Vec<CaptionLine>> {
    let mut lines = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = format!("{}:{}", path.display(), i + 1);
        let value: serde_json::Value = match serde_json::from_str(line) {
            Ok(value) => value,
            Err(e) => bail!(Data, "{at}: not JSON, column {}: {e}", e.column()),
        };
        let field = |name: &str| match value.get(name).and_then(|v| v.as_str()) {
            Some(text) => Ok(text.to_owned()),
            None => Err(Error::Data(format!(
                "{at}: no text under \"{name}\"; a line is {{\"file_name\": \"clip.mp4\", \"text\": \"a caption\"}}"
            ))),
        };
        let name = field("file_name")?;
        if !Path::new(&name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
            bail!(Data, "{at}: file_name {name:?} must lie in the folder of {METADATA}");
        }
        // Collecting components drops the `./` that would make the same file another key.
        let file = Path::new(&name).components().filter(|c| *c != Component::CurDir).collect();
        lines.push(CaptionLine { number: i + 1, file, text: field("text")?.trim().to_owned() });
    }
    Ok(lines)
}
