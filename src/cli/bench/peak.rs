//! What this machine can do at most: multiply-adds on registers, and bytes to and from memory.

use clap::Args;
use rayon::prelude::*;
use serde_json::json;
use std::time::Instant;

use super::{PEAK_TIME, Report, on_threads, unit_peak};
use crate::Result;
use crate::cli::at_least_1;
use crate::ops::cpu::Path;

/// The arithmetic peak of the best vector unit, on one thread and on all, and the bandwidth of memory.
#[derive(Debug, Args)]
pub struct PeakArgs {
    /// Threads of "all"; default: one for each processor
    #[arg(long, value_parser = at_least_1)]
    threads: Option<usize>,
}

/// f32 values of each of the two arrays that are copied: more than caches hold.
const COPIED: usize = 1 << 26;

/// Measures it.
pub fn run(args: &PeakArgs) -> Result<Report> {
    let peaks = |_| Ok([false, true].map(|bf16| unit_peak::peak(Path::best(), bf16, PEAK_TIME) / 1e9));
    let one = on_threads(Some(1), peaks)?;
    let (threads, all, copy) = on_threads(args.threads, |threads| Ok((threads, peaks(threads)?, copy())))?;
    let facts = vec![("path", json!(Path::best().name())), ("threads", json!(threads))];
    Ok(Report::new("peak", facts)
        .with("f32_gflops_1", "f32, one thread, GFLOP/s", one[0])
        .with("f32_gflops", "f32, all threads, GFLOP/s", all[0])
        .with("bf16_gflops_1", "bf16, one thread, GFLOP/s", one[1])
        .with("bf16_gflops", "bf16, all threads, GFLOP/s", all[1])
        .with("copy_gb_s", "copying memory, GB/s", copy))
}

/// GB/s, read and written, of copying an array on all threads: the best of four: the first has to get its pages.
pub(super) fn copy() -> f64 {
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
