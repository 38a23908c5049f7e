//! What a hub answers: JSON about a repository, and headers. No name leads out of the cache.
#![no_main]

use longreel::hub::{Hash, address, info::Info};
use std::path::{Component, Path};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(info) = Info::parse(bytes) {
        for name in info.files.iter().map(|file| &file.name).chain([&info.commit]) {
            assert!(Path::new(name).components().all(|c| matches!(c, Component::Normal(_))), "{name}");
        }
    }
    let Ok(header) = std::str::from_utf8(bytes) else { return };
    if let Some(hash) = Hash::from_etag(header) {
        assert!(hash.digits().bytes().all(|b| b.is_ascii_hexdigit()));
    }
    address::range_start(header);
    let from = "https://hub.example/lab/net/resolve/main/a".parse().unwrap();
    if let Ok(to) = address::redirected(&from, header) {
        assert_eq!(to.scheme_str(), Some("https"));
    }
});
