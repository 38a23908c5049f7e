//! Approximates 2^x by polynomials and a table, for every instruction set's `exp2`.
//!
//! Coefficients are minimax in the relative error with p(0) = 1 exactly (fitted by Lawson's reweighted least squares),
//! so that a row of one key keeps its value. Either the caller splits x into floor(x) and f in [0, 1] and puts floor(x)
//! into the exponent ([`two_to_fraction`]), or into n + j / 8 and what is near, |g| <= 1/16 ([`EIGHTHS`], [`NEAR`]):
//! three multiply-adds less, for instruction sets that look eight values up at once.

use super::vector::Simd;

/// Degree 6: relative error 7e-8 evaluated in f32.
const FINE: [f32; 6] = [0.693_147_06, 0.240_229_31, 0.055_485_282, 0.009_675_452, 0.001_246_784_6, 0.000_216_129_16];

/// Degree 4: relative error 3e-6, a thousandth of a bf16 rounding.
const COARSE: [f32; 4] = [0.693_044_84, 0.241_280_21, 0.052_242_473, 0.013_426_686];

/// 2^(j / 8) as f32, less j << 20: adding 8 n + j << 20 to the bits gives 2^(n + j / 8).
pub(super) const EIGHTHS: [u32; 8] =
    [0x3f80_0000, 0x3f7b_95c2, 0x3f78_37f0, 0x3f75_fed7, 0x3f75_04f3, 0x3f75_672a, 0x3f77_44fd, 0x3f7a_c0c7];

/// (2^g - 1) / g for g in [-1/16, 1/16]: a relative error of 2.5e-8 in 2^g, and 1.4e-7 with roundings and the table's.
pub(super) const NEAR: [f32; 3] = [0.693_147_24, 0.240_257_64, 0.055_496_223];

/// 2^f for f in [0, 1].
///
/// # Safety
/// The CPU has the features of `S`.
#[inline(always)]
pub(crate) unsafe fn two_to_fraction<S: Simd>(f: S::V) -> S::V {
    // SAFETY: the caller's promise.
    unsafe {
        let coefficients: &[f32] = if S::PAIR == 1 { &FINE } else { &COARSE };
        let mut p = S::splat(coefficients[coefficients.len() - 1]);
        let mut i = coefficients.len() - 1;
        while i > 0 {
            i -= 1;
            p = S::mul_add(p, f, S::splat(coefficients[i]));
        }
        S::mul_add(p, f, S::splat(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::Kernel;
    use super::super::{Isa, with_isa};
    use super::*;

    struct Powers<'a> {
        of: &'a [f32],
        to: &'a mut [f32],
        pair: &'a mut usize,
    }

    impl Kernel for Powers<'_> {
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for (x, y) in self.of.chunks_exact(S::LANES).zip(self.to.chunks_exact_mut(S::LANES)) {
                // SAFETY: the caller's promise; both hold a vector.
                unsafe { S::store(y.as_mut_ptr(), S::exp2(S::load(x.as_ptr()))) }
            }
            *self.pair = S::PAIR;
        }
    }

    #[test]
    fn exp2_error_is_within_bounds_on_every_isa() {
        let whole = (-126..=8).map(|n| n as f32);
        let between = (0..1 << 16).map(|i| i as f32 * (134.0 / 65536.0) - 126.0);
        let mut of: Vec<f32> = whole.chain(between).chain([f32::NEG_INFINITY, -1e30, -1e4, f32::NAN]).collect();
        of.resize(of.len().next_multiple_of(16), 0.5);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bf16 in [false, true] {
                let (mut to, mut pair) = (vec![f32::NAN; of.len()], 0);
                let powers = Powers { of: &of, to: &mut to, pair: &mut pair };
                // SAFETY: the instruction set is available.
                match bf16 {
                    false => with_isa!(isa, false, S => unsafe { S::run(powers) }),
                    true => with_isa!(isa, true, S => unsafe { S::run(powers) }),
                }
                let most = if pair == 1 { 1.5e-7 } else { 4e-6 };
                for (&x, &y) in of.iter().zip(&to) {
                    let exact = f64::from(x).exp2();
                    match x {
                        x if x.is_nan() => assert!(y.is_nan(), "{isa:?}: 2^NaN is {y}"),
                        x if x < -127.0 => assert_eq!(y, 0.0, "{isa:?}: 2^{x}"),
                        x if x.fract() == 0.0 => assert_eq!(f64::from(y), exact, "{isa:?}: 2^{x}"),
                        _ => assert!((f64::from(y) / exact - 1.0).abs() < most, "{isa:?}, bf16 {bf16}: 2^{x} is {y}"),
                    }
                }
            }
        }
    }
}
