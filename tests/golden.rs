//! `longreel forward` against diffusers' WanTransformer3DModel: the sample, the loss and every parameter's gradient, on
//! 1, 2 and 3 ranks, in f32 and bf16; and what the command does with input it cannot use.
//!
//! The golden files and their story are in `golden/make.py`. Not here: each piece of the network against its formula
//! (`model.rs`), ranks against one another on many shapes (`engine.rs`), bad input (`golden/refusals.rs`).

mod lora;
mod pads;
pub mod pipeline;
mod refusals;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Bounds on the norm of the difference over the norm, tensor by tensor. Diffusers' own f32 run is off its f64 run by
/// 3e-7 in the sample and up to 1e-6 in a gradient; a wrong eps shows at 1e-4.
const SAMPLE: f64 = 1e-5;
const GRADIENT: f64 = 1e-5;
const LOSS: f64 = 1e-5;

// ---- the command and its files ------------------------------------------------------------------------------------

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Runs `longreel forward` with these arguments: did it succeed, and what did it say on both streams?
/// A run that has not ended after two minutes is a hang.
fn forward(args: &[&str]) -> (bool, String) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_longreel"))
        .arg("forward")
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.reopen().unwrap())
        .stderr(log.reopen().unwrap())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("longreel forward {args:?} hangs; it said:\n{}", fs::read_to_string(log.path()).unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    (status.success(), String::from_utf8_lossy(&fs::read(log.path()).unwrap()).into_owned())
}

/// A tensor of a file: its shape and values.
struct Values {
    shape: Vec<usize>,
    data: Vec<f64>,
}

/// Reads a file of f32 tensors, of which the timesteps may be whole numbers.
fn read(path: &Path) -> BTreeMap<String, Values> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let values = |name: &str, view: TensorView| {
        let data = match view.dtype() {
            Dtype::F32 => {
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            Dtype::I64 => {
                view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64).collect()
            }
            other => panic!("{name} of {} is {other:?}", path.display()),
        };
        Values { shape: view.shape().to_vec(), data }
    };
    file.tensors().into_iter().map(|(name, view)| (name.clone(), values(&name, view))).collect()
}

/// Norm of the difference over the norm of `want`, over the named tensors taken as one vector.
fn error<'a>(
    got: &BTreeMap<String, Values>,
    want: &BTreeMap<String, Values>,
    names: impl Iterator<Item = &'a str>,
) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for name in names {
        let (g, w) = (&got[name], &want[name]);
        // The loss is one number, whether as [] or as [1].
        let same = g.shape == w.shape || (name == "loss" && g.data.len() == 1);
        assert!(same, "{name}: {:?}, not {:?}", g.shape, w.shape);
        difference += g.data.iter().zip(&w.data).map(|(g, w)| (g - w) * (g - w)).sum::<f64>();
        norm += w.data.iter().map(|w| w * w).sum::<f64>();
    }
    assert!(norm > 0.0, "a reference of zero norm tells nothing");
    (difference / norm).sqrt()
}

/// Runs a case and hands out (what it wrote, the golden values, diffusers' own bf16 error of sample and gradient).
fn run(name: &str, flags: &[&str]) -> (BTreeMap<String, Values>, BTreeMap<String, Values>, [f64; 2]) {
    let (dir, case) = (TempDir::new().unwrap(), case(name));
    let (model, inputs, out) = (case.join("transformer"), case.join("inputs.safetensors"), dir.path().join("out"));
    let mut args = vec![model.to_str().unwrap(), inputs.to_str().unwrap(), "-o", out.to_str().unwrap()];
    args.extend(flags);
    let (ok, said) = forward(&args);
    assert!(ok, "{name} {flags:?}: {said}");
    let mut want = read(&case.join("expected.safetensors"));
    // Cases of `golden/wan.py` say nothing of bf16.
    let bf16 =
        ["sample", "grad"].map(|what| want.remove(&format!("bf16_error.{what}")).map_or(f64::NAN, |v| v.data[0]));
    (read(&out), want, bf16)
}

// ---- agreement ----------------------------------------------------------------------------------------------------

/// f32 on 1, 2 and 3 ranks: the same names as the reference has, and every one of them close.
fn agrees(name: &str) {
    agrees_within(name, SAMPLE, LOSS.max(GRADIENT));
}

/// As [`agrees`], with these bounds on sample, and on loss and gradients.
fn agrees_within(name: &str, sample: f64, gradient: f64) {
    for ranks in ["1", "2", "3"] {
        let (got, want, _) = run(name, &["--grads", "--ranks", ranks]);
        assert!(got.keys().eq(want.keys()), "{name}: {:?}\nare not\n{:?}", got.keys(), want.keys());
        let mut worst = ("", 0.0);
        for tensor in want.keys() {
            let off = error(&got, &want, [tensor.as_str()].into_iter());
            let bound = if tensor == "sample" { sample } else { gradient };
            assert!(off <= bound, "{name} on {ranks} ranks: {tensor} is off by {off:.1e}, more than {bound:.0e}");
            if off > worst.1 {
                worst = (tensor, off);
            }
        }
        println!("{name} on {ranks} ranks: worst {} {:.1e}", worst.0, worst.1);
    }
}

#[test]
fn two_samples_with_timesteps_of_their_own() {
    agrees("batch");
}

#[test]
fn sharded_weights_patches_in_time_and_other_channels_out_than_in() {
    agrees("shards");
}

#[test]
fn many_ragged_tiles_and_an_eps_that_shows() {
    agrees("long");
}

#[test]
fn an_image_through_weights_stored_in_bf16() {
    agrees("bf16");
}

/// Wan 2.2 TI2V-5B's: a clip's first frame is given, so its tokens are at time 0; the other clip's are at two times in
/// turn, every fifth at the second.
#[test]
fn a_time_for_each_token() {
    agrees_within("tokens", 2e-6, 2e-6);
}

/// One time for all tokens of a clip is the clip's time; another number of times than tokens is refused.
#[test]
fn equal_times_of_tokens_are_the_time_of_their_clip() {
    let (case, dir) = (case("batch"), TempDir::new().unwrap());
    let (given, out) = (dir.path().join("in.safetensors"), dir.path().join("out.safetensors"));
    let inputs = longreel::files::Tensors::open(&case.join("inputs.safetensors")).unwrap();
    let write = |tokens: usize| {
        let other = |name: &'static str| (name, inputs.shape(name).unwrap().to_vec(), inputs.read_f32(name).unwrap());
        let times: Vec<f32> =
            inputs.read_numbers("timestep").unwrap().into_iter().flat_map(|t| vec![t; tokens]).collect();
        let times = ("timestep", vec![2, tokens], times);
        let all = [other("hidden_states"), other("encoder_hidden_states"), times];
        longreel::files::write_tensors(&given, all).unwrap();
    };
    let model = case.join("transformer");
    let args = [model.to_str().unwrap(), given.to_str().unwrap(), "--grads", "--force", "-o", out.to_str().unwrap()];
    let want = read(&case.join("expected.safetensors"));
    write(75);
    for ranks in ["1", "2"] {
        let (ok, said) = forward(&[&args[..], &["--ranks", ranks]].concat());
        assert!(ok, "{said}");
        let got = read(&out);
        for tensor in got.keys() {
            let off = error(&got, &want, [tensor.as_str()].into_iter());
            assert!(off <= SAMPLE, "{tensor} on {ranks} ranks is off by {off:.1e}");
        }
    }
    write(74);
    let (ok, said) = forward(&args);
    assert!(!ok && said.contains("[2, 74]") && said.contains("[2, 75]"), "{said}");
}

#[test]
fn more_channels_in_than_out() {
    agrees_within("channels", 2e-6, 2e-6);
}

/// In bf16 we may be off by twice what diffusers' own bf16 is (the criterion FlashAttention uses for its kernels), and
/// must be off by more than f32 would be: else bf16 was not used.
#[test]
fn bf16_is_as_good_as_diffusers_bf16() {
    for name in ["batch", "shards", "long", "bf16"] {
        for ranks in ["1", "3"] {
            let (got, want, [sample, gradient]) = run(name, &["--grads", "--dtype", "bf16", "--ranks", ranks]);
            assert!(got.keys().eq(want.keys()));
            let grads = want.keys().map(String::as_str).filter(|n| n.starts_with("grad."));
            for (what, off, theirs) in [
                ("sample", error(&got, &want, ["sample"].into_iter()), sample),
                ("gradient", error(&got, &want, grads), gradient),
            ] {
                let said = format!("{name} on {ranks} ranks: {what} is off by {off:.1e}, diffusers by {theirs:.1e}");
                println!("{said}");
                assert!(off <= 2.0 * theirs, "{said}");
                assert!(off > 1e-4, "{said}: that is not bf16");
            }
        }
    }
}

#[test]
fn without_grads_only_the_sample_is_written() {
    let (got, want, _) = run("bf16", &["--dtype", "f32"]);
    assert!(got.keys().eq(["sample"]), "{:?}", got.keys());
    assert!(error(&got, &want, ["sample"].into_iter()) <= SAMPLE);
}
