//! Counts captions: which files have none, and which captions a text encoder cuts.

use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::Result;
use crate::data::ClipSets;
use crate::terminal::counted;
use crate::text::TextEncoder;

/// How many files have a caption, and how many captions are cut.
pub(super) struct CaptionCounts {
    with: usize,
    without: usize,
    /// Captions that are cut, and the tokens that the encoder takes; none without an encoder.
    cut: Option<[usize; 2]>,
}

impl CaptionCounts {
    /// Of the files of `sets` that are used.
    ///
    /// # Errors
    /// A caption cannot be tokenized.
    pub fn new(sets: &ClipSets, encoder: Option<&TextEncoder>) -> Result<Self> {
        // A file that gives clips of several sizes counts once.
        let files = sets.buckets().iter().flat_map(|dataset| dataset.files());
        let files: BTreeMap<_, _> = files.map(|file| (&file.path, file.caption.as_deref())).collect();
        let captions: Vec<String> = files.values().flatten().map(|&caption| caption.to_owned()).collect();
        let cut = match encoder {
            Some(encoder) => {
                let most = encoder.max_tokens();
                Some([encoder.token_counts(&captions)?.into_iter().filter(|&tokens| tokens > most).count(), most])
            }
            None => None,
        };
        Ok(Self { with: captions.len(), without: files.len() - captions.len(), cut })
    }

    /// A line for people, of a network with text.
    pub fn line(&self) -> Option<String> {
        let [cut, most] = self.cut?;
        let without = match self.without {
            0 => String::new(),
            without => format!("; {} none: the empty text", counted(without, "file has", "files have")),
        };
        let cut = match cut {
            0 => String::new(),
            _ => format!("; {} longer than {most} tokens, and cut", counted(cut, "is", "are")),
        };
        Some(format!("{}{cut}{without}", counted(self.with, "caption", "captions")))
    }

    /// For programs.
    pub fn value(&self) -> Value {
        json!({"with": self.with, "without": self.without, "cut": self.cut.map(|[cut, _]| cut)})
    }
}
