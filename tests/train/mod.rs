//! Training from end to end, through the command: the same on any mesh of ranks, after a resume, a kill or Ctrl-C; what
//! a run writes; and every kind of input that it must refuse.
//!
//! The networks are tiny and so are the clips, which are made here; sizes divide nothing evenly. What single parts do
//! (the optimizer, checkpoints, metrics files) is tested with those parts.

mod buckets;
mod caches;
mod data;
mod failures;
mod film;
mod finetune;
mod latents;
mod library;
mod limits;
mod lineage;
mod long;
mod lora;
mod mesh;
mod records;
mod refusals;
mod resume;
mod sampling;
mod shortage;
mod texts;

pub use failures::FILES_LIMITED;
use image::{Rgb, RgbImage};
use longreel::data::write::write_video;
use longreel::observe::metrics::{self, Record};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A folder with clips, a config that trains on them, and room for runs.
pub struct Place {
    temp: TempDir,
}

/// 20 tokens and 3 heads; crops and flips are drawn.
const VIDEOS: &str = r#"
[run]
seed = 3
[data]
path = "CLIPS"
heldout = "HELDOUT"
frames = 4
height = 16
width = 40
crop = "random"
flip = true
[model]
patch_size = [2, 8, 8]
num_attention_heads = 3
attention_head_dim = 8
num_layers = 2
ffn_dim = 40
freq_dim = 16
[train]
steps = 4
batch = 4
lr = 0.003
warmup = 2
ema = 0.9
heldout_every = 2
tile = 7
[sample]
sampler = "euler"
steps = 2
count = 1
"#;

/// Three classes of pictures of one frame, 6 tokens.
const PICTURES: &str = r#"
[run]
seed = 5
[data]
path = "CLIPS"
label = "folder"
frames = 1
height = 16
width = 24
[model]
patch_size = [1, 8, 8]
num_attention_heads = 2
attention_head_dim = 8
num_layers = 1
ffn_dim = 32
freq_dim = 16
num_classes = 3
[train]
steps = 3
batch = 2
lr = 0.01
warmup = 0
ema = 0.5
[sample]
sampler = "euler"
steps = 2
count = 1
"#;

/// A network for latents, in place of the line `SMALL_NETWORK` of a config.
const SMALL_NETWORK: &str = "\
[model]
patch_size = [1, 2, 2]
num_attention_heads = 3
attention_head_dim = 8
num_layers = 2
ffn_dim = 40
freq_dim = 16";

/// 12 tokens of latents: 5 frames of 32 x 48 pixels are 2 x 4 x 6 of 3 channels.
const LATENTS: &str = r#"
[run]
seed = 7
[data]
path = "CLIPS"
heldout = "HELDOUT"
frames = 5
height = 32
width = 48
[vae]
from = "VAE"
cache = "CACHE"
SMALL_NETWORK
[train]
steps = 4
batch = 2
lr = 0.003
warmup = 2
ema = 0.9
heldout_every = 2
tile = 5
[sample]
sampler = "euler"
steps = 2
count = 1
"#;

impl Place {
    /// Three videos at 12 frames a second, of two clips each, and a held-out one.
    pub fn videos() -> Self {
        let place = Self::new(VIDEOS);
        fs::create_dir(place.path("heldout")).unwrap();
        for (name, seed, frames) in [("clips/a", 1, 8), ("clips/b", 2, 9), ("clips/c", 3, 11), ("heldout/d", 4, 5)] {
            let pixels: Vec<u8> = (0..frames).flat_map(|t| picture(seed, t, 24, 48)).collect();
            write_video(&place.path(&format!("{name}.mp4")), &pixels, 24, 48, 12.0).unwrap();
        }
        place
    }

    /// Pictures in the class folders `cat`, `dog` and `eel`.
    pub fn pictures() -> Self {
        let place = Self::new(PICTURES);
        for (class, name) in ["cat", "dog", "eel"].into_iter().enumerate() {
            fs::create_dir(place.path(&format!("clips/{name}"))).unwrap();
            for i in 0..2 {
                let pixels = picture(10 + class, i, 16, 24);
                let image = RgbImage::from_raw(24, 16, pixels).unwrap();
                image.save(place.path(&format!("clips/{name}/{i}.png"))).unwrap();
            }
        }
        place
    }

    /// Videos of two clips each and a held-out one, trained on as latents of a tiny VAE.
    pub fn latents() -> Self {
        let place = Self::new(LATENTS);
        fs::create_dir(place.path("heldout")).unwrap();
        for (name, seed, frames) in [("clips/a", 1, 10), ("clips/b", 2, 11), ("heldout/d", 4, 9)] {
            let pixels: Vec<u8> = (0..frames).flat_map(|t| picture(seed, t, 36, 52)).collect();
            write_video(&place.path(&format!("{name}.mp4")), &pixels, 36, 52, 12.0).unwrap();
        }
        place
    }

    fn new(config: &str) -> Self {
        let place = Self { temp: TempDir::new().unwrap() };
        fs::create_dir(place.path("clips")).unwrap();
        let at = |name: &str| place.path(name).display().to_string();
        let config = config.replace("SMALL_NETWORK", SMALL_NETWORK);
        let config = config.replace("CLIPS", &at("clips")).replace("HELDOUT", &at("heldout"));
        let vae = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/vae/vae21/vae");
        let config = config.replace("VAE", &vae.display().to_string()).replace("CACHE", &at("cache"));
        let encoder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/text");
        let config = config.replace("ENCODER", &encoder.display().to_string()).replace("EMBEDDINGS", &at("embeddings"));
        fs::write(place.path("config.toml"), config).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// `longreel train` with the run in `out`; arguments are flags, or `key=value` for `--set`.
    pub fn command(&self, out: &str, args: &[&str]) -> Command {
        let mut command = longreel();
        command.arg("train").arg(self.path("config.toml"));
        command.args(["--set", &format!("run.out={}", self.path(out).display())]);
        for arg in args {
            if !arg.starts_with("--") {
                command.arg("--set");
            }
            command.arg(arg);
        }
        command
    }

    /// Trains, which must succeed; the run's metrics.
    pub fn train(&self, out: &str, args: &[&str]) -> Vec<Record> {
        succeed(&mut self.command(out, args));
        self.metrics(out)
    }

    /// Tries to train, which must fail; the error.
    pub fn error(&self, out: &str, args: &[&str]) -> String {
        fail(&mut self.command(out, args))
    }

    /// Starts to train without an end, and returns once `steps` steps are done.
    pub fn start(&self, out: &str, args: &[&str], steps: usize) -> Child {
        let mut command = self.command(out, &["train.steps=1000000"]);
        command.args(args.iter().flat_map(|arg| ["--set", arg]));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        self.wait_for(child, out, steps)
    }

    /// Returns once the run in `out`, which `child` trains, has done `steps` steps.
    pub fn wait_for(&self, mut child: Child, out: &str, steps: usize) -> Child {
        let deadline = Instant::now() + Duration::from_secs(60);
        while metrics::read(&self.path(out).join("metrics.jsonl")).map_or(0, |r| r.len()) < steps {
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                panic!("{}", text(&finish(child).stderr));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child
    }

    pub fn metrics(&self, out: &str) -> Vec<Record> {
        let records = metrics::read(&self.path(out).join("metrics.jsonl")).unwrap();
        assert!(records.iter().zip(1..).all(|(record, step)| record.step == step), "steps missing, or there twice");
        records
    }

    /// The steps of a run's checkpoints; nothing else may lie among them.
    pub fn checkpoints(&self, out: &str) -> Vec<u64> {
        let entries = fs::read_dir(self.path(out).join("checkpoints")).unwrap();
        let step = |name: String| name.strip_prefix("step-").and_then(|step| step.parse().ok()).expect(&name);
        let mut steps: Vec<u64> = entries.map(|e| step(e.unwrap().file_name().into_string().unwrap())).collect();
        steps.sort();
        steps
    }

    /// Makes a checkpoint one of 0.1.0: without checksums.
    pub fn forget_sums(&self, out: &str, step: u64) {
        let path = self.checkpoint(out, step, "state.json");
        let mut state: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for key in ["run", "files", "crc32c"] {
            state.as_object_mut().unwrap().remove(key).unwrap();
        }
        fs::write(&path, serde_json::to_string_pretty(&state).unwrap()).unwrap();
    }

    /// A part of a checkpoint.
    pub fn checkpoint(&self, out: &str, step: u64, part: &str) -> PathBuf {
        self.path(out).join(format!("checkpoints/step-{step:08}")).join(part)
    }
}

/// A smooth moving picture that is another for every `seed`.
fn picture(seed: usize, t: usize, height: usize, width: usize) -> Vec<u8> {
    let mut image = RgbImage::new(width as u32, height as u32);
    for (x, y, pixel) in image.enumerate_pixels_mut() {
        let wave = |c: usize| ((x as usize * (seed + c) + y as usize * (7 - c) + 9 * t * seed) as f64 / 15.0).sin();
        *pixel = Rgb([0, 1, 2].map(|c| (127.0 + 120.0 * wave(c)) as u8));
    }
    image.into_raw()
}

pub fn longreel() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_longreel"));
    command.env_remove("RUST_LOG");
    command
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed.
pub fn succeed(command: &mut Command) -> Output {
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    assert!(output.status.success(), "{command:?}\n{}", text(&output.stderr));
    output
}

/// Runs a command that must fail with one clear error, which is returned.
pub fn fail(command: &mut Command) -> String {
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    error_of(&output)
}

/// The one error of a command that failed as it should.
pub fn error_of(output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter_map(|line| line.strip_prefix("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    errors[0].to_owned()
}

/// Waits for a command to end; one that hangs fails the test. A busy machine may take minutes for what takes seconds.
pub fn finish(child: Child) -> Output {
    let pid = child.id();
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(child.wait_with_output()));
    receive
        .recv_timeout(Duration::from_secs(240))
        .unwrap_or_else(|_| {
            signal(pid, "KILL");
            panic!("the command hangs")
        })
        .unwrap()
}

pub fn signal(pid: u32, name: &str) {
    assert!(Command::new("sh").args(["-c", &format!("kill -{name} {pid}")]).status().unwrap().success());
}

/// All files below a folder.
pub fn snapshot(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(|entry| entry.unwrap().into_path());
    files.filter(|path| path.is_file()).map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// What a step's record says of the numbers, not of the time: equal bit for bit in equal runs.
pub fn numbers(records: &[Record]) -> Vec<(u64, Vec<(String, u64)>)> {
    let timing = ["tokens_per_s", "seconds", "waited", "peak_rss"];
    let of = |record: &Record| {
        let counted = |name: &str| name.starts_with("seconds_") || name.starts_with("bytes_");
        let values = record.values().into_iter().filter(|(name, _)| !timing.contains(name) && !counted(name));
        (record.step, values.map(|(name, value)| (name.to_owned(), value.to_bits())).collect())
    };
    records.iter().map(of).collect()
}

/// The largest relative difference of losses, held-out losses and gradient norms.
fn difference(a: &[Record], b: &[Record]) -> f64 {
    assert_eq!(a.len(), b.len());
    let relative = |a: f64, b: f64| ((a - b) / b).abs();
    a.iter().zip(b).fold(0.0, |most: f64, (a, b)| {
        assert_eq!(a.heldout.is_some(), b.heldout.is_some());
        let heldout = relative(a.heldout.unwrap_or(1.0), b.heldout.unwrap_or(1.0));
        most.max(relative(a.loss, b.loss)).max(relative(a.grad_norm, b.grad_norm)).max(heldout)
    })
}
