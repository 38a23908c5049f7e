//! Tests ranks and how they talk: collectives against plain sums, failures that must not hang, the split, the mesh and
//! Ulysses.

mod bootstrap;
pub mod collectives;
pub mod failures;
mod launch;
mod limits;
mod runner;
mod strangers;
pub mod ulysses;

use candle_core::{Device, Tensor};
use longreel::Error;
use longreel::parallel::Communicator;
use longreel::rng::{Key, Purpose, Stream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

/// [`longreel::parallel::run_threads`] under a watchdog: a hang fails the test rather than stop the suite.
fn run_threads<T, F>(ranks: usize, threads: usize, f: F) -> longreel::Result<Vec<T>>
where
    T: Send + 'static,
    F: Fn(Arc<dyn Communicator>) -> longreel::Result<T> + Send + Sync + 'static,
{
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(longreel::parallel::run_threads(ranks, threads, f)));
    receive.recv_timeout(Duration::from_secs(20)).expect("the ranks hang")
}

/// The random numbers of a test: `draw` and `part` name the stream.
pub fn random(draw: u64, part: u64) -> Stream {
    Key { seed: 7, purpose: Purpose::Test, step: draw, sample: 0 }.stream(part)
}

/// Numbers of widely different sizes, so that the order of a sum shows in its bits.
pub fn wide(draw: u64, part: u64, n: usize) -> Vec<f32> {
    let mut stream = random(draw, part);
    (0..n).map(|_| (stream.normal() * 10f64.powf(stream.uniform() * 8.0 - 4.0)) as f32).collect()
}

pub fn f32s(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

pub fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
}

/// The error of a call that must fail.
pub fn fails<T>(result: longreel::Result<T>) -> Error {
    match result {
        Ok(_) => panic!("a call succeeded that had to fail"),
        Err(e) => e,
    }
}
