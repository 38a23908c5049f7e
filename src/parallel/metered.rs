//! Wraps a communicator to count its time and bytes with a [`StepMeter`].
//!
//! Bytes are those that a rank has to send at least, whatever the backend: of an all-to-all what is for others, of a
//! gather its own tensor once to each, of a sum its share of a ring algorithm's, 1 / P of the buffer P - 1 times, twice
//! where all need the result.

use candle_core::Tensor;
use std::sync::Arc;

use super::{Communicator, Reduce};
use crate::Result;
use crate::observe::meter::{Section, StepMeter, Traffic};

/// A communicator whose calls are metered, as are those of the communicators that are split from it.
pub struct Metered {
    inner: Arc<dyn Communicator>,
    meter: Arc<StepMeter>,
    /// Whether time is counted too: that of other threads than the rank's own is not.
    timed: bool,
}

impl Metered {
    /// Wraps `inner`; `meter` gets the times.
    pub fn new(inner: Arc<dyn Communicator>, meter: Arc<StepMeter>) -> Self {
        Self { inner, meter, timed: true }
    }

    /// Does `call`, in which this rank sends `bytes`.
    fn call<T>(&self, traffic: Traffic, bytes: u64, call: impl FnOnce(&dyn Communicator) -> Result<T>) -> Result<T> {
        self.meter.moved(traffic, bytes);
        self.during(call)
    }

    /// Does `call`, in the rank's own time or beside it.
    fn during<T>(&self, call: impl FnOnce(&dyn Communicator) -> T) -> T {
        let call = || call(self.inner.as_ref());
        if self.timed { self.meter.during(Section::Exchange, call) } else { call() }
    }

    /// `bytes` to all others.
    fn to_others(&self, bytes: u64) -> u64 {
        bytes * (self.size() as u64 - 1)
    }
}

fn bytes(t: &Tensor) -> u64 {
    (t.elem_count() * t.dtype().size_in_bytes()) as u64
}

impl Communicator for Metered {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let own = self.rank();
        let sent = send.iter().enumerate().filter(|(to, _)| *to != own).map(|(_, t)| bytes(t)).sum();
        self.call(Traffic::AllToAll, sent, |inner| inner.all_to_all(send, shapes))
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        self.call(Traffic::AllGather, self.to_others(bytes(send)), |inner| inner.all_gather(send, shapes))
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let sent = self.to_others(bytes(buffer)) / self.size() as u64;
        self.call(Traffic::ReduceScatter, sent, |inner| inner.reduce_scatter(buffer, counts))
    }

    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        let sent = 2 * self.to_others(bytes(buffer)) / self.size() as u64;
        self.call(Traffic::AllReduce, sent, |inner| inner.all_reduce(buffer, op))
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        let sent = if self.rank() == root { self.to_others(bytes(buffer)) } else { 0 };
        self.call(Traffic::Broadcast, sent, |inner| inner.broadcast(buffer, root))
    }

    fn barrier(&self) -> Result<()> {
        self.during(|inner| inner.barrier())
    }

    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        Ok(Arc::new(Self { inner: self.inner.split(color, key)?, meter: self.meter.clone(), timed: self.timed }))
    }

    fn reserve(&self) {
        self.inner.reserve();
    }

    fn dup(&self) -> Result<Arc<dyn Communicator>> {
        Ok(Arc::new(Self { inner: self.inner.dup()?, meter: self.meter.clone(), timed: false }))
    }
}
