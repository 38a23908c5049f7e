//! Measures the arithmetic peak of an instruction set: its multiply-adds a second when nothing is loaded or stored.
//!
//! A kernel's speed is given as a share of this. It is the rate of the instructions that the products here are made of:
//! on a matrix unit, that unit's in bf16.

use std::time::{Duration, Instant};

use super::vector::{Kernel, Simd};
use super::{Isa, with_isa};

/// Floats (or words) of the widest vector.
const WIDEST: usize = 16;

/// Most sums that are under way at once. A multiply-add takes several cycles; only as many independent ones as that,
/// times those a cycle starts, keep the unit busy: 8 for FMA and 12 for bf16 pairs on current CPUs.
const MOST: usize = 24;

/// Rounds between two looks at the clock: some hundred microseconds.
const ROUNDS: usize = 1 << 14;

/// Windows measured; the best counts, because whatever else the machine does can only take away.
const WINDOWS: u32 = 8;

/// FLOP/s of `isa` for f32 or bf16 elements, all threads of the current rayon pool at once, in about `time`.
pub fn peak(isa: Isa, bf16: bool, time: Duration) -> f64 {
    let window = time / WINDOWS;
    let rates = (0..WINDOWS).map(|_| rayon::broadcast(|_| thread_rate(isa, bf16, window)).iter().sum::<f64>());
    rates.fold(0.0, f64::max)
}

/// FLOP/s of this thread over `window`.
fn thread_rate(isa: Isa, bf16: bool, window: Duration) -> f64 {
    let (start, mut flop) = (Instant::now(), 0);
    loop {
        flop += if bf16 { chains(isa, true) } else { chains(isa, false) };
        let elapsed = start.elapsed();
        if elapsed >= window {
            return flop as f64 / elapsed.as_secs_f64();
        }
    }
}

/// Runs the chains once; how many operations that was.
fn chains(isa: Isa, bf16: bool) -> usize {
    assert!(isa.is_available(), "this CPU lacks the features of the {isa:?} path");
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Amx && bf16 {
        // SAFETY: the instruction set is available, as just asserted.
        return unsafe { super::amx::peak(ROUNDS) };
    }
    let mut values = std::hint::black_box([[0.0_f32; WIDEST]; MOST]);
    for (i, value) in values.as_flattened_mut().iter_mut().enumerate() {
        *value = std::hint::black_box(i as f32); // all different, or the compiler would do one chain for all
    }
    let mut flop = 0;
    let work = Chains { values: &mut values, flop: &mut flop };
    // SAFETY: the instruction set is available, as just asserted.
    if bf16 {
        with_isa!(isa, true, S => unsafe { S::run(work) });
    } else {
        with_isa!(isa, false, S => unsafe { S::run(work) });
    }
    std::hint::black_box(values);
    flop
}

/// Sums that start from `values`, are added to and go back there.
struct Chains<'a> {
    values: &'a mut [[f32; WIDEST]; MOST],
    flop: &'a mut usize,
}

impl Kernel for Chains<'_> {
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // As many as the unit's registers hold beside the two factors: those of a tile of `super::tile`.
        // SAFETY: the caller's promise.
        unsafe {
            match S::COLS {
                4 => self.chains::<S, MOST>(),
                _ => self.chains::<S, { MOST / 2 }>(),
            }
        }
    }
}

impl Chains<'_> {
    /// `N` chains of multiply-adds.
    #[inline(always)]
    unsafe fn chains<S: Simd, const N: usize>(self) {
        // The bits of about 2^-20 as f32, and of a pair of it as bf16: sums stay finite, and nothing is denormal.
        const FACTOR: u32 = 0x3580_3580;
        let factor = std::hint::black_box([[FACTOR; WIDEST]; 2]);
        // SAFETY: the caller's promise; every row holds the widest vector.
        unsafe {
            let (a, b) = (S::words(factor[0].as_ptr()), S::words(factor[1].as_ptr()));
            let (scale, shift) = (S::load(factor[0].as_ptr().cast()), S::load(factor[1].as_ptr().cast()));
            let mut sums = [S::splat(0.0); N];
            for (sum, value) in sums.iter_mut().zip(self.values.iter()) {
                *sum = S::load(value.as_ptr());
            }
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    // With f32 words a dot product is a multiply-add. The sum is multiplied, not added to: a product of
                    // two constants would be taken out of the loop where multiplying and adding are two instructions.
                    *sum = if S::PAIR == 1 { S::mul_add(*sum, scale, shift) } else { S::dot(*sum, a, b) };
                }
            }
            for (sum, value) in sums.into_iter().zip(self.values.iter_mut()) {
                S::store(value.as_mut_ptr(), sum);
            }
        }
        *self.flop = 2 * S::LANES * S::PAIR * N * ROUNDS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_of_every_isa_is_plausible() {
        let threads = rayon::current_num_threads() as f64;
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for bf16 in [false, true] {
                let rate = peak(isa, bf16, Duration::from_millis(16));
                let most = if isa == Isa::Amx && bf16 { 1e13 } else { 2e12 }; // a matrix unit's, or a vector unit's
                assert!(rate > 1e8 && rate < threads * most, "{isa:?}, bf16 {bf16}: {rate}");
            }
        }
    }

    #[test]
    fn peak_counts_the_operations_it_does() {
        let (mut values, mut flop) = ([[1.0_f32; WIDEST]; MOST], 0);
        let work = Chains { values: &mut values, flop: &mut flop };
        // SAFETY: the portable code needs no features.
        unsafe { super::super::portable::Portable::<false>::run(work) };
        // x <- 2^-20 x + 2^-20, to its fixed point; vectors of four lanes, half of the chains.
        let end = f32::from_bits(0x3580_3580);
        assert!(values[..MOST / 2].iter().all(|v| v[..4].iter().all(|x| (x / end - 1.0).abs() < 1e-5)), "{values:?}");
        assert_eq!((values[0][4], values[MOST / 2][0]), (1.0, 1.0));
        assert_eq!(flop, 2 * 4 * (MOST / 2) * ROUNDS);
    }
}
