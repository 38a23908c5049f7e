//! Tests the stash: whatever is put comes back, from memory and from a scratch file, however slow or late the copies
//! are; and whatever fails is said once, by all ranks.

mod copies;
mod engine;
mod failures;
mod run;

use candle_core::{DType, Device, Tensor};
use longreel::Result;
use longreel::engine::stash::{Attention, Copy, Hook, Residuals, Shapes, Stash, StashOptions};
use longreel::files::Place;
use longreel::ops::Compute;
use longreel::rng::{Key, Purpose};
use parking_lot::Mutex;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

fn ram() -> StashOptions {
    StashOptions::default()
}

fn disk(folder: &Path) -> StashOptions {
    options!(StashOptions::default(); place: Place::Disk, folder: Some(folder.to_owned()))
}

fn bf16(settings: StashOptions) -> StashOptions {
    options!(settings; dtype: Compute::Bf16)
}

/// Normal numbers of a key of their own.
fn normal(what: u64, n: usize) -> Vec<f32> {
    let mut values = vec![0.0; n];
    Key { seed: 11, purpose: Purpose::Test, step: 0, sample: what }.stream(0).fill_normal(&mut values);
    values
}

fn random(what: u64, dims: &[usize], dtype: DType) -> Tensor {
    let values = normal(what, dims.iter().product());
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// What a block might put.
fn residuals(what: u64, rows: usize, width: usize, [dtype, compute]: [DType; 2]) -> Residuals {
    let (x, o) = (random(3 * what, &[rows, width], dtype), random(3 * what + 1, &[rows, width], compute));
    Residuals { x, attention: Some(Attention { o, lse: random(3 * what + 2, &[1, 2, rows], lse(compute)) }) }
}

fn shapes(rows: usize, width: usize, [dtype, compute]: [DType; 2]) -> Shapes {
    Shapes::new(rows, width, [1, 2, rows], dtype, compute)
}

fn lse(compute: DType) -> DType {
    if compute == DType::F64 { DType::F64 } else { DType::F32 }
}

/// Every bit of a tensor that is f64 or narrower.
fn bits(t: &Tensor) -> Vec<u64> {
    let values = t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
    values.into_iter().map(f64::to_bits).collect()
}

/// All bits of what a block put, rounded as a bf16 stash does if `rounded`.
fn all_bits(residuals: &Residuals, rounded: bool) -> Vec<Vec<u64>> {
    let round = |t: &Tensor| if rounded { t.to_dtype(DType::BF16).unwrap() } else { t.clone() };
    let mut all = vec![bits(&round(&residuals.x))];
    if let Some(attention) = &residuals.attention {
        all.extend([bits(&round(&attention.o)), bits(&attention.lse)]);
    }
    all
}

/// The copies as they start, and a hook that writes them down.
fn recorder() -> (Arc<Mutex<Vec<Copy>>>, Hook) {
    let seen = Arc::new(Mutex::new(vec![]));
    let there = seen.clone();
    let hook = move |copy| {
        there.lock().push(copy);
        Ok(())
    };
    (seen, Arc::new(hook))
}

/// A hook that takes 0 to 5 ms, so that copies overtake each other.
fn late() -> Hook {
    let calls = AtomicU64::new(0);
    Arc::new(move |_| {
        let n = calls.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_micros((normal(1000 + n, 1)[0].abs() * 2000.0) as u64).min(Duration::from_millis(5)));
        Ok(())
    })
}

/// Waits until `done`; a test that would wait for ever fails.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if done() {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("waited in vain until {what}");
}

/// This process's open scratch files in `folder`: they have no names, but /proc has them.
fn scratch_files(folder: &Path) -> Vec<File> {
    let folder = folder.canonicalize().unwrap();
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().path());
    let inside = entries.filter(|path| fs::read_link(path).is_ok_and(|target| target.starts_with(&folder)));
    inside.filter_map(|path| File::options().read(true).write(true).open(path).ok()).collect()
}

/// A result that must be an error: its text.
fn error<T>(result: Result<T>) -> String {
    result.err().expect("must fail").to_string()
}
