//! Tests that the index of every container leads to its key frames.

use super::*;
use std::process::Command;

/// Where decoding can start in a file of 96 frames with a key frame every 12.
fn keys(name: &str, args: &[&str]) -> Vec<u32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    let input = ["-v", "error", "-nostdin", "-f", "lavfi", "-i", "testsrc=d=4:r=24:s=64x48", "-g", "12"];
    assert!(Command::new("ffmpeg").args(input).args(args).arg(&path).status().unwrap().success());
    let index = VideoIndex::probe(&path).unwrap();
    assert_eq!(index.pts.len(), 96, "{name}");
    // Seeking reaches them, rather than decoding from the start.
    for key in &index.keys {
        let mut reader = Reader::open(&path, None).unwrap().follow(&index.packets);
        assert_eq!(reader.seek(key.packet as usize, key.stamp), Ok(()), "{name}: {key:?}");
        let mut frame = frame::Video::empty();
        assert!(reader.next_frame(&mut frame).unwrap());
        let first = index.frames[frame.pts().unwrap() as usize];
        assert!(first <= key.frame && first + 12 > key.frame, "{name}: {first} for {key:?}");
    }
    index.keys.iter().map(|key| key.frame).collect()
}

#[test]
fn every_container_can_seek_to_its_key_frames() {
    let every_12: Vec<u32> = (0..96).step_by(12).collect();
    let h264 = ["-c:v", "libx264", "-bf", "2", "-sc_threshold", "0"];
    let mpeg2 = ["-c:v", "mpeg2video", "-bf", "2", "-sc_threshold", "1000000000"];
    let repeated = ["-c:v", "libx264", "-bf", "0", "-sc_threshold", "0", "-vsync", "passthrough"];
    let repeat = ["-vf", "settb=1/24,setpts=N-eq(N\\,30)"];
    for (name, args) in [
        ("a.mp4", &h264[..]),
        ("a.avi", &h264),
        ("a.ts", &h264),
        ("a.flv", &h264),
        ("b.ts", &mpeg2),
        ("b.mpg", &mpeg2),
        ("b.mxf", &mpeg2),
        ("repeated.mkv", &[&repeat[..], &repeated].concat()),
    ] {
        assert_eq!(keys(name, args)[..8], every_12, "{name}"); // some encoders end on one more
    }
}
