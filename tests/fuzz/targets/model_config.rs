//! config.json of a model folder: what passes has sizes that can be computed.
#![no_main]

use longreel::model::ModelConfig;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(json) = serde_json::from_slice(bytes) else { return };
    if let Ok(config) = ModelConfig::from_json(&json) {
        let _ = (config.width(), config.patch_in(), config.patch_out());
    }
});
