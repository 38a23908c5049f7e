//! Noise rows, noisy rows, row orders; the losses, their gradients, and what predictions stand for.

use super::{tensor, values};
use candle_core::{Device, Tensor};
use longreel::diffusion::{
    DiffusionOptions, Objective, Prediction, channel_first, channel_last, heldout_key, noise_rows, noisy, sample_key,
    training_key,
};
use longreel::rng::{Key, Purpose};

fn objective(prediction: Prediction) -> Objective {
    Objective::new(&options!(DiffusionOptions::default(); prediction, clamp: 0.05)).unwrap()
}

/// Normal rows of some clip.
fn rows(sample: u64, len: usize) -> Vec<f32> {
    let mut out = vec![0.0; len];
    Key { seed: 1, purpose: Purpose::Test, step: 0, sample }.stream(0).fill_normal(&mut out);
    out
}

/// The loss as the papers state it, in f64: the mean squared difference of velocities, those of x-prediction by JiT's
/// formula ((x_hat - z) - (x - z)) / max(1 - t, 0.05) with z = x_sigma and t = 1 - sigma.
fn stated(prediction: Prediction, p: &[f64], x0: &[f32], eps: &[f32], sigma: f64) -> f64 {
    let error = |i: usize| {
        let (x0, eps) = (f64::from(x0[i]), f64::from(eps[i]));
        let (t, z) = (1.0 - sigma, (1.0 - sigma) * x0 + sigma * eps);
        match prediction {
            Prediction::V => p[i] - (eps - x0),
            Prediction::X => ((p[i] - z) - (x0 - z)) / (1.0 - t).max(0.05),
        }
    };
    (0..p.len()).map(|i| error(i).powi(2)).sum::<f64>() / p.len() as f64
}

#[test]
fn losses_and_gradients_are_those_of_the_papers() {
    let n = 37;
    let (p, x0, eps) = (rows(0, n), rows(1, n), rows(2, n));
    for prediction in [Prediction::V, Prediction::X] {
        for sigma in [0.0, 0.02, 0.05, 0.4, 1.0] {
            let mut grad = vec![0.0; n];
            let sum = objective(prediction).loss(&p, &x0, &eps, sigma, 1.0 / n as f64, &mut grad);
            let wide: Vec<f64> = p.iter().map(|&p| p.into()).collect();
            let want = stated(prediction, &wide, &x0, &eps, sigma);
            assert!((sum / n as f64 / want - 1.0).abs() < 1e-6, "{prediction:?} {sigma}: {sum}");
            assert_eq!(objective(prediction).loss_only(&p, &x0, &eps, sigma), sum);
            let tensors = [&p, &x0, &eps].map(|rows| Tensor::new(rows.as_slice(), &Device::Cpu).unwrap());
            let (same, slope) = objective(prediction).loss_of(tensors.each_ref(), sigma, 1.0 / n as f64).unwrap();
            assert!((same / sum - 1.0).abs() < 1e-6, "{prediction:?} {sigma}: {same} for {sum}");
            assert!(
                values(&slope).iter().zip(&grad).all(|(a, &b)| (a - f64::from(b)).abs() <= 2e-7 * f64::from(b.abs())),
                "{slope:?}"
            );
            for i in 0..n {
                // Exact for a parabola, whatever the step.
                let [low, high] = [-1.0, 1.0].map(|step| {
                    let mut moved = wide.clone();
                    moved[i] += step;
                    stated(prediction, &moved, &x0, &eps, sigma)
                });
                let slope = 0.5 * (high - low);
                let scale = want.sqrt() / n as f64;
                assert!(
                    (f64::from(grad[i]) - slope).abs() < 1e-6 * scale.max(slope.abs()),
                    "{prediction:?} {sigma} {i}"
                );
            }
        }
    }
}

#[test]
fn a_perfect_prediction_has_no_loss() {
    let (x0, eps) = (rows(1, 9), rows(2, 9));
    let v: Vec<f32> = eps.iter().zip(&x0).map(|(eps, x0)| eps - x0).collect();
    for (prediction, perfect) in [(Prediction::V, &v), (Prediction::X, &x0)] {
        let mut grad = vec![1.0; 9];
        assert_eq!(objective(prediction).loss(perfect, &x0, &eps, 0.01, 1.0, &mut grad), 0.0);
        assert_eq!(grad, [0.0; 9]);
    }
}

#[test]
fn gradients_scale_with_the_weight_and_the_sum_does_not() {
    let (p, x0, eps) = (rows(0, 50), rows(1, 50), rows(2, 50));
    for prediction in [Prediction::V, Prediction::X] {
        let run = |weight: f64| {
            let mut grad = vec![0.0; 50];
            (objective(prediction).loss(&p, &x0, &eps, 0.3, weight, &mut grad), grad)
        };
        let (sum, grad) = run(1e-3);
        for c in [8.0, -0.37, 0.0] {
            let (again, scaled) = run(c * 1e-3);
            assert_eq!(again, sum);
            let right = |(got, one): (&f32, &f32)| (got - c as f32 * one).abs() <= 2e-7 * (c as f32 * one).abs();
            assert!(scaled.iter().zip(&grad).all(right), "{prediction:?} times {c}");
        }
    }
}

#[test]
fn tiles_and_threads_change_nothing() {
    let n = 3 * 4096 + 517;
    let (p, x0, eps) = (rows(0, n), rows(1, n), rows(2, n));
    let objective = objective(Prediction::X);
    let whole = || {
        let mut grad = vec![0.0; n];
        (objective.loss(&p, &x0, &eps, 0.3, 0.1, &mut grad), grad)
    };
    let (sum, grad) = whole();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool.install(whole), (sum, grad.clone()), "{threads} threads");
    }
    let (mut tiled, mut tile_grad) = (0.0, vec![0.0; n]);
    for start in (0..n).step_by(1000) {
        let tile = start..n.min(start + 1000);
        let grad = &mut tile_grad[tile.clone()];
        tiled += objective.loss(&p[tile.clone()], &x0[tile.clone()], &eps[tile], 0.3, 0.1, grad);
    }
    assert!((tiled / sum - 1.0).abs() < 1e-14);
    assert_eq!(tile_grad, grad);
}

#[test]
fn predictions_stand_for_velocities_and_clean_clips() {
    let (x0, eps) = (tensor(&[0.5, -1.0, 0.25]), tensor(&[1.0, 0.5, -2.0]));
    for sigma in [0.01, 0.3, 1.0] {
        let x = (x0.affine(1.0 - sigma, 0.0).unwrap() + eps.affine(sigma, 0.0).unwrap()).unwrap();
        let v = (&eps - &x0).unwrap();
        for (prediction, output) in [(Prediction::V, &v), (Prediction::X, &x0)] {
            let objective = objective(prediction);
            let close = |a: &candle_core::Tensor, b: &candle_core::Tensor| {
                values(a).iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-13)
            };
            assert!(close(&objective.velocity(output, &x, sigma).unwrap(), &v), "{prediction:?} {sigma}");
            assert!(close(&objective.clean(output, &x, sigma).unwrap(), &x0), "{prediction:?} {sigma}");
        }
    }
    assert!(refusal!(Config, objective(Prediction::X).velocity(&x0, &eps, 0.0)).contains("sigma = 0"));
    assert!(objective(Prediction::X).velocity(&x0, &tensor(&[1.0]), 0.5).is_err());
    for clamp in [0.0, -1.0, 1.5, f64::NAN] {
        let config = options!(DiffusionOptions::default(); clamp);
        assert!(refusal!(Config, Objective::new(&config)).contains("clamp"));
    }
}

#[test]
fn noisy_rows_interpolate() {
    let (x0, eps) = ([1.0, -2.0, 0.5], [0.0, 4.0, -1.0]);
    let at = |sigma| {
        let mut out = [f32::NAN; 3];
        noisy(&x0, &eps, sigma, &mut out);
        out
    };
    assert_eq!(at(0.0), x0);
    assert_eq!(at(1.0), eps);
    assert_eq!(at(0.25), [0.75, -0.5, 0.125]);
}

#[test]
fn noise_is_a_token_s_own_whoever_makes_it() {
    let (key, tokens, len) = (training_key(5, 17, 3), 23, 7);
    let mut whole = vec![0.0; tokens * len];
    noise_rows(key, 0..tokens, len, &mut whole);
    for start in (0..tokens).step_by(5) {
        let tile = start..tokens.min(start + 5);
        let mut part = vec![0.0; tile.len() * len];
        noise_rows(key, tile.clone(), len, &mut part);
        assert_eq!(part, whole[tile.start * len..tile.end * len]);
    }
    let mut token = vec![0.0; len];
    key.stream(11).fill_normal(&mut token);
    assert_eq!(token, whole[11 * len..12 * len]);

    let first = |key: Key| {
        let mut out = [0.0; 4];
        noise_rows(key, 2..3, 4, &mut out);
        out
    };
    let keys = [training_key(5, 17, 3), training_key(6, 17, 3), training_key(5, 18, 3), training_key(5, 17, 4)];
    let keys =
        keys.into_iter().chain([heldout_key(5, 17, 3), heldout_key(5, 3, 17), sample_key(5, 3), sample_key(5, 17)]);
    let all: Vec<_> = keys.map(first).collect();
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b), "key {i} repeats another's noise");
    }
    noise_rows(key, 4..4, 7, &mut []);
    noise_rows(key, 4..9, 0, &mut []);
}

#[test]
fn rows_change_between_channel_last_and_first() {
    let (pt, ph, pw, c) = (2, 3, 5, 4);
    let len = pt * ph * pw * c;
    let last: Vec<f32> = (0..2 * len).map(|i| i as f32).collect();
    let (mut first, mut back) = (vec![0.0; 2 * len], vec![0.0; 2 * len]);
    channel_first(&last, len, c, &mut first);
    for row in 0..2 {
        for (t, h, w, channel) in (0..len).map(|i| (i / (ph * pw * c), i / (pw * c) % ph, i / c % pw, i % c)) {
            let from = row * len + ((t * ph + h) * pw + w) * c + channel;
            let to = row * len + ((channel * pt + t) * ph + h) * pw + w;
            assert_eq!(first[to], last[from]);
        }
    }
    channel_last(&first, len, c, &mut back);
    assert_eq!(back, last);
}
