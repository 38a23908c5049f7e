//! Guidance: the formula, when it acts, and how often the network is called.

use super::{tensor, values};
use longreel::diffusion::{Guidance, Sampler, SamplerKind};

fn guidance(guidance: f64, guidance_interval: [f64; 2]) -> longreel::Result<Guidance> {
    Guidance::new(guidance, guidance_interval)
}

/// The guided velocity where the given one is (3, 1) and the null one (1, 2).
fn guided(guidance: Guidance) -> Vec<f64> {
    values(&guidance.guided(&tensor(&[3.0, 1.0]), &tensor(&[1.0, 2.0])).unwrap())
}

#[test]
fn the_condition_is_extrapolated_from_null() {
    assert_eq!(guided(guidance(2.5, [0.0, 1.0]).unwrap()), [6.0, -0.5]);
    assert_eq!(guided(guidance(0.0, [0.0, 1.0]).unwrap()), [1.0, 2.0]);
    assert_eq!(guided(guidance(0.5, [0.0, 1.0]).unwrap()), [2.0, 1.5]);
    assert!(guidance(0.5, [0.0, 1.0]).unwrap().guided(&tensor(&[1.0]), &tensor(&[1.0, 2.0])).is_err());
}

#[test]
fn guidance_acts_within_its_interval() {
    assert!(!guidance(1.0, [0.0, 1.0]).unwrap().active(0.5));
    let within = guidance(3.0, [0.2, 0.8]).unwrap();
    for (sigma, active) in [(1.0, false), (0.81, false), (0.8, true), (0.5, true), (0.2, true), (0.19, false)] {
        assert_eq!(within.active(sigma), active, "sigma = {sigma}");
    }
}

#[test]
fn guidance_drives_a_sampler() {
    // Given, the clean clip is 1; null, it is 0: guided by 3 within the interval, it is 3.
    let within = guidance(3.0, [0.0, 0.6]).unwrap();
    let sampler = Sampler::new(SamplerKind::Euler, vec![1.0, 0.5, 0.0]).unwrap();
    let mut calls = 0;
    let velocity = |x: &candle_core::Tensor, sigma: f64| {
        let mut towards = |clean: f64| {
            calls += 1;
            x.affine(1.0 / sigma, -clean / sigma)
        };
        let given = towards(1.0)?;
        if within.active(sigma) { within.guided(&given, &towards(0.0)?) } else { Ok(given) }
    };
    let end = sampler.run(tensor(&[2.0]), velocity).unwrap();
    assert_eq!(values(&end), [3.0]);
    assert_eq!(calls, 3);
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(refusal!(Config, guidance(f64::NAN, [0.0, 1.0])).contains("guidance = NaN"));
    for interval in [[0.5, 0.4], [-0.1, 1.0], [0.0, 1.1], [f64::NAN, 1.0], [0.0, f64::NAN]] {
        assert!(refusal!(Config, guidance(2.0, interval)).contains("guidance_interval"), "{interval:?}");
    }
}
