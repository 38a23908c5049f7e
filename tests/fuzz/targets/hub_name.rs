//! `hf://` names: no part of one leads out of the cache.
#![no_main]

use longreel::hub::name;
use std::path::{Component, Path};

libfuzzer_sys::fuzz_target!(|spec: &str| {
    if let Ok(name) = name::parse(spec) {
        for part in [&name.id, &name.revision, &name.path] {
            assert!(Path::new(part).components().all(|c| matches!(c, Component::Normal(_))), "{part}");
        }
    }
});
