//! What decoding takes: predicted and measured memory of runs on images and videos that are larger than their clips,
//! and its time.

use super::*;
use crate::data::media::ffmpeg;
use image::RgbImage;

/// A network of next to nothing, so that what decoding takes is seen.
const SMALL: &[&str] = &[
    "data.height=128",
    "data.width=128",
    "data.prefetch=2",
    "model.patch_size=[1,32,32]",
    "train.batch=1",
    "train.tile=0",
    "train.steps=5",
    "train.sample_every=0",
];

/// A place without clips, and without held-out ones.
fn empty() -> Place {
    let place = Place::videos();
    fs::remove_dir_all(place.path("clips")).unwrap();
    fs::create_dir(place.path("clips")).unwrap();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let kept: Vec<&str> = config.lines().filter(|line| !line.starts_with("heldout")).collect();
    fs::write(place.path("config.toml"), kept.join("\n")).unwrap();
    place
}

/// So many noisy JPEGs.
fn jpegs(count: u32, width: u32, height: u32) -> Place {
    let place = empty();
    for i in 0..count {
        let pixel = |x: u32, y: u32| {
            let hash = (x / 4 + ((y / 4) << 9) + (i << 20)).wrapping_mul(0x9e37_79b9) >> 24;
            image::Rgb([hash as u8, (x / 7 + y) as u8, (y / 3) as u8])
        };
        RgbImage::from_fn(width, height, pixel).save(place.path(&format!("clips/{i}.jpg"))).unwrap();
    }
    place
}

/// Predicted and measured MiB of a process that trains, as its last lines tell.
fn peak(place: &Place, args: &[&str]) -> [f64; 2] {
    let output = succeed(&mut place.command("trained", args));
    let log = text(&output.stderr);
    let line = log.lines().find(|line| line.contains("memory: ")).expect("what memory was used");
    let mib = |after: &str| {
        let (number, unit) = line.split_once(after).unwrap().1.split_once(' ').unwrap();
        assert!(unit.starts_with("GiB"), "{line}");
        1024.0 * number.parse::<f64>().unwrap()
    };
    [mib("planned "), mib("memory: ")]
}

fn within_15_percent(what: &str, [predicted, measured]: [f64; 2]) {
    assert!((predicted / measured - 1.0).abs() <= 0.15, "{what}: planned {predicted} MiB, used {measured} MiB");
}

#[test]
fn large_images_need_what_is_planned() {
    let place = jpegs(3, 4200, 2800);
    let args = [SMALL, &["data.frames=1"]].concat();
    let both = peak(&place, &args);
    assert!(both[0] > 130.0, "two decoders of 34 MiB are not in {both:?}");
    within_15_percent("JPEGs", both);
    let plan = planned(&place, &args);
    let image = plan["decoding"]["image"].as_u64().unwrap();
    assert!((4200 * 2800 * 3..4200 * 2800 * 4).contains(&image), "{image}");
    assert_eq!(plan["decoding"]["files"], 3);
}

#[test]
fn videos_need_what_is_planned() {
    let place = empty();
    let source = ["-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=25:duration=2"];
    let h264 = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-refs", "3", "-pix_fmt", "yuv420p"];
    ffmpeg(place.path("clips/a.mp4"), &source, &h264, &[]);
    let args = [SMALL, &["data.frames=4"]].concat();
    let both = peak(&place, &args);
    within_15_percent("H.264", both);
    let plan = planned(&place, &args);
    let video = plan["decoding"]["video"].as_u64().unwrap();
    let frame = 1920 * 1080 * 3 / 2;
    assert!((4 * frame..10 * frame).contains(&video), "{video}");
}

#[test]
fn decoding_that_is_slower_than_the_step_is_told() {
    let place = jpegs(1, 3000, 2000);
    let mut command = plan(&place, &[SMALL, &["data.frames=1", "train.steps=1000"]].concat());
    let words = text(&succeed(&mut command).stdout);
    assert!(words.contains("training waits for clips"), "{words}");
    let json = planned(&place, &[SMALL, &["data.frames=1", "train.steps=1000"]].concat());
    let (decoding, step) = (json["seconds_of_decoding"].as_f64().unwrap(), json["seconds"].as_f64().unwrap());
    assert!(decoding > step, "{json}");
    assert!((json["seconds_of_run"]["steps"].as_f64().unwrap() / (1000.0 * decoding) - 1.0).abs() < 1e-9, "{json}");
}

#[test]
fn what_is_not_there_is_said_not_to_be_counted() {
    let place = Place::videos();
    fs::remove_dir_all(place.path("clips")).unwrap();
    let words = text(&succeed(&mut plan(&place, MEDIUM)).stdout);
    let path = place.path("clips");
    assert!(words.contains(&format!("(decoding is not counted: {} is not there)", path.display())), "{words}");
    assert!(planned(&place, MEDIUM)["decoding"].is_null());
    let remote = [MEDIUM, &["data.path=hf://a/b"]].concat();
    let words = text(&succeed(&mut plan(&place, &remote)).stdout);
    assert!(words.contains("decoding is not counted: hf://a/b is not fetched for a plan"), "{words}");
    fs::create_dir(place.path("clips")).unwrap();
    let words = text(&succeed(&mut plan(&place, MEDIUM)).stdout);
    assert!(words.contains("no file can be used"), "{words}");
}
