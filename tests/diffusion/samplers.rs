//! The samplers beyond their order: known values, the distribution they end in, shards, and what they refuse.

use super::flows::{Gaussian, MIXTURE, network, spaced};
use super::{tensor, values};
use candle_core::{DType, Device, Tensor};
use longreel::bail;
use longreel::diffusion::SamplerKind::{self, Dpmpp, Euler, FlowEuler, Heun, Unipc, WanUnipc};
use longreel::diffusion::{DiffusionOptions, Objective, Prediction, Sampler, inference_sigmas, noise_rows, sample_key};

const ALL: [SamplerKind; 6] = [Euler, Heun, Dpmpp, Unipc, WanUnipc, FlowEuler];

/// `count` normal numbers in a tensor of shape [count / 2, 2].
fn noise(count: usize) -> Tensor {
    let mut rows = vec![0.0; count];
    noise_rows(sample_key(3, 0), 0..count / 2, 2, &mut rows);
    Tensor::from_vec(rows, (count / 2, 2), &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
}

/// Against diffusers 0.42.1, in f64, from x = (1.3, -0.4, 0.05):
///
///     def xhat(x, s): return torch.tanh(x) * (1 - 0.3 * s) + 0.2 * s * s
///     S = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)       # order 2, bh2
///     S = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)   # also order 2
///     S.set_timesteps(len(sigmas) - 1); S.sigmas = torch.tensor(sigmas); S.timesteps = 1000 * S.sigmas[:-1]
///     for s, t in zip(S.sigmas, S.timesteps): x = S.step((x - xhat(x, s)) / s, t, x).prev_sample
///
/// (x of shape [1, 3].) Its DPM-Solver++ casts the state to f32.
#[test]
fn multistep_samplers_agree_with_diffusers() {
    let sigmas = vec![0.98, 0.9, 0.77, 0.6, 0.42, 0.2, 0.0];
    let velocity = |x: f64, s: f64| (x - (x.tanh() * (1.0 - 0.3 * s) + 0.2 * s * s)) / s;
    let unipc = [0.639198372771623, -0.205288523708106, 0.117219540081029];
    let dpmpp = [0.640375973622742, -0.202905460112641, 0.119458402254890];
    for (kind, want, tolerance) in [(Unipc, unipc, 1e-14), (Dpmpp, dpmpp, 2e-7)] {
        let sampler = Sampler::new(kind, sigmas.clone()).unwrap();
        let end = values(&sampler.run(tensor(&[1.3, -0.4, 0.05]), network(velocity)).unwrap());
        for (got, want) in end.iter().zip(want) {
            assert!((got - want).abs() < tolerance, "{kind:?}: {got} is not {want}");
        }
    }
}

/// Two steps of each, worked out by hand for v = x + sigma.
#[test]
fn euler_and_heun_take_the_steps_they_are_named_for() {
    let run = |kind| {
        let sampler = Sampler::new(kind, vec![1.0, 0.5, 0.0]).unwrap();
        values(&sampler.run(tensor(&[2.0]), network(|x, s| x + s)).unwrap())[0]
    };
    // Euler: v = 3, x = 0.5; v = 1, x = 0.
    assert_eq!(run(Euler), 0.0);
    // Heun: v = 3 and, at (0.5, 0.5), 1: x = 2 - 0.25 * 4 = 1; then Euler: v = 1.5, x = 0.25.
    assert_eq!(run(Heun), 0.25);
}

#[test]
fn one_step_is_the_clean_prediction_for_every_sampler() {
    for kind in ALL {
        let sampler = Sampler::new(kind, inference_sigmas(1, 5.0).unwrap()).unwrap();
        let end = sampler.run(tensor(&[2.0, -1.0]), network(|x, s| (x - 0.25) / s)).unwrap();
        assert_eq!(values(&end), [0.25, 0.25], "{kind:?}");
    }
}

#[test]
fn noise_becomes_the_data_s_distribution() {
    let start = noise(4096);
    let moments = |x: &[f64]| {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        [mean, x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64]
    };
    let [noise_mean, noise_variance] = moments(&values(&start));
    assert!(noise_mean.abs() < 4.0 / 64.0 && (noise_variance - 1.0).abs() < 4.0 * 2f64.sqrt() / 64.0);

    // The flow of a Gaussian is linear, so the sample moments of the end follow exactly from those of the start.
    let gaussian = Gaussian { m: 0.6, s: 0.3 };
    // The mixture's are compared with those of the exact flow of the same start.
    let exact: Vec<f64> = values(&start).into_iter().map(|x| MIXTURE.flow(x, 1.0, 0.0, 200)).collect();
    let (a, b, share) = (&MIXTURE.a, &MIXTURE.b, MIXTURE.share);
    let mean = share * a.m + (1.0 - share) * b.m;
    let variance = share * (a.s * a.s + a.m * a.m) + (1.0 - share) * (b.s * b.s + b.m * b.m) - mean * mean;
    let [exact_mean, exact_variance] = moments(&exact);
    assert!((exact_mean - mean).abs() < 4.0 * (variance / 4096.0).sqrt(), "the reference itself: mean {exact_mean}");
    assert!((exact_variance - variance).abs() < 0.05, "the reference itself: variance {exact_variance}");

    // Of the mean, absolute, and of the variance, relative: small against sampling noise for all but Euler.
    let tolerances = [(Euler, 2e-3, 0.1), (Heun, 1e-4, 6e-3), (Dpmpp, 3e-4, 1.6e-2), (Unipc, 1e-4, 8e-3)];
    for (kind, of_mean, of_variance) in tolerances {
        let check = |name: &str, end: Tensor, want_mean: f64, want_variance: f64| {
            assert_eq!(end.dims(), [2048, 2]);
            let [mean, variance] = moments(&values(&end));
            assert!((mean - want_mean).abs() < of_mean, "{kind:?}, {name}: mean {mean}, not {want_mean}");
            let ratio = variance / want_variance;
            assert!((ratio - 1.0).abs() < of_variance, "{kind:?}, {name}: variance {variance}, not {want_variance}");
        };
        let sampler = Sampler::new(kind, inference_sigmas(50, 1.0).unwrap()).unwrap();
        let end = sampler.run(start.clone(), network(|x, s| gaussian.velocity(x, s))).unwrap();
        check("Gaussian", end, 0.6 + 0.3 * noise_mean, 0.09 * noise_variance);
        let end = sampler.run(start.clone(), network(|x, s| MIXTURE.velocity(x, s))).unwrap();
        check("mixture", end, exact_mean, exact_variance);
    }
}

#[test]
fn x_prediction_samples_what_v_prediction_does() {
    let config = options!(DiffusionOptions::default(); prediction: Prediction::X);
    let objective = Objective::new(&config).unwrap();
    for kind in ALL {
        let sampler = Sampler::new(kind, inference_sigmas(8, 3.0).unwrap()).unwrap();
        let mut velocity = network(|x, s| MIXTURE.velocity(x, s));
        let v = values(&sampler.run(noise(64), &mut velocity).unwrap());
        let from_clean = |x: &Tensor, sigma: f64| {
            let clean = (x - velocity(x, sigma)?.affine(sigma, 0.0)?)?;
            objective.velocity(&clean, x, sigma)
        };
        let x = values(&sampler.run(noise(64), from_clean).unwrap());
        assert!(v.iter().zip(&x).all(|(v, x)| (v - x).abs() < 1e-12), "{kind:?}");
    }
}

#[test]
fn shards_and_f32_give_the_whole_in_f64() {
    for kind in ALL {
        let sampler = Sampler::new(kind, inference_sigmas(10, 1.0).unwrap()).unwrap();
        let run = |x: Tensor| sampler.run(x, network(|x, s| MIXTURE.velocity(x, s))).unwrap();
        let whole = run(noise(50));
        let parts = [run(noise(50).narrow(0, 0, 7).unwrap()), run(noise(50).narrow(0, 7, 18).unwrap())];
        assert_eq!(values(&whole), values(&Tensor::cat(&parts, 0).unwrap()), "{kind:?}: bits of shards");
        let single = run(noise(50).to_dtype(DType::F32).unwrap());
        assert_eq!(single.dtype(), DType::F32);
        let worst = values(&whole).iter().zip(values(&single)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 5e-6, "{kind:?}: f32 differs by {worst:e}");
    }
}

#[test]
fn calls_are_counted_and_end_before_zero() {
    for kind in ALL {
        for end in [0.0, 0.2] {
            let sampler = Sampler::new(kind, spaced(1.0, end, 5)).unwrap();
            assert_eq!(sampler.start(), 1.0);
            let mut sigmas = vec![];
            let velocity = |x: &Tensor, sigma: f64| {
                sigmas.push(sigma);
                Ok(x.clone())
            };
            sampler.run(tensor(&[1.0]), velocity).unwrap();
            assert_eq!(sigmas.len(), sampler.calls(), "{kind:?} to {end}");
            assert!(sigmas.iter().all(|sigma| *sigma > 0.0), "{kind:?}: {sigmas:?}");
        }
    }
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let refuse = |sigmas: &[f64]| refusal!(Config, Sampler::new(Euler, sigmas.to_vec()));
    assert!(refuse(&[]).contains("two sigmas"));
    assert!(refuse(&[1.0]).contains("two sigmas"));
    assert!(refuse(&[1.0, f64::NAN, 0.0]).contains("sigma 1 "));
    assert!(refuse(&[1.5, 0.0]).contains("sigma 0 "));
    assert!(refuse(&[1.0, -0.1]).contains("sigma 1 "));
    assert!(refuse(&[1.0, 0.5, 0.5]).contains("must fall"));
    assert!(refuse(&[0.5, 1.0]).contains("must fall"));

    for kind in ALL {
        let sampler = Sampler::new(kind, vec![1.0, 0.5, 0.0]).unwrap();
        let x = tensor(&[1.0, 2.0]);
        assert!(refusal!(Shape, sampler.run(x.clone(), |x, _| Ok(x.narrow(0, 0, 1)?))).contains("sigma = 1"));
        assert!(refusal!(Shape, sampler.run(x.clone(), |x, _| Ok(x.to_dtype(DType::F32)?))).contains("F32"));
        let failing =
            |x: &Tensor, sigma: f64| if sigma < 1.0 { bail!(Environment, "out of memory") } else { Ok(x.clone()) };
        assert_eq!(refusal!(Environment, sampler.run(x.clone(), failing)), "out of memory", "{kind:?}");
    }
}
