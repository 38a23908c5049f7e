//! What must not be trained on, or counts twice: runs below the data, held-out clips among those trained on, copies and
//! links.

use super::media::config;
use image::{Rgb, RgbImage};
use longreel::data::{Apart, Dataset, Overlaps, refuse_own_output};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

/// A picture of one colour.
fn picture(path: &Path, shade: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(16, 16, Rgb([shade, 7, 99])).save(path).unwrap();
}

/// A folder that looks like that of a run.
fn run(folder: &Path) {
    picture(&folder.join("loss.png"), 1);
    picture(&folder.join("samples/step-00000003-0.png"), 2);
    fs::write(folder.join("config.toml"), "").unwrap();
    fs::write(folder.join("metrics.jsonl"), "").unwrap();
}

fn names(dataset: &Dataset, root: &Path) -> Vec<String> {
    dataset.files().iter().map(|file| file.path.strip_prefix(root).unwrap().display().to_string()).collect()
}

#[test]
fn runs_and_held_out_clips_are_left_out() {
    let temp = TempDir::new().unwrap();
    let root = temp.path().join("data");
    picture(&root.join("a.png"), 10);
    picture(&root.join("b/c.png"), 11);
    run(&root.join("other"));
    picture(&root.join("out/samples/x.png"), 3); // not like a run yet, but named as one
    picture(&root.join("val/held.png"), 12);
    // Neither a config alone nor metrics alone make a run.
    picture(&root.join("mine/d.png"), 13);
    fs::write(root.join("mine/config.toml"), "").unwrap();
    let out = temp.path().join("link to out");
    symlink(root.join("out"), &out).unwrap();

    let alone = Dataset::open(&config(1, 16, 16), &root).unwrap();
    assert_eq!(names(&alone, &root), ["a.png", "b/c.png", "mine/d.png", "out/samples/x.png", "val/held.png"]);
    let apart = Apart::of_run(&out, Some(&root.join("val")));
    let dataset = Dataset::open_without(&config(1, 16, 16), &root, &apart).unwrap();
    assert_eq!(names(&dataset, &root), ["a.png", "b/c.png", "mine/d.png"]);
    let reasons: Vec<_> = dataset.skipped().iter().map(|s| (s.path.clone(), s.reason.as_str())).collect();
    for (name, reason) in [
        ("other", "it is the folder of a run, whose samples and curves are no data"),
        ("out", "it is this run's own folder (run.out)"),
        ("val", "it is held out (data.heldout)"),
    ] {
        assert!(reasons.contains(&(root.join(name), reason)), "{name}: {reasons:?}");
    }
    // One held-out file, by whatever name.
    fs::hard_link(root.join("a.png"), temp.path().join("held.png")).unwrap();
    let apart = Apart::of_run(&out, Some(&temp.path().join("held.png")));
    let dataset = Dataset::open_without(&config(1, 16, 16), &root, &apart).unwrap();
    assert_eq!(names(&dataset, &root), ["b/c.png", "mine/d.png", "val/held.png"]);
    // What is named itself is used: a run's samples may be looked at.
    assert_eq!(Dataset::open(&config(1, 16, 16), &root.join("other")).unwrap().len(), 2);
    assert_eq!(Dataset::open(&config(1, 16, 16), &root.join("other/samples")).unwrap().len(), 1);
}

#[test]
fn a_run_s_own_output_is_refused_as_data() {
    let temp = TempDir::new().unwrap();
    let out = temp.path().join("out");
    for name in ["samples/deep", "checkpoints", "clips"] {
        fs::create_dir_all(out.join(name)).unwrap();
    }
    for path in ["", "samples", "samples/deep", "checkpoints"] {
        let error = refusal!(Config, refuse_own_output("data.path", &out.join(path), &out));
        assert!(error.starts_with("data.path is ") && error.ends_with("choose another run.out"), "{error}");
    }
    for path in [out.join("clips"), temp.path().to_owned(), temp.path().join("not there")] {
        refuse_own_output("data.path", &path, &out).unwrap();
    }
}

#[test]
fn the_same_file_twice_is_found_by_place_and_by_content() {
    let temp = TempDir::new().unwrap();
    let at = |name: &str| -> PathBuf { temp.path().join(name) };
    for (name, shade) in [("data/a.png", 10), ("data/b.png", 20), ("data/c.png", 30), ("held/new.png", 40)] {
        picture(&at(name), shade);
    }
    let lengths = ["data/a.png", "data/b.png"].map(|name| fs::metadata(at(name)).unwrap().len());
    assert_eq!(lengths[0], lengths[1], "files of one length that differ must be among them");
    let open = |name: &str| [Arc::new(Dataset::open(&config(1, 16, 16), &at(name)).unwrap())];
    let found = Overlaps::find(&open("data"), &open("held"));
    assert!(found.twice.is_empty() && found.held_out.is_empty(), "{found:?}");

    fs::copy(at("data/a.png"), at("data/copy of a.png")).unwrap();
    symlink(at("data/b.png"), at("data/link.png")).unwrap();
    fs::hard_link(at("data/a.png"), at("data/z.png")).unwrap();
    fs::copy(at("data/c.png"), at("held/c.png")).unwrap();
    symlink(at("data/a.png"), at("held/a.png")).unwrap();
    let found = Overlaps::find(&open("data"), &open("held"));
    let named = |names: &[&str]| -> Vec<String> { names.iter().map(|name| at(name).display().to_string()).collect() };
    assert_eq!(
        found.twice,
        [named(&["data/a.png", "data/copy of a.png", "data/z.png"]), named(&["data/b.png", "data/link.png"])]
    );
    let held_out: Vec<Vec<String>> = found.held_out.iter().map(|pair| pair.to_vec()).collect();
    assert_eq!(held_out, [named(&["held/a.png", "data/a.png"]), named(&["held/c.png", "data/c.png"])]);
}

/// Files that agree at three places, but not everywhere, and files beyond what is compared byte by byte.
#[test]
fn large_files_that_differ_in_the_middle_are_two() {
    let temp = TempDir::new().unwrap();
    let write = |name: &str, change: Option<usize>| {
        let mut image = RgbImage::from_fn(600, 700, |x, y| Rgb([(x * y) as u8, (x ^ y) as u8, (x + y) as u8]));
        if let Some(at) = change {
            image.as_flat_samples_mut().samples[at] ^= 1;
        }
        image.save(temp.path().join(name)).unwrap(); // 1.26 MB, uncompressed
    };
    write("a.ppm", None);
    write("b.ppm", Some(400_000));
    write("c.ppm", None);
    let found = Overlaps::find(&[Arc::new(Dataset::open(&config(1, 16, 16), temp.path()).unwrap())], &[]);
    let same: Vec<String> =
        ["a.ppm", "c.ppm"].map(|name| temp.path().join(name).display().to_string()).into_iter().collect();
    assert_eq!(found.twice, [same]);
}
