//! `metadata.jsonl` beside clips: no line leads out of the folder.
#![no_main]

use longreel::data::caption_lines;
use std::path::{Component, Path};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    for line in caption_lines(bytes.to_vec(), Path::new("metadata.jsonl")).into_iter().flatten() {
        assert!(line.file.components().all(|part| matches!(part, Component::Normal(_))));
    }
});
