//! `longreel scan`: the report, its totals, the sheet and the exit code.

use super::media::*;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn scan(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longreel")).arg("scan").args(args).current_dir(folder).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn the_report_has_every_file_its_reason_and_the_totals() {
    let folder = folder();
    let clips = folder.path().join("clips");
    std::fs::create_dir_all(clips.join("sky")).unwrap();
    video(clips.join("sky/a.mp4"), 40, (64, 48), &H264);
    video(clips.join("sky/b.webm"), 9, (64, 48), &["-c:v", "libvpx-vp9", "-cpu-used", "8"]);
    std::fs::write(clips.join("sky/a.txt"), "a sky").unwrap();
    std::fs::write(clips.join("sky/broken.mkv"), "?").unwrap();
    std::fs::write(clips.join("notes.doc"), "?").unwrap();
    let size = ["clips", "--frames", "8", "--height", "48", "--width", "64", "--label", "folder", "--patch", "2,8,8"];

    let plain = scan(folder.path(), &size);
    assert!(plain.status.success(), "{}", text(&plain.stderr));
    let (report, log) = (text(&plain.stdout), text(&plain.stderr));
    for line in [
        "clips of 8 frames, 64x48 (width x height), every frame of the source",
        "6 clips of 192 tokens, 1152 tokens in all",
    ] {
        assert!(report.contains(line), "{line}: {report}");
    }
    for (name, reason) in [("sky/broken.mkv", "cannot be read as a video"), ("notes.doc", "not a video or image")] {
        assert!(report.lines().any(|l| l.contains(name) && l.contains(reason)), "{name}: {report}");
        assert!(!log.contains(name), "what is not used is listed once: {log}");
    }
    let row: Vec<&str> = report.lines().find(|l| l.starts_with("sky/a.mp4")).unwrap().split_whitespace().collect();
    assert_eq!(row, ["sky/a.mp4", "40", "64x48", "24.00", "5", "sky"]);
    let sheet = image::open(folder.path().join("scan.png")).unwrap();
    assert!(sheet.width() > 4 * 48 && sheet.height() > 2 * 48);

    let json = scan(folder.path(), &[&size[..], &["--json", "--no-sheet"]].concat());
    let value: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((&value["clips"], &value["tokens_per_clip"], &value["tokens"]), (&6.into(), &192.into(), &1152.into()));
    assert_eq!(value["files"][0]["caption"], "a sky");
    assert_eq!((&value["files"][1]["path"], &value["files"][1]["frames"]), (&"sky/b.webm".into(), &9.into()));
    assert_eq!(value["skipped"].as_array().unwrap().len(), 2);
    assert_eq!(value["classes"], serde_json::json!(["sky"]));
}

#[test]
fn settings_come_from_a_config_and_flags_go_over_it() {
    let folder = folder();
    std::fs::create_dir(folder.path().join("set")).unwrap();
    video(folder.path().join("set/a.mp4"), 24, (64, 48), &H264);
    let toml = "[data]\npath = \"set\"\nframes = 4\nheight = 16\nwidth = 16\nstride = 2\n\
                [model]\npatch_size = [1, 4, 4]\nnum_attention_heads = 2\nattention_head_dim = 16\n\
                num_layers = 1\nffn_dim = 32\nfreq_dim = 32\n";
    std::fs::write(folder.path().join("run.toml"), toml).unwrap();
    let clips = |args: &[&str]| {
        let out = scan(folder.path(), &[&["--config", "run.toml", "--json", "--no-sheet"], args].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        let value: Value = serde_json::from_slice(&out.stdout).unwrap();
        (value["clips"].as_u64().unwrap(), value["tokens_per_clip"].as_u64().unwrap())
    };
    assert_eq!(clips(&[]), (3, 64));
    assert_eq!(clips(&["set", "--frames", "3", "--stride", "1", "--patch", "3,8,8"]), (8, 4));
    assert_eq!(clips(&["--fps", "12", "--label", "none"]), (1, 64));
    assert!(!folder.path().join("scan.png").exists());
}

#[test]
fn decoding_everything_finds_damage_that_a_quick_look_does_not() {
    let folder = folder();
    let path = video(folder.path().join("a.mp4"), 96, (64, 48), &H264);
    let mut bytes = std::fs::read(&path).unwrap();
    let frames = bytes.windows(4).position(|w| w == b"moov").unwrap();
    bytes[frames / 3..frames / 2].fill(0);
    std::fs::write(&path, bytes).unwrap();
    assert!(
        scan(folder.path(), &[".", "--frames", "2", "--height", "8", "--width", "8", "--no-sheet"]).status.success()
    );
    let out = scan(folder.path(), &[".", "--frames", "2", "--height", "8", "--width", "8", "--no-sheet", "--decode"]);
    assert!(!out.status.success());
    assert!(text(&out.stdout).contains("a.mp4: it cannot be decoded"), "{}", text(&out.stdout));
}

#[test]
fn what_cannot_be_scanned_ends_with_one_error() {
    let folder = folder();
    std::fs::write(folder.path().join("a.mp4"), "").unwrap();
    for (args, what) in [
        (&["."][..], "no usable clips"),
        (&["nowhere"], "nowhere"),
        (&[], "<DIR>"),
        (&[".", "--fps", "0"], "data.fps"),
        (&[".", "--frames", "0"], "at least 1"),
        (&[".", "--patch", "1,2"], "--patch"),
        (&["--config", "none.toml"], "none.toml"),
    ] {
        let out = scan(folder.path(), args);
        let error = text(&out.stderr);
        assert!(!out.status.success() && error.contains(what), "{args:?}: {error}");
        assert_eq!(error.matches("error: ").count(), 1, "{error}");
    }
    let report = scan(folder.path(), &["."]);
    assert!(text(&report.stdout).contains("a.mp4: it is empty"));

    std::fs::write(folder.path().join("scan.png"), "mine").unwrap();
    image::RgbImage::new(70, 70).save(folder.path().join("b.png")).unwrap();
    let out = scan(folder.path(), &[".", "--frames", "1", "--patch", "1,5,5"]);
    assert!(!out.status.success() && text(&out.stderr).contains("does not divide"), "{}", text(&out.stderr));
    assert_eq!(std::fs::read(folder.path().join("scan.png")).unwrap(), b"mine");
    let out = scan(folder.path(), &[".", "--frames", "1", "--sheet", "no/such/folder.png"]);
    assert!(!out.status.success() && text(&out.stderr).contains("no/such"), "{}", text(&out.stderr));
}

#[test]
fn junk_has_no_line_and_captions_that_are_not_used_are_called_so() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for (name, width, height) in [("a.png", 64, 60), ("b.png", 96, 48), ("small.png", 40, 70)] {
        image::RgbImage::new(width, height).save(at(name)).unwrap();
    }
    std::fs::write(at("a.txt"), "a cat").unwrap();
    std::fs::write(at("b.txt"), " \n").unwrap();
    for junk in [".DS_Store", "Thumbs.db", "desktop.ini", "._a.png", ".gitattributes"] {
        std::fs::write(at(junk), "junk").unwrap();
    }
    for junk in [".git", "__MACOSX"] {
        std::fs::create_dir(at(junk)).unwrap();
        std::fs::copy(at("a.png"), at(junk).join("a.png")).unwrap();
    }
    std::fs::write(at("c.mp4.part"), "half").unwrap();
    let report = |args: &[&str]| {
        let out = scan(folder.path(), &[&[".", "--no-sheet", "--frames", "1"], args].concat());
        assert!(out.status.success(), "{}", text(&out.stderr));
        text(&out.stdout).to_owned()
    };
    let all = report(&["--height", "48", "--width", "64"]);
    let end = "\nnot used\n\
               c.mp4.part: it is an unfinished download\n\
               small.png: it is too small: 40x70 (width x height), a clip is 64x48\n\n\
               2 files used (1 with a caption), 2 not used, 0 classes\n\
               2 clips\n\
               40x48 (width x height) is the largest clip for which no file is too small\n";
    assert!(all.ends_with(end), "{all}");
    // At that size all are used.
    let all = report(&["--height", "48", "--width", "40"]);
    assert!(all.contains("3 files used (1 with a caption), 1 not used"), "{all}");
    let one = report(&["--height", "48", "--width", "96"]);
    assert!(one.contains("\n1 file used, 3 not used, 0 classes\n1 clip\n"), "{one}");
}
