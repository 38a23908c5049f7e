//! The weights of the exponential integrators DPM-Solver++(2M) (Lu et al. 2022) and UniPC (Zhao et al. 2023).
//!
//! With lambda = ln((1 - sigma) / sigma), the flow from s to s' < s is exactly
//!
//! ```text
//! x' = (s'/s) x + (1 - s'/s) * mean of x_hat(lambda), weighted by exp(lambda) over the step,
//! ```
//!
//! x_hat being the clean clip predicted on the way. A solver approximates that mean by a weighted sum of predictions it
//! has; the weights, which add up to 1, are all that this file knows. Written this way nothing is infinite at sigma = 1
//! (lambda = -inf), and a step to sigma = 0 (lambda = inf), where all weight lies on the end, is x' = x_hat.

/// Weights of the predictions (at `from`, at `previous`) for the step `from -> to`; order 2 where there is a
/// `previous`.
///
/// Both solvers extrapolate x_hat linearly in lambda and take it at the step's middle. To reach sigma = 0, infinitely
/// far in lambda, there is nothing to extrapolate: the latest prediction is the answer.
pub fn predictor(previous: Option<f64>, from: f64, to: f64) -> [f64; 2] {
    match previous {
        Some(previous) if to > 0.0 => {
            let slope = 0.5 / step_ratio(previous, from, to);
            [1.0 + slope, -slope]
        }
        _ => [1.0, 0.0],
    }
}

/// Weights of the predictions (at `to`, at `from`, at `previous`) to redo the step `from -> to`, `to` above 0, once the
/// prediction at its end is known: order 2, or 3 where there is a `previous`.
///
/// UniPC's B2(h) form: the trapezoid without `previous`; with it, the parabola through all three, integrated exactly.
pub fn corrector(previous: Option<f64>, from: f64, to: f64) -> [f64; 3] {
    let Some(previous) = previous else { return [0.5, 0.5, 0.0] };
    // With tau running from 0 to 1 over the step, the predictions stand at tau = 1, 0 and -r, and the parabola's mean
    // is m0 + a (m_previous - m0) / -r + b (m_next - m0), where a + b = mean of tau and -r a + b = mean of tau^2.
    let r = step_ratio(previous, from, to);
    let [first, second] = tau_moments(lambda(to) - lambda(from));
    let a = (first - second) / (1.0 + r);
    let next = first - a;
    [next, 1.0 - next + a / r, -a / r]
}

/// The log signal-to-noise ratio, halved: -inf at sigma = 1.
fn lambda(sigma: f64) -> f64 {
    ((1.0 - sigma) / sigma).ln()
}

/// The step before's length in lambda over this step's; infinite where it started from sigma = 1.
fn step_ratio(previous: f64, from: f64, to: f64) -> f64 {
    (lambda(from) - lambda(previous)) / (lambda(to) - lambda(from))
}

/// The means of tau and tau^2 over [0, 1] under the weight exp(h tau), 0 < h < inf.
fn tau_moments(h: f64) -> [f64; 2] {
    if h > 1.0 {
        let first = 1.0 / -(-h).exp_m1() - 1.0 / h;
        return [first, 1.0 / -(-h).exp_m1() - 2.0 * first / h];
    }
    // The closed form cancels at small h. Integral of tau^n exp(h tau) = sum over k of h^k / (k! (k + n + 1)).
    let (mut power, mut sums) = (1.0, [0.0; 3]);
    for k in 0..20 {
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum += power / (k + n + 1) as f64;
        }
        power *= h / (k + 1) as f64;
    }
    [sums[1] / sums[0], sums[2] / sums[0]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_those_of_a_fine_midpoint_rule_on_both_sides_of_the_switch() {
        for h in [1e-9, 1e-3, 0.3, 1.0, 1.0 + 1e-12, 2.5, 14.0, 40.0] {
            let n = 20_000;
            let mut sums = [0.0; 3];
            for i in 0..n {
                let tau = (i as f64 + 0.5) / n as f64;
                let weight = (h * (tau - 1.0)).exp();
                sums[0] += weight;
                sums[1] += weight * tau;
                sums[2] += weight * tau * tau;
            }
            let moments = tau_moments(h);
            for (n, moment) in moments.iter().enumerate() {
                assert!((moment - sums[n + 1] / sums[0]).abs() < 2e-7, "h {h}, moment {n}");
            }
        }
        let [below, above] = [tau_moments(1.0), tau_moments(1.0 + 1e-15)];
        assert!((below[0] - above[0]).abs() < 1e-14 && (below[1] - above[1]).abs() < 1e-14);
    }

    #[test]
    fn weights_add_up_to_one_and_integrate_what_they_should() {
        let (previous, from, to) = (0.9, 0.7, 0.45);
        let [p0, p1] = predictor(Some(previous), from, to);
        assert!((p0 + p1 - 1.0).abs() < 1e-15);
        let weights = corrector(Some(previous), from, to);
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-15);
        // A parabola in tau has exactly the moments' mean.
        let r = step_ratio(previous, from, to);
        let [first, second] = tau_moments(lambda(to) - lambda(from));
        let parabola = |tau: f64| 0.3 - 1.1 * tau + 2.0 * tau * tau;
        let sum = weights[0] * parabola(1.0) + weights[1] * parabola(0.0) + weights[2] * parabola(-r);
        assert!((sum - (0.3 - 1.1 * first + 2.0 * second)).abs() < 1e-14);
        // At both ends of the flow every weight stays finite.
        assert_eq!(predictor(None, 1.0, 0.0), [1.0, 0.0]);
        assert_eq!(predictor(Some(1.0), 0.9, 0.8), [1.0, 0.0]);
        assert_eq!(predictor(Some(0.5), 0.2, 0.0), [1.0, 0.0]);
        assert_eq!(corrector(None, 1.0, 0.9), [0.5, 0.5, 0.0]);
        let weights = corrector(Some(1.0), 0.9, 0.8);
        assert!(weights[2] == 0.0 && (weights[0] + weights[1] - 1.0).abs() < 1e-15 && weights[0] > 0.5);
    }
}
