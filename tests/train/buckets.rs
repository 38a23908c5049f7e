//! Training on clips of several sizes, images among videos: the same on any ranks, and after a resume.

use super::resume::{same_weights, until};
use super::{Place, difference, numbers, picture, text};
use image::RgbImage;
use longreel::data::write::write_video;
use std::fs;

/// 10 tokens of a video's frame, 9 of a picture.
const BUCKETS: &str = r#"
[run]
seed = 9
[[data]]
path = "CLIPS/videos"
heldout = "HELDOUT"
buckets = [[40, 16, 4], [16, 40, 4]]
[[data]]
path = "CLIPS/pictures"
frames = 1
height = 24
width = 24
crop = "random"
flip = true
repeats = 2
[model]
patch_size = [1, 8, 8]
num_attention_heads = 3
attention_head_dim = 8
num_layers = 2
ffn_dim = 40
freq_dim = 16
[diffusion]
shift = 0
shift_base_tokens = 16
[train]
steps = 7
batch = 4
lr = 0.003
warmup = 2
ema = 0.9
heldout_every = 4
tile = 7
[sample]
sampler = "euler"
steps = 2
count = 1
"#;

/// Four wide clips, a tall one, three pictures, and held-out clips of two sizes.
fn buckets() -> Place {
    let place = Place::new(BUCKETS);
    for folder in ["clips/videos", "clips/pictures", "heldout"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    let videos = [
        ("clips/videos/a", 1, 8, (48, 24)),
        ("clips/videos/b", 2, 9, (48, 24)),
        ("clips/videos/tall", 3, 5, (24, 48)),
        ("heldout/wide", 4, 5, (48, 24)),
        ("heldout/tall", 5, 4, (24, 48)),
    ];
    for (name, seed, frames, (width, height)) in videos {
        let pixels: Vec<u8> = (0..frames).flat_map(|t| picture(seed, t, height, width)).collect();
        write_video(&place.path(&format!("{name}.mp4")), &pixels, height, width, 12.0).unwrap();
    }
    for i in 0..3 {
        let image = RgbImage::from_raw(32, 28, picture(10 + i, 0, 28, 32)).unwrap();
        image.save(place.path(&format!("clips/pictures/{i}.png"))).unwrap();
    }
    place
}

#[test]
fn every_mesh_trains_alike_over_three_buckets() {
    let place = buckets();
    for weigh in ["train.weigh=clip", "train.weigh=token"] {
        let one = place.train(&format!("one {weigh}"), &[weigh]);
        assert_eq!(one.len(), 7);
        for (name, args) in [
            ("two", &["--ranks=2"][..]),
            ("three", &["--ranks=3"]),
            ("data 2", &["--ranks=2", "parallel.data=2", "train.batch=2"]),
            ("accumulated", &["train.accumulate=4", "train.batch=1"]),
        ] {
            let other = place.train(&format!("{name} {weigh}"), &[&[weigh][..], args].concat());
            let difference = difference(&one, &other);
            assert!(difference < 1e-5, "{name}, {weigh}: losses differ by {difference}");
        }
    }
    // Both kinds of weights see the same clips; what differs is how far a step goes.
    let [clip, token] = ["one train.weigh=clip", "one train.weigh=token"].map(|run| place.metrics(run));
    assert!((clip[0].loss - token[0].loss).abs() < 1e-12 * clip[0].loss, "{} {}", clip[0].loss, token[0].loss);
    assert!(difference(&clip, &token) > 1e-5);
}

#[test]
fn a_run_over_buckets_resumes_within_an_epoch_to_the_bit() {
    let place = buckets();
    // An epoch has 4 + 1 + 6 clips, so every checkpoint lies within one.
    for (name, args) in [("one", &[][..]), ("two", &["--ranks=2", "train.weigh=token"])] {
        let args = [&["train.steps=8", "train.checkpoint_every=3", "train.keep=9"], args].concat();
        let straight = place.train(name, &args);
        for step in [3, 6] {
            let again = format!("{name} from {step}");
            until(&place, name, &again, step);
            let resumed = place.train(&again, &[&args[..], &["--resume"]].concat());
            assert_eq!(numbers(&resumed), numbers(&straight), "{again}");
            same_weights(&place, name, &again, 8);
        }
    }
}

#[test]
fn a_bucket_below_a_batch_is_said_and_samples_take_the_first_size() {
    let place = buckets();
    let output = place.command("run", &["train.sample_every=7"]).output().unwrap();
    let log = text(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.contains("the bucket 16x40x4 has 1 clip an epoch and a step takes 4"), "{log}");
    assert!(log.contains("in 3 buckets"), "{log}");
    assert!(place.path("run/samples/step-00000007-0.mp4").is_file());
    // Each size of held-out clips has a loss of its own; there is one clip of each.
    let records = place.metrics("run");
    let measured: Vec<_> = records.iter().filter(|record| record.heldout.is_some()).collect();
    assert_eq!(measured.len(), 2);
    for record in measured {
        let [wide, tall] = ["heldout_40x16x4", "heldout_16x40x4"].map(|name| record.more[name]);
        assert!(wide > 0.0 && tall > 0.0 && (wide - tall).abs() > 1e-6 * wide, "{wide} {tall}");
        let mean = record.heldout.unwrap();
        assert!((f64::midpoint(wide, tall) - mean).abs() < 1e-12 * mean, "{wide} {tall} {mean}");
        assert_eq!(record.more.keys().filter(|name| name.starts_with("heldout_")).count(), 4 + 2);
    }
    let data: serde_json::Value = serde_json::from_slice(&fs::read(place.path("run/data.json")).unwrap()).unwrap();
    assert_eq!(data["buckets"].as_array().unwrap().len(), 3);
    let config = fs::read_to_string(place.path("run/config.toml")).unwrap();
    assert_eq!(config.matches("[[data]]").count(), 2, "{config}");
    let plan =
        super::longreel().arg("plan").arg(place.path("config.toml")).args(["--tflops=1", "--bandwidth=1"]).output();
    let plan = plan.unwrap();
    assert!(
        plan.status.success() && text(&plan.stdout).contains("40 tokens"),
        "{}{}",
        text(&plan.stdout),
        text(&plan.stderr)
    );
}

#[test]
fn one_bucket_is_the_run_of_one_size_to_the_bit() {
    let place = Place::videos();
    let one = place.train("one", &["--ranks=2"]);
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let by_hand = config.replace("frames = 4\nheight = 16\nwidth = 40\n", "buckets = [[40, 16, 4]]\n");
    assert_ne!(by_hand, config);
    fs::write(place.path("config.toml"), by_hand).unwrap();
    assert_eq!(numbers(&place.train("by hand", &["--ranks=2"])), numbers(&one));
    same_weights(&place, "one", "by hand", 4);
}

#[test]
fn a_size_that_no_clip_fits_is_refused() {
    let place = buckets();
    let error = place.error("refused", &["data.1.buckets=[[40, 16, 4], [16, 40, 40]]"]);
    assert!(
        error.contains("no clip fits the bucket 16x40x40 of data.buckets") && error.contains("tall.mp4"),
        "{error}"
    );
    let error = place.error("refused", &["data.1.buckets=[[40, 18, 4]]"]);
    assert!(error.contains("the nearest to 40x18x4 is 40x16x4 (width x height x frames)"), "{error}");
    assert!(!place.path("refused").exists());
}

/// Of several areas a file gives clips of those that it fills; that none fills one is said.
#[test]
fn an_area_that_no_clip_fits_is_said() {
    let place = Place::videos();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let areas =
        config.replace("frames = 4\nheight = 16\nwidth = 40\n", "resolutions = [16, 400]\nframe_counts = [4]\n");
    assert_ne!(areas, config);
    fs::write(place.path("config.toml"), areas).unwrap();
    let output = super::succeed(&mut place.command("run", &["train.steps=1"]));
    let log = text(&output.stderr);
    assert!(log.contains("clips: no clip fits any size of an area of data.resolutions, "), "{log}");
    assert!(log.contains("a.mp4 gives no clip of 560x280x4: it is too small"), "{log}");
    assert!(!log.contains("is not used"), "{log}");
    let error = place.error("refused", &["data.resolutions=[400]"]);
    assert!(error.contains("no usable clips") && error.contains("it is too small"), "{error}");
}

#[test]
fn latents_of_videos_and_images_train_alike_on_any_ranks() {
    let place = Place::latents();
    let image = RgbImage::from_raw(40, 36, picture(8, 0, 36, 40)).unwrap();
    image.save(place.path("clips/still.png")).unwrap();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let sizes = "resolutions = [40]\nframe_counts = [1, 9]\naspects = 3\n";
    fs::write(place.path("config.toml"), config.replace("frames = 5\nheight = 32\nwidth = 48\n", sizes)).unwrap();
    let one = place.train("one", &["--ranks=1"]);
    let two = place.train("two", &["--ranks=2"]);
    assert!(difference(&one, &two) < 1e-5, "{}", difference(&one, &two));
    // Five frames are 4k + 1, six are not.
    let error = place.error("refused", &["data.frame_counts=[1, 6]"]);
    assert!(error.contains("frames 4k - 3, such as 1 or 5") && error.contains("the nearest to"), "{error}");
}
