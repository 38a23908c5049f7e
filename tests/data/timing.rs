//! Timestamps that repeat, fall, jump or are missing: the frames, their times and seeking stay.

use super::media::*;
use longreel::data::ClipOptions;
use std::path::{Path, PathBuf};

const SIZE: (usize, usize) = (64, 48); // width, height

/// A Matroska file of `count` coded frames, 24 a second, whose frame `n` has its time set to `milliseconds`.
fn shifted(path: PathBuf, count: usize, args: &[&str], n: usize, milliseconds: u16) -> PathBuf {
    let limits = ["-cluster_time_limit", "30000", "-cluster_size_limit", "100000000"];
    video(&path, count, SIZE, &[args, &limits[..]].concat());
    let mut bytes = std::fs::read(&path).unwrap();
    // A SimpleBlock is its track, its time against the cluster's (which begins at 0) in two bytes, and flags.
    let time = (n as f64 * 1000.0 / 24.0).round() as u16;
    let [high, low] = time.to_be_bytes();
    let places: Vec<usize> =
        (0..bytes.len() - 4).filter(|&i| bytes[i..i + 3] == [0x81, high, low] && bytes[i + 3] & 0x7f == 0).collect();
    assert_eq!(places.len(), 1, "the block of frame {n} at {time} ms");
    bytes[places[0] + 1..places[0] + 3].copy_from_slice(&milliseconds.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    path
}

fn at_rate(fps: f64, frames: usize, (width, height): (usize, usize)) -> ClipOptions {
    options!(config(frames, height, width); fps: Some(fps))
}

/// Each frame by itself, sought back and forth, carries its number.
fn every_frame_is_found(path: &Path, count: usize) {
    let dataset = open(&config(1, 48, 64), path);
    assert_eq!(dataset.len(), count);
    for n in (0..count).map(|i| i * 7 % count) {
        assert_eq!(codes(&whole(&dataset, &dataset.clip(n))), [n], "{}", path.display());
    }
}

#[test]
fn a_repeated_timestamp_leaves_the_timing_of_all_other_frames() {
    for name in ["uneven.mkv", "uneven-repeated.mkv"] {
        let path = Path::new("tests/data/odd").join(name);
        let dataset = open(&at_rate(10.0, 30, (128, 96)), &path);
        let rate = dataset.files()[0].rate.unwrap();
        assert_eq!((dataset.len(), format!("{rate:.2}").as_str()), (1, "18.16"), "{name}");
        let clip = whole(&dataset, &dataset.clip(0));
        let plain = open(&config(70, 96, 128), &path);
        let source = whole(&plain, &plain.clip(0));
        let expected: Vec<usize> = (0..20).map(|i| 3 * i).chain([60, 60, 61, 61, 62, 62, 63, 63, 64, 64]).collect();
        for (i, &n) in expected.iter().enumerate() {
            assert!(clip.frame(i) == source.frame(n), "{name}: frame {i} of the clip is not frame {n}");
        }
        assert_eq!(open(&at_rate(10.0, 36, (128, 96)), &path).len(), 1, "{name}");
    }
}

#[test]
fn frames_are_found_by_seeking_whatever_their_timestamps() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let plain = ["-c:v", "libx264", "-preset", "fast", "-g", "12", "-bf", "0", "-pix_fmt", "yuv420p"];
    // Frame 50's time is 2083 ms, its neighbours' are 2042 and 2125, those of frames 46 and 60 are 1917 and 2500.
    for (i, (args, time)) in [(&plain, 2042), (&plain, 1917), (&plain, 2500), (&plain, 0), (&H264, 2042), (&H264, 1918)]
        .into_iter()
        .enumerate()
    {
        let path = shifted(at(&format!("{i}.mkv")), 96, args, 50, time);
        every_frame_is_found(&path, 96);
        let dataset = open(&at_rate(12.0, 48, SIZE), &path);
        let found = codes(&whole(&dataset, &dataset.clip(0)));
        let others = |n: &usize| !(44..=62).contains(n);
        let expected: Vec<usize> = (0..48).map(|i| 2 * i).filter(others).collect();
        assert_eq!(found.iter().copied().filter(others).collect::<Vec<_>>(), expected, "{time}");
    }
}

#[test]
fn a_recording_that_starts_again_goes_on_at_its_pace() {
    let folder = folder();
    let part = |name: &str, from: usize| {
        // Where one recording ends and the next begins, MPEG-TS marks a break; unmarked, packets count as lost.
        let args = [&H264[..], &["-mpegts_flags", "initial_discontinuity"]].concat();
        let frames: Vec<u8> = (from..from + 48).flat_map(|n| coded_frame(n, 64, 48)).collect();
        let input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-r", "24", "-i", "pipe:0"];
        std::fs::read(ffmpeg(folder.path().join(name), &input, &args, &frames)).unwrap()
    };
    let path = folder.path().join("both.ts");
    std::fs::write(&path, [part("a.ts", 0), part("b.ts", 48)].concat()).unwrap();
    every_frame_is_found(&path, 96);
    let dataset = open(&at_rate(12.0, 48, SIZE), &path);
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), (0..96).step_by(2).collect::<Vec<_>>());
}

#[test]
fn a_counter_that_wraps_goes_on() {
    let folder = folder();
    // MPEG-TS counts 33 bits of 90 kHz: it wraps after 95443.717 s.
    let args = [&H264[..], &["-output_ts_offset", "95442", "-muxdelay", "0", "-muxpreload", "0"]].concat();
    let path = video(folder.path().join("wrap.ts"), 96, SIZE, &args);
    every_frame_is_found(&path, 96);
    let dataset = open(&at_rate(12.0, 48, SIZE), &path);
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), (0..96).step_by(2).collect::<Vec<_>>());
}

#[test]
fn timestamps_that_the_container_lacks_come_from_the_order_of_the_frames() {
    let folder = folder();
    // AVI has no presentation times: with B-frames, FFmpeg knows decoding times alone.
    let path = video(folder.path().join("a.avi"), 96, SIZE, &H264);
    every_frame_is_found(&path, 96);
    let dataset = open(&at_rate(12.0, 48, SIZE), &path);
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), (0..96).step_by(2).collect::<Vec<_>>());
}
