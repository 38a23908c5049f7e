//! The samplers' orders of convergence, on flows that are known exactly.

use super::flows::{Gaussian, MIXTURE, network, spaced};
use super::{tensor, values};
use longreel::diffusion::SamplerKind::{self, Dpmpp, Euler, Heun, Unipc};
use longreel::diffusion::{Sampler, shift_sigma};

const GAUSSIAN: Gaussian = Gaussian { m: 0.6, s: 0.3 };
const STARTS: [f64; 6] = [-1.9, -0.8, -0.1, 0.4, 1.1, 2.3];

/// The root mean square error of a run over `sigmas` from `STARTS`.
fn error(
    kind: SamplerKind,
    sigmas: Vec<f64>,
    velocity: impl Fn(f64, f64) -> f64,
    exact: impl Fn(f64, f64, f64) -> f64,
) -> f64 {
    let (from, to) = (sigmas[0], sigmas[sigmas.len() - 1]);
    let end = Sampler::new(kind, sigmas).unwrap().run(tensor(&STARTS), network(velocity)).unwrap();
    let squares = values(&end).into_iter().zip(STARTS).map(|(end, start)| (end - exact(start, from, to)).powi(2));
    (squares.sum::<f64>() / STARTS.len() as f64).sqrt()
}

/// Checks the order seen from `steps` to twice as many, and that the error at `steps` is no larger than `largest`.
fn check(name: &str, order: std::ops::RangeInclusive<f64>, largest: f64, error: impl Fn(usize) -> f64, steps: usize) {
    let (coarse, fine) = (error(steps), error(2 * steps));
    let seen = (coarse / fine).log2();
    println!("{name}: {coarse:.3e} -> {fine:.3e}, order {seen:.3}");
    assert!(order.contains(&seen), "{name}: order {seen:.3} is not in {order:?} ({coarse:e} -> {fine:e})");
    assert!(coarse < largest, "{name}: the error is {coarse:e}");
}

#[test]
fn away_from_the_ends_every_sampler_has_its_order() {
    for (kind, order, largest) in [(Euler, 1.0, 2e-2), (Heun, 2.0, 1.5e-4), (Dpmpp, 2.0, 3.5e-4), (Unipc, 3.0, 1.2e-4)]
    {
        let band = order - 0.15..=order + 0.15;
        let gaussian =
            |n| error(kind, spaced(0.9, 0.1, n), |x, s| GAUSSIAN.velocity(x, s), |x, a, b| GAUSSIAN.flow(x, a, b));
        check(&format!("{kind:?}, Gaussian"), band.clone(), largest, gaussian, 64);
        let exact = |x, a, b| MIXTURE.flow(x, a, b, 4000);
        let mixture = |n| error(kind, spaced(0.9, 0.1, n), |x, s| MIXTURE.velocity(x, s), exact);
        check(&format!("{kind:?}, mixture"), band, largest, mixture, 64);
    }
}

/// At sigma = 1 and 0, lambda is infinite and its steps do not shrink with their number. What is left of the order: all
/// of Heun's, 2 of UniPC's 3, and errors of log N / N^2 for DPM-Solver++(2M), which from 256 to 512 steps look like
/// order 1.5 to 1.9.
#[test]
fn from_pure_noise_to_data_the_order_is_as_theory_has_it() {
    let bands = [(Euler, 0.95..=1.05), (Heun, 1.9..=2.1), (Dpmpp, 1.5..=1.9), (Unipc, 1.85..=2.1)];
    for ((kind, order), largest) in bands.into_iter().zip([2e-2, 4e-4, 1.4e-3, 5e-4]) {
        for shift in [1.0, 3.0] {
            let sigmas = |n| spaced(1.0, 0.0, n).into_iter().map(|s| shift_sigma(s, shift)).collect();
            let gaussian = |n| error(kind, sigmas(n), |x, s| GAUSSIAN.velocity(x, s), |x, a, b| GAUSSIAN.flow(x, a, b));
            check(&format!("{kind:?}, Gaussian, shift {shift}"), order.clone(), largest, gaussian, 256);
            let exact = |x, a, b| MIXTURE.flow(x, a, b, 4000);
            let mixture = |n| error(kind, sigmas(n), |x, s| MIXTURE.velocity(x, s), exact);
            check(&format!("{kind:?}, mixture, shift {shift}"), order.clone(), largest, mixture, 256);
        }
    }
}
