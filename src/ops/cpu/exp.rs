//! Polynomials for 2^f, f in [0, 1]: the heart of every unit's `exp2`.
//!
//! Coefficients are minimax in the relative error with p(0) = 1 exactly (fitted by Lawson's reweighted least squares), so
//! that a row of one key keeps its value. The caller splits x into floor(x) and f and puts floor(x) into the exponent.

use super::simd::Simd;

/// Degree 6: relative error 7e-8 evaluated in f32.
const FINE: [f32; 6] = [0.693_147_06, 0.240_229_31, 0.055_485_282, 0.009_675_452, 0.001_246_784_6, 0.000_216_129_16];

/// Degree 4: relative error 3e-6, a thousandth of a bf16 rounding.
const COARSE: [f32; 4] = [0.693_044_84, 0.241_280_21, 0.052_242_473, 0.013_426_686];

/// 2^f for f in [0, 1].
///
/// # Safety
/// The CPU has the unit's features.
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
