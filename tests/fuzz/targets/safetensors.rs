//! The header of a safetensors file: every tensor lies inside the file.
#![no_main]

use longreel::files::Header;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(header) = Header::read(bytes, bytes.len() as u64) {
        assert!(header.tensors.iter().all(|t| t.start + t.bytes <= bytes.len() as u64));
    }
});
