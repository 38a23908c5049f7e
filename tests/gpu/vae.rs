//! The VAE on a GPU: diffusers' moments, latents and pixels, whole, in tiles, on two GPUs and in bf16; and a run that
//! trains on latents which a GPU encoded, and decodes samples there.

use candle_core::Device;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

use super::values::{Values, read, write};
use super::{Run, differ, off, program, root, succeed, succeed_on};

fn golden(kind: &str) -> PathBuf {
    root().join("tests/golden/vae").join(kind)
}

/// A case of a golden file, put into `dir` as an input of `longreel forward`, and what is to come of it.
struct Case {
    vae: PathBuf,
    dir: TempDir,
    expected: Vec<(&'static str, Values)>,
}

impl Case {
    fn new(kind: &str, half: &str, name: &str) -> Self {
        let mut all = read(&golden(kind).join(format!("{half}.safetensors")));
        let mut take = |what: &str| all.remove(&format!("{name}.{what}")).unwrap();
        let (input, values, expected) = match half {
            "encode" => ("pixels", take("pixels"), vec![("moments", take("moments")), ("latents", take("latents"))]),
            _ => ("latents", take("latents"), vec![("decoded", take("pixels"))]),
        };
        let dir = TempDir::new().unwrap();
        write(&dir.path().join("in"), input, &values);
        Self { vae: golden(kind).join("vae"), dir, expected }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .arg("forward")
            .arg(&self.vae)
            .arg(self.dir.path().join("in"))
            .arg("-o")
            .arg(self.dir.path().join("out"));
        command.args(["--force", "--device", "cuda"]).args(flags).current_dir(root());
        command
    }

    /// How far what was written is from diffusers' results.
    fn error(&self) -> f64 {
        let got = read(&self.dir.path().join("out"));
        let error = |(name, want): &(&str, Values)| {
            assert_eq!(got[*name].0, want.0, "{name}");
            off(&got[*name].1, &want.1)
        };
        self.expected.iter().map(error).fold(0.0, f64::max)
    }

    fn run(&self, flags: &[&str]) -> f64 {
        succeed(self.command(flags).output().unwrap());
        self.error()
    }
}

/// A clip's first frames and those after them, and sizes that do not divide evenly.
const CASES: [(&str, &str, &str); 8] = [
    ("vae21", "encode", "9x24x16"),
    ("vae21", "encode", "5x21x27"),
    ("vae21", "decode", "3x3x2"),
    ("vae21", "decode", "1x2x3"),
    ("vae22", "encode", "9x48x32"),
    ("vae22", "encode", "1x32x48"),
    ("vae22", "decode", "3x2x1"),
    ("vae22", "decode", "2x2x3"),
];

#[test]
fn the_vae_is_diffusers() {
    for (kind, half, name) in CASES {
        let case = Case::new(kind, half, name);
        for flags in [&[][..], &["--tile", "16"]] {
            let error = case.run(flags);
            assert!(error < 1e-5, "{kind} {half} {name} {flags:?}: off by {error:.1e}");
        }
    }
}

#[test]
fn the_vae_in_bf16_is_nearly_diffusers() {
    for (kind, half, name) in [CASES[0], CASES[2], CASES[4], CASES[6]] {
        let error = Case::new(kind, half, name).run(&["--dtype", "bf16"]);
        assert!((1e-4..3e-2).contains(&error), "{kind} {half} {name}: off by {error:.1e}");
    }
}

/// On a machine with one GPU there is nothing to be seen.
#[test]
fn gpus_share_a_frame_by_rows() {
    if Device::new_cuda_with_stream(1).is_err() {
        return println!("skipped: one GPU is one rank");
    }
    for (kind, half, name) in [CASES[0], CASES[2], CASES[4], CASES[6]] {
        let case = Case::new(kind, half, name);
        succeed_on(2, || case.command(&["--ranks", "2"]));
        let error = case.error();
        assert!(error < 1e-5, "{kind} {half} {name}: off by {error:.1e}");
    }
}

#[test]
fn runs_on_latents_go_as_on_the_cpu() {
    let run = Run(TempDir::new().unwrap());
    for (folder, count) in [("clips", 3), ("heldout", 1)] {
        fs::create_dir(run.0.path().join(folder)).unwrap();
        for i in 0..count {
            let picture = image::RgbImage::from_fn(32, 16, |x, y| {
                image::Rgb([(x * 8) as u8, (y * 15) as u8, (60 * i + x * y / 4) as u8])
            });
            picture.save(run.0.path().join(folder).join(format!("{i}.png"))).unwrap();
        }
    }
    let at = |key: &str, path: &Path| format!("{key}={}", path.display());
    let sets = [
        at("data.path", &run.0.path().join("clips")),
        at("data.heldout", &run.0.path().join("heldout")),
        at("vae.from", &golden("vae21").join("vae")),
    ];
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let rest = ["data.frames=1", "data.width=32", "data.stride=1", "model.patch_size=[1,2,2]", "train.sample_every=4"];
    let [cpu, gpu] = ["cpu", "cuda"].map(|device| {
        let own = [at("vae.cache", &run.0.path().join(format!("{device}-cache"))), format!("train.device={device}")];
        let own: Vec<&str> = own.iter().map(String::as_str).collect();
        run.train(device, &[&sets[..], &rest, &own].concat())
    });
    // An entry is f16: a latent that is off by rounding may be another number there.
    let differ = differ(&gpu, &cpu);
    assert!(differ < 1e-3, "losses or norms differ by {differ:.1e}");
    let entries = |device: &str| fs::read_dir(run.0.path().join(format!("{device}-cache"))).unwrap().count();
    assert_eq!(entries("cuda"), entries("cpu"));
    let samples = |device: &str| -> Vec<Vec<u8>> {
        let mut paths: Vec<_> = fs::read_dir(run.0.path().join(device).join("samples"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        paths.sort();
        paths.iter().filter_map(|path| Some(image::open(path).ok()?.to_rgb8().into_raw())).collect()
    };
    let (cpu, gpu) = (samples("cpu"), samples("cuda"));
    assert!(!cpu.is_empty() && cpu.len() == gpu.len());
    let most = cpu.iter().flatten().zip(gpu.iter().flatten()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(2), "pixels differ by up to {most:?}");
}
