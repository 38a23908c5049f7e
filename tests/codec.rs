//! `longreel encode` and `longreel decode`: the bits of `longreel forward` on the same pixels, on ranks and in tiles;
//! folders, images and what is left out; and every input that they must refuse, with nothing written.

use crate::media::names;
use longreel::data::write::{write_image, write_video};
use longreel::data::{Augment, ClipOptions, Dataset, Frames, u8_to_unit, unit_to_u8};
use longreel::encode::clip_reader::ClipReader;
use longreel::files::{Tensors, write_tensors, write_tensors_with};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A tiny VAE, `vae21` or `vae22`.
fn vae(kind: &str) -> PathBuf {
    root().join("tests/golden/vae").join(kind).join("vae")
}

/// 48 frames of 192 x 108 pixels at 24 a second.
fn film() -> PathBuf {
    root().join("datasets/bbb/heldout/bbb-010694.mp4")
}

/// Runs a command with a VAE: stdout and stderr, or the error.
fn run(command: &str, input: &Path, kind: &str, output: &Path, flags: &[&str]) -> Result<[String; 2], String> {
    let mut longreel = Command::new(env!("CARGO_BIN_EXE_longreel"));
    longreel.arg(command).arg(input).arg("--vae").arg(vae(kind)).arg("-o").arg(output).args(flags);
    let done = longreel.env_remove("RUST_LOG").output().unwrap();
    let [stdout, stderr] = [done.stdout, done.stderr].map(|text| String::from_utf8(text).unwrap());
    match done.status.code() {
        Some(0) => Ok([stdout, stderr]),
        Some(1) => Err(stderr),
        other => panic!("{other:?}: {stderr}"),
    }
}

fn encode(input: &Path, kind: &str, output: &Path, flags: &[&str]) -> Result<[String; 2], String> {
    run("encode", input, kind, output, flags)
}

fn decode(input: &Path, kind: &str, output: &Path, flags: &[&str]) -> Result<[String; 2], String> {
    run("decode", input, kind, output, flags)
}

/// `longreel forward` on one tensor: what it wrote.
fn forward(kind: &str, dir: &Path, name: &str, shape: &[usize], values: &[f32]) -> Tensors {
    let [input, output] = ["in", "out"].map(|file| dir.join(format!("{file}.safetensors")));
    write_tensors(&input, [(name, shape.to_vec(), values)]).unwrap();
    let mut longreel = Command::new(env!("CARGO_BIN_EXE_longreel"));
    let done = longreel.arg("forward").arg(vae(kind)).arg(&input).arg("--force").arg("-o").arg(&output).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Tensors::open(&output).unwrap()
}

/// `[frames, rows, width, 3]` as planes `[3, frames, rows, width]`.
fn planes(pixels: &[u8]) -> Vec<u8> {
    (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).copied()).collect()
}

/// The frames of a video or image, of this size.
fn frames(path: &Path, size: [usize; 3]) -> Frames {
    let dataset = Dataset::open(&ClipOptions::new(size), path).unwrap();
    dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..size[0]).unwrap()
}

/// A small video whose pixels are anything.
fn video(path: &Path, count: usize, height: usize, width: usize) {
    let pixels: Vec<u8> = (0..count * height * width * 3).map(|i| (i * 31 + i / 97) as u8).collect();
    write_video(path, &pixels, height, width, 12.0).unwrap();
}

/// Latents of the tiny 2.1 VAE, which decode to 5 frames of 16 x 24 pixels.
fn latents(path: &Path, metadata: &[(&str, &str)]) {
    let values: Vec<f32> = (0..3 * 2 * 2 * 3).map(|i| (i as f32 * 0.7).sin()).collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
    write_tensors_with(path, &metadata, [("latents", vec![1, 3, 2, 2, 3], values)]).unwrap();
}

// ---- what they compute --------------------------------------------------------------------------------------------

#[test]
fn encoding_has_the_bits_of_forward_on_any_ranks_and_in_tiles() {
    for (kind, release, shape) in [("vae21", "wan2.1", [1, 3, 4, 4, 8]), ("vae22", "wan2.2", [1, 5, 4, 2, 4])] {
        let dir = TempDir::new().unwrap();
        let output = dir.path().join("latents.safetensors");
        let size = ["--frames", "16", "--height", "32", "--width", "64"];
        let [printed, said] = encode(&film(), kind, &output, &size).unwrap();
        assert_eq!(printed.trim(), output.display().to_string());
        assert!(said.contains("13 frames of 64x32") && said.contains("the last 3 of 16 left out"), "{said}");
        let pixels = planes(&frames(&film(), [13, 32, 64]).data);
        let pixels: Vec<f32> = pixels.into_iter().map(u8_to_unit).collect();
        let want = forward(kind, dir.path(), "pixels", &[1, 3, 13, 32, 64], &pixels);
        let got = Tensors::open(&output).unwrap();
        assert_eq!(got.names().collect::<Vec<_>>(), ["latents"]);
        assert_eq!(got.shape("latents").unwrap(), shape);
        assert_eq!(got.read_f32("latents").unwrap(), want.read_f32("latents").unwrap(), "{kind}");
        let metadata = [
            ("source", "bbb-010694.mp4"),
            ("frames", "13"),
            ("height", "32"),
            ("width", "64"),
            ("fps", "24"),
            ("vae", release),
        ];
        for (key, value) in metadata {
            assert_eq!(got.metadata(key), Some(value), "{key}");
        }
        let bytes = fs::read(&output).unwrap();
        for flags in [["--ranks", "2"], ["--tile", "16"]] {
            encode(&film(), kind, &output, &[&size[..], &flags, &["--force"]].concat()).unwrap();
            assert!(fs::read(&output).unwrap() == bytes, "{kind} {flags:?}: other bytes");
        }
    }
}

#[test]
fn decoding_has_the_bits_of_forward_on_any_ranks_and_in_tiles() {
    for (kind, channels, scale) in [("vae21", 3, 8), ("vae22", 5, 16)] {
        let dir = TempDir::new().unwrap();
        let shape = [1, channels, 3, 3, 5];
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
        let want = forward(kind, dir.path(), "latents", &shape, &values).read_f32("decoded").unwrap();
        let want: Vec<u8> = want.into_iter().map(unit_to_u8).collect();
        let [input, folder] = ["in.safetensors", "frames"].map(|name| dir.path().join(name));
        let [printed, _] = decode(&input, kind, &folder, &[]).unwrap();
        assert_eq!(printed.trim(), folder.display().to_string());
        assert_eq!(names(&folder).len(), 9);
        let size = [1, 3 * scale, 5 * scale];
        let pixels: Vec<u8> = names(&folder).iter().flat_map(|name| frames(&folder.join(name), size).data).collect();
        assert!(planes(&pixels) == want, "{kind}");
        for file in ["clip.mp4", "clip.png", "clip.gif"] {
            let output = dir.path().join(file);
            decode(&input, kind, &output, &[]).unwrap();
            let bytes = fs::read(&output).unwrap();
            for flags in [["--ranks", "2"], ["--tile", "16"]] {
                decode(&input, kind, &output, &[&flags[..], &["--force"]].concat()).unwrap();
                assert!(fs::read(&output).unwrap() == bytes, "{kind} {file} {flags:?}: other bytes");
            }
        }
        let film = Dataset::survey(&ClipOptions::new(size), &dir.path().join("clip.mp4")).unwrap();
        let rate = if kind == "vae21" { 16.0 } else { 24.0 };
        assert_eq!((film.files()[0].frames, film.files()[0].rate), (9, Some(rate)), "{kind}");
    }
}

/// Every way to ask for a rectangle of a frame, with memory for one frame and for all.
#[test]
fn a_clip_is_read_in_parts_as_it_is_whole() {
    let whole = frames(&film(), [9, 48, 80]);
    let dataset = Dataset::survey(&ClipOptions::new([9, 48, 80]), &film()).unwrap();
    for budget in [1, 3 * 48 * 80 * 3, 1 << 20] {
        let mut reader = ClipReader::new(&dataset, 0, Augment::PLAIN, budget);
        for (rows, columns) in [(0..48, 0..80), (8..24, 16..80), (8..24, 0..40)] {
            for t in 0..9 {
                let part = reader.read(t, rows.clone(), columns.clone()).unwrap();
                let line = |y: usize| &whole.frame(t)[(y * 80 + columns.start) * 3..(y * 80 + columns.end) * 3];
                let want: Vec<f32> = rows.clone().flat_map(line).map(|&value| u8_to_unit(value)).collect();
                assert!(part.values == want, "{budget} bytes: frame {t}, {rows:?}, {columns:?}");
                assert_eq!((part.origin, part.cut), ([0; 2], [false; 4]));
            }
        }
    }
}

// ---- files --------------------------------------------------------------------------------------------------------

#[test]
fn a_folder_gives_latents_for_each_file_and_says_what_is_left_out() {
    let dir = TempDir::new().unwrap();
    let [clips, out] = ["clips", "out"].map(|name| dir.path().join(name));
    fs::create_dir_all(clips.join("sub")).unwrap();
    video(&clips.join("a.mp4"), 7, 36, 48);
    video(&clips.join("sub/a.mp4"), 5, 32, 40);
    video(&clips.join("small.mp4"), 5, 12, 40);
    write_image(&clips.join("a.png"), &image::RgbImage::from_pixel(34, 50, image::Rgb([9, 90, 200]))).unwrap();
    fs::write(clips.join("torn.mp4"), b"not a video").unwrap();
    let [printed, said] = encode(&clips, "vae21", &out, &[]).unwrap();
    let files = ["a.mp4", "a.png", "sub/a.mp4"].map(|name| out.join(format!("{name}.safetensors")));
    assert_eq!(printed.lines().map(PathBuf::from).collect::<Vec<_>>(), files);
    for (path, shape, fps) in [
        (&files[0], [1, 3, 2, 4, 6], Some("12")),
        (&files[1], [1, 3, 1, 6, 4], None),
        (&files[2], [1, 3, 2, 4, 4], Some("12")),
    ] {
        let latents = Tensors::open(path).unwrap();
        assert_eq!((latents.shape("latents").unwrap(), latents.metadata("fps")), (&shape[..], fps));
        // Beside its source's size, nothing tells a folder's file from one that is encoded by itself.
        let source = clips.join(path.strip_prefix(&out).unwrap().with_extension(""));
        let single = dir.path().join("single.safetensors");
        encode(&source, "vae21", &single, &["--force"]).unwrap();
        assert!(fs::read(single).unwrap() == fs::read(path).unwrap(), "{}", path.display());
    }
    for part in [
        "a.mp4: 5 frames of 48x32, resized and cropped from 48x36; the last 2 of 7 left out",
        "a.png: 1 frame of 32x48",
        "small.mp4 is not encoded: it is too small: 40x12 (width x height); at least 16x16 is needed",
        "torn.mp4 is not encoded: ",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let again = encode(&clips, "vae21", &out, &[]).unwrap_err();
    assert!(again.contains("a.mp4.safetensors: exists already"), "{again}");
    // At another rate, and no more than asked.
    encode(&clips.join("a.mp4"), "vae21", &dir.path().join("slow.safetensors"), &["--fps", "6", "--frames", "1"])
        .unwrap();
    let slow = Tensors::open(&dir.path().join("slow.safetensors")).unwrap();
    assert_eq!((slow.shape("latents").unwrap(), slow.metadata("fps")), (&[1, 3, 1, 4, 6][..], Some("6")));
}

#[test]
fn latents_are_found_by_name_and_their_file_says_the_rate() {
    let dir = TempDir::new().unwrap();
    let [input, output] = ["in.safetensors", "out.mp4"].map(|name| dir.path().join(name));
    let rate = |flags: &[&str]| {
        decode(&input, "vae21", &output, &[flags, &["--force"]].concat()).unwrap();
        let film = Dataset::survey(&ClipOptions::new([1, 16, 24]), &output).unwrap();
        assert_eq!((film.files()[0].frames, film.files()[0].height, film.files()[0].width), (5, 16, 24));
        film.files()[0].rate
    };
    latents(&input, &[("fps", "30"), ("vae", "wan2.1")]);
    assert_eq!((rate(&[]), rate(&["--fps", "10"])), (Some(30.0), Some(10.0)));
    let values = vec![0.5f32; 3 * 2 * 2 * 3];
    write_tensors(&input, [("x", vec![3, 2, 2, 3], &values)]).unwrap();
    assert_eq!(rate(&[]), Some(16.0));
    write_tensors(&input, [("x", vec![3, 2, 2, 3], &values), ("y", vec![1], &vec![0.0])]).unwrap();
    assert_eq!(rate(&["--name", "x"]), Some(16.0));
    let said = decode(&input, "vae21", &output, &["--force"]).unwrap_err();
    assert!(said.contains("has 2 tensors, none of them called latents; name one by --name: x, y"), "{said}");
}

// ---- what they refuse ---------------------------------------------------------------------------------------------

#[test]
fn what_cannot_be_encoded_is_refused_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("text.txt"), "words").unwrap();
    fs::write(at("torn.mp4"), "words").unwrap();
    fs::write(at("old.safetensors"), "old").unwrap();
    video(&at("small.mp4"), 5, 12, 40);
    video(&at("clip.mp4"), 5, 32, 40);
    let before = names(dir.path());
    for (input, kind, output, flags, reason) in [
        ("none.mp4", "vae21", "x.safetensors", &[][..], "No such file"),
        ("text.txt", "vae21", "x.safetensors", &[], "cannot be encoded"),
        ("torn.mp4", "vae21", "x.safetensors", &[], "torn.mp4: cannot be encoded: "),
        ("empty", "vae21", "out", &[], "holds no video or image"),
        ("small.mp4", "vae21", "x.safetensors", &[], "at least 16x16 is needed"),
        ("clip.mp4", "vae22", "x.safetensors", &["--height", "48", "--width", "32"], "--height and --width ask 32x48"),
        ("clip.mp4", "vae22", "x.safetensors", &["--height", "24", "--width", "31"], "are --height 32 --width 32"),
        ("clip.mp4", "vae21", "x.safetensors", &["--frames", "6"], "it has 5 frames; --frames asks 6"),
        ("clip.mp4", "vae21", "x.safetensors", &["--tile", "16", "--ranks", "2"], "--tile is for one rank"),
        ("clip.mp4", "vae21", "x.mp4", &[], "ends with .safetensors"),
        ("clip.mp4", "vae21", "old.safetensors", &[], "exists already"),
        ("clip.mp4", "vae21", "none/x.safetensors", &[], "is not there"),
        ("empty", "vae21", "old.safetensors", &[], "is no folder"),
        ("clip.mp4", "none", "x.safetensors", &[], "vae"),
    ] {
        let said = encode(&at(input), kind, &at(output), flags).unwrap_err();
        assert!(said.starts_with("error: ") && said.contains(reason), "{input} {flags:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(names(dir.path()), before);
    assert_eq!(fs::read(at("old.safetensors")).unwrap(), b"old");
}

#[test]
fn what_cannot_be_decoded_is_refused_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    latents(&at("good.safetensors"), &[]);
    latents(&at("other.safetensors"), &[("vae", "wan2.2")]);
    latents(&at("rate.safetensors"), &[("fps", "fast")]);
    let mut values = vec![0.0f32; 36];
    values[17] = f32::NAN;
    write_tensors(&at("nan.safetensors"), [("latents", vec![1, 3, 2, 2, 3], &values)]).unwrap();
    write_tensors(&at("flat.safetensors"), [("latents", vec![36], &values)]).unwrap();
    let whole = fs::read(at("good.safetensors")).unwrap();
    fs::write(at("torn.safetensors"), &whole[..whole.len() - 9]).unwrap();
    fs::write(at("old.mp4"), "old").unwrap();
    fs::create_dir_all(at("full/x")).unwrap();
    let before = names(dir.path());
    for (input, kind, output, flags, reason) in [
        ("none", "vae21", "x.mp4", &[][..], "No such file"),
        ("torn", "vae21", "x.mp4", &[], "was cut short"),
        ("nan", "vae21", "x.mp4", &[], "has a value that is NaN"),
        ("flat", "vae21", "x.mp4", &[], "[1, 3, T, H, W] is wanted"),
        ("good", "vae22", "x.mp4", &[], "has 3 channels, and latents of this VAE have 5"),
        ("other", "vae21", "x.mp4", &[], "is of the VAE of wan2.2, and --vae is that of wan2.1"),
        ("rate", "vae21", "x.mp4", &[], "says fps = fast"),
        ("good", "vae21", "x.mp4", &["--name", "z"], "has no tensor `z`"),
        ("good", "vae21", "x.mp4", &["--tile", "16", "--ranks", "2"], "--tile is for one rank"),
        ("good", "vae21", "x.avi", &[], "cannot write files of the kind .avi"),
        ("good", "vae21", "none/x.mp4", &[], "is not there"),
        ("good", "vae21", "old.mp4", &[], "exists already"),
        ("good", "vae21", "full/", &["--force"], "the folder is not empty"),
        ("good", "none", "x.mp4", &[], "vae"),
    ] {
        let input = at(&format!("{input}.safetensors"));
        let said = decode(&input, kind, &at(output), flags).unwrap_err();
        assert!(said.starts_with("error: ") && said.contains(reason), "{input:?} {flags:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert_eq!(names(dir.path()), before);
    assert_eq!(fs::read(at("old.mp4")).unwrap(), b"old");
}

#[test]
fn a_damaged_vae_is_refused_before_anything_is_written() {
    let dir = TempDir::new().unwrap();
    let broken = dir.path().join("vae");
    fs::create_dir(&broken).unwrap();
    fs::copy(vae("vae21").join("config.json"), broken.join("config.json")).unwrap();
    let [good, bad] = [vae("vae21"), broken.clone()].map(|dir| dir.join("diffusion_pytorch_model.safetensors"));
    let input = dir.path().join("in.safetensors");
    latents(&input, &[]);
    let refused = |command: &str, input: &Path, output: &str, reason: &str| {
        let mut longreel = Command::new(env!("CARGO_BIN_EXE_longreel"));
        longreel.arg(command).arg(input).arg("--vae").arg(&broken).arg("-o").arg(dir.path().join(output));
        let done = longreel.output().unwrap();
        let said = String::from_utf8(done.stderr).unwrap();
        assert!(done.status.code() == Some(1) && said.contains(reason), "{command}: {said}");
        assert!(!dir.path().join(output).exists(), "{command}");
    };
    let whole = fs::read(&good).unwrap();
    fs::write(&bad, &whole[..whole.len() - 100]).unwrap();
    refused("encode", &film(), "x.safetensors", "was cut short");
    refused("decode", &input, "x.mp4", "was cut short");
    let tensors = Tensors::open(&good).unwrap();
    let values = |name: &str| {
        let mut values = tensors.read_f32(name).unwrap();
        values[0] = if name.ends_with("conv_in.weight") { f32::NAN } else { values[0] };
        (name.to_owned(), tensors.shape(name).unwrap().to_vec(), values)
    };
    write_tensors(&bad, tensors.names().map(values)).unwrap();
    refused("encode", &film(), "x.safetensors", "tensor `encoder.conv_in.weight` has a value that is NaN");
    refused("decode", &input, "x.mp4", "tensor `decoder.conv_in.weight` has a value that is NaN");
}
