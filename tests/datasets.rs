//! The dataset script's verbs, on a tiny film and a made-up table, and the clips that are in git.

use crate::media::{decode, names, psnr, smooth};
use ffmpeg_next as ffmpeg;
use longreel::data::write::write_video;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[test]
fn the_clips_in_git_are_what_the_readme_says() {
    ffmpeg::init().unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/bbb");
    let (train, heldout) = (names(&folder.join("train")), names(&folder.join("heldout")));
    assert_eq!((train.len(), heldout.len()), (69, 8));
    assert!(train.last() < heldout.first(), "held-out clips come from a later part of the film");
    let mut total = 0;
    for path in
        train.iter().map(|n| folder.join("train").join(n)).chain(heldout.iter().map(|n| folder.join("heldout").join(n)))
    {
        total += fs::metadata(&path).unwrap().len();
        let mut input = ffmpeg::format::input(&path).unwrap();
        assert!(input.metadata().get("copyright").is_some_and(|c| c.contains("(c) 2008 Blender Foundation")));
        assert_eq!(input.streams().count(), 1); // no sound
        let stream = input.streams().next().unwrap();
        assert_eq!(stream.avg_frame_rate(), ffmpeg::Rational(24, 1));
        let decoder = ffmpeg::codec::Context::from_parameters(stream.parameters()).unwrap().decoder().video().unwrap();
        assert_eq!((decoder.width(), decoder.height()), (192, 108));
        assert_eq!(input.packets().count(), 48, "{}", path.display());
    }
    assert!(total < 8_000_000, "{total} bytes");
}

#[test]
fn each_scene_is_one_of_the_clips() {
    let out = tempfile::tempdir().unwrap();
    let out = out.path().join("scenes");
    let args = ["scenes", "--out", out.to_str().unwrap()];
    let done = make(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let in_git = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/bbb/scenes");
    assert_eq!(names(&in_git), ["apple", "butterfly", "face", "flyer", "hoop", "rabbit", "squirrel", "trio"]);
    assert_eq!(names(&out), names(&in_git));
    for scene in names(&in_git) {
        let [clip] = &names(&in_git.join(&scene))[..] else { panic!("{scene} has not one clip") };
        let bytes = |folder: &Path| fs::read(folder.join(clip)).unwrap();
        assert_eq!(bytes(&in_git.join(&scene)), bytes(&in_git.parent().unwrap().join("train")), "{scene}");
        assert_eq!(bytes(&out.join(&scene)), bytes(&in_git.join(&scene)));
    }

    let failed = make(&["scenes", "--bbb", "nowhere", "--out", out.to_str().unwrap(), "--replace"]);
    assert!(!failed.status.success());
    assert!(String::from_utf8_lossy(&failed.stderr).contains("`make.py bbb` makes it"));
    assert_eq!(names(&out), names(&in_git), "what was there stays");
}

fn make(args: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/make.py");
    Command::new("python3").arg(script).args(args).output().expect("python3 runs")
}

/// Three shots of 70 frames: two that move, and between them one that stands still.
fn tiny_film(path: &Path) -> Vec<u8> {
    let moving = smooth(140, 64, 96);
    let (first, second) = moving.split_at(moving.len() / 2);
    let still = [30, 200, 60].repeat(70 * 64 * 96);
    let flipped: Vec<u8> = second.iter().map(|v| 255 - v).collect();
    let film = [first, &still, &flipped].concat();
    write_video(path, &film, 64, 96, 24.0).unwrap();
    film
}

#[test]
fn the_script_cuts_clips_within_shots() {
    let folder = tempfile::tempdir().unwrap();
    let (film, out) = (folder.path().join("film.mp4"), folder.path().join("clips"));
    let frames = tiny_film(&film);
    let (film, out_name) = (film.to_str().unwrap(), out.to_str().unwrap());
    let cut = |more: &[&str]| make(&[&["cut", film, out_name, "--frames", "20", "--size", "48x32"], more].concat());
    let done = cut(&["--clips", "5", "--heldout", "1"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(&out), ["heldout", "train"]);
    // Stretches of 42 frames, two with a cut within; the still one gives no clip, and the last before the held-out one
    // is given up.
    let parts = [names(&out.join("train")), names(&out.join("heldout"))];
    assert_eq!((parts[0].len(), parts[1].len()), (2, 1), "{parts:?}");
    for (part, name) in parts[0].iter().map(|n| ("train", n)).chain(parts[1].iter().map(|n| ("heldout", n))) {
        let clip = decode(&out.join(part).join(name));
        assert_eq!((clip.frames.len(), clip.height, clip.width, clip.fps), (20, 32, 48, 24.0));
        let first: usize = name.trim_start_matches("film-").trim_end_matches(".mp4").parse().unwrap();
        assert!(first + 20 <= 70 || (140..=190).contains(&first), "{name} crosses a cut");
        // The clip's frames are those its name says: compared at a quarter of the pixels.
        for (i, frame) in clip.frames.iter().enumerate() {
            let film = &frames[(first + i) * 64 * 96 * 3..][..64 * 96 * 3];
            let mean = |y: usize, x: usize, c: usize| {
                let at = |dy: usize, dx: usize| film[((2 * y + dy) * 96 + 2 * x + dx) * 3 + c] as u32;
                ((at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1) + 2) / 4) as u8
            };
            let small: Vec<u8> = (0..32 * 48 * 3).map(|j| mean(j / 144, j / 3 % 48, j % 3)).collect();
            let db = psnr(&small, 32, 48, frame, 48);
            assert!(db > 30.0, "{name}, frame {i}: {db:.1} dB");
        }
    }

    let again = cut(&["--clips", "6"]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--replace"));
    let few = cut(&["--clips", "2", "--heldout", "8", "--replace"]);
    assert!(!few.status.success() && String::from_utf8_lossy(&few.stderr).contains("too few"));
    assert_eq!(names(&out.join("train")), parts[0]); // still the old ones
    // Each advice is right: what it says is enough works.
    let error = |args: &[&str]| {
        let failed = cut(&[args, &["--replace"]].concat());
        assert!(!failed.status.success());
        String::from_utf8_lossy(&failed.stderr).into_owned()
    };
    assert!(error(&["--clips", "64", "--heldout", "0"]).ends_with("have 3 frames each; --clips 10 is the most\n"));
    assert!(error(&["--clips", "5", "--heldout", "3"]).contains("to hold 3 out: --heldout 2 is the most"));
    assert!(error(&["--frames", "300"]).ends_with("it has 210 frames from start to end; --frames 210 is the most\n"));
    for args in [&["--clips", "10", "--heldout", "0"], &["--clips", "5", "--heldout", "2"]] {
        let done = cut(&[&args[..], &["--replace"]].concat());
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    }
    let help = String::from_utf8(make(&["cut", "--help"]).stdout).unwrap();
    for default in ["(default: 64)", "(default: 8)", "(default: 48)", "(default: 192x108)", "(default: 13)"] {
        assert!(help.contains(default), "{default}: {help}");
    }
    let done = cut(&["--clips", "3", "--heldout", "0", "--replace"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!((names(&out.join("train")).len(), names(&out.join("heldout")).len()), (2, 0));
    assert_eq!(names(folder.path()), ["clips", "film.mp4"]);
}

#[test]
fn the_script_makes_class_folders_of_digits() {
    let folder = tempfile::tempdir().unwrap();
    let (table, out) = (folder.path().join("digits.csv"), folder.path().join("digits"));
    let row =
        |i: usize| (0..784).map(|p| ((p + i) % 256).to_string() + ",").collect::<String>() + &(i % 10).to_string();
    fs::write(&table, (0..100).map(|i| row(i) + "\n").collect::<String>()).unwrap();
    assert!(Command::new("gzip").arg(&table).status().unwrap().success());
    let table = table.with_extension("csv.gz");
    let args = ["digits", "--csv", table.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let done = make(&args);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for class in 0..10 {
        assert_eq!(names(&out.join(format!("train/{class}"))).len(), 9);
        assert_eq!(names(&out.join(format!("heldout/{class}"))), ["0009.png"]);
        let picture = image::open(out.join(format!("train/{class}/0004.png"))).unwrap();
        assert_eq!(picture.color(), image::ColorType::L8);
        let expected: Vec<u8> = (0..784).map(|p| ((p + 40 + class) % 256) as u8).collect();
        assert_eq!(picture.into_luma8().as_raw(), &expected);
    }

    // Not the table, and not a table at all: one line, and nothing is left behind.
    let bad = folder.path().join("bad.csv.gz");
    fs::write(&bad, "not gzip").unwrap();
    let other: PathBuf = folder.path().join("other");
    let failed = make(&["digits", "--csv", bad.to_str().unwrap(), "--out", other.to_str().unwrap()]);
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && error.contains("not the table") && error.lines().count() == 1, "{error}");
    assert_eq!(names(folder.path()), ["bad.csv.gz", "digits", "digits.csv.gz"]);
}

/// A package as Debian's: a few pictures, and who made them.
fn package(folder: &Path, name: &str, pictures: &[(&str, u32, u32)], rights: bool) -> PathBuf {
    let root = folder.join(name);
    let write = |path: &str, text: &str| {
        fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
        fs::write(root.join(path), text).unwrap();
    };
    write(
        "DEBIAN/control",
        &format!("Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a\nDescription: b\n"),
    );
    if rights {
        write(&format!("usr/share/doc/{name}/copyright"), "drawn by A, CC-BY-SA");
    }
    write("usr/share/backgrounds/a.xml", "<xml/>");
    for &(picture, width, height) in pictures {
        image::RgbImage::new(width, height).save(root.join("usr/share/backgrounds").join(picture)).unwrap();
    }
    let deb = folder.join(format!("{name}_1_all.deb"));
    let built = Command::new("dpkg-deb").arg("--build").arg(&root).arg(&deb).output().expect("the tests need dpkg-deb");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    deb
}

#[test]
fn the_script_takes_large_pictures_with_their_licences() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = [("large.png", 80, 50), ("narrow.png", 79, 50), ("low.jpg", 80, 49), ("wide.jpg", 100, 60)];
    let full = package(folder.path(), "full", &pictures, true);
    let none = package(folder.path(), "small", &[("a.webp", 10, 10)], false);
    let bare = package(folder.path(), "bare", &[("a.webp", 100, 100)], false);
    let out = folder.path().join("out");
    let take = |debs: &[&Path]| {
        let debs: Vec<&str> = debs.iter().map(|deb| deb.to_str().unwrap()).collect();
        make(&[&["wallpapers", "--least", "80x50", "--out", out.to_str().unwrap(), "--deb"][..], &debs].concat())
    };
    let failed = |debs: &[&Path], words: &str| {
        let done = take(debs);
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && error.contains(words) && error.lines().count() == 1, "{error}");
        assert!(!out.exists());
    };
    failed(&[&none], "no image of 80x50");
    failed(&[&full, &bare], "bare_1_all.deb has no copyright file");
    failed(&[&folder.path().join("gone.deb")], "no such file");
    let done = take(&[&full, &none]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(&out), ["full"]);
    assert_eq!(names(&out.join("full")), ["ATTRIBUTION.txt", "COPYING", "large.png", "wide.jpg"]);
    assert_eq!(fs::read_to_string(out.join("full/COPYING")).unwrap(), "drawn by A, CC-BY-SA");
    assert!(fs::read_to_string(out.join("full/ATTRIBUTION.txt")).unwrap().contains("full_1_all"));
    let again = take(&[&full]);
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("--replace"));
}

#[test]
fn the_script_draws_a_large_picture() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("large");
    let done = make(&["large", "--size", "321x203", "--out", out.to_str().unwrap()]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(names(&out), ["drawn-321x203.png"]);
    let picture = image::open(out.join("drawn-321x203.png")).unwrap();
    assert_eq!((picture.width(), picture.height(), picture.color()), (321, 203, image::ColorType::Rgb8));
    let picture = picture.into_rgb8();
    // Something is drawn in every quarter: no two are alike, and none is of one colour.
    let quarter = |x0: u32, y0: u32| -> Vec<_> {
        (0..100).flat_map(|y| (0..160).map(move |x| (x, y))).map(|(x, y)| *picture.get_pixel(x0 + x, y0 + y)).collect()
    };
    let quarters = [quarter(0, 0), quarter(161, 0), quarter(0, 102), quarter(161, 102)];
    for (i, one) in quarters.iter().enumerate() {
        assert!(one.iter().any(|pixel| pixel != &one[0]), "quarter {i} is empty");
        assert!(quarters[..i].iter().all(|other| other != one), "quarter {i} is there twice");
    }
    let small = make(&["large", "--size", "32x32", "--replace", "--out", out.to_str().unwrap()]);
    assert!(!small.status.success() && String::from_utf8_lossy(&small.stderr).contains("64x64"));
}

#[test]
fn the_script_says_in_one_line_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.mp4");
    fs::write(&text, "no film").unwrap();
    let out = folder.path().join("out");
    let (text, out) = (text.to_str().unwrap(), out.to_str().unwrap());
    for (args, word) in [
        (vec!["cut", "/nowhere.mp4", out], "no such file"),
        (vec!["cut", text, out], "reading"),
        (vec!["bbb", "--film", text, "--out", out], "sha256"),
        (vec!["bbb", "--film", "/nowhere.mp4", "--out", out], "no such file"),
        (vec!["cut", text, out, "--size", "15x15"], "even"),
    ] {
        let failed = make(&args);
        let error = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && error.contains(word), "{args:?}: {error}");
        assert!(error.lines().count() == 1 && error.starts_with("make.py: "), "{error}");
    }
    // No network: pip is kept from its index.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/make.py");
    let mut offline = Command::new("python3");
    offline.arg(script).args(["digits", "--out", out]).env("PIP_NO_INDEX", "1").env_remove("PIP_FIND_LINKS");
    let failed = offline.output().unwrap();
    let error = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(!failed.status.success() && error.contains("network"), "{error}");
    assert_eq!(names(folder.path()), ["text.mp4"]);
}
