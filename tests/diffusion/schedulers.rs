//! Wan's samplers against diffusers' schedulers: sigmas, timesteps and trajectories. The golden file and its story are
//! in
//! `golden/schedules/make.py`.

use super::values;
use candle_core::{DType, Device, Tensor};
use longreel::diffusion::{Sampler, SamplerKind};
use std::collections::HashMap;

fn golden() -> HashMap<String, Tensor> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/schedules/schedules.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

const KINDS: [(&str, SamplerKind); 2] = [("unipc", SamplerKind::WanUnipc), ("euler", SamplerKind::FlowEuler)];

/// Sigmas within f32's rounding of the shift; timesteps exactly where they are whole.
#[test]
fn sigmas_and_timesteps_are_those_of_diffusers() {
    let golden = golden();
    for (name, kind) in KINDS {
        for shift in [1, 3, 5, 12] {
            for steps in [4, 10, 50] {
                let of = |what| values(&golden[&format!("{name}.shift{shift}.steps{steps}.{what}")]);
                let sigmas = kind.sigmas(steps, f64::from(shift)).unwrap();
                let (wanted, case) = (of("sigmas"), format!("{name}, shift {shift}, {steps} steps"));
                assert_eq!(sigmas.len(), wanted.len());
                assert!(sigmas.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-7), "{case}: {sigmas:?} {wanted:?}");
                let times: Vec<f64> = sigmas[..steps].iter().map(|&sigma| kind.timestep(sigma)).collect();
                let within = if kind == SamplerKind::WanUnipc { 0.0 } else { 1e-4 };
                assert!(times.iter().zip(of("timesteps")).all(|(a, b)| (a - b).abs() <= within), "{case}: {times:?}");
            }
        }
    }
}

/// The network `v = a x + b sin(t / 300)` is told the sampler's timesteps.
#[test]
fn trajectories_are_those_of_diffusers() {
    let golden = golden();
    let path = |part: &str| golden[&format!("path.{part}")].to_dtype(DType::F64).unwrap();
    let (a, b) = (path("a"), path("b"));
    for (name, kind) in KINDS {
        for steps in [4, 10] {
            let sampler = Sampler::new(kind, kind.sigmas(steps, 3.0).unwrap()).unwrap();
            assert_eq!(sampler.calls(), steps);
            let velocity = |x: &Tensor, sigma: f64| Ok(((&a * x)? + (&b * (kind.timestep(sigma) / 300.0).sin())?)?);
            let end = values(&sampler.run(path("start"), velocity).unwrap());
            let wanted = values(&path(&format!("{name}.steps{steps}.end")));
            let off = end.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(off < 1e-6, "{name}, {steps} steps: off by {off:e}");
        }
    }
}

/// One step is from noise to the clean prediction, and many steps fall.
#[test]
fn any_number_of_steps_has_sigmas_that_fall_to_zero() {
    for (_, kind) in KINDS {
        for steps in [1, 2, 3, 1000] {
            let sigmas = kind.sigmas(steps, 5.0).unwrap();
            assert_eq!(sigmas.len(), steps + 1);
            assert!(sigmas[0] > 0.999_998 && sigmas[steps] == 0.0 && sigmas.is_sorted_by(|a, b| a > b));
            Sampler::new(kind, sigmas).unwrap();
        }
        assert!(refusal!(Config, kind.sigmas(0, 5.0)).contains("steps = 0"));
    }
}
