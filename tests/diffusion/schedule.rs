//! Sigmas: the shift, training draws and their quantiles, sampling lists; label dropout.

use longreel::diffusion::{
    DiffusionOptions, Dropout, LossWeight, SigmaDistribution, Timesteps, inference_sigmas, resolve_shift, shift_sigma,
    timestep,
};

fn distribution(timesteps: Timesteps, logit_mean: f64, logit_std: f64, shift: f64) -> SigmaDistribution {
    SigmaDistribution::new(&options!(DiffusionOptions::default(); timesteps, logit_mean, logit_std, shift), 4096)
        .unwrap()
}

#[test]
fn the_shift_has_known_values_and_an_inverse() {
    assert_eq!(shift_sigma(0.5, 3.0), 0.75);
    assert_eq!(shift_sigma(0.25, 1.0), 0.25);
    assert_eq!([shift_sigma(0.0, 7.0), shift_sigma(1.0, 7.0)], [0.0, 1.0]);
    for sigma in [0.01, 0.3, 0.99] {
        assert!((shift_sigma(shift_sigma(sigma, 5.0), 1.0 / 5.0) - sigma).abs() < 1e-15);
        // The ratio of noise to data grows a-fold.
        let ratio = |sigma: f64| sigma / (1.0 - sigma);
        assert!((ratio(shift_sigma(sigma, 5.0)) / ratio(sigma) - 5.0).abs() < 1e-12);
    }
    assert_eq!(timestep(0.25), 250.0);
}

#[test]
fn the_shift_follows_from_tokens_where_asked() {
    assert_eq!(resolve_shift(0.0, 1024, 4096).unwrap(), 2.0);
    assert_eq!(resolve_shift(0.0, 4096, 1024).unwrap(), 0.5);
    assert_eq!(resolve_shift(3.0, 0, 0).unwrap(), 3.0);
    let config =
        options!(DiffusionOptions::default(); shift: 0.0, shift_base_tokens: 1024, timesteps: Timesteps::Uniform);
    assert_eq!(SigmaDistribution::new(&config, 9 * 1024).unwrap().quantile(0.5), 0.75);
    assert!(refusal!(Config, resolve_shift(0.0, 0, 8)).contains("shift_base_tokens"));
    assert!(refusal!(Config, resolve_shift(0.0, 8, 0)).contains("tokens"));
    for shift in [-1.0, f64::NAN, f64::INFINITY] {
        assert!(refusal!(Config, resolve_shift(shift, 8, 8)).contains("shift ="));
    }
}

/// Normal quantiles from torch.special.ndtri in f64.
#[test]
fn quantiles_have_known_values() {
    let known = [(1e-4, -3.7190164854556804_f64), (0.01, -2.3263478740408408), (0.25, -0.6744897501960817), (0.5, 0.0)];
    for (q, normal) in known.into_iter().chain([(0.9, 1.2815515655446004), (0.9999, 3.7190164854557084)]) {
        let plain = 1.0 / (1.0 + (-(0.8 + 0.7 * normal)).exp());
        let got = distribution(Timesteps::LogitNormal, 0.8, 0.7, 2.0).quantile(q);
        assert!((got - 2.0 * plain / (1.0 + plain)).abs() < 1e-12, "{q}: {got}");
    }
    assert_eq!(distribution(Timesteps::Uniform, 0.0, 1.0, 3.0).quantile(0.5), 0.75);
    assert_eq!(distribution(Timesteps::Uniform, 0.0, 1.0, 1.0).heldout(4), [0.125, 0.375, 0.625, 0.875]);
    let heldout = distribution(Timesteps::LogitNormal, 0.0, 1.0, 1.0).heldout(5);
    assert!(heldout.is_sorted() && (heldout[2] - 0.5).abs() < 1e-15 && (heldout[0] + heldout[4] - 1.0).abs() < 1e-12);
}

#[test]
fn draws_are_distributed_as_their_quantiles_say() {
    for timesteps in [Timesteps::LogitNormal, Timesteps::Uniform] {
        let distribution = distribution(timesteps, -0.4, 1.3, 2.5);
        let n = 20_000;
        let draws: Vec<f64> = (0..n).map(|i| distribution.draw(7, i / 16, i % 16)).collect();
        assert!(draws.iter().all(|sigma| (0.0..=1.0).contains(sigma)));
        for q in [0.01, 0.1, 0.3, 0.5, 0.8, 0.97] {
            let threshold = distribution.quantile(q);
            let share = draws.iter().filter(|sigma| **sigma < threshold).count() as f64 / n as f64;
            assert!((share - q).abs() < 4.0 * (q * (1.0 - q) / n as f64).sqrt(), "{timesteps:?} {q}: {share}");
        }
        let (step, sample, seed) = (distribution.draw(7, 1, 0), distribution.draw(7, 0, 1), distribution.draw(8, 0, 0));
        let first = distribution.draw(7, 0, 0);
        assert!(first != step && first != sample && first != seed && step != sample);
        assert_eq!(first, draws[0]);
    }
}

#[test]
fn labels_are_dropped_at_their_share_and_not_with_the_timestep() {
    let dropout = Dropout::of_labels;
    let tenth = dropout(0.1).unwrap();
    let n = 20_000;
    let dropped: Vec<bool> = (0..n).map(|i| tenth.drops(7, i / 16, i % 16)).collect();
    let share = dropped.iter().filter(|dropped| **dropped).count() as f64 / n as f64;
    assert!((share - 0.1).abs() < 4.0 * (0.09 / n as f64).sqrt(), "{share}");
    assert!((0..200).all(|i| !dropout(0.0).unwrap().drops(7, i, 0) && dropout(1.0).unwrap().drops(7, i, 0)));
    // If both came from one stream, dropped samples would all have small sigmas.
    let uniform = distribution(Timesteps::Uniform, 0.0, 1.0, 1.0);
    let sigmas = (0..n).filter(|&i| dropped[i as usize]).map(|i| uniform.draw(7, i / 16, i % 16));
    let mean = sigmas.sum::<f64>() / (share * n as f64);
    assert!((mean - 0.5).abs() < 0.03, "{mean}");
    for share in [-0.1, 1.1, f64::NAN] {
        assert!(refusal!(Config, dropout(share)).contains("label_dropout"));
        assert!(refusal!(Config, Dropout::of_captions(share)).contains("caption_dropout"));
    }
    // Captions go by a stream of their own.
    let captions = Dropout::of_captions(0.1).unwrap();
    let both = (0..n).filter(|&i| dropped[i as usize] && captions.drops(7, i / 16, i % 16)).count();
    assert!((both as f64 / n as f64 - 0.01).abs() < 0.004, "{both}");
}

#[test]
fn sampling_goes_from_one_to_zero() {
    let close = |a: &[f64], b: &[f64]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-15);
    assert!(close(&inference_sigmas(4, 1.0).unwrap(), &[1.0, 0.75025, 0.5005, 0.25075, 0.0]));
    let shifted = [1.0, 3.0 * 0.5005 / (1.0 + 2.0 * 0.5005), 0.0];
    assert!(close(&inference_sigmas(2, 3.0).unwrap(), &shifted));
    assert_eq!(inference_sigmas(1, 3.0).unwrap(), [1.0, 0.0]);
    assert!(inference_sigmas(5000, 9.0).unwrap().is_sorted_by(|a, b| a > b));
    assert!(refusal!(Config, inference_sigmas(0, 1.0)).contains("steps = 0"));
    for shift in [0.0, -1.0, f64::NAN] {
        assert!(refusal!(Config, inference_sigmas(3, shift)).contains("shift ="));
    }
}

#[test]
fn distributions_out_of_range_are_refused() {
    let refuse = |config: DiffusionOptions| refusal!(Config, SigmaDistribution::new(&config, 64));
    assert!(refuse(options!(DiffusionOptions::default(); logit_mean: f64::NAN)).contains("logit_mean"));
    assert!(refuse(options!(DiffusionOptions::default(); logit_std: -1.0)).contains("logit_std"));
    assert!(refuse(options!(DiffusionOptions::default(); logit_std: f64::INFINITY)).contains("logit_std"));
    assert!(refuse(options!(DiffusionOptions::default(); shift: -2.0)).contains("shift"));
}

#[test]
fn the_automatic_shift_is_anchored_at_a_480p_clip() {
    let auto = options!(DiffusionOptions::default(); shift: 0.0);
    assert_eq!(SigmaDistribution::new(&auto, 32_760).unwrap().shift(), 3.0);
    assert_eq!(SigmaDistribution::new(&auto, 4 * 32_760).unwrap().shift(), 6.0);
    assert_eq!(SigmaDistribution::new(&DiffusionOptions::default(), 32_760).unwrap().shift(), 1.0);
}

/// The bell's mean over many draws is 1 for any distribution; against the formula at three points.
#[test]
fn loss_weights_are_one_on_average_and_follow_the_bell() {
    let base = options!(DiffusionOptions::default(); shift: 3.0);
    let flat = SigmaDistribution::new(&base, 8).unwrap();
    assert_eq!([0.0, 0.3, 1.0].map(|sigma| flat.loss_weight(sigma)), [1.0; 3]);
    for timesteps in [Timesteps::LogitNormal, Timesteps::Uniform] {
        let options = options!(base.clone(); timesteps, loss_weight: LossWeight::Bell);
        let sigmas = SigmaDistribution::new(&options, 8).unwrap();
        let draws = 200_000;
        let sum: f64 = (0..draws).map(|step| sigmas.loss_weight(sigmas.draw(5, step, 0))).sum();
        assert!((sum / draws as f64 - 1.0).abs() < 5e-3, "{timesteps:?}: {}", sum / draws as f64);
        let bell = |sigma: f64| (-2.0 * (sigma - 0.5) * (sigma - 0.5)).exp() - (-0.5f64).exp();
        for sigma in [0.1, 0.5, 0.99] {
            let ratio = sigmas.loss_weight(sigma) / sigmas.loss_weight(0.7);
            assert!((ratio - bell(sigma) / bell(0.7)).abs() < 1e-12);
        }
        assert!(sigmas.loss_weight(0.0).abs() < 1e-12 && sigmas.loss_weight(1.0).abs() < 1e-12);
    }
}
