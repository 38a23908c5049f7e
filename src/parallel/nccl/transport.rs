//! Moves tensors between GPU ranks with NCCL's sends and receives; only a broadcast is NCCL's own.
//!
//! NCCL's reductions are not used: they add in an order that depends on its rings and trees, their number and the
//! message's length, so that sums would differ from those of other backends, and from one cluster to the next. Here
//! every rank receives all others' elements for its part and adds them in rank order, by Candle, on the GPU: as many
//! bytes as a ring sends, and memory for a piece a rank.
//!
//! Tensors in the CPU's memory are taken too, and results for them are in memory again: for the few values that ranks
//! agree on. NCCL compares nothing: ranks that disagree wait for each other until a time limit.

use candle_core::{DType, Device, Tensor};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;

use super::comm::{Comm, Gpu};
use super::library::UniqueId;
use super::memory;
use super::order::Turn;
use crate::Result;
use crate::ops::bytes;
use crate::parallel::transport::{AllArgs, CallArgs, Members, Messages, Receive, Sends, Transport};

/// Bytes that are received from each rank before they are reduced: large against a launch, small against a GPU's
/// memory.
const PIECE: usize = 64 << 20;

/// One rank's side of a group of two ranks or more.
pub(super) struct ByNccl {
    gpu: Arc<Gpu>,
    comm: Comm,
    members: Members,
    /// Turns of calls that were reserved and have not begun.
    reserved: Mutex<VecDeque<Turn>>,
}

/// A call that has begun: its name for people, what it sends first, and its turn among the process's exchanges.
pub(super) struct Call {
    name: String,
    first: Sends,
    _turn: Turn,
}

impl ByNccl {
    /// This rank among `members`, which all call this with the same `id`.
    pub fn new(gpu: Arc<Gpu>, id: UniqueId, members: Members) -> Result<Self> {
        let comm = Comm::new(gpu.clone(), id, members.rank, members.size())?;
        Ok(Self { gpu, comm, members, reserved: Mutex::default() })
    }

    /// What each rank gives of the same shape, by rank.
    fn gather(&self, call: &mut Call, own: &Tensor) -> Result<Vec<Tensor>> {
        let sends = vec![Some(self.stage(own)?); self.members.size()];
        let receive = |_| Receive::New(own.dims().to_vec(), own.dtype());
        let flight = self.start(call, Some(sends), (0..self.members.size()).map(receive).collect())?;
        self.land(call, flight)?.into_iter().flatten().map(|t| self.unstage(t, own.device())).collect()
    }
}

impl Transport for ByNccl {
    type Call = Call;
    /// What is to be sent and received when it is waited for.
    type Flight = (Sends, Vec<Receive>);

    fn members(&self) -> &Members {
        &self.members
    }

    fn piece(&self) -> usize {
        PIECE
    }

    fn check(&self, t: &Tensor) -> Result<()> {
        memory::check(t, &self.gpu.device)
    }

    fn stage(&self, t: &Tensor) -> Result<Tensor> {
        if !t.device().is_cpu() {
            return Ok(t.detach().contiguous()?);
        }
        if t.elem_count() == 0 {
            return bytes::zeros(t.dims(), t.dtype(), &self.gpu.device);
        }
        // A copy first: Candle takes all of a view's storage to another device.
        Ok(bytes::duplicate(t)?.to_device(&self.gpu.device)?)
    }

    fn unstage(&self, t: Tensor, device: &Device) -> Result<Tensor> {
        match t.elem_count() {
            0 => bytes::zeros(t.dims(), t.dtype(), device),
            _ => Ok(t.to_device(device)?),
        }
    }

    fn write_back(&self, to: &Tensor, staged: &Tensor) -> Result<()> {
        if to.device().is_cpu() { memory::overwrite(to, staged) } else { Ok(()) }
    }

    fn give(&self, t: &Tensor) -> Result<Tensor> {
        memory::handed_over(t, &self.gpu.compute)
    }

    /// When the call's turn has come; at once with this rank's refusal, for which the others are not to wait.
    fn begin(&self, _: u64, text: &str, own: CallArgs, first: Sends) -> Result<(Call, AllArgs)> {
        let turn = self.reserved.lock().pop_front().unwrap_or_else(|| self.gpu.order.take());
        self.gpu.control.check()?;
        if own.refusal.is_none() {
            self.gpu.wait(text, self.gpu.limits.exchange, || Ok(turn.has_come()))?;
        }
        Ok((Call { name: text.to_owned(), first, _turn: turn }, vec![(self.members.rank, own)]))
    }

    fn start(&self, call: &mut Call, sends: Option<Sends>, receives: Vec<Receive>) -> Result<Self::Flight> {
        Ok((sends.unwrap_or_else(|| std::mem::take(&mut call.first)), receives))
    }

    fn land(&self, call: &mut Call, (sends, receives): Self::Flight) -> Result<Vec<Option<Tensor>>> {
        let Messages { outgoing, incoming, received } =
            Messages::new(self.members.rank, sends, receives, &self.gpu.device)?;
        if !(outgoing.is_empty() && incoming.is_empty()) {
            self.comm.exchange(&call.name, &outgoing, &incoming)?;
        }
        Ok(received)
    }

    fn broadcast(&self, call: &mut Call, buffer: &Tensor, root: usize) -> Result<()> {
        if buffer.elem_count() == 0 { Ok(()) } else { self.comm.broadcast(&call.name, buffer, root) }
    }

    /// Work that was given to the GPU before is done as well when it returns.
    fn barrier(&self, call: &mut Call) -> Result<()> {
        self.gather(call, &bytes::zeros(&[1], DType::U8, &self.gpu.device)?)?;
        Ok(self.gpu.device.synchronize()?)
    }

    fn fail(&self, rank: usize, message: &str) {
        self.gpu.control.fail(rank, message);
    }

    fn reserve(&self) {
        let turn = self.gpu.order.take();
        self.reserved.lock().push_back(turn);
    }

    /// Groups have no numbers.
    fn free_number(&self) -> u64 {
        0
    }

    /// By a new meeting place, which the first rank of each color gives to the others. `ncclCommSplit` would say which
    /// communicator it makes only when it is made: one that waits for a lost rank could not be aborted.
    fn split(&self, call: &mut Call, _: &[[u64; 3]], ranks: &[usize], members: Members) -> Result<Option<Self>> {
        let gives = members.rank == 0 && ranks.len() > 1;
        let id = if gives { self.gpu.nccl.unique_id()? } else { UniqueId([0; 128]) };
        let ids = self.gather(call, &Tensor::new(&id.0[..], &Device::Cpu)?)?;
        if ranks.len() == 1 {
            return Ok(None);
        }
        let id = UniqueId(ids[ranks[0]].to_vec1::<u8>()?.try_into().unwrap_or([0; 128]));
        Self::new(self.gpu.clone(), id, members).map(Some)
    }
}
