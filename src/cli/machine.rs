//! Measures what this machine reaches at most: multiply-adds on registers, and bytes to and from memory. `plan` counts
//! seconds by it, and `bench` compares work with it.

use rayon::prelude::*;
use std::time::{Duration, Instant};

use crate::config::Compute;
use crate::parallel::run_threads;
use crate::simd::{Isa, peak};
use crate::{Result, bail};

/// How long a peak is measured: long against the clock's grain, short against the work that is compared with it.
const PEAK_TIME: Duration = Duration::from_millis(200);

/// f32 values of each of the two arrays that are copied: more than caches hold.
const COPIED: usize = 1 << 26;

/// FLOP/s of all processors in `dtype`, and bytes/s of copying memory.
pub fn machine(dtype: Compute) -> Result<[f64; 2]> {
    on_threads(None, |_| Ok([peak_of(Isa::best(), dtype), 1e9 * copy()]))
}

/// Runs `f` with `threads` threads (default: all), as a rank of training runs; `f` is told how many there are.
pub fn on_threads<T: Send>(threads: Option<usize>, f: impl Fn(usize) -> Result<T> + Sync) -> Result<T> {
    let threads = threads.unwrap_or_else(|| super::threads_per_rank(1));
    let Some(result) = run_threads(1, threads, |_| f(threads))?.pop() else { bail!(Environment, "no rank") };
    Ok(result)
}

/// FLOP/s that the current threads reach on what `dtype` computes on.
pub fn peak_of(isa: Isa, dtype: Compute) -> f64 {
    peak::peak(isa, dtype == Compute::Bf16, PEAK_TIME)
}

/// GB/s, read and written, of copying an array on all threads: the best of four, as the first has to get its pages.
pub fn copy() -> f64 {
    let (from, mut to) = (vec![1.0_f32; COPIED], vec![0.0_f32; COPIED]);
    let mut best = 0.0_f64;
    for _ in 0..4 {
        let start = Instant::now();
        to.par_chunks_mut(1 << 16).zip(from.par_chunks(1 << 16)).for_each(|(to, from)| to.copy_from_slice(from));
        best = best.max(8.0 * COPIED as f64 / start.elapsed().as_secs_f64() / 1e9);
        std::hint::black_box(&to);
    }
    best
}
