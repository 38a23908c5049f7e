//! Products: which numbers cuBLAS is given, that nothing in the environment changes f32, and parameters that it can
//! read fast, which no file shows.

use std::fs;
use tempfile::TempDir;

use super::faults::{counted, emulated};
use super::{Run, differ, succeed};

/// Heads that the bf16 kernels have.
const HEADS: [&str; 2] = ["model.num_attention_heads=1", "model.attention_head_dim=64"];

#[test]
fn operands_of_bf16_products_are_bf16() {
    if !emulated() {
        return;
    }
    let run = Run(TempDir::new().unwrap());
    let (rounded, exact) = ("products of bf16", "products of f32");
    // Tiles of 6 of 36 rows: none of a single row, whose products would count as sums.
    let bf16 = counted(
        &run,
        "bf16",
        &[&HEADS[..], &["train.dtype=bf16", "train.tile=6", "train.heldout_every=0"]].concat(),
        &[],
    );
    let f32 = counted(&run, "f32", &[&HEADS[..], &["train.tile=6", "train.heldout_every=0"]].concat(), &[]);
    // The conditions' few rows are f32 on every device. Sums of columns by products are not counted.
    assert_eq!(f32(rounded), 0);
    assert_eq!(bf16(rounded) + bf16(exact), f32(exact));
    assert!(bf16(rounded) > 20 * bf16(exact) && bf16(exact) > 0, "{} {}", bf16(rounded), bf16(exact));
}

#[test]
fn nothing_in_the_environment_changes_f32_products() {
    let run = Run(TempDir::new().unwrap());
    let plain = run.train("plain", &["train.device=cuda"]);
    let mut command = run.command("override", &["train.device=cuda"]);
    succeed(command.env("NVIDIA_TF32_OVERRIDE", "1").output().unwrap());
    assert_eq!(run.metrics("override"), plain);
}

/// Biases of 66 and norms of 32 numbers: without gaps between parameters most matrices begin between multiples of 16
/// bytes, which the emulated cuBLAS refuses.
#[test]
fn gaps_between_parameters_are_in_no_file() {
    let run = Run(TempDir::new().unwrap());
    let odd = ["model.ffn_dim=66"];
    let cpu = run.train("cpu", &odd);
    let gpu = run.train("gpu", &[&odd[..], &["train.device=cuda", "train.steps=2"]].concat());
    assert!(differ(&gpu, &cpu[..2]) < 1e-4);
    let sizes = |name: &str, step: u64| {
        let folder = run.0.path().join(name).join(format!("checkpoints/step-{step:08}"));
        [
            "transformer/diffusion_pytorch_model.safetensors",
            "ema/diffusion_pytorch_model.safetensors",
            "optimizer.safetensors",
        ]
        .map(|file| fs::metadata(folder.join(file)).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).len())
    };
    assert_eq!(sizes("gpu", 2), sizes("cpu", 4));
    assert!(differ(&run.train("gpu", &[&odd[..], &["--resume"]].concat()), &cpu) < 1e-4, "from the GPU to the CPU");
}
