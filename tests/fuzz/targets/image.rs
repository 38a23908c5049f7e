//! Image files: the walk over their chunks, the lines of PNG, and the decoders behind them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = longreel::data::check_image(bytes);
});
