//! What may be wrong with a GPU, its driver or its memory, and what longreel says then: one error that says what to do,
//! and no panic. On the emulated driver only, which is told what to lack (docs/gpu.md); on a GPU nothing can be taken
//! away, and these say "skipped".

use std::fs;
use std::process::{Command, Stdio};
use tempfile::TempDir;

use super::{Run, SMALL, free_port, gpu, program, root, succeed};

/// Whether the driver is the emulated one.
pub fn emulated() -> bool {
    let gpu = gpu();
    let name = gpu.as_cuda_device().unwrap().cuda_stream().context().name().unwrap();
    let emulated = name == "emulated GPU";
    if !emulated {
        println!("skipped: nothing can be taken from {name}");
    }
    emulated
}

/// What longreel says that must fail with one error: nothing of a panic, and no other error beside it.
fn refused(mut command: Command, wishes: &[(&str, &str)]) -> String {
    let output = command.envs(wishes.iter().copied()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{wishes:?}: {said}");
    assert!(!said.contains("panicked"), "{wishes:?}: {said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{wishes:?}: {said}");
    errors[0].to_owned()
}

/// A training of four steps on the GPU.
fn training(run: &Run, name: &str, more: &[&str]) -> Command {
    run.command(name, &[&["train.device=cuda"], more].concat())
}

#[test]
fn what_a_gpu_lacks_is_one_error_that_says_what_to_do() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    let cases: [(&[(&str, &str)], &[&str]); 10] = [
        (&[("EMULATED_GPUS", "0")], &["the driver finds no GPU that works", "nvidia-smi", "train.device = \"cpu\""]),
        (&[("EMULATED_DRIVER", "12080")], &["for CUDA 12.8, and longreel needs one for 13.0", "driver 580 or newer"]),
        (&[("EMULATED_CUBLAS", "12")], &["cuBLAS here is of CUDA 12", "needs that of CUDA 13"]),
        (&[("EMULATED_CAPABILITY", "75")], &["compute capability 7.5", "needs 8.0 or newer", "emulated GPU"]),
        (&[("EMULATED_PINNED", "1000")], &["stash: cannot pin", "stash.where = \"disk\""]),
        (&[("EMULATED_MISSING_KERNEL", "gelu_forward_f32")], &["gelu_forward_f32", "lacks a kernel", "build it again"]),
        (&[("EMULATED_MISSING_KERNEL", "copy2d_f32")], &["lacks a kernel", "build it again"]),
        // No room for weights and moments; room for them, but for no tile.
        (
            &[("EMULATED_MEMORY", "1000000")],
            &["the GPU has no memory left", "of 0.0009 GiB tensors use", "are reserved for them"],
        ),
        (&[("EMULATED_MEMORY", "1550000")], &["the GPU has no memory left", "train.tile", "longreel plan"]),
        (&[("LONGREEL_GPU_CHECK", "yes")], &["LONGREEL_GPU_CHECK=\"yes\": must be 0 or 1"]),
    ];
    for (i, (wishes, said)) in cases.into_iter().enumerate() {
        let error = refused(training(&run, &format!("run-{i}"), &["train.tile=0"]), wishes);
        said.iter().for_each(|part| assert!(error.contains(part), "{wishes:?}: {error}"));
    }
}

#[test]
fn an_nccl_that_is_too_old_is_one_error() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    let port = free_port().to_string();
    let rank = |rank: &str| {
        let mut command = training(&run, "run", &["parallel.ranks=2"]);
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1")]);
        command.env("MASTER_PORT", &port);
        command
    };
    let mut other = rank("1");
    let mut other = other.env("EMULATED_NCCL", "21703").stderr(Stdio::null()).spawn().unwrap();
    let error = refused(rank("0"), &[("EMULATED_NCCL", "21703")]);
    assert!(!other.wait().unwrap().success());
    assert!(error.contains("NCCL here is 2.17.3, and longreel needs 2.18 or newer"), "{error}");
}

/// As on a GPU, the launch succeeds, and some later call reports the failure.
#[test]
fn a_kernel_that_fails_is_named_if_that_is_wanted() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    for kernel in ["gate_forward_f32", "copy2d_f32"] {
        let fault = ("EMULATED_FAULT", &*format!("{kernel}:3"));
        let error = refused(training(&run, kernel, &[]), &[fault]);
        assert!(error.contains("a kernel that was launched earlier has failed"), "{error}");
        assert!(error.contains("LONGREEL_GPU_CHECK=1"), "{error}");
        let named = refused(training(&run, &format!("{kernel}-named"), &[]), &[fault, ("LONGREEL_GPU_CHECK", "1")]);
        match kernel {
            // 18 tokens of 32 features, tiles of 7: a block of 256 columns and one of 64 rows.
            "gate_forward_f32" => {
                assert!(
                    named.contains("after kernel gate_forward_f32 on a grid of 1 x 1 x 1 blocks of 256 threads"),
                    "{named}"
                )
            }
            // One of Candle's: it bears no name of ours.
            _ => assert!(named.contains("of what was asked for before"), "{named}"),
        }
    }
}

#[test]
fn the_check_changes_no_number() {
    let run = Run(TempDir::new().unwrap());
    let plain = run.train("plain", &["train.device=cuda"]);
    let mut checked = training(&run, "checked", &[]);
    succeed(checked.env("LONGREEL_GPU_CHECK", "1").output().unwrap());
    assert_eq!(run.metrics("checked"), plain);
}

/// Where our own code allocates there is a second try, after the pool has given back what is free in it; where Candle
/// does, an error.
#[test]
fn memory_in_pieces_is_given_back_and_asked_for_once_more() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    let short = ["train.steps=1", "train.heldout_every=0"];
    let mut went_on = 0;
    for number in 300..306 {
        let (name, path) = (format!("run-{number}"), run.0.path().join(format!("{number}.calls")));
        let mut command = training(&run, &name, &short);
        let output = command.env("EMULATED_NO_ROOM", number.to_string()).env("EMULATED_CALLS", &path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            assert!(fs::read_to_string(path).unwrap().contains("cuMemPoolTrimTo 1\n"), "{number}");
            went_on += 1;
        } else {
            assert!(said.contains("error: the GPU has no memory left: of 16.00 GiB tensors use"), "{number}: {said}");
        }
    }
    assert!(went_on > 0, "none of these allocations is ours");
}

/// What the emulated driver counted of a process.
pub fn counted(run: &Run, name: &str, more: &[&str], wishes: &[(&str, &str)]) -> impl Fn(&str) -> u64 + use<> {
    let path = run.0.path().join(format!("{name}.calls"));
    let mut command = training(run, name, more);
    succeed(command.envs(wishes.iter().copied()).env("EMULATED_CALLS", &path).output().unwrap());
    let text = fs::read_to_string(path).unwrap();
    move |what| {
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        line.unwrap_or(0)
    }
}

#[test]
fn the_pool_keeps_its_memory_and_the_driver_starts_with_many_connections() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    let count = counted(&run, "run", &[], &[]);
    assert_eq!(count("cuMemPoolSetAttribute"), 1, "the release threshold, once a device");
    assert_eq!(count("bytes given back at a synchronisation"), 0);
    assert_eq!(count("cuMemPoolTrimTo"), 0, "there is memory");
    assert_eq!(count("driver started with many connections"), 1);
    let few = counted(&run, "few", &[], &[("CUDA_DEVICE_MAX_CONNECTIONS", "2")]);
    assert_eq!(few("driver started with many connections"), 0, "what the user sets stays");
}

#[test]
fn f32_on_a_gpu_is_for_short_clips_and_bf16_is_the_default() {
    let run = Run(TempDir::new().unwrap());
    let mut long = Command::new(program());
    long.args(["bench", "attention", "--device", "cuda", "--dtype", "f32", "--tokens", "8193"]).current_dir(root());
    let error = refused(long, &[]);
    assert!(error.contains("up to 8192 tokens a rank, and this one has 8193: set train.dtype = \"bf16\""), "{error}");
    let network = ["model.num_attention_heads=1", "model.attention_head_dim=64", "train.steps=2"];
    let mut command = Command::new(program());
    command.args(["train", "configs/film.toml"]).current_dir(root());
    let out = format!("run.out={}", run.0.path().join("run").display());
    let small = SMALL.iter().filter(|set| !set.starts_with("train.dtype"));
    for set in small.chain(&network).chain(&["parallel.ranks=1", "train.sample_every=0", "train.device=cuda", &out]) {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    assert!(log.contains("computing in bf16 on GPU 0, "), "{log}");
    let written = fs::read_to_string(run.0.path().join("run/config.toml")).unwrap();
    assert!(written.lines().any(|line| line == "dtype = \"bf16\""), "{written}");
}
