//! Shots of a real film and pictures, trained on together in latents of a small VAE of random weights: over several
//! sizes, on 1 and 2 ranks, through a resume, to samples that are decoded.

use super::resume::{same_weights, until};
use super::{Place, difference, longreel, numbers, picture, succeed, text};
use image::RgbImage;
use longreel::data::{ClipOptions, Dataset};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Shots of 192 x 108 pixels and 48 frames in two areas and by hand, and pictures: 24, 63, 18 and 6 tokens.
const FILM: &str = r#"
[run]
seed = 17
[[data]]
path = "BBB/scenes/apple"
heldout = "BBB/heldout/bbb-010694.mp4"
resolutions = [48, 80]
frame_counts = [5, 9]
aspects = 3
[[data]]
path = "BBB/scenes/butterfly"
buckets = [[48, 48, 5]]
crop = "random"
flip = true
[[data]]
path = "CLIPS"
buckets = [[48, 32, 1]]
[vae]
from = "VAE"
cache = "CACHE"
SMALL_NETWORK
[diffusion]
shift = "auto"
shift_base_tokens = 12
[train]
steps = 12
batch = 2
lr = 0.003
warmup = 2
ema = 0.9
checkpoint_every = 5
keep = 9
heldout_every = 6
sample_every = 12
tile = 7
[sample]
sampler = "euler"
steps = 2
count = 1
"#;

fn film() -> Place {
    let place = Place::new(FILM);
    let bbb = Path::new(env!("CARGO_MANIFEST_DIR")).join("datasets/bbb").display().to_string();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    fs::write(place.path("config.toml"), config.replace("BBB", &bbb)).unwrap();
    for i in 0..2 {
        let image = RgbImage::from_raw(52, 36, picture(3 + i, 0, 36, 52)).unwrap();
        image.save(place.path(&format!("clips/{i}.png"))).unwrap();
    }
    place
}

#[test]
fn a_film_and_pictures_train_resume_and_sample_in_latents() {
    let place = film();
    let output = succeed(&mut place.command("one", &["--ranks=1"]));
    let log = text(&output.stderr);
    assert!(log.contains("in 4 buckets"), "{log}");
    let one = place.metrics("one");
    let tokens: BTreeSet<u64> = one.iter().map(|step| (step.tokens_per_s * step.seconds).round() as u64).collect();
    assert_eq!(tokens, BTreeSet::from([2 * 6, 2 * 18, 2 * 24, 2 * 63]), "not every size was trained on");
    let two = place.train("two", &["--ranks=2"]);
    assert!(difference(&one, &two) < 1e-5, "{}", difference(&one, &two));
    for (name, straight, ranks) in [("one", &one, "--ranks=1"), ("two", &two, "--ranks=2")] {
        let again = format!("{name} again");
        until(&place, name, &again, 5);
        fs::remove_dir_all(place.path(&format!("{again}/samples"))).unwrap();
        let resumed = place.train(&again, &[ranks, "--resume"]);
        assert_eq!(numbers(&resumed), numbers(straight), "{name}");
        same_weights(&place, name, &again, 12);
        // The same sample, too: the squarest of the first area, at the film's rate.
        let samples = [name, &again].map(|run| fs::read(place.path(&format!("{run}/samples/step-00000012-0.mp4"))));
        let [sample, of_again] = samples.map(Result::unwrap);
        assert!(sample == of_again, "{name}: another sample");
    }
    let clip = place.path("clip.mp4");
    succeed(longreel().arg("sample").arg(place.path("two")).arg("-o").arg(&clip).args(["--count=1", "--ranks=2"]));
    let made = Dataset::survey(&ClipOptions::new([1, 16, 16]), &clip).unwrap();
    let file = &made.files()[0];
    assert_eq!((file.frames, file.width, file.height, file.rate), (9, 48, 48, Some(24.0)));
}
