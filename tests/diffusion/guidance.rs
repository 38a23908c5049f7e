//! Guidance: the formula, when it acts, and how often the network is called.

use super::{message, tensor, values};
use longreel::bail;
use longreel::config::{Sample, SamplerKind};
use longreel::diffusion::{Condition, Guidance, Sampler};

fn guidance(guidance: f64, guidance_interval: [f64; 2]) -> longreel::Result<Guidance> {
    Guidance::new(&Sample { guidance, guidance_interval, ..Default::default() })
}

/// The guided velocity at `sigma` where the given one is (3, 1) and the null one (1, 2), and the calls it took.
fn guided(guidance: Guidance, sigma: f64) -> (Vec<f64>, Vec<Condition>) {
    let mut calls = vec![];
    let velocity = |condition| {
        calls.push(condition);
        Ok(if condition == Condition::Given { tensor(&[3.0, 1.0]) } else { tensor(&[1.0, 2.0]) })
    };
    let v = guidance.apply(sigma, velocity).unwrap();
    (values(&v), calls)
}

#[test]
fn the_condition_is_extrapolated_from_null() {
    let both = vec![Condition::Given, Condition::Null];
    assert_eq!(guided(guidance(2.5, [0.0, 1.0]).unwrap(), 0.5), (vec![6.0, -0.5], both.clone()));
    assert_eq!(guided(guidance(0.0, [0.0, 1.0]).unwrap(), 0.5), (vec![1.0, 2.0], both.clone()));
    assert_eq!(guided(guidance(0.5, [0.0, 1.0]).unwrap(), 1.0), (vec![2.0, 1.5], both));
}

#[test]
fn without_guidance_the_network_is_called_once() {
    let once = (vec![3.0, 1.0], vec![Condition::Given]);
    assert_eq!(guided(guidance(1.0, [0.0, 1.0]).unwrap(), 0.5), once);
    assert!(!guidance(1.0, [0.0, 1.0]).unwrap().active(0.5));
    let within = guidance(3.0, [0.2, 0.8]).unwrap();
    for (sigma, active) in [(1.0, false), (0.81, false), (0.8, true), (0.5, true), (0.2, true), (0.19, false)] {
        assert_eq!(within.active(sigma), active, "sigma = {sigma}");
        assert_eq!(guided(within, sigma) == once, !active, "sigma = {sigma}");
    }
}

#[test]
fn guidance_drives_a_sampler() {
    // Given, the clean clip is 1; null, it is 0: guided by 3 within the interval, it is 3.
    let within = guidance(3.0, [0.0, 0.6]).unwrap();
    let sampler = Sampler::new(SamplerKind::Euler, vec![1.0, 0.5, 0.0]).unwrap();
    let mut calls = 0;
    let velocity = |x: &candle_core::Tensor, sigma: f64| {
        within.apply(sigma, |condition| {
            calls += 1;
            let clean = if condition == Condition::Given { 1.0 } else { 0.0 };
            Ok(x.affine(1.0 / sigma, -clean / sigma)?)
        })
    };
    let end = sampler.run(tensor(&[2.0]), velocity).unwrap();
    assert_eq!(values(&end), [3.0]);
    assert_eq!(calls, 3);
}

#[test]
fn what_makes_no_sense_is_refused() {
    assert!(message(guidance(f64::NAN, [0.0, 1.0])).contains("guidance = NaN"));
    for interval in [[0.5, 0.4], [-0.1, 1.0], [0.0, 1.1], [f64::NAN, 1.0], [0.0, f64::NAN]] {
        assert!(message(guidance(2.0, interval)).contains("guidance_interval"), "{interval:?}");
    }
    let failing = guidance(2.0, [0.0, 1.0]).unwrap().apply(0.5, |condition| match condition {
        Condition::Given => Ok(tensor(&[1.0])),
        Condition::Null => bail!("no null class"),
    });
    assert_eq!(message(failing), "no null class");
}
