//! Files that play well elsewhere and mislead a plain reader: hidden opacity, padding, sizes that change, several
//! streams, timestamps that repeat, fall or are missing.

use super::media::*;
use longreel::data::{Augment, Dataset, Frames};
use std::path::{Path, PathBuf};

const SIZE: (usize, usize) = (64, 48); // width, height

fn pixel(frames: &Frames, n: usize, x: usize, y: usize) -> [u8; 3] {
    let at = ((n * frames.lines.len() + y) * frames.width + x) * 3;
    [frames.data[at], frames.data[at + 1], frames.data[at + 2]]
}

/// Every frame by itself, in an order that seeks back and forth, is the frame of the whole.
fn frames_alone_are_those_of_the_whole(path: &Path, count: usize) -> Frames {
    let (width, height) = SIZE;
    let dataset = open(&config(count, height, width), path);
    let all = whole(&dataset, &dataset.clip(0));
    for i in 0..count {
        let n = i * 7 % count;
        let alone = dataset.frames(&dataset.clip(0), &Augment::PLAIN, n..n + 1).unwrap();
        assert!(alone.data == all.frame(n), "frame {n} of {}", path.display());
    }
    all
}

/// `count` frames that carry their number, of which the red quarter is transparent, through ffmpeg.
fn transparent(path: PathBuf, count: usize, args: &[&str]) -> PathBuf {
    let (width, height) = SIZE;
    let rgba = (0..count).flat_map(|n| {
        coded_frame(n, width, height)
            .chunks_exact(3)
            .flat_map(|p| [p[0], p[1], p[2], if p[0] == 230 { 0 } else { 255 }])
            .collect::<Vec<_>>()
    });
    let input = ["-f", "rawvideo", "-pix_fmt", "rgba", "-s", "64x48", "-r", "24", "-i", "pipe:0"];
    ffmpeg(path, &input, args, &rgba.collect::<Vec<_>>())
}

#[test]
fn transparent_webm_lies_over_white() {
    let folder = folder();
    for codec in ["libvpx-vp9", "libvpx"] {
        let args = ["-c:v", codec, "-pix_fmt", "yuva420p", "-g", "12", "-b:v", "2M", "-cpu-used", "4"];
        let path = transparent(
            folder.path().join(format!("{codec}.webm")),
            41,
            &[&args[..], &["-auto-alt-ref", "0"]].concat(),
        );
        let all = frames_alone_are_those_of_the_whole(&path, 41);
        assert_eq!(codes(&all), (0..41).collect::<Vec<_>>(), "{codec}");
        for n in 0..41 {
            let (hidden, seen) = (pixel(&all, n, 10, 40), pixel(&all, n, 54, 40));
            assert!(hidden.iter().all(|&v| v >= 253), "{codec}, frame {n}: {hidden:?}");
            assert!(seen[0] < 60 && seen[2] > 190, "{codec}, frame {n}: {seen:?}");
        }
    }
    let dataset = open(&config(1, 64, 64), Path::new("tests/data/odd/alpha.webm"));
    let frame = whole(&dataset, &dataset.clip(0));
    assert_eq!((pixel(&frame, 0, 10, 32), pixel(&frame, 0, 50, 32)), ([255; 3], [254, 0, 0]));
}

#[test]
fn the_fourth_byte_of_an_uncompressed_avi_is_padding() {
    let folder = folder();
    for (name, fourth) in [("0", 0), ("255", 255), ("77", 77)] {
        let frames: Vec<u8> = [180, 129, 114, fourth].repeat(112 * 80 * 4);
        let path = folder.path().join(format!("{name}.avi"));
        let input = ["-f", "rawvideo", "-pix_fmt", "bgra", "-s", "112x80", "-i", "pipe:0"];
        ffmpeg(&path, &input, &["-c:v", "rawvideo", "-pix_fmt", "bgra"], &frames);
        let dataset = open(&config(4, 80, 112), &path);
        assert_eq!(pixel(&whole(&dataset, &dataset.clip(0)), 3, 50, 40), [114, 129, 180], "{name}");
    }
    // Padding that a codec of AVI takes for opacity, and true opacity, which shows in some frame.
    let (width, height) = SIZE;
    for (name, alpha, expected) in [("all", [0, 0, 0], [200, 30, 60]), ("one", [0, 255, 0], [255; 3])] {
        let frames: Vec<u8> = alpha.into_iter().flat_map(|a| [60, 30, 200, a].repeat(width * height)).collect();
        let path = folder.path().join(format!("{name}.avi"));
        let input = ["-f", "rawvideo", "-pix_fmt", "bgra", "-s", "64x48", "-i", "pipe:0"];
        ffmpeg(&path, &input, &["-c:v", "huffyuv", "-pix_fmt", "bgra"], &frames);
        let dataset = open(&config(3, height, width), &path);
        assert_eq!(pixel(&whole(&dataset, &dataset.clip(0)), 0, 50, 40), expected, "{name}");
    }
}

#[test]
fn frames_smaller_than_a_clip_are_not_enlarged_and_clips_of_them_left_out() {
    let path = Path::new("tests/data/odd/size-changes.mkv");
    for decode in [false, true] {
        let mut dataset = Dataset::survey(&config(4, 96, 128), path).unwrap();
        if decode {
            dataset = dataset.decode_all();
        }
        assert_eq!(dataset.len(), 6, "24 frames of 128x96, then 24 of 64x48");
        let notes = &dataset.files()[0].notes;
        let expected =
            "128x96 from frame 0, 64x48 from frame 24; 6 of its 12 clips reach into frames smaller than 128x96";
        assert!(notes.len() == 1 && notes[0].contains(expected), "{notes:?}");
    }
    // Small enough a clip: every frame counts, each shrunk from its own size.
    let dataset = open(&config(4, 48, 64), path);
    assert_eq!(dataset.len(), 12);
    assert!(dataset.files()[0].notes[0].contains("change their size"));
    let unusable = Dataset::survey(&config(30, 96, 128), path).unwrap();
    assert!(skipped(&unusable)[0].1.contains("1 of its 1 clips reach into frames smaller"), "{:?}", skipped(&unusable));
}

/// A Matroska file of MJPEG frames whose size changes in the middle and is back at the end.
fn dented(folder: &Path) -> PathBuf {
    let part = |name: &str, size| video(folder.join(name), 12, size, &["-c:v", "mjpeg", "-q:v", "2"]);
    let large = part("large.avi", (64, 48));
    let small = part("small.avi", (32, 24));
    let list = folder.join("list.txt");
    let lines = [&large, &small, &large].map(|path| format!("file '{}'\n", path.display())).concat();
    std::fs::write(&list, lines).unwrap();
    let input = ["-f", "concat", "-safe", "0", "-i", list.to_str().unwrap()];
    ffmpeg(folder.join("dented.mkv"), &input, &["-c", "copy"], &[])
}

#[test]
fn a_size_that_changes_out_of_a_quick_look_s_sight_is_an_error_that_names_the_frame() {
    let folder = folder();
    let path = dented(folder.path());
    let dataset = open(&config(4, 48, 64), &path);
    assert_eq!(dataset.len(), 9, "the first frame and the last are large enough");
    let error = refusal!(Data, dataset.frames(&dataset.clip(4), &Augment::PLAIN, 0..4));
    assert!(error.contains("dented.mkv") && error.contains("frame 16 is 32x24 (width x height), smaller"), "{error}");
    let dataset = dataset.decode_all();
    assert_eq!(dataset.len(), 6);
    let windows: Vec<usize> = (0..6).map(|i| dataset.clip(i).window).collect();
    assert_eq!(windows, [0, 1, 2, 6, 7, 8]);
    assert_eq!(dataset.clip(3).first_frame, 24);
    let frames: Vec<usize> = (0..6).flat_map(|i| codes(&whole(&dataset, &dataset.clip(i)))).collect();
    assert_eq!(frames, (0..12).chain(0..12).collect::<Vec<_>>());
}

#[test]
fn the_best_video_stream_is_taken_and_the_choice_is_said() {
    let dataset = open(&config(16, 96, 128), Path::new("tests/data/odd/thumbnail-first.mp4"));
    let file = &dataset.files()[0];
    assert_eq!((file.frames, file.height, file.width, dataset.len()), (48, 96, 128, 3));
    assert_eq!(file.notes, ["of 2 video streams, number 1 is used (h264, 128x96)"]);

    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let first = video(at("first.mp4"), 30, (32, 24), &H264);
    let second = video(at("second.mp4"), 30, SIZE, &H264);
    let input = ["-i", first.to_str().unwrap(), "-i", second.to_str().unwrap()];
    let args = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:0", "0", "-disposition:1", "default"];
    let both = ffmpeg(at("both.mkv"), &input, &args, &[]);
    let dataset = open(&config(30, 48, 64), &both);
    assert_eq!(codes(&whole(&dataset, &dataset.clip(0))), (0..30).collect::<Vec<_>>());
    // A cover before the film.
    let cover = video(at("cover.png"), 1, (640, 480), &[]);
    let input = ["-i", cover.to_str().unwrap(), "-i", second.to_str().unwrap()];
    let args = ["-map", "0", "-map", "1", "-c", "copy", "-disposition:0", "attached_pic", "-disposition:1", "0"];
    let film = ffmpeg(at("film.mp4"), &input, &args, &[]);
    let dataset = open(&config(30, 48, 64), &film);
    assert_eq!((dataset.files()[0].frames, &dataset.files()[0].notes), (30, &Vec::<String>::new()));
}

#[test]
fn frames_that_claim_more_pixels_than_the_file_can_hold_are_refused() {
    let folder = folder();
    let path = video(folder.path().join("a.avi"), 4, SIZE, &["-c:v", "mjpeg", "-q:v", "2"]);
    let mut bytes = std::fs::read(&path).unwrap();
    for at in (0..bytes.len() - 9).filter(|&i| bytes[i..i + 5] == [0xff, 0xc0, 0, 17, 8]).collect::<Vec<_>>() {
        bytes[at + 5..at + 9].copy_from_slice(&[0x3e, 0x80, 0x3e, 0x80]); // 16000 x 16000
    }
    std::fs::write(&path, &bytes).unwrap();
    let header = folder.path().join("b.avi");
    let at = bytes.windows(4).position(|w| w == b"strf").unwrap() + 8;
    bytes[at + 4..at + 12].copy_from_slice(&[0xff, 0xff, 0, 0, 0xff, 0xff, 0, 0]); // 65535 x 65535
    std::fs::write(&header, &bytes).unwrap();
    let start = std::time::Instant::now();
    let dataset = Dataset::survey(&config(1, 48, 64), folder.path()).unwrap();
    assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
    let skips = skipped(&dataset);
    assert_eq!(skips.len(), 2, "{skips:?}");
    assert!(skips[0].1.contains("cannot be decoded") || skips[0].1.contains("it claims frames of"), "{skips:?}");
    assert!(skips[1].1.contains("cannot") || skips[1].1.contains("it claims frames of"), "{skips:?}");
}
