//! Data whose flow is known exactly: a Gaussian, in closed form, and a mixture of two, integrated by fine RK4 steps.

use super::{tensor, values};
use candle_core::Tensor;

/// x0 is normal with mean `m` and standard deviation `s`.
pub struct Gaussian {
    pub m: f64,
    pub s: f64,
}

impl Gaussian {
    /// The variance of x_sigma.
    fn variance(&self, sigma: f64) -> f64 {
        ((1.0 - sigma) * self.s).powi(2) + sigma * sigma
    }

    /// The density of x_sigma.
    fn density(&self, x: f64, sigma: f64) -> f64 {
        let variance = self.variance(sigma);
        (-0.5 * (x - (1.0 - sigma) * self.m).powi(2) / variance).exp() / variance.sqrt()
    }

    /// E[eps - x0 | x_sigma = x], by the regression of jointly normal variables.
    pub fn velocity(&self, x: f64, sigma: f64) -> f64 {
        let covariance = sigma - (1.0 - sigma) * self.s * self.s;
        -self.m + covariance / self.variance(sigma) * (x - (1.0 - sigma) * self.m)
    }

    /// Where the flow takes `x` from sigma `from` to `to`: the distance to the mean, in standard deviations, stays.
    pub fn flow(&self, x: f64, from: f64, to: f64) -> f64 {
        let z = (x - (1.0 - from) * self.m) / self.variance(from).sqrt();
        (1.0 - to) * self.m + self.variance(to).sqrt() * z
    }
}

/// x0 comes from `a` with probability `share`, else from `b`.
pub struct Mixture {
    pub share: f64,
    pub a: Gaussian,
    pub b: Gaussian,
}

pub const MIXTURE: Mixture = Mixture { share: 0.3, a: Gaussian { m: -1.0, s: 0.4 }, b: Gaussian { m: 0.8, s: 0.6 } };

impl Mixture {
    /// The two components' velocities, weighted by how probable each is given `x`.
    pub fn velocity(&self, x: f64, sigma: f64) -> f64 {
        let (a, b) = (self.share * self.a.density(x, sigma), (1.0 - self.share) * self.b.density(x, sigma));
        (a * self.a.velocity(x, sigma) + b * self.b.velocity(x, sigma)) / (a + b)
    }

    /// The flow from `from` to `to`, in `steps` classical Runge-Kutta steps.
    pub fn flow(&self, mut x: f64, from: f64, to: f64, steps: usize) -> f64 {
        let h = (to - from) / steps as f64;
        for i in 0..steps {
            let sigma = from + h * i as f64;
            let k1 = self.velocity(x, sigma);
            let k2 = self.velocity(x + 0.5 * h * k1, sigma + 0.5 * h);
            let k3 = self.velocity(x + 0.5 * h * k2, sigma + 0.5 * h);
            let k4 = self.velocity(x + h * k3, sigma + h);
            x += h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4);
        }
        x
    }
}

/// A scalar velocity as the network of a sampler on f64 tensors; it must never be asked about sigma = 0.
pub fn network(velocity: impl Fn(f64, f64) -> f64) -> impl FnMut(&Tensor, f64) -> longreel::Result<Tensor> {
    move |x, sigma| {
        assert!(sigma > 0.0, "asked for a velocity at sigma = {sigma}");
        let v: Vec<f64> = values(x).iter().map(|&x| velocity(x, sigma)).collect();
        Ok(tensor(&v).reshape(x.shape())?.to_dtype(x.dtype())?)
    }
}

/// Evenly spaced sigmas, `steps` + 1 of them.
pub fn spaced(from: f64, to: f64, steps: usize) -> Vec<f64> {
    (0..=steps).map(|i| from + (to - from) * (i as f64 / steps as f64)).collect()
}
