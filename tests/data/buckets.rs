//! Clips of several sizes: which bucket a file goes to, what is lost, and what an epoch has.

use super::media::*;
use longreel::data::{Apart, Bucket, BucketOrder, ClipSets, Dataset, FrameRegion, Loader, Source, SourceOptions};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

fn bucket(width: usize, height: usize, frames: usize) -> Bucket {
    Bucket { frames, height, width }
}

fn source(path: &Path, groups: &[&[Bucket]]) -> Source {
    let mut options = SourceOptions::new(config(1, 1, 1));
    options.groups = groups.iter().map(|group| group.to_vec()).collect();
    Source { path: path.to_owned(), options, apart: Apart::default() }
}

fn picture(path: impl AsRef<Path>, (width, height): (u32, u32)) {
    image::RgbImage::from_pixel(width, height, image::Rgb([90, 120, 30])).save(path).unwrap();
}

/// Wide and tall videos and pictures.
fn mixed() -> tempfile::TempDir {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    for name in ["videos", "pictures"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    video(at("videos/long.mp4"), 20, (96, 48), &H264);
    video(at("videos/short.mp4"), 7, (96, 48), &H264);
    video(at("videos/tall.mp4"), 9, (48, 96), &H264);
    video(at("videos/tiny.mp4"), 2, (96, 48), &H264);
    picture(at("pictures/a.png"), (64, 64));
    picture(at("pictures/b.png"), (70, 66));
    picture(at("pictures/small.png"), (20, 20));
    folder
}

/// Clips by bucket, as names of files with their windows.
fn clips(sets: &ClipSets) -> BTreeMap<String, Vec<String>> {
    let name = |dataset: &Dataset, id: usize| {
        let clip = dataset.clip(id);
        format!("{} {}", clip.path.file_stem().unwrap().display(), clip.window)
    };
    let named = |dataset: &Dataset| (0..dataset.len()).map(|id| name(dataset, id)).collect();
    sets.buckets().iter().map(|d| (Bucket::from(d.options().size()).to_string(), named(d))).collect()
}

#[test]
fn files_go_to_the_nearest_bucket_that_they_fill() {
    let folder = mixed();
    let videos = [bucket(64, 32, 8), bucket(64, 32, 4), bucket(32, 64, 8)];
    let sources = [
        source(&folder.path().join("videos"), &[&videos]),
        source(&folder.path().join("pictures"), &[&[bucket(64, 64, 1)], &[bucket(16, 16, 1)]]),
    ];
    let sets = ClipSets::survey(&sources).unwrap();
    let expected = [
        ("16x16x1", vec!["a 0", "b 0", "small 0"]),
        ("32x64x8", vec!["tall 0"]),
        ("64x32x4", vec!["short 0"]),
        ("64x32x8", vec!["long 0", "long 1"]),
        ("64x64x1", vec!["a 0", "b 0"]),
    ];
    let expected = expected.map(|(bucket, clips)| (bucket.to_owned(), clips.into_iter().map(String::from).collect()));
    assert_eq!(clips(&sets), BTreeMap::from(expected));
    // Buckets stand in the order of the options, and files lost stand with the bucket that they were nearest to.
    let order: Vec<String> = sets.buckets().iter().map(|d| Bucket::from(d.options().size()).to_string()).collect();
    assert_eq!(order, ["64x32x8", "64x32x4", "32x64x8", "64x64x1", "16x16x1"]);
    assert_eq!(
        skipped(&sets.buckets()[3]),
        [("small.png".into(), "it is too small: 20x20 (width x height), a clip is 64x64".into())]
    );
    let (name, reason) = &skipped(&sets.buckets()[1])[0];
    assert!(name == "tiny.mp4" && reason.starts_with("it is 2 frames too short"), "{name}: {reason}");
    let extent = sets.extent().unwrap();
    assert_eq!((extent.size, extent.frames), ((20, 20), Some(2)));
    // The frames are those of the bucket.
    let long = &sets.buckets()[0];
    assert_eq!(codes(&whole(long, &long.clip(1))), (8..16).collect::<Vec<_>>());
}

#[test]
fn one_size_is_the_dataset_it_always_was() {
    let folder = mixed();
    let (path, size) = (folder.path().join("videos"), bucket(64, 32, 4));
    let sets = ClipSets::open(&[source(&path, &[&[size]])]).unwrap();
    let alone = open(&config(4, 32, 64), &path);
    assert_eq!((sets.buckets().len(), sets.empty().len()), (1, 0));
    let dataset = &sets.buckets()[0];
    assert_eq!((dataset.len(), dataset.skipped(), dataset.options()), (alone.len(), alone.skipped(), alone.options()));
    for position in 0..3 * alone.len() as u64 {
        assert_eq!(dataset.training(5, position), alone.training(5, position));
    }
}

#[test]
fn repeats_prefix_and_class_are_their_folders() {
    let folder = mixed();
    std::fs::write(folder.path().join("pictures/a.txt"), "a meadow").unwrap();
    let mut videos = source(&folder.path().join("videos"), &[&[bucket(48, 32, 1)]]);
    videos.options.class = Some("moving".into());
    videos.options.clips.stride = 5;
    let mut pictures = source(&folder.path().join("pictures"), &[&[bucket(48, 32, 1)]]);
    (pictures.options.repeats, pictures.options.caption_prefix) = (3, "photo: ".into());
    pictures.options.class = Some("a still".into());
    let sets = ClipSets::survey(&[videos, pictures]).unwrap();
    let [dataset] = sets.buckets() else { panic!("{sets:?}") };
    assert_eq!(sets.classes(), ["a still", "moving"]);
    // Every fifth frame of 20, 7, 9 and 2, and two pictures three times.
    assert_eq!((dataset.len(), dataset.clips_of_an_epoch()), (4 + 2 + 2 + 1 + 2, 4 + 2 + 2 + 1 + 6));
    let caption = |id: usize| dataset.clip(id).caption.map(|text| text.to_string());
    assert_eq!((caption(0), caption(9), caption(10)), (None, Some("photo: a meadow".into()), Some("photo: ".into())));
    assert_eq!((dataset.clip(0).class, dataset.clip(10).class), (Some(1), Some(0)));
    for epoch in 0..3 {
        let mut seen = [0; 11];
        (0..15).for_each(|i| seen[dataset.training(2, 15 * epoch + i).clip] += 1);
        assert_eq!(seen, [1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 3]);
    }
}

#[test]
fn a_loader_goes_from_bucket_to_bucket() {
    let folder = mixed();
    let videos = [bucket(64, 32, 8), bucket(32, 64, 8)];
    let sources = [
        source(&folder.path().join("videos"), &[&videos]),
        source(&folder.path().join("pictures"), &[&[bucket(64, 64, 1)]]),
    ];
    let sets = ClipSets::open(&sources).unwrap();
    let order = BucketOrder::new(4, sets.clips_of_an_epoch(), 2);
    let datasets = sets.buckets().to_vec();
    let positions = (0..24).map(move |i| (order.at(i / 2 * 2), i % 2));
    let requests: Vec<_> = positions.map(|(turn, i)| datasets[turn.bucket].training(4, turn.position + i)).collect();
    let parts =
        sets.buckets().iter().map(|d| (d.clone(), FrameRegion::whole(0..d.options().frames, d.options().height)));
    let loader = Loader::of_buckets(parts.collect(), 3, requests.clone().into_iter()).unwrap();
    let mut buckets = [0; 3];
    for (sample, request) in loader.zip(&requests) {
        let sample = sample.unwrap();
        let dataset = &sets.buckets()[request.bucket];
        assert_eq!((sample.request, sample.clip.id), (*request, request.clip));
        assert_eq!([sample.frames.count(), sample.frames.height, sample.frames.width], dataset.options().size());
        buckets[request.bucket] += 1;
    }
    // One tall clip and two of each other kind: every clip is seen about equally often.
    assert_eq!(buckets.iter().sum::<i32>(), 24);
    assert!(buckets[1] >= 4 && buckets[0] >= 8 && buckets[2] >= 8, "{buckets:?}");
    let said = sets.below_a_batch(2);
    assert!(
        said.len() == 1 && said[0].starts_with("the bucket 32x64x8 has 1 clip an epoch and a step takes 2"),
        "{said:?}"
    );
}

#[test]
fn a_bucket_by_hand_that_no_clip_fits_is_an_error() {
    let folder = mixed();
    let refused = |groups: &[&[Bucket]]| {
        let mut source = source(&folder.path().join("videos"), groups);
        source.options.by_hand = true;
        message(ClipSets::open(&[source]))
    };
    let error = refused(&[&[bucket(64, 32, 8), bucket(32, 64, 30)]]);
    assert!(
        error.contains("no clip fits the bucket 32x64x30 of data.buckets")
            && error.contains("tall.mp4: it is 21 frames too short"),
        "{error}"
    );
    let error = refused(&[&[bucket(64, 32, 4), bucket(64, 16, 4), bucket(32, 64, 4)]]);
    assert!(
        error
            .ends_with("no clip fits the bucket 64x16x4 of data.buckets; every file is nearer to another one in shape"),
        "{error}"
    );
    let error = refused(&[&[bucket(64, 32, 90), bucket(32, 64, 90)]]);
    assert!(error.contains("no usable clips; 4 files are skipped, the first is"), "{error}");
}

fn scan(folder: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_longreel")).arg("scan").args(args).current_dir(folder).output().unwrap()
}

const NETWORK: &str =
    "[model]\npatch_size = [1, 8, 8]\nnum_attention_heads = 1\nattention_head_dim = 8\nnum_layers = 1\nffn_dim = 8\n";

#[test]
fn scan_tells_each_bucket_its_share_and_what_is_lost() {
    let folder = mixed();
    // Of another rate.
    let slow = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-vf", "setpts=2*PTS", "-r", "12"];
    video(folder.path().join("videos/slow.mp4"), 9, (48, 96), &slow);
    let toml = format!(
        "[[data]]\npath = \"videos\"\nbuckets = [[64, 32, 8], [32, 64, 8]]\n\
         [[data]]\npath = \"pictures\"\nresolutions = [48]\nframe_counts = [1]\nrepeats = 5\n{NETWORK}"
    );
    std::fs::write(folder.path().join("run.toml"), toml).unwrap();
    let output = scan(folder.path(), &["--config", "run.toml"]);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (report, log) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{log}");
    let row = |bucket: &str| -> Vec<String> {
        let line = report.lines().find(|line| line.starts_with(bucket)).unwrap_or_else(|| panic!("{bucket}: {report}"));
        line.split_whitespace().map(String::from).collect()
    };
    assert_eq!(row("64x32x8")[..5], ["64x32x8", "1", "2", "2", "256"]);
    assert_eq!(row("32x64x8")[..5], ["32x64x8", "2", "2", "2", "256"]);
    assert_eq!(row("48x48x1")[..5], ["48x48x1", "2", "2", "10", "36"]);
    let shares: Vec<f64> = ["64x32x8", "32x64x8", "48x48x1"].iter().map(|b| row(b)[5].parse().unwrap()).collect();
    assert!(
        (shares.iter().sum::<f64>() - 100.0).abs() < 0.2 && shares[0] == shares[1] && shares[2] < shares[0],
        "{shares:?}"
    );
    for says in [
        "lost to 64x32x8",
        "videos/short.mp4: it is 1 frame too short: 7 frames, a clip spans 8",
        "pictures/small.png: it is too small: 20x20 (width x height), a clip is 48x48",
        "6 clips in 3 buckets, 14 an epoch; 3 files lost to a bucket, 0 not used",
        "20x20 (width x height) of 2 frames is the largest clip that would keep every file",
        "files of 12 and 24 frames per second are mixed",
    ] {
        assert!(report.contains(says), "{says}: {report}");
    }
    assert_eq!(report.matches("are mixed").count(), 1, "{report}");
    let json: Value =
        serde_json::from_slice(&scan(folder.path(), &["--config", "run.toml", "--json", "--no-sheet"]).stdout).unwrap();
    assert_eq!((&json["clips"], json["buckets"].as_array().unwrap().len()), (&6.into(), 3));

    let refused = scan(folder.path(), &["--config", "run.toml", "--frames", "4"]);
    assert!(text(&refused.stderr).contains("--frames is for clips of one size"), "{}", text(&refused.stderr));
}
