//! Bad input: each file is a reported skip, each folder or setting an error; nothing panics or hangs.

use super::media::*;
use longreel::data::{Dataset, Label};
use std::path::Path;

#[test]
fn every_unusable_file_is_skipped_with_its_reason() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let good = video(at("good.mp4"), 20, (64, 48), &H264);
    let bytes = std::fs::read(&good).unwrap();
    std::fs::write(at("empty.mp4"), b"").unwrap();
    std::fs::write(at("cut.mp4"), &bytes[..bytes.len() / 2]).unwrap();
    let fast = video(at("faststart.mp4"), 60, (64, 48), &[&H264[..], &["-movflags", "faststart"]].concat());
    let fast_bytes = std::fs::read(&fast).unwrap();
    std::fs::write(&fast, &fast_bytes[..fast_bytes.len() * 3 / 4]).unwrap();
    let mkv = video(at("cut.mkv"), 60, (64, 48), &H264);
    let mkv_bytes = std::fs::read(&mkv).unwrap();
    std::fs::write(&mkv, &mkv_bytes[..mkv_bytes.len() * 3 / 4]).unwrap();
    let avi = video(at("cut.avi"), 60, (64, 48), &["-c:v", "mjpeg"]);
    let avi_bytes = std::fs::read(&avi).unwrap();
    std::fs::write(&avi, &avi_bytes[..avi_bytes.len() * 3 / 4]).unwrap();
    std::fs::write(at("text.mp4"), "this is no film\n".repeat(100)).unwrap();
    std::fs::write(at("noise.webm"), (0..5000u32).map(|i| ((i * i) >> 3) as u8).collect::<Vec<_>>()).unwrap();
    std::fs::write(at("list.mkv"), "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\ngood.mp4\n#EXT-X-ENDLIST\n")
        .unwrap();
    std::fs::write(at("concat.mov"), "ffconcat version 1.0\nfile good.mp4\n").unwrap();
    ffmpeg(at("sound.mp4"), &["-f", "lavfi", "-i", "sine=duration=1"], &["-c:a", "aac"], &[]);
    video(at("no-frames.mp4"), 0, (64, 48), &H264);
    video(at("short.mp4"), 7, (64, 48), &H264);
    video(at("small.mp4"), 20, (64, 32), &H264);
    std::fs::write(at("notes.doc"), "?").unwrap();
    std::fs::write(at("lonely.txt"), "?").unwrap();
    std::fs::write(at(".hidden.mp4"), &bytes).unwrap();
    std::fs::create_dir(at(".cache")).unwrap();
    std::fs::write(at(".cache/a.mp4"), &bytes).unwrap();
    image::RgbImage::new(64, 48).save(at("image.png")).unwrap();
    std::os::unix::fs::symlink("nowhere.mp4", at("dangling.mp4")).unwrap();
    std::os::unix::fs::symlink(folder.path(), at("loop")).unwrap();
    for name in ["README.md", "LICENSE", "ATTRIBUTION.txt"] {
        std::fs::write(at(name), "known, no mention").unwrap();
    }

    let dataset = open(&config(16, 48, 64), folder.path());
    assert_eq!(dataset.files().len(), 1, "{:?}", dataset.files());
    assert_eq!(dataset.len(), 1);
    let skips = skipped(&dataset);
    let expected = [
        (".cache", "hidden folder"),
        (".hidden.mp4", "hidden file"),
        ("concat.mov", "cannot be read as a video"),
        ("cut.avi", "cut short"),
        ("cut.mkv", "cut short"),
        ("cut.mp4", "cannot be read as a video"),
        ("dangling.mp4", "cannot be read"),
        ("empty.mp4", "empty (0 bytes)"),
        ("faststart.mp4", "cut short"),
        ("image.png", "one frame; the config asks 16"),
        ("list.mkv", "cannot be read as a video"),
        ("lonely.txt", "not a video or image"),
        ("loop", "link to a folder"),
        ("no-frames.mp4", "no"),
        ("noise.webm", "cannot be read as a video"),
        ("notes.doc", "not a video or image"),
        ("short.mp4", "9 frames too short"),
        ("small.mp4", "too small: 64x32"),
        ("sound.mp4", "sound only"),
        ("text.mp4", "cannot be read as a video"),
    ];
    for (name, reason) in expected {
        let found = skips.iter().find(|s| s.0 == name);
        assert!(found.is_some_and(|s| s.1.contains(reason)), "{name}: {found:?}");
    }
    assert_eq!(skips.len(), expected.len(), "{skips:?}");
}

#[test]
fn unusable_images_are_skipped_with_their_reason() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let image = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8 * 3, y as u8 * 5, (x * y) as u8]));
    for name in ["a.png", "b.jpg", "c.webp"] {
        image.save(at(name)).unwrap();
        let bytes = std::fs::read(at(name)).unwrap();
        std::fs::write(at(&format!("cut-{name}")), &bytes[..bytes.len() * 2 / 3]).unwrap();
    }
    std::fs::write(at("empty.png"), b"").unwrap();
    std::fs::write(at("text.jpg"), b"no image").unwrap();
    image::RgbImage::new(63, 48).save(at("narrow.png")).unwrap();
    let frames = (0..3).flat_map(|n| coded_frame(n, 64, 48)).collect::<Vec<_>>();
    let input = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "64x48", "-i", "pipe:0"];
    ffmpeg(at("moving.apng"), &input, &["-f", "apng"], &frames);
    std::fs::rename(at("moving.apng"), at("moving.png")).unwrap();

    let dataset = open(&config(1, 48, 64), folder.path());
    assert_eq!(dataset.len(), 3);
    let skips = skipped(&dataset);
    let expected = [
        ("cut-a.png", "cut short"),
        ("cut-b.jpg", "cut short"),
        ("cut-c.webp", "cut short"),
        ("empty.png", "empty"),
        ("moving.png", "animated"),
        ("narrow.png", "too small: 63x48"),
        ("text.jpg", "cannot be read as a video"),
    ];
    for ((name, reason), found) in expected.iter().zip(&skips) {
        assert!(found.0 == *name && found.1.contains(reason), "{name}: {found:?}");
    }
    assert_eq!(skips.len(), expected.len());
}

#[test]
fn pipes_and_devices_are_skipped_unread() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    image::RgbImage::new(8, 8).save(at("a.png")).unwrap();
    for name in ["b.png", "b.mp4", "b.gif", "a.txt"] {
        assert!(std::process::Command::new("mkfifo").arg(at(name)).status().unwrap().success()); // reading would wait for ever
    }
    for name in ["c.png", "c.mkv", "metadata.jsonl", "d.jpg"] {
        std::os::unix::fs::symlink("/dev/zero", at(name)).unwrap(); // reading would never end
    }
    let dataset = open(&config(1, 8, 8), folder.path());
    assert_eq!((dataset.len(), dataset.clip(0).caption), (1, None));
    let skips = skipped(&dataset);
    assert_eq!(skips.len(), 8, "{skips:?}");
    assert!(skips.iter().all(|skip| skip.1 == "it is not a regular file"), "{skips:?}");
}

#[test]
fn a_folder_with_nothing_usable_is_one_error() {
    let folder = folder();
    let error = refusal!(Data, Dataset::open(&config(1, 8, 8), folder.path()));
    assert!(error.contains("no usable clips") && error.contains("no files"), "{error}");
    std::fs::write(folder.path().join("a.mp4"), b"x").unwrap();
    std::fs::write(folder.path().join("b.doc"), b"x").unwrap();
    let error = refusal!(Data, Dataset::open(&config(1, 8, 8), folder.path()));
    assert!(error.contains("no usable clips") && error.contains("2 files") && error.contains("a.mp4"), "{error}");
    assert!(Dataset::survey(&config(1, 8, 8), folder.path()).unwrap().is_empty());
}

#[test]
fn a_missing_path_and_wrong_settings_are_errors() {
    let folder = folder();
    let error = message(Dataset::open(&config(1, 8, 8), &folder.path().join("nowhere")));
    assert!(error.contains("nowhere"), "{error}");
    assert!(refusal!(Data, Dataset::open(&config(1, 8, 8), Path::new("/dev/null"))).contains("neither"));
    let mut wrong = config(0, 8, 8);
    assert!(refusal!(Config, Dataset::open(&wrong, folder.path())).contains("data.frames = 0"));
    wrong = config(1, 8, 0);
    assert!(refusal!(Config, Dataset::open(&wrong, folder.path())).contains("data.width = 0"));
    for fps in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        wrong = config(1, 8, 8);
        wrong.fps = Some(fps);
        assert!(refusal!(Config, Dataset::open(&wrong, folder.path())).contains("data.fps"));
    }
}

#[test]
fn an_unnamed_class_is_a_skip() {
    let folder = folder();
    image::RgbImage::new(8, 8).save(folder.path().join("a.png")).unwrap();
    let mut labelled = config(1, 8, 8);
    labelled.label = Label::Folder;
    assert!(refusal!(Data, Dataset::open(&labelled, folder.path())).contains("no class folder"));
}
