//! Fuzzes what ranks send each other: a hello, then frames. What is read is written as it came.
#![no_main]

use longreel::parallel::wire::Frame;
use longreel::parallel::handshake::Hello;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(hello) = Hello::parse(bytes) {
        assert_eq!(hello.to_bytes(), bytes);
    }
    if let Ok(frame) = Frame::parse(bytes) {
        assert_eq!(Frame::parse(&frame.to_bytes()).unwrap(), frame);
    }
});
