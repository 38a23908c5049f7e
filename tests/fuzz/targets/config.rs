//! A run's TOML file: what is read can be written, and read again as the same.
#![no_main]

use longreel::config::RunConfig;
use std::path::Path;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let origin = Path::new("run.toml");
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(config) = RunConfig::parse(text, origin, &[]) {
        let written = config.to_toml().unwrap();
        assert_eq!(RunConfig::parse(&written, origin, &[]).unwrap(), config);
    }
});
