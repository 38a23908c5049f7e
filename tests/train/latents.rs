//! Training on latents: the same on any mesh of ranks and after a resume; a cache that fills itself, knows what is
//! stale, and survives kills, full disks and damage; samples that are decoded.

use super::{Place, difference, fail, longreel, numbers, picture, succeed, text};
use longreel::data::write::write_video;
use longreel::files::Header;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

/// The entries of a place's cache with the time of their last change.
pub(super) fn entries(place: &Place) -> Vec<(PathBuf, SystemTime)> {
    let files = fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    let entries = files.filter(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    let mut entries: Vec<_> =
        entries.map(|path| (path.clone(), fs::metadata(&path).unwrap().modified().unwrap())).collect();
    entries.sort();
    entries
}

/// `longreel cache`, with these settings and flags.
pub(super) fn cache(place: &Place, args: &[&str]) -> Command {
    let mut command = longreel();
    command.arg("cache").arg(place.path("config.toml"));
    for arg in args {
        command.args(if arg.starts_with("--") { vec![*arg] } else { vec!["--set", arg] });
    }
    command
}

/// How many clips `cache --check` says are there, missing, stale and unused; with these settings.
pub(super) fn check(place: &Place, args: &[&str]) -> [usize; 4] {
    let output = cache(place, &[args, &["--check"]].concat()).stderr(Stdio::piped()).output().unwrap();
    let said = text(&output.stdout);
    let of = |line: &str| {
        let line = line.trim_start_matches(&format!("{}: ", place.path("cache").display()));
        line.split(' ').next().and_then(|n| n.parse().ok())
    };
    let numbers: Vec<usize> = said.lines().filter(|line| !line.starts_with("  ")).filter_map(of).collect();
    let numbers: [usize; 4] = numbers.try_into().unwrap_or_else(|_| panic!("{said}{}", text(&output.stderr)));
    assert_eq!(output.status.success(), numbers[1] == 0, "{said}");
    numbers
}

/// Changes the last bit of a tensor's first value.
fn flip_a_bit(path: &Path, tensor: &str) {
    let mut bytes = fs::read(path).unwrap();
    let header = Header::read(&bytes[..], bytes.len() as u64).unwrap();
    let start = header.tensors.iter().find(|place| place.name == tensor).unwrap().start as usize;
    bytes[start] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn every_mesh_trains_alike_on_latents() {
    let place = Place::latents();
    let one = place.train("one", &["--ranks=1"]);
    assert_eq!(entries(&place).len(), 5, "four clips and a held-out one");
    let filled = entries(&place);
    for (name, args) in [
        ("sequence 2", &["--ranks=2"][..]),
        ("sequence 3", &["--ranks=3", "parallel.zero=3"]),
        ("data 2", &["--ranks=2", "parallel.data=2", "train.batch=1"]),
        ("disk", &["stash.where=disk"]),
    ] {
        let other = place.train(name, args);
        let difference = difference(&one, &other);
        assert!(difference < 1e-5, "{name}: losses differ by {difference}");
    }
    assert_eq!(entries(&place), filled, "nothing was encoded again");
    // Latents that are not normalised, or of other channels, would have other losses.
    let pixels = Place::videos().train("pixels", &["train.steps=2"]);
    assert!(difference(&one[..2], &pixels) > 1e-3);
}

#[test]
fn a_cache_has_the_same_bytes_on_any_ranks() {
    let place = Place::latents();
    let bytes = || -> Vec<Vec<u8>> { entries(&place).iter().map(|(path, _)| fs::read(path).unwrap()).collect() };
    succeed(&mut cache(&place, &["--ranks=1"]));
    let one = bytes();
    // Clips to each rank, and, where fewer are missing than there are ranks, the rows of each to all.
    for missing in [5, 2] {
        entries(&place).iter().take(missing).for_each(|(path, _)| fs::remove_file(path).unwrap());
        succeed(&mut cache(&place, &["--ranks=3"]));
        assert!(bytes() == one, "{missing} encoded again on three ranks");
    }
}

#[test]
fn a_resumed_run_on_latents_equals_an_uninterrupted_one_to_the_bit() {
    let place = Place::latents();
    for ranks in ["--ranks=1", "--ranks=2"] {
        let [whole, cut] = ["whole", "cut"].map(|name| format!("{name}{ranks}"));
        let whole = place.train(&whole, &[ranks]);
        place.train(&cut, &[ranks, "train.steps=2"]);
        let resumed = place.train(&cut, &[ranks, "--resume"]);
        assert_eq!(numbers(&whole), numbers(&resumed));
    }
}

#[test]
fn samples_of_latents_are_decoded_on_any_ranks() {
    let place = Place::latents();
    place.train("run", &["train.sample_every=2"]);
    let samples = fs::read_dir(place.path("run/samples")).unwrap().count();
    assert_eq!(samples, 2);
    let sample = |name: &str, flags: &[&str]| {
        let out = place.path(name);
        succeed(longreel().arg("sample").arg(place.path("run")).arg("-o").arg(&out).args(["--count", "1"]).args(flags));
        image::open(&out).unwrap().into_rgb8()
    };
    let one = sample("one.png", &["--real-size"]);
    // Five frames of 48 pixels beside each other.
    assert!(one.width() > 5 * 48 && one.height() >= 32, "{:?}", one.dimensions());
    let off = |other: &image::RgbImage| one.iter().zip(other.iter()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(off(&sample("two.png", &["--real-size", "--ranks", "2"])) <= 1);
    assert!(off(&sample("seed.png", &["--real-size", "--seed", "9"])) > 20, "another seed, another clip");
    let video = place.path("clip.mp4");
    succeed(
        longreel().arg("sample").arg(place.path("run")).arg("-o").arg(&video).args(["--count", "1", "--frames", "9"]),
    );
    let said = fail(
        longreel().arg("sample").arg(place.path("run")).arg("-o").arg(place.path("x.mp4")).args(["--frames", "6"]),
    );
    assert!(said.contains("the nearest is 5 frames of 48x32"), "{said}");
}

/// Each part of the key, touched: a miss. Nothing touched, or what does not matter: a hit.
#[test]
fn an_entry_is_found_only_if_all_that_it_depends_on_is_as_it_was() {
    let place = Place::latents();
    assert_eq!(check(&place, &[]), [0, 5, 0, 0]);
    assert!(!place.path("cache").exists(), "a check writes nothing");
    succeed(&mut cache(&place, &[]));
    assert_eq!(check(&place, &[]), [5, 0, 0, 0]);
    let other_vae = place.path("vae");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae/vae21/vae");
    fs::create_dir(&other_vae).unwrap();
    for name in ["config.json", "diffusion_pytorch_model.safetensors"] {
        fs::copy(golden.join(name), other_vae.join(name)).unwrap();
    }
    let from = format!("vae.from={}", other_vae.display());
    assert_eq!(check(&place, &[&from]), [5, 0, 0, 0], "the same VAE elsewhere");
    for other in ["train.lr=0.1", "run.seed=1", "model.num_layers=1", "data.prefetch=1", "train.batch=1"] {
        assert_eq!(check(&place, &[other]), [5, 0, 0, 0], "{other} does not matter");
    }
    for other in [
        "vae.dtype=bf16",
        "data.frames=9",
        "data.height=16",
        "data.width=32",
        "data.stride=2",
        "data.fps=6",
        "data.tonemap=false",
        "data.deinterlace=false",
    ] {
        assert_eq!(check(&place, &[other])[0], 0, "{other} is part of the key");
    }
    // Held-out clips are cut in the middle whatever training does.
    assert_eq!(check(&place, &["data.crop=random"])[..2], [1, 4]);
    // The mirror image comes second, and the first is as it was.
    let two = check(&place, &["data.flip=true", "data.variants=2"]);
    assert_eq!(two[..2], [5, 4]);
    // The VAE: a bit of a weight of the encoder, the mean and the deviation of the latents; the decoder makes none.
    let weights = other_vae.join("diffusion_pytorch_model.safetensors");
    for (tensor, there) in [("decoder.conv_out.weight", 5), ("encoder.conv_in.weight", 0)] {
        flip_a_bit(&weights, tensor);
        assert_eq!(check(&place, &[&from])[0], there, "{tensor}");
        flip_a_bit(&weights, tensor);
    }
    let config = fs::read_to_string(other_vae.join("config.json")).unwrap();
    for key in ["latents_mean", "latents_std"] {
        let mut json: serde_json::Value = serde_json::from_str(&config).unwrap();
        json[key][0] = (json[key][0].as_f64().unwrap() + 0.125).into();
        fs::write(other_vae.join("config.json"), json.to_string()).unwrap();
        // What is there is stale, not unused: it is of these very clips.
        assert_eq!(check(&place, &[&from]), [0, 5, 5, 0], "{key} is part of the key");
    }

    // The file's time alone does not matter, its contents do; what it was encoded to is then stale.
    let clip = place.path("clips/a.mp4");
    let bytes = fs::read(&clip).unwrap();
    fs::write(&clip, &bytes).unwrap();
    assert_eq!(check(&place, &[]), [5, 0, 0, 0]);
    let pixels: Vec<u8> = (0..10).flat_map(|t| picture(9, t, 36, 52)).collect();
    write_video(&clip, &pixels, 36, 52, 12.0).unwrap();
    assert_eq!(check(&place, &[]), [3, 2, 2, 0]);
    place.train("run", &["train.steps=1"]);
    assert_eq!(check(&place, &[]), [5, 0, 2, 0]);
    fs::remove_file(&clip).unwrap();
    assert_eq!(check(&place, &[]), [3, 0, 0, 4], "what is left of a clip that is gone is unused");
}

#[test]
fn damaged_entries_are_encoded_again() {
    let place = Place::latents();
    succeed(&mut cache(&place, &[]));
    let files: Vec<PathBuf> = entries(&place).into_iter().map(|(path, _)| path).collect();
    let bytes = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &bytes[..bytes.len() - 7]).unwrap(); // cut short
    fs::rename(&files[1], &files[2]).unwrap(); // under another's name
    fs::write(&files[3], b"").unwrap();
    assert_eq!(check(&place, &[])[..2], [1, 4]);
    place.train("run", &["train.steps=1"]);
    assert_eq!(check(&place, &[]), [5, 0, 0, 0]);
    assert_eq!(fs::read(&files[0]).unwrap(), bytes);
    // A flipped bit is found by who reads all: the command, with and without --check.
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&files[0], flipped).unwrap();
    assert_eq!(check(&place, &[])[..2], [4, 1]);
    succeed(&mut cache(&place, &[]));
    assert_eq!(fs::read(&files[0]).unwrap(), bytes);
}

#[test]
fn a_killed_cache_goes_on_where_it_was() {
    let place = Place::latents();
    for i in 0..6 {
        let pixels: Vec<u8> = (0..21).flat_map(|t| picture(20 + i, t, 36, 52)).collect();
        write_video(&place.path(&format!("clips/more-{i}.mp4")), &pixels, 36, 52, 12.0).unwrap();
    }
    let mut child = cache(&place, &[]).stderr(Stdio::null()).spawn().unwrap();
    let started = SystemTime::now();
    while fs::read_dir(place.path("cache")).map_or(0, |dir| dir.count()) < 4 {
        assert!(started.elapsed().unwrap() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = entries(&place);
    assert!(!before.is_empty());
    succeed(&mut cache(&place, &[]));
    let after = entries(&place);
    assert!(before.iter().all(|entry| after.contains(entry)), "what was there was encoded again");
    assert_eq!(check(&place, &[])[1], 0);
}

/// Odd names, files with equal contents, and what is augmented without variants.
#[test]
fn odd_files_have_entries_too() {
    let place = Place::latents();
    let odd = place.path("clips/\u{e9} and\tspace.mp4");
    fs::copy(place.path("clips/a.mp4"), odd).unwrap();
    for _ in 0..2 {
        succeed(&mut cache(&place, &[]));
        assert_eq!(check(&place, &[]), [7, 0, 0, 0]);
        assert_eq!(entries(&place).len(), 5, "equal files share their entries");
    }
    place.train("run", &["train.steps=2"]);
    let output = succeed(&mut place.command("flipped", &["train.steps=1", "data.flip=true"]));
    assert!(text(&output.stderr).contains("data.variants = 1"), "{}", text(&output.stderr));
    place.train("both", &["train.steps=1", "data.flip=true", "data.variants=2"]);
    assert_eq!(check(&place, &["data.flip=true", "data.variants=2"])[..2], [13, 0]);
}

#[test]
fn bad_vaes_and_caches_are_refused_with_their_reason() {
    let place = Place::latents();
    for (settings, reason) in [
        (&["data.frames=6"][..], "the nearest is 5 frames of 48x32"),
        (&["data.height=24"], "the height a multiple of 16"),
        (&["model.patch_size=[3, 2, 2]"], "not a multiple of the patch's 3"),
        (&["vae.from=no/such/vae"], "no/such/vae"),
        (&["data.variants=2"], "data.variants"),
        (&["vae.cache="], "vae.cache"),
    ] {
        let said = place.error("refused", settings);
        assert!(said.contains(reason), "{settings:?}: {said}");
    }
    let transformer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/batch/transformer");
    let said = place.error("refused", &[&format!("vae.from={}", transformer.display())]);
    assert!(said.starts_with("vae.from: ") && said.contains("AutoencoderKLWan"), "{said}");
    fs::write(place.path("file"), "").unwrap();
    let said = place.error("refused", &[&format!("vae.cache={}", place.path("file").display())]);
    assert!(said.contains("file"), "{said}");
    assert!(!place.path("refused").exists());
}
