//! The functions that the x86 instruction sets share but for the width of their vectors, written once.

/// The f32 functions of [`super::vector::Simd`], for an instruction set with these features and intrinsics.
macro_rules! float_functions {
    (
        $features:literal, $V:ty, $splat:ident, $load:ident, $store:ident,
        $add:ident, $sub:ident, $mul:ident, $mul_add:ident, $mul_sub:ident, $max:ident
    ) => {
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn splat(x: f32) -> $V {
            $splat(x)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn load(p: *const f32) -> $V {
            // SAFETY: the caller's pointer holds a vector.
            unsafe { $load(p) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn store(p: *mut f32, x: $V) {
            // SAFETY: the caller's pointer holds a vector.
            unsafe { $store(p, x) }
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn add(a: $V, b: $V) -> $V {
            $add(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn sub(a: $V, b: $V) -> $V {
            $sub(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn mul(a: $V, b: $V) -> $V {
            $mul(a, b)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn mul_add(a: $V, b: $V, c: $V) -> $V {
            $mul_add(a, b, c)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn mul_sub(a: $V, b: $V, c: $V) -> $V {
            $mul_sub(a, b, c)
        }
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn max(a: $V, b: $V) -> $V {
            $max(a, b) // gives the second if either is NaN
        }
    };
}

/// The two entry points of [`super::vector::Simd`], for an instruction set with these features.
macro_rules! entry_points {
    ($features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn product<const ROW: usize>(steps: usize, a: Left<ROW>, b: Right, out: Out) {
            // SAFETY: same features.
            unsafe { super::tile::product::<Self, ROW>(steps, a, b, out) }
        }
        #[target_feature(enable = $features)]
        unsafe fn run(kernel: impl Kernel) {
            // SAFETY: same features.
            unsafe { kernel.run::<Self>() }
        }
    };
}

pub(crate) use {entry_points, float_functions};
