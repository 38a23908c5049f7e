//! Fine-tunes from end to end: from a pipeline's folder, captioned videos and pictures to a LoRA file, and to its
//! clips, by the run and by the pipeline alike.

use super::resume::until;
use super::{Place, difference, longreel, picture, snapshot, succeed, text};
use crate::golden::pipeline::{assemble, off};
use image::RgbImage;
use longreel::data::write::write_video;
use longreel::lora::AdapterFile;
use std::fs;
use std::path::{Path, PathBuf};

/// Videos of 9 frames and of 5, and pictures: 12, 8 and 6 tokens of latents.
const FINETUNE: &str = r#"
[run]
seed = 13
[[data]]
path = "CLIPS/videos"
resolutions = [40]
frame_counts = [5, 9]
aspects = 3
[[data]]
path = "CLIPS/pictures"
buckets = [[48, 32, 1]]
caption_prefix = "a picture of "
[model]
from = "PIPELINE"
[vae]
from = "PIPELINE"
cache = "CACHE"
[text]
from = "PIPELINE"
cache = "EMBEDDINGS"
[lora]
rank = 4
alpha = 6.0
export = ["comfy", "diffusers"]
[diffusion]
shift = "auto"
shift_base_tokens = 4
caption_dropout = 0.3
[train]
steps = 4
accumulate = 2
lr = 0.05
warmup = 0
ema = 0.5
checkpoint_every = 2
tile = 5
[sample]
sampler = "wan-unipc"
steps = 4
guidance = 4.0
shift = 3.0
prompts = ["a red wave"]
count = 1
"#;

fn place() -> Place {
    let place = Place::new(FINETUNE);
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let pipeline = place.path("pipeline");
    fs::write(place.path("config.toml"), config.replace("PIPELINE", &pipeline.display().to_string())).unwrap();
    assemble(&pipeline);
    for folder in ["clips/videos", "clips/pictures"] {
        fs::create_dir_all(place.path(folder)).unwrap();
    }
    let (wide, tall) = ([36, 52], [52, 36]);
    for (name, seed, frames, [height, width], caption) in [
        ("clips/videos/a", 1, 18, wide, "a red wave over the whole frame"),
        ("clips/videos/b", 2, 10, wide, "a slow wave"),
        ("clips/videos/c", 3, 6, tall, "stripes, &amp; dots"),
    ] {
        let pixels: Vec<u8> = (0..frames).flat_map(|t| picture(seed, t, height, width)).collect();
        write_video(&place.path(&format!("{name}.mp4")), &pixels, height, width, 16.0).unwrap();
        fs::write(place.path(&format!("{name}.txt")), caption).unwrap();
    }
    for i in 0..2 {
        let image = RgbImage::from_raw(52, 36, picture(10 + i, 0, 36, 52)).unwrap();
        image.save(place.path(&format!("clips/pictures/{i}.png"))).unwrap();
        fs::write(place.path(&format!("clips/pictures/{i}.txt")), format!("wave number {i}")).unwrap();
    }
    place
}

/// The pixels of a sampled clip.
fn sheet(place: &Place, from: &Path, args: &[&str]) -> Vec<u8> {
    let out = place.path("sheet.png");
    let mut command = longreel();
    command.env("HOME", place.path("home")).arg("sample").arg(from).arg("-o").arg(&out);
    succeed(command.args(["--real-size", "--force"]).args(args));
    image::open(out).unwrap().into_rgb8().into_raw()
}

#[test]
fn a_pipeline_is_tuned_and_its_lora_samples_what_the_run_does() {
    let place = place();
    let before = snapshot(&place.path("pipeline"));
    let output = succeed(&mut place.command("one", &["--ranks=1"]));
    let log = text(&output.stderr);
    assert!(log.contains("in 3 buckets"), "{log}");
    let one = place.metrics("one");
    let encoded = || -> Vec<(PathBuf, Vec<u8>)> {
        let files = snapshot(&place.path("cache")).into_iter();
        files.filter(|(path, _)| path.extension().is_some_and(|kind| kind == "safetensors")).collect()
    };
    let latents = encoded();
    assert_eq!(latents.len(), 6, "two clips of `a`, one of each other file");
    let two = place.train("two", &["--ranks=2"]);
    assert!(difference(&one, &two) < 1e-5, "{}", difference(&one, &two));
    until(&place, "one", "resumed", 2);
    let resumed = place.train("resumed", &["--ranks=3", "--resume"]);
    assert!(difference(&one, &resumed) < 1e-5, "{}", difference(&one, &resumed));
    assert!(encoded() == latents, "clips were encoded again");
    assert!(snapshot(&place.path("pipeline")) == before, "the pipeline changed");

    let file = place.checkpoint("one", 4, "lora.safetensors");
    let adapter = AdapterFile::open(&file).unwrap().adapter;
    assert_eq!(adapter.modules.len(), 20);
    assert!(adapter.modules.iter().all(|module| module.b.iter().any(|&b| b != 0.0)));
    // The run adds B A x to W x, the flag adds B A to W, all in f32: a pixel may fall on the other side of a rounding.
    let of_run = sheet(&place, &place.path("one"), &[]);
    let pipeline = place.path("pipeline");
    let size = ["--frames", "9", "--height", "32", "--width", "32", "--seed", "13", "--prompt", "a red wave"];
    let common = [&size[..], &["--steps", "4", "--guidance", "4"]].concat();
    for name in ["lora.safetensors", "lora_diffusers.safetensors"] {
        let file = place.checkpoint("one", 4, name).display().to_string();
        let of_pipeline = sheet(&place, &pipeline, &[&common[..], &["--lora", &file]].concat());
        assert!(off(&of_run, &of_pipeline) <= 1, "{name}: {}", off(&of_run, &of_pipeline));
    }
    assert!(off(&of_run, &sheet(&place, &pipeline, &common)) > 5, "the LoRA changes nothing");
    // Tokens of latents are counted, not of pixels.
    let mut scan = longreel();
    let said = succeed(scan.args(["scan", "--no-sheet", "--config"]).arg(place.path("config.toml")));
    let said = text(&said.stdout);
    let tokens = |bucket: &str| {
        let line = said.lines().find(|line| line.starts_with(bucket)).unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().nth(4).unwrap().to_owned()
    };
    assert_eq!(["32x32x9", "32x32x5", "48x32x1"].map(tokens), ["12", "8", "6"]);
}

/// What `[sample]` does not say is the pipeline's: its solver, its scheduler's shift, guidance for the prompts, a clip
/// of each. What it says counts. Samples of the run are those of training either way.
#[test]
fn samples_are_by_the_pipelines_settings_unless_the_config_says_others() {
    let place = place();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let (head, _) = config.split_once("[sample]").unwrap();
    let sample = "[sample]\nsteps = 4\nframes = 1\nprompts = [\"a red wave\"]\n";
    fs::write(place.path("config.toml"), format!("{head}{sample}")).unwrap();
    let scheduler = place.path("pipeline/scheduler/scheduler_config.json");
    let json = fs::read_to_string(&scheduler).unwrap();
    assert!(json.contains("\"flow_shift\": 3.0"));
    fs::write(&scheduler, json.replace("\"flow_shift\": 3.0", "\"flow_shift\": 7.0")).unwrap();

    let settings = ["train.steps=2", "train.sample_every=2", "train.accumulate=1"];
    place.train("own", &settings);
    let during = |run: &str| {
        let samples = place.path(run).join("samples");
        assert!(!samples.join("step-00000002-1.png").exists(), "one prompt, one clip");
        image::open(samples.join("step-00000002-0.png")).unwrap().into_rgb8().into_raw()
    };
    let own = during("own");
    let run = place.path("own");
    let after = |args: &[&str]| sheet(&place, &run, &[&["--frames", "1"], args].concat());
    assert_eq!(after(&[]), own);
    assert_eq!(after(&["--prompt", "a red wave"]), own);
    let said = ["--sampler", "wan-unipc", "--guidance", "5", "--shift", "7", "--steps", "4", "--count", "1"];
    assert_eq!(after(&said), own);
    for other in [["--sampler", "heun"], ["--guidance", "1"], ["--shift", "3"]] {
        assert!(after(&other) != own, "{other:?} changes nothing");
    }
    // The run keeps the shift that it was begun with, whatever becomes of the pipeline.
    fs::write(&scheduler, json).unwrap();
    assert_eq!(after(&[]), own);

    let written = ["sample.sampler=heun", "sample.guidance=1", "sample.shift=3"];
    place.train("written", &[&settings[..], &written].concat());
    let (written, flags) = (place.path("written"), ["--sampler", "heun", "--guidance", "1", "--shift", "3"]);
    assert_eq!(sheet(&place, &written, &["--frames", "1"]), during("written"));
    assert_eq!(after(&flags), during("written"), "the same network, by flags");
}

#[test]
fn a_part_that_a_pipeline_lacks_is_named_with_the_key_that_asks_for_it() {
    let place = place();
    let pipeline = place.path("pipeline");
    for (part, key, to_do) in [
        ("transformer", "model.from", "fetch the rest of it, or name a transformer's folder or file"),
        ("vae", "vae.from", "fetch the rest of it, or name another VAE's folder or file"),
        ("text_encoder", "text.from", "fetch the rest of it, or name another text encoder's folder or file"),
        ("tokenizer", "text.from", "Copy tokenizer.json from the model's repository there"),
    ] {
        fs::rename(pipeline.join(part), place.path("away")).unwrap();
        let said = place.error("run", &[]);
        assert!(said.starts_with(&format!("{key}: ")) && said.contains(part), "without {part}: {said}");
        assert!(said.contains(to_do), "without {part}: {said}");
        fs::rename(place.path("away"), pipeline.join(part)).unwrap();
    }
    // The scheduler is asked for the shift of samples alone, and there is a usual one.
    fs::rename(pipeline.join("scheduler"), place.path("away")).unwrap();
    let config = fs::read_to_string(place.path("config.toml")).unwrap();
    let log = |out: &str| text(&succeed(&mut place.command(out, &["train.steps=1"])).stderr);
    assert!(!log("said").contains("scheduler_config.json"));
    fs::write(place.path("config.toml"), config.replace("\nshift = 3.0\n", "\n")).unwrap();
    let log = log("unsaid");
    assert!(log.contains("no scheduler/scheduler_config.json") && log.contains("3 is taken"), "{log}");
    assert!(log.contains("sample.shift"), "{log}");
}

/// Of clips of one size, too, the patch is the network's, and tokens are of latents.
#[test]
fn a_scan_counts_tokens_of_a_network_from_elsewhere() {
    let place = place();
    let pipeline = place.path("pipeline").display().to_string();
    let data = format!("path = {:?}\nframes = 9\nheight = 32\nwidth = 32\n", place.path("clips/videos"));
    let config = format!("[data]\n{data}[model]\nfrom = {pipeline:?}\n[vae]\nfrom = {pipeline:?}\n");
    fs::write(place.path("one.toml"), config).unwrap();
    let scan = |args: &[&str]| {
        let mut command = longreel();
        command.args(["scan", "--no-sheet", "--config"]).arg(place.path("one.toml")).args(args);
        text(&succeed(&mut command).stdout)
    };
    let said = scan(&[]);
    assert!(said.contains("3 clips of 12 tokens, 36 tokens in all"), "{said}");
    let said = scan(&["--patch", "1,4,4"]);
    assert!(said.contains("3 clips of 3 tokens, 9 tokens in all"), "{said}");
    fs::rename(place.path("pipeline/transformer"), place.path("away")).unwrap();
    assert!(scan(&["--patch", "1,4,4"]).contains("3 clips of 3 tokens"), "a patch that is named needs no network");
}
