//! Wraps MPI's calls and the memory that they read and write. Nothing here knows what a message is for.
//!
//! Only point-to-point messages are used, but for one broadcast at the start. A message of any length goes, in parts:
//! MPI counts bytes in a C int.

use candle_core::Tensor;
use mpi::ffi;
use std::cell::Cell;
use std::ffi::c_int;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr;

use crate::ops::bytes;
use crate::{Error, Result, bail};

/// A communicator of all processes, whose messages never meet another channel's.
pub(super) struct Channel(ffi::MPI_Comm);

// SAFETY: the handle lives as long as the process, and MPI was started with MPI_THREAD_MULTIPLE: any thread may call
// with it.
unsafe impl Send for Channel {}
// SAFETY: as above, and also several threads at once.
unsafe impl Sync for Channel {}

impl Channel {
    /// A new one. All processes call it, in the same order.
    pub fn new() -> Result<Self> {
        let mut comm = MaybeUninit::uninit();
        // SAFETY: MPI is initialised (only `World::start` calls this); MPI writes the handle that is read after its
        // success.
        unsafe {
            check(ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, comm.as_mut_ptr()))?;
            let comm = comm.assume_init();
            check(ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN))?;
            Ok(Self(comm))
        }
    }

    /// Copies rank 0's `bytes` over those of all others, who have as many. It waits as MPI does, at full load and for
    /// ever, and is for the start only.
    pub fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let (start, count) = (bytes.as_mut_ptr().cast(), bytes.len() as c_int);
        // SAFETY: a plain call; the buffer has the length that it says.
        check(unsafe { ffi::MPI_Bcast(start, count, ffi::RSMPI_UINT8_T, 0, self.0) })
    }

    /// The next message with `tag` from the rank `from`. None if none has come. Of one (sender, tag) only one thread at
    /// a time may ask.
    pub fn take(&self, from: usize, tag: c_int) -> Result<Option<Vec<u8>>> {
        let (mut there, mut status, mut count) = (0, MaybeUninit::uninit(), 0);
        // SAFETY: plain calls with pointers to locals; the status is read only after MPI has set it, and the buffer has
        // the length that MPI says the message has. The message is there, so that receiving it does not wait for its
        // sender's next step.
        unsafe {
            check(ffi::MPI_Iprobe(from as c_int, tag, self.0, &mut there, status.as_mut_ptr()))?;
            if there == 0 {
                return Ok(None);
            }
            let mut status: ffi::MPI_Status = status.assume_init();
            check(ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count))?;
            let mut bytes = vec![0u8; count as usize];
            let buffer = bytes.as_mut_ptr().cast();
            check(ffi::MPI_Recv(buffer, count, ffi::RSMPI_UINT8_T, from as c_int, tag, self.0, &mut status))?;
            Ok(Some(bytes))
        }
    }
}

/// Ends all processes of the job with code 1, this one at once.
pub(super) fn abort() {
    // SAFETY: a plain call, while MPI is started: longreel ends it last.
    unsafe { ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, 1) };
}

/// Messages under way, with the memory that they read and write. Given up before they are done, that memory is leaked,
/// for MPI may still use it: so it is only where a run has failed, and the process ends.
pub(super) struct Flight {
    requests: Vec<ffi::MPI_Request>,
    tensors: ManuallyDrop<Vec<Tensor>>,
    bytes: ManuallyDrop<Vec<Vec<u8>>>,
    /// The most bytes of one MPI message.
    longest: usize,
}

// SAFETY: see `Channel`; a request is a handle that any one thread may test.
unsafe impl Send for Flight {}

impl Flight {
    /// Without messages yet; each will be cut into parts of at most `longest` bytes.
    pub fn new(longest: usize) -> Self {
        let (tensors, bytes) = (ManuallyDrop::default(), ManuallyDrop::default());
        Self { requests: vec![], tensors, bytes, longest: longest.min(c_int::MAX as usize) }
    }

    /// Starts to send a contiguous tensor, which must not be written to until this is done.
    pub fn send(&mut self, channel: &Channel, tensor: &Tensor, to: usize, tag: c_int) -> Result<()> {
        let (pointer, length) = {
            let (storage, layout) = tensor.storage_and_layout();
            let bytes = bytes::view(bytes::raw(&storage)?, layout, tensor.dtype())?;
            (bytes.as_ptr(), bytes.len())
        };
        self.tensors.push(tensor.clone());
        // SAFETY: `pointer` is memory of the tensor's storage, which `self.tensors` keeps until MPI is done with it.
        unsafe { self.post(Direction::Send, channel, pointer.cast_mut(), [length, self.longest], to, tag) }
    }

    /// Starts to receive into a contiguous tensor, as many bytes as it has; nobody may look at it until this is done.
    pub fn receive(&mut self, channel: &Channel, tensor: &Tensor, from: usize, tag: c_int) -> Result<()> {
        let pointer_and_length = Cell::new((ptr::null_mut::<u8>(), 0));
        bytes::overwrite(tensor, |out| {
            pointer_and_length.set((out.as_mut_ptr(), out.len()));
            Ok(())
        })?;
        self.tensors.push(tensor.clone());
        let (pointer, length) = pointer_and_length.get();
        // SAFETY: `pointer` is memory of the tensor's storage, which `self.tensors` keeps until MPI is done with it,
        // never moves (no tensor op resizes a storage), and is read by nobody meanwhile, as the caller has promised.
        unsafe { self.post(Direction::Receive, channel, pointer, [length, self.longest], from, tag) }
    }

    /// Starts to send bytes.
    pub fn send_bytes(&mut self, channel: &Channel, bytes: Vec<u8>, to: usize, tag: c_int) -> Result<()> {
        if bytes.len() > c_int::MAX as usize {
            bail!(Environment, "a note of {} bytes to rank {to} is too long for MPI", bytes.len());
        }
        let (pointer, length) = (bytes.as_ptr(), bytes.len());
        self.bytes.push(bytes);
        // SAFETY: `pointer` is the heap memory of a vector that `self.bytes` keeps, unchanged, until MPI is done with
        // it.
        unsafe { self.post(Direction::Send, channel, pointer.cast_mut(), [length; 2], to, tag) }
    }

    /// Whether all messages are done: sent ones may be overwritten, received ones are there.
    pub fn done(&mut self) -> Result<bool> {
        while let Some(request) = self.requests.last_mut() {
            let mut done = 0;
            // SAFETY: the request is one that MPI gave and that was not done yet.
            check(unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) })?;
            if done == 0 {
                return Ok(false);
            }
            self.requests.pop();
        }
        Ok(true)
    }

    /// Starts to send or receive `length` bytes from `pointer` on, in parts of at most `longest`.
    ///
    /// # Safety
    /// They are there, and nobody writes to them, nor reads those that are received, until the flight is done or
    /// leaked.
    unsafe fn post(
        &mut self,
        direction: Direction,
        channel: &Channel,
        pointer: *mut u8,
        [length, longest]: [usize; 2],
        other: usize,
        tag: c_int,
    ) -> Result<()> {
        for start in (0..length).step_by(longest.max(1)) {
            let (count, other, comm) = (longest.min(length - start) as c_int, other as c_int, channel.0);
            let mut request = MaybeUninit::uninit();
            // SAFETY: the caller's promise; the part lies within the `length` bytes.
            check(unsafe {
                let (at, request, bytes) = (pointer.add(start).cast(), request.as_mut_ptr(), ffi::RSMPI_UINT8_T);
                match direction {
                    Direction::Send => ffi::MPI_Isend(at, count, bytes, other, tag, comm, request),
                    Direction::Receive => ffi::MPI_Irecv(at, count, bytes, other, tag, comm, request),
                }
            })?;
            // SAFETY: set by the call above.
            self.requests.push(unsafe { request.assume_init() });
        }
        Ok(())
    }
}

/// Where a message goes.
enum Direction {
    Send,
    Receive,
}

impl Drop for Flight {
    fn drop(&mut self) {
        if self.requests.is_empty() {
            // SAFETY: dropped once, here, and not used again.
            unsafe {
                ManuallyDrop::drop(&mut self.tensors);
                ManuallyDrop::drop(&mut self.bytes);
            }
        }
    }
}

/// An MPI call's code as an error with MPI's own text.
fn check(code: c_int) -> Result<()> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = vec![0u8; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut length = 0;
    // SAFETY: the buffer has the length that MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    text.truncate(length.max(0) as usize);
    Err(Error::Environment(format!("MPI reports: {}", String::from_utf8_lossy(&text))))
}
