//! What a GPU computes against what the CPU does: attention, the whole network and its gradients, training with every
//! kind of stash, a checkpoint from one on the other, sampling. A target of its own, as it needs the feature `cuda` and
//! a GPU, which most machines that test have not; `make gpu-bundle` takes it to one.
//!
//! There it runs outside the source tree: LONGREEL names the program, LONGREEL_ROOT the folder with configs, datasets
//! and tests/golden.

#[path = "gpu/adapters.rs"]
mod adapters;
#[path = "gpu/communicators.rs"]
mod communicators;
#[path = "gpu/faults.rs"]
mod faults;
#[path = "gpu/products.rs"]
mod products;
#[path = "gpu/stash.rs"]
mod stash;
#[path = "gpu/streams.rs"]
mod streams;
#[path = "gpu/vae.rs"]
mod vae;
#[path = "vae/values.rs"]
mod values;

use candle_core::{D, DType, Device, Tensor};
use longreel::attention::{Qkv, SavedRows, flash, flash_backward, reference};
use longreel::rng::{Key, Purpose};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

fn root() -> PathBuf {
    std::env::var_os("LONGREEL_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

fn program() -> OsString {
    std::env::var_os("LONGREEL").unwrap_or_else(|| env!("CARGO_BIN_EXE_longreel").into())
}

/// What a command printed that must have succeeded.
fn succeed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs longreel in the root.
fn longreel(args: &[&str]) -> String {
    succeed(Command::new(program()).args(args).current_dir(root()).output().unwrap())
}

/// A port of this machine that nobody has.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn gpu() -> Device {
    Device::new_cuda_with_stream(0).expect("these tests need a GPU")
}

// ---- attention ----------------------------------------------------------------------------------------------------

fn normal(shape: &[usize], sample: u64, dtype: DType) -> Tensor {
    let mut x = vec![0f32; shape.iter().product()];
    Key { seed: 7, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut x);
    Tensor::from_vec(x, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The norm of the difference over the norm.
fn off(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(a, b)| a - b));
    difference / norm(&mut want.iter().copied()).max(f64::MIN_POSITIVE)
}

/// o, lse, dq, dk, dv.
fn attention([q, k, v, d_o]: &[Tensor; 4], plain: bool) -> [Tensor; 5] {
    let scale = 0.7 / (q.dims()[3] as f64).sqrt();
    let qkv = Qkv::new(q, k, v);
    let (o, lse) = if plain { reference::attention(qkv, scale) } else { flash(qkv, scale) }.unwrap();
    let wide = lse.dtype();
    let delta = (d_o.to_dtype(wide).unwrap() * o.to_dtype(wide).unwrap()).unwrap().sum(D::Minus1).unwrap();
    let backward = if plain { reference::attention_backward } else { flash_backward };
    let (dq, dk, dv) = backward(qkv, SavedRows::new(d_o, &lse, &delta), scale).unwrap();
    [o, lse, dq, dk, dv]
}

#[test]
fn attention_is_the_references() {
    let gpu = gpu();
    let cases = [(DType::F32, &[8, 40, 64, 128, 256][..], 3e-6), (DType::BF16, &[64, 96, 128], 8e-3)];
    for (dtype, dims, bound) in cases {
        for &d in dims {
            for [sq, sk] in [[1, 1], [1, 257], [257, 1], [33, 65], [130, 386], [300, 260]] {
                let inputs = [(sq, 0), (sk, 1), (sk, 2), (sq, 3)].map(|(s, i)| normal(&[2, 3, s, d], i, dtype));
                let truth = attention(&inputs.each_ref().map(|x| x.to_dtype(DType::F64).unwrap()), true);
                let got = attention(&inputs.each_ref().map(|x| x.to_device(&gpu).unwrap()), false);
                for ((name, got), truth) in ["o", "lse", "dq", "dk", "dv"].iter().zip(&got).zip(&truth) {
                    let (got, truth) = (values(got), values(truth));
                    // A row of one key has a gradient of q and k that is zero but for rounding.
                    let small = sk == 1 && matches!(*name, "dq" | "dk");
                    let error =
                        if small { got.iter().fold(0.0, |m: f64, x| m.max(x.abs())) } else { off(&got, &truth) };
                    let bound = if small { 10.0 * bound } else { bound };
                    assert!(error <= bound, "{dtype:?} d {d}, {sq} x {sk}: {name} is off by {error:.1e}");
                }
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_every_time() {
    let gpu = gpu();
    let inputs = [0, 1, 2, 3].map(|i| normal(&[1, 2, 300, 64], i, DType::BF16).to_device(&gpu).unwrap());
    let first = attention(&inputs, false).map(|t| values(&t));
    assert!((0..3).all(|_| attention(&inputs, false).map(|t| values(&t)) == first));
}

// ---- the network --------------------------------------------------------------------------------------------------

fn tensors(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// Diffusers' sample, loss and gradients, as tests/golden.rs has them for the CPU.
#[test]
fn the_network_and_its_gradients_are_diffusers() {
    for case in ["batch", "shards", "long", "bf16"] {
        let (folder, out) = (format!("tests/golden/{case}"), TempDir::new().unwrap());
        let (model, inputs, out) =
            (format!("{folder}/transformer"), format!("{folder}/inputs.safetensors"), out.path().join("out"));
        longreel(&["forward", &model, &inputs, "-o", out.to_str().unwrap(), "--grads", "--device", "cuda"]);
        let (got, want) = (tensors(&out), tensors(&root().join(folder).join("expected.safetensors")));
        for (name, want) in want.iter().filter(|(name, _)| !name.starts_with("bf16_error")) {
            let error = off(&got[name], want);
            assert!(error < 2e-5, "{case}: {name} is off by {error:.1e}");
        }
    }
}

#[test]
fn peaks_of_the_gpu_are_measured() {
    let peak: Value = serde_json::from_str(&longreel(&["bench", "peak", "--device", "cuda", "--json"])).unwrap();
    for key in ["f32_gflops", "bf16_gflops", "copy_gb_s", "from_host_gb_s", "to_host_gb_s"] {
        assert!(peak[key].as_f64().is_some_and(|rate| rate > 0.0), "{key} in {peak}");
    }
}

/// The loss after two steps of AdamW.
fn loss_of_steps(device: &str, dtype: &str) -> f64 {
    let small = ["--frames", "3", "--height", "20", "--width", "18", "--layers", "2", "--heads", "2", "--steps", "3"];
    let args = ["bench", "step", "--json", "--device", device, "--dtype", dtype];
    let report: Value = serde_json::from_str(&longreel(&[&args[..], &small].concat())).unwrap();
    report["loss"].as_f64().unwrap()
}

#[test]
fn steps_lead_where_the_cpus_do() {
    // AdamW's first steps are the learning rate, up or down, whatever the size of a gradient. A parameter whose
    // gradient is zero but for rounding, such as a bias of the keys, which softmax does not see, so goes up on one
    // device and down on the other: to first order the loss does not change with it, to second order it may by more
    // than the 1e-6 of rounding. Hence 1e-4 for f32.
    for (dtype, bound) in [("f32", 1e-4), ("bf16", 1e-2)] {
        let [cpu, gpu] = ["cpu", "cuda"].map(|device| loss_of_steps(device, dtype));
        assert!((gpu / cpu - 1.0).abs() < bound, "{dtype}: {gpu} for {cpu}");
    }
}

// ---- training -----------------------------------------------------------------------------------------------------

/// 18 tokens of 2 x 8 x 8 pixels, 2 clips a step.
const SMALL: [&str; 10] = [
    "train.dtype=f32", // heads of 16, and bounds of rounding
    "data.frames=6",
    "data.height=16",
    "data.width=24",
    "model.num_attention_heads=2",
    "model.attention_head_dim=16",
    "model.num_layers=2",
    "model.ffn_dim=64",
    "train.batch=2",
    "train.tile=7",
];

struct Run(TempDir);

impl Run {
    /// To train a small network on the demo's clips, four steps; arguments are flags, or `key=value` for `--set`.
    fn command(&self, name: &str, more: &[&str]) -> Command {
        self.command_of(Path::new("configs/film.toml"), &SMALL, name, more)
    }

    /// The same of another config, with `small` to make it small.
    fn command_of(&self, config: &Path, small: &[&str], name: &str, more: &[&str]) -> Command {
        let out = format!("run.out={}", self.0.path().join(name).display());
        let folder = format!("stash.folder={}", self.0.path().display());
        let sets =
            [&out, &folder, "parallel.ranks=1", "train.steps=4", "train.heldout_every=2", "train.sample_every=0"];
        let mut command = Command::new(program());
        command.arg("train").arg(config).current_dir(root());
        for arg in small.iter().chain(&sets).chain(more) {
            command.args(if arg.starts_with("--") { vec![*arg] } else { vec!["--set", arg] });
        }
        command
    }

    /// Loss and gradient norm of each step.
    fn metrics(&self, name: &str) -> Vec<[f64; 2]> {
        let text = fs::read_to_string(self.0.path().join(name).join("metrics.jsonl")).unwrap();
        let record = |line: &str| -> [f64; 2] {
            let record: Value = serde_json::from_str(line).unwrap();
            ["loss", "grad_norm"].map(|key| record[key].as_f64().unwrap())
        };
        text.lines().map(record).collect()
    }

    fn train(&self, name: &str, more: &[&str]) -> Vec<[f64; 2]> {
        succeed(self.command(name, more).output().unwrap());
        self.metrics(name)
    }

    /// Trains on the first GPUs, a rank on each, as torchrun starts them.
    fn train_on(&self, gpus: usize, name: &str, more: &[&str]) -> Vec<[f64; 2]> {
        let ranks = format!("parallel.ranks={gpus}");
        succeed_on(gpus, || self.command(name, &[more, &[&ranks]].concat()));
        self.metrics(name)
    }
}

/// Runs a command on the first GPUs, a rank on each, as torchrun starts them.
fn succeed_on(gpus: usize, command: impl Fn() -> Command) {
    let port = free_port().to_string();
    let start = |rank: usize| {
        let mut command = command();
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &port).env("WORLD_SIZE", gpus.to_string());
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let children: Vec<_> = (0..gpus).map(start).collect();
    children.into_iter().for_each(|child| drop(succeed(child.wait_with_output().unwrap())));
}

fn differ(a: &[[f64; 2]], b: &[[f64; 2]]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.as_flattened().iter().zip(b.as_flattened()).fold(0.0, |most: f64, (a, b)| most.max((a / b - 1.0).abs()))
}

#[test]
fn training_goes_as_on_the_cpu_whatever_the_stash() {
    let run = Run(TempDir::new().unwrap());
    let cpu = run.train("cpu", &[]);
    let cases: [(&str, &[&str], f64); 5] = [
        ("ram", &[], 1e-4),
        ("disk", &["stash.where=disk"], 1e-4),
        ("rounded", &["stash.dtype=bf16"], 2e-2),
        ("again", &["stash.keep_attention=false", "parallel.head_groups=2"], 1e-4),
        ("moments", &["train.moments=disk", "train.tile=0"], 1e-4),
    ];
    for (name, more, bound) in cases {
        let gpu = run.train(name, &[&["train.device=cuda"], more].concat());
        let differ = differ(&gpu, &cpu);
        assert!(differ < bound, "{name}: losses or norms differ by {differ:.1e}");
    }
}

/// Candle's kernels count elements in 32 bits. However long a rank's rows are, they are launched for no more than a
/// tile: the emulated driver ends a program that does otherwise (on a GPU the test shows nothing).
#[test]
fn candles_kernels_are_launched_for_a_tile_at_most() {
    let run = Run(TempDir::new().unwrap());
    // 1800 rows of width 32 are 57600 elements, of either of two groups of heads 28800. The largest unit's parameters
    // are 27936, a tile's widest rows 24576.
    let long = ["train.batch=100", "train.tile=64", "model.num_layers=1", "train.steps=1", "train.heldout_every=0"];
    let cases: [(&str, &[&str]); 2] =
        [("groups", &["parallel.head_groups=2"]), ("rounded", &["stash.dtype=bf16", "stash.where=disk"])];
    for (name, how) in cases {
        let mut command = run.command(name, &[&long[..], &["train.device=cuda"], how].concat());
        succeed(command.env("EMULATED_CANDLE_MOST", "28000").output().unwrap());
    }
}

#[test]
fn a_run_goes_on_where_it_did_not_start() {
    let run = Run(TempDir::new().unwrap());
    let whole = run.train("whole", &[]);
    run.train("moved", &["train.device=cuda", "train.steps=2"]);
    assert!(differ(&run.train("moved", &["--resume"]), &whole) < 1e-4, "from the GPU to the CPU");
    run.train("back", &["train.steps=2"]);
    assert!(differ(&run.train("back", &["--resume", "train.device=cuda"]), &whole) < 1e-4, "from the CPU to the GPU");
}

/// On a machine with one GPU there is nothing to be seen.
#[test]
fn ranks_on_gpus_of_their_own_train_as_one() {
    let gpus = (0..3).take_while(|&i| Device::new_cuda_with_stream(i).is_ok()).count();
    if gpus < 2 {
        return println!("skipped: one GPU is one rank");
    }
    let run = Run(TempDir::new().unwrap());
    let three_heads = ["model.num_attention_heads=3", "model.attention_head_dim=16"];
    let one_head = ["model.num_attention_heads=1", "model.attention_head_dim=32"];
    let cases: [(&str, &[&str], usize, &[&str]); 5] = [
        ("sequence", &three_heads, gpus, &[]),
        ("ring", &one_head, gpus, &["stash.where=disk"]),
        ("data", &three_heads, 2, &["parallel.data=2", "train.batch=1"]),
        ("zero1", &three_heads, gpus, &["parallel.zero=1"]),
        ("zero3", &three_heads, gpus, &["parallel.zero=3", "parallel.data=1"]),
    ];
    for (name, network, gpus, how) in cases {
        let one = run.train(&format!("{name}-cpu"), network);
        let many = run.train_on(gpus, name, &[network, how].concat());
        let differ = differ(&many, &one);
        assert!(differ < 1e-4, "{name} on {gpus}: losses or norms differ by {differ:.1e}");
    }
}

#[test]
fn samples_are_those_of_the_cpu() {
    let run = Run(TempDir::new().unwrap());
    run.train("run", &["train.steps=1"]);
    let folder = run.0.path().join("run");
    let image = |device: &str| {
        let out = run.0.path().join(format!("{device}.png"));
        let args = ["sample", folder.to_str().unwrap(), "--count", "1", "--steps", "4", "-o", out.to_str().unwrap()];
        longreel(&[&args[..], &["--device", device]].concat());
        image::open(out).unwrap().to_rgb8().into_raw()
    };
    let (cpu, gpu) = (image("cpu"), image("cuda"));
    let most = cpu.iter().zip(&gpu).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most <= Some(2), "pixels differ by up to {most:?}");
}
