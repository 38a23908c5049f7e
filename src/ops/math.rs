//! Defines the number types that ops are written for, and the few fast functions that they need of one number.

use super::custom::Element;
use super::products::Products;

/// f32, or f64 for checks.
pub trait Real:
    Element
    + Products
    + num_traits::Float
    + std::ops::AddAssign
    + std::ops::MulAssign
    + std::iter::Sum
    + Send
    + Sync
    + 'static
{
    /// A constant.
    fn of(x: f64) -> Self;

    /// exp(x). For f32 a polynomial without branches, so that loops over it vectorise: within 2 units in the last place
    /// for results that are normal numbers; below that 0.
    fn fast_exp(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }

    #[inline(always)]
    fn fast_exp(self) -> Self {
        // exp(x) = 2^n exp(r), n the integer nearest to x / ln 2 and |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds to the
        // nearest integer and leaves it in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        let x = self.clamp(-87.33, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + MAGIC;
        let n = shifted - MAGIC;
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4; // ln 2 in two parts
        // Taylor's polynomial of degree 7: the next term is below 1e-8 for |r| <= 0.3466.
        let p = 1.0
            + r * (1.0
                + r * (0.5 + r * (1.0 / 6.0 + r * (1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r / 5040.0))))));
        let two_n = f32::from_bits(shifted.to_bits().wrapping_shl(23).wrapping_add(127 << 23));
        if self < -87.33 { 0.0 } else { p * two_n }
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x
    }

    #[inline(always)]
    fn fast_exp(self) -> Self {
        self.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 * 1e-4;
            let (fast, exact) = (f64::from(x.fast_exp()), f64::from(x).exp());
            assert!((fast - exact).abs() <= exact * 2.0 * f64::from(f32::EPSILON), "exp({x}): {fast} against {exact}");
        }
        assert_eq!((-100f32).fast_exp(), 0.0);
    }
}
