//! `longreel sample` from end to end: where from, what to, which sizes, samplers, classes and ranks; and what it
//! refuses.

use crate::train::{Place, fail, longreel, snapshot, succeed, text};
use image::AnimationDecoder;
use longreel::data::{Augment, ClipOptions, Dataset, Frames};
use longreel::files::write_tensors;
use longreel::model::folder::Folder;
use longreel::model::{Model, ModelConfig};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

fn command(from: &Path, output: &Path, args: &[&str]) -> Command {
    let mut command = longreel();
    command.arg("sample").arg(from).arg("--force").arg("-o").arg(output).args(args);
    command
}

/// Samples from run `run` into the file or folder `name`; what was printed.
fn sample(place: &Place, name: &str, args: &[&str]) -> String {
    text(&succeed(&mut command(&place.path("run"), &place.path(name), args)).stdout)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The one clip of a video file and its rate.
fn video(path: &Path, [frames, height, width]: [usize; 3]) -> (Frames, f64) {
    let dataset = Dataset::open(&ClipOptions::new([frames, height, width]), path).unwrap();
    let file = &dataset.files()[0];
    assert_eq!((file.frames, file.height, file.width), (frames, height, width), "{}", path.display());
    (dataset.frames(&dataset.clip(0), &Augment::PLAIN, 0..frames).unwrap(), file.rate.unwrap())
}

fn pixels(path: &Path) -> image::RgbImage {
    image::open(path).unwrap().into_rgb8()
}

/// Inputs of `longreel forward` for one clip of this size, of class 1 where the network has classes.
pub fn inputs_of([frames, height, width]: [usize; 3]) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let shape = vec![1, 3, frames, height, width];
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
    let [time, label] = [("timestep", 500.0), ("class_labels", 1.0)].map(|(n, x)| (n.to_owned(), vec![1], vec![x]));
    vec![("hidden_states".to_owned(), shape, values), time, label]
}

/// The largest difference of two pictures' pixels.
fn apart(a: &Path, b: &Path) -> u8 {
    let (a, b) = (pixels(a), pixels(b));
    assert_eq!(a.dimensions(), b.dimensions());
    a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn every_kind_of_output() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    assert_eq!(sample(&place, "one.mp4", &[]), format!("{}\n", place.path("one.mp4").display()));
    let (clip, rate) = video(&place.path("one.mp4"), [4, 16, 40]);
    assert_eq!(rate, 12.0, "the rate of the data");
    assert!(clip.data.iter().any(|&x| x != clip.data[0]), "one colour");

    let printed = sample(&place, "two.mp4", &["--count", "2"]);
    let [a, b] = [0, 1].map(|i| place.path(&format!("two-{i}.mp4")));
    assert_eq!(printed, format!("{}\n{}\n", a.display(), b.display()));
    assert!(!place.path("two.mp4").exists());
    assert_eq!(fs::read(&a).unwrap(), fs::read(place.path("one.mp4")).unwrap(), "the first is the first");
    assert_ne!(fs::read(a).unwrap(), fs::read(b).unwrap());

    sample(&place, "one.gif", &["--frames", "6"]);
    let file = std::io::BufReader::new(fs::File::open(place.path("one.gif")).unwrap());
    let frames = image::codecs::gif::GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
    assert_eq!(frames.len(), 6);
    assert_eq!(frames[0].buffer().dimensions(), (40, 16));
    sample(&place, "two.gif", &["--count", "2"]);
    assert!(place.path("two-0.gif").is_file() && place.path("two-1.gif").is_file());

    sample(&place, "one.webm", &[]);
    assert_eq!(video(&place.path("one.webm"), [4, 16, 40]).1.round(), 12.0);
    sample(&place, "two.webp", &["--count", "2"]);
    for i in 0..2 {
        let file = std::io::BufReader::new(fs::File::open(place.path(&format!("two-{i}.webp"))).unwrap());
        let decoder = image::codecs::webp::WebPDecoder::new(file).unwrap();
        assert_eq!(decoder.into_frames().collect_frames().unwrap().len(), 4);
    }

    sample(&place, "sheet.png", &["--count", "3"]);
    let sheet = pixels(&place.path("sheet.png"));
    assert!(sheet.height() > 3 * 96, "strips are made about 96 pixels high");
    sample(&place, "real.png", &["--count", "3", "--real-size"]);
    let real = pixels(&place.path("real.png"));
    assert_eq!(real.dimensions(), (2 * 16 + 4 * 40 + 3 * 2, 2 * 16 + 3 * (19 + 16) + 2 * 18));
    // Of one clip the first frame lies in the same corner, six times as large.
    let (small, large) = ("small.png", "large.png");
    sample(&place, small, &["--count", "1", "--real-size"]);
    sample(&place, large, &["--count", "1"]);
    let [small, large] = [small, large].map(|name| pixels(&place.path(name)));
    for (x, y) in [(0, 0), (39, 0), (17, 9), (39, 15)] {
        let corner = 16; // the margin; below it a line of caption
        assert_eq!(
            small.get_pixel(corner + x, corner + 19 + y),
            large.get_pixel(corner + 6 * x + 3, corner + 19 + 6 * y + 3)
        );
    }
    let error = fail(&mut command(&place.path("run"), &place.path("x.mp4"), &["--real-size"]));
    assert!(error.starts_with("--real-size is for contact sheets"), "{error}");
    let enormous = ["--count=64", "--real-size", "--height=2160", "--width=3840"];
    let error = fail(&mut command(&place.path("run"), &place.path("x.png"), &enormous));
    assert!(error.starts_with("a contact sheet of 64 clips would have "), "{error}");
    let printed = sample(&place, "deep/folder", &["--count", "3"]);
    assert_eq!(printed, format!("{}\n", place.path("deep/folder").display()));
    assert_eq!(names(&place.path("deep/folder")), ["00000.mp4", "00001.mp4", "00002.mp4"]);
    sample(&place, "pictures.v2/", &["--count", "2", "--frames=2"]);
    assert_eq!(names(&place.path("pictures.v2")), ["00000.mp4", "00001.mp4"]);
}

#[test]
fn a_run_its_checkpoints_or_one_of_them() {
    let place = Place::videos();
    place.train("run", &["train.steps=2", "train.checkpoint_every=1", "sample.count=2"]);
    sample(&place, "run.png", &[]);
    for (name, from) in [("all.png", "run/checkpoints"), ("last.png", "run/checkpoints/step-00000002")] {
        succeed(&mut command(&place.path(from), &place.path(name), &[]));
        assert_eq!(apart(&place.path("run.png"), &place.path(name)), 0);
    }
    succeed(&mut command(&place.checkpoint("run", 1, ""), &place.path("first.png"), &[]));
    assert!(apart(&place.path("run.png"), &place.path("first.png")) > 0);
    // The average counts, not the weights.
    fs::rename(place.checkpoint("run", 2, "ema"), place.path("aside")).unwrap();
    let error = fail(&mut command(&place.path("run"), &place.path("weights.png"), &[]));
    assert!(error.contains("ema/config.json: No such file, though it was saved with this checkpoint"), "{error}");
    let state = fs::read(place.checkpoint("run", 2, "state.json")).unwrap();
    place.forget_sums("run", 2);
    sample(&place, "weights.png", &[]);
    assert!(apart(&place.path("run.png"), &place.path("weights.png")) > 0);
    fs::write(place.checkpoint("run", 2, "state.json"), state).unwrap();
    // The run's count, seed and steps unless the command says otherwise.
    fs::rename(place.path("aside"), place.checkpoint("run", 2, "ema")).unwrap();
    sample(
        &place,
        "same.png",
        &["--count", "2", "--seed", "3", "--steps", "2", "--sampler", "euler", "--guidance", "1"],
    );
    assert_eq!(apart(&place.path("run.png"), &place.path("same.png")), 0);
    for args in [["--seed", "4"], ["--steps", "3"]] {
        sample(&place, "other.png", &args);
        assert!(apart(&place.path("run.png"), &place.path("other.png")) > 0, "{args:?}");
    }
}

#[test]
fn other_sizes_than_trained() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    for size in [[2, 8, 8], [4, 16, 40], [10, 32, 24], [4, 8, 96]] {
        let [frames, height, width] = size.map(|n| n.to_string());
        sample(&place, "x.mp4", &["--frames", &frames, "--height", &height, "--width", &width]);
        video(&place.path("x.mp4"), size);
    }
}

#[test]
fn every_sampler_on_any_number_of_ranks() {
    let place = Place::pictures();
    place.train("run", &["model.num_attention_heads=3"]);
    let mut seen = BTreeSet::new();
    for sampler in ["euler", "heun", "dpmpp", "unipc"] {
        let args = ["--sampler", sampler, "--steps", "6", "--guidance", "2", "--label", "dog"];
        for ranks in ["1", "2", "3"] {
            sample(&place, &format!("{ranks}.png"), &[&args[..], &["--ranks", ranks]].concat());
        }
        let one = place.path("1.png");
        assert_eq!(pixels(&one).dimensions(), (24, 16));
        for other in ["2.png", "3.png"] {
            // Equal but for a value at the edge of two of 256 levels.
            let other = place.path(other);
            assert!(apart(&one, &other) <= 1, "{sampler}");
            let (a, b) = (pixels(&one), pixels(&other));
            let differ = a.as_raw().iter().zip(b.as_raw()).filter(|(a, b)| a != b).count();
            assert!(differ <= 2, "{sampler}: {differ} values differ");
        }
        seen.insert(pixels(&one).into_raw());
    }
    assert_eq!(seen.len(), 4, "two samplers do the same");
}

#[test]
fn classes_by_name_or_number_and_guidance() {
    let place = Place::pictures();
    place.train("run", &["train.steps=8"]);
    let one = |name: &str, args: &[&str]| {
        let name = format!("{name}.png");
        sample(&place, &name, args);
        pixels(&place.path(&name)).into_raw()
    };
    let dog = one("dog", &["--label", "dog"]);
    assert_eq!(one("1", &["--label", "1"]), dog);
    let eel = one("eel", &["--label", "eel"]);
    assert_ne!(dog, eel);
    // Several clips take the classes in turn.
    sample(&place, "turn", &["--count", "4"]);
    sample(&place, "cats", &["--count", "4", "--label", "cat"]);
    assert_eq!(names(&place.path("turn")), ["00000.png", "00001.png", "00002.png", "00003.png"]);
    let same =
        |i: usize| apart(&place.path(&format!("turn/{i:05}.png")), &place.path(&format!("cats/{i:05}.png"))) == 0;
    assert_eq!([0, 1, 2, 3].map(same), [true, false, false, true]);
    // Guidance away from the null class; at 0 only that is left.
    assert_ne!(one("strong", &["--label", "dog", "--guidance", "4"]), dog);
    assert_eq!(
        one("0 dog", &["--label", "dog", "--guidance", "0"]),
        one("0 eel", &["--label", "eel", "--guidance", "0"])
    );
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    let pictures = Place::pictures();
    pictures.train("run", &["train.steps=1"]);
    fs::write(place.path("mine.mp4"), "mine").unwrap();
    fs::create_dir(place.path("empty")).unwrap();
    let before = snapshot(&place.path(""));
    let refused = |from: &Path, output: &str, args: &[&str], expected: &str| {
        let error = fail(&mut command(from, &place.path(output), args));
        assert!(error.contains(expected), "{args:?}: {error}");
    };
    let run = place.path("run");
    for (args, expected) in [
        (&["--frames", "3"][..], "frames 3 is not a multiple of the patch's 2"),
        (&["--height", "12"], "height 12 is not a multiple of the patch's 8"),
        (&["--width", "8388616"], "width 8388616 gives 1048577 positions; it must be at most 1048576"),
        (&["--ranks", "3", "--frames", "2", "--height", "8", "--width", "16"], "cannot share a clip of 2 tokens"),
        (&["--label", "cat"], "--label cat: the model has no classes"),
        (&["--guidance", "nan"], "guidance"),
        (&["--guidance", "2"], "--guidance is 2, but the model has no classes: there is nothing to guide by"),
    ] {
        refused(&run, "mine.mp4", args, expected);
    }
    refused(
        &run,
        "x.avi",
        &[],
        "x.avi: cannot write files of the kind .avi; use .mp4, .webm, .gif, .webp, .png, or a folder",
    );
    refused(&run, "nowhere/x.png", &[], "nowhere/x.png: the folder");
    refused(&place.path("absent"), "mine.mp4", &[], "absent");
    refused(&place.path("empty"), "mine.mp4", &[], "holds no checkpoint");
    refused(&place.path("mine.mp4"), "x.mp4", &[], "mine.mp4: ");
    for label in ["fox", "3", "-1"] {
        let args = [&format!("--label={label}")[..]];
        refused(&pictures.path("run"), "mine.mp4", &args, "no such class; there are 3: cat, dog, eel");
    }
    assert!(snapshot(&place.path("")) == before, "a refused command has written something");
}

#[test]
fn damaged_checkpoints_are_refused() {
    let place = Place::videos();
    place.train("run", &["train.steps=1"]);
    place.forget_sums("run", 1); // what is found without them
    fs::write(place.path("mine.png"), "mine").unwrap();
    let ema = place.checkpoint("run", 1, "ema");
    let file = ema.join("diffusion_pytorch_model.safetensors");
    let whole = fs::read(&file).unwrap();
    let tensors = || {
        let folder = Folder::open(&ema).unwrap();
        let shapes = Model::shapes(&ModelConfig::from_json(folder.config()).unwrap());
        let read = |(name, shape): (String, Vec<usize>)| {
            let values = folder.read_f32(&name).unwrap();
            (name, shape, values)
        };
        shapes.into_iter().map(read).collect::<Vec<_>>()
    };
    let refused = |expected: &str| {
        let error = fail(&mut command(&place.path("run"), &place.path("mine.png"), &[]));
        assert!(error.contains("ema/diffusion_pytorch_model.safetensors"), "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(fs::read(place.path("mine.png")).unwrap(), b"mine");
        fs::write(&file, &whole).unwrap();
    };
    let all = tensors();
    let without: Vec<_> = all.iter().filter(|t| t.0 != "proj_out.bias").cloned().collect();
    write_tensors(&file, without).unwrap();
    refused("1 missing (`proj_out.bias`)");
    write_tensors(&file, all.iter().cloned().chain([("extra".to_owned(), vec![1], vec![0.0])])).unwrap();
    refused("1 not known (`extra`)");
    let reshaped = all.iter().cloned().map(|(name, shape, values)| match name.as_str() {
        "proj_out.bias" => (name, vec![values.len() - 1], values[1..].to_vec()),
        _ => (name, shape, values),
    });
    write_tensors(&file, reshaped).unwrap();
    refused("1 of another shape (`proj_out.bias` is [383], not [384]");
    for cut in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).unwrap();
        refused("");
    }
    sample(&place, "mine.png", &[]); // whole again
    let state = place.checkpoint("run", 1, "state.json");
    fs::write(&state, &fs::read(&state).unwrap()[..50]).unwrap();
    let error = fail(&mut command(&place.path("run"), &place.path("mine.png"), &[]));
    assert!(error.contains("state.json: is not the state of a checkpoint, or damaged"), "{error}");
}

#[test]
fn what_exists_is_written_over_by_force_alone() {
    let place = Place::pictures();
    place.train("run", &["train.steps=1"]);
    let mine = ["mine.png", "mine-1.gif", "mine.gif", "folder/00001.png", "out.safetensors", "scan.png"];
    fs::create_dir(place.path("folder")).unwrap();
    for name in mine {
        fs::write(place.path(name), "mine").unwrap();
    }
    let run = place.path("run");
    let inputs = place.path("inputs.safetensors");
    write_tensors(&inputs, inputs_of([1, 16, 24])).unwrap();
    let sample = |output: &str, count: &str| {
        let mut command = longreel();
        command.arg("sample").arg(&run).arg("-o").arg(place.path(output)).args(["--count", count]);
        command
    };
    let mut forward = longreel();
    forward.arg("forward").arg(&run).arg(&inputs).arg("-o").arg(place.path("out.safetensors"));
    let mut scan = longreel();
    scan.arg("scan").arg(place.path("clips")).args(["--frames=1", "--height=16", "--width=24"]);
    scan.arg("--sheet").arg(place.path("scan.png"));
    let commands = [
        (sample("mine.png", "2"), "mine.png"),
        (sample("mine.gif", "1"), "mine.gif"),
        (sample("mine.gif", "2"), "mine-1.gif"),
        (sample("folder", "2"), "folder/00001.png"),
        (forward, "out.safetensors"),
        (scan, "scan.png"),
    ];
    for (mut command, name) in commands {
        let before = snapshot(&place.path(""));
        let error = fail(&mut command);
        let expected = "exists already: choose another name, or --force to replace it";
        assert_eq!(error, format!("{}: {expected}", place.path(name).display()));
        assert!(snapshot(&place.path("")) == before, "{name}: a refused command has written something");
        succeed(command.arg("--force"));
        assert_ne!(fs::read(place.path(name)).unwrap(), b"mine", "{name}");
    }
    // What is in the way is not even there: another number of clips.
    succeed(&mut sample("folder/other.gif", "2"));
    // Nobody named the contact sheet: the report comes, and what is there stays.
    fs::write(place.path("scan.png"), "mine").unwrap();
    let mut scan = longreel();
    scan.current_dir(place.path("")).args(["scan", "clips", "--frames=1", "--height=16", "--width=24"]);
    let output = succeed(&mut scan);
    assert!(
        text(&output.stdout).contains("6 clips") && text(&output.stderr).contains("scan.png exists already and stays")
    );
    assert_eq!(fs::read(place.path("scan.png")).unwrap(), b"mine");
    succeed(scan.arg("--force"));
    assert!(image::open(place.path("scan.png")).is_ok());
}

#[test]
fn guidance_without_classes_is_refused_before_training() {
    let place = Place::videos();
    let error = place.error("run", &["sample.guidance=3"]);
    assert_eq!(
        error,
        "sample.guidance is 3, but the model has no classes: there is nothing to guide by; leave it at 1"
    );
    assert!(!place.path("run").exists());
}
