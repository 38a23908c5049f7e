//! Wraps one NCCL communicator with a CUDA stream of its own, and waits for it: never for ever, and never inside NCCL
//! or CUDA, which would not hear that another rank has failed.
//!
//! Communicators are non-blocking: a call begins what is then asked for. While it is under way, the control plane's
//! failures, NCCL's asynchronous errors and the time are looked at; whatever goes wrong, the communicator is aborted,
//! which ends its kernels on the GPU.

use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaStream, DriverError};
use candle_core::{Device, Tensor};
use parking_lot::Mutex;
use std::ffi::c_int;
use std::ptr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::library::{BYTES, Config, Handle, IN_PROGRESS, Nccl, UniqueId};
use super::memory;
use super::order::Order;
use crate::parallel::transport::Message;
use crate::parallel::{ControlPlane, Limits};
use crate::{Error, Result, bail};

/// The longest sleep between two looks at what is under way: short against what an exchange takes.
const LOOK: Duration = Duration::from_micros(50);
/// How long the ranks of a communicator may take to end it together.
const FAREWELL: Duration = Duration::from_secs(5);

/// What all communicators of a process share.
pub(super) struct Gpu {
    pub nccl: Nccl,
    pub control: ControlPlane,
    pub device: Device,
    /// The stream that Candle computes in.
    pub compute: Arc<CudaStream>,
    pub limits: Limits,
    /// Of the exchanges of all communicators.
    pub order: Arc<Order>,
}

impl Gpu {
    /// Waits until `done`, or the run has failed, or it takes too long.
    pub fn wait(&self, call: &str, limit: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        let mut pause = Duration::from_micros(1);
        while !done()? {
            self.control.check()?;
            if began.elapsed() > limit {
                bail!(
                    Environment,
                    "{call} has not ended within {} s: do all ranks call the same, with shapes that fit? NCCL does not compare",
                    limit.as_secs_f32()
                );
            }
            thread::sleep(pause);
            pause = (2 * pause).min(LOOK);
        }
        Ok(())
    }
}

/// A communicator.
pub(super) struct Comm {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    /// None once it was aborted. One call at a time.
    handle: Mutex<Option<Raw>>,
}

#[derive(Clone, Copy)]
struct Raw(Handle);

// SAFETY: NCCL lets any thread call with a communicator, one at a time, which the lock sees to.
unsafe impl Send for Raw {}

impl Comm {
    /// Makes one with all who call this with the same `id`.
    pub fn new(gpu: Arc<Gpu>, id: UniqueId, rank: usize, size: usize) -> Result<Self> {
        let stream = gpu.compute.context().new_stream().map_err(driver)?; // and makes its context this thread's
        let (mut raw, mut config) = (ptr::null_mut(), Config::new());
        // SAFETY: pointers to locals that outlive the call; NCCL copies the configuration and the id, and has set the
        // handle when a call that is not to wait returns.
        let code = unsafe { (gpu.nccl.init_rank)(&mut raw, size as c_int, id, rank as c_int, &mut config) };
        let handle = Mutex::new((!raw.is_null()).then_some(Raw(raw)));
        let comm = Self { gpu, stream, handle };
        let limit = comm.gpu.limits.joining.max(comm.gpu.limits.silence);
        let made = comm.gpu.nccl.check(code).and_then(|()| {
            let mut handle = comm.handle.lock();
            comm.guarded(&mut handle, |raw| comm.gpu.wait("making a communicator", limit, || comm.ready(raw)))
        });
        made.map(|()| comm)
    }

    /// Whether what was last begun is under way no more; an error if it went wrong.
    fn ready(&self, raw: Raw) -> Result<bool> {
        let mut state = 0;
        // SAFETY: a communicator that was not destroyed, and a pointer to a local.
        self.gpu.nccl.check(unsafe { (self.gpu.nccl.get_async_error)(raw.0, &mut state) })?;
        self.gpu.nccl.check(state)?;
        Ok(state != IN_PROGRESS)
    }

    /// Does `work`, and aborts the communicator if it fails.
    fn guarded(&self, handle: &mut Option<Raw>, work: impl FnOnce(Raw) -> Result<()>) -> Result<()> {
        let Some(raw) = *handle else {
            self.gpu.control.check()?;
            bail!(Environment, "this communicator was given up after an error; no rank can use it any more");
        };
        let done = work(raw);
        if done.is_err() {
            *handle = None;
            // SAFETY: as in `ready`; it is not used again.
            unsafe { (self.gpu.nccl.abort)(raw.0) };
        }
        done
    }

    /// Sends and receives messages at once and waits until they are there; none of them is empty. `call` is for people.
    pub fn exchange(&self, call: &str, sends: &[Message], receives: &[Message]) -> Result<()> {
        let nccl = &self.gpu.nccl;
        self.run(call, sends.iter().chain(receives).map(|(_, tensor)| tensor), |raw| {
            // SAFETY: plain calls. Addresses and lengths are of tensors that are there until all is done (`run` sees to
            // it), on the GPU of the communicator and its stream.
            unsafe {
                nccl.check((nccl.group_start)())?;
                let mut begun = Ok(());
                let stream = self.raw_stream();
                for (peer, tensor) in sends {
                    let send = |memory::Place { at, bytes, .. }| {
                        nccl.check((nccl.send)(at as *const _, bytes, BYTES, *peer as c_int, raw.0, stream))
                    };
                    begun = begun.and(memory::place(tensor, &self.gpu.compute)).and_then(send);
                }
                for (peer, tensor) in receives {
                    let receive = |memory::Place { at, bytes, .. }| {
                        nccl.check((nccl.receive)(at as *mut _, bytes, BYTES, *peer as c_int, raw.0, stream))
                    };
                    begun = begun.and(memory::place(tensor, &self.gpu.compute)).and_then(receive);
                }
                let ended = nccl.check((nccl.group_end)()); // in any case: a group left open would swallow later calls
                begun.and(ended)
            }
        })
    }

    /// Copies `tensor` of rank `root` into that of all others.
    pub fn broadcast(&self, call: &str, tensor: &Tensor, root: usize) -> Result<()> {
        let nccl = &self.gpu.nccl;
        self.run(call, [tensor], |raw| {
            let memory::Place { at, bytes, .. } = memory::place(tensor, &self.gpu.compute)?;
            let (from, to) = (at as *const _, at as *mut _);
            // SAFETY: as in `exchange`; NCCL broadcasts in place.
            nccl.check(unsafe { (nccl.broadcast)(from, to, bytes, BYTES, root as c_int, raw.0, self.raw_stream()) })
        })
    }

    fn raw_stream(&self) -> super::library::Stream {
        self.stream.cu_stream().cast()
    }

    /// Begins work in the communicator's stream, after all that was begun in Candle's, and waits for it; what is begun
    /// in Candle's afterwards comes after it.
    fn run<'a>(
        &self,
        call: &str,
        tensors: impl IntoIterator<Item = &'a Tensor>,
        begin: impl FnOnce(Raw) -> Result<()>,
    ) -> Result<()> {
        let in_flight: Vec<Tensor> = tensors.into_iter().cloned().collect();
        let mut handle = self.handle.lock();
        let (gpu, limit) = (&self.gpu, self.gpu.limits.exchange);
        let done = self.guarded(&mut handle, |raw| {
            gpu.control.check()?;
            let before = gpu.compute.record_event(None).map_err(driver)?; // makes the GPU's context this thread's
            self.stream.wait(&before).map_err(driver)?;
            begin(raw)?;
            gpu.wait(call, limit, || self.ready(raw))?; // until then it may not be in the stream
            let after = self.stream.record_event(None).map_err(driver)?;
            gpu.wait(call, limit, || Ok(self.ready(raw)? && complete(&after)?))?;
            gpu.compute.wait(&after).map_err(driver)
        });
        if done.is_err() {
            std::mem::forget(in_flight); // a kernel may still write there
        }
        done.map_err(|e| at(call, e))
    }
}

fn complete(event: &CudaEvent) -> Result<bool> {
    event.try_is_complete().map_err(driver)
}

/// An error of NCCL or CUDA with the call that met it; another rank's stays as it is.
fn at(call: &str, e: Error) -> Error {
    if e.to_string().starts_with(call) { e } else { e.at(call) }
}

pub(super) fn driver(e: DriverError) -> Error {
    Error::Environment(format!("the GPU reports: {}; nvidia-smi says how it is", crate::cuda::meaning(e)))
}

impl Drop for Comm {
    /// Ends the communicator with the others, or without those that do not come.
    fn drop(&mut self) {
        let Some(raw) = self.handle.lock().take() else { return };
        let _ = self.gpu.compute.context().bind_to_thread();
        let nccl = &self.gpu.nccl;
        // SAFETY: as in `ready`; the handle was taken, so this is its last use.
        unsafe {
            let begun = self.gpu.control.check().and_then(|()| nccl.check((nccl.finalize)(raw.0)));
            let ended = begun.and_then(|()| self.gpu.wait("ending a communicator", FAREWELL, || self.ready(raw)));
            if ended.is_ok() {
                (nccl.destroy)(raw.0)
            } else {
                (nccl.abort)(raw.0)
            };
        }
    }
}
