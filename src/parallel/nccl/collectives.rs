//! Implements the collectives of a group of GPU ranks with NCCL's sends and receives; only a broadcast is NCCL's own.
//!
//! NCCL's reductions are not used: they add in an order that depends on its rings and trees, their number and the
//! message's length, so that sums would differ from those of other backends, and from one cluster to the next. Here
//! every rank receives all others' elements for its part and adds them in rank order, by Candle, on the GPU: as many
//! bytes as a ring sends, and memory for a piece a rank.
//!
//! Tensors in the CPU's memory are taken too, and results for them are in memory again: for the few values that ranks
//! agree on.

use candle_core::{DType, Device, Tensor};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::comm::{Comm, Gpu, Message};
use super::library::UniqueId;
use super::memory;
use super::order::Turn;
use crate::ops::bytes;
use crate::parallel::split::{group_of, range_of};
use crate::parallel::{Communicator, Reduce, Split, check, ordered};
use crate::{Error, Result};

/// Bytes that are received from each rank before they are reduced: large against a launch, small against a GPU's
/// memory.
const PIECE: usize = 64 << 20;

/// One rank's side of a group.
pub(super) struct Group {
    gpu: Arc<Gpu>,
    /// None for a rank alone.
    comm: Option<Comm>,
    /// World ranks, in the group's order.
    members: Arc<[usize]>,
    rank: usize,
    /// Calls so far, for people.
    calls: AtomicU64,
    /// Turns of calls that were reserved and have not begun.
    reserved: Mutex<VecDeque<Turn>>,
}

/// A call that has begun: its name for people, and its turn among the process's exchanges.
struct Call {
    name: String,
    _turn: Option<Turn>,
}

impl Deref for Call {
    type Target = str;

    fn deref(&self) -> &str {
        &self.name
    }
}

impl Group {
    /// The rank `rank` of `members`, all of whom make theirs with `id`.
    pub fn new(gpu: Arc<Gpu>, id: UniqueId, members: Arc<[usize]>, rank: usize) -> Result<Self> {
        let size = members.len();
        let comm = if size > 1 { Some(Comm::new(gpu.clone(), id, rank, size)?) } else { None };
        Ok(Self { gpu, comm, members, rank, calls: AtomicU64::new(0), reserved: Mutex::default() })
    }

    /// Begins a call when its turn has come; or this rank's refusal, which the others are told, as NCCL would have them
    /// wait.
    fn begin(&self, checked: Result<()>, call: String) -> Result<Call> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let turn =
            self.comm.is_some().then(|| self.reserved.lock().pop_front().unwrap_or_else(|| self.gpu.order.take()));
        self.gpu.control.check()?;
        self.reported(checked)?;
        let name = format!("{call} (call {number} of ranks {:?})", self.members);
        if let Some(turn) = &turn {
            self.reported(self.gpu.wait(&name, self.gpu.limits.exchange, || Ok(turn.has_come())))?;
        }
        Ok(Call { name, _turn: turn })
    }

    /// The outcome of this rank's own work; a failure is reported to the other ranks.
    fn reported<T>(&self, outcome: Result<T>) -> Result<T> {
        if let Err(e) = &outcome {
            match e {
                Error::Rank { rank, message } => self.gpu.control.fail(*rank, message),
                other => self.gpu.control.fail(self.gpu.control.rank(), &other.to_string()),
            }
        }
        outcome
    }

    fn movable(&self) -> impl Fn(&Tensor) -> Result<()> {
        |t| memory::check(t, &self.gpu.device)
    }

    /// `t` as it is sent.
    fn on_gpu(&self, t: &Tensor) -> Result<Tensor> {
        if !t.device().is_cpu() {
            return Ok(t.detach().contiguous()?);
        }
        if t.elem_count() == 0 {
            return bytes::zeros(t.dims(), t.dtype(), &self.gpu.device);
        }
        // A copy first: Candle takes all of a view's storage to another device.
        Ok(bytes::duplicate(t)?.to_device(&self.gpu.device)?)
    }

    /// What was received, where `like` is.
    fn beside(&self, t: &Tensor, like: &Tensor) -> Result<Tensor> {
        match t.elem_count() {
            0 => bytes::zeros(t.dims(), t.dtype(), like.device()),
            _ => Ok(t.to_device(like.device())?),
        }
    }

    /// Sends and receives what is not empty, and between ranks that are not the same.
    fn exchange(&self, call: &str, sends: &[Message], receives: &[Message]) -> Result<()> {
        let Some(comm) = &self.comm else { return Ok(()) };
        let some = |all: &[Message]| -> Vec<Message> {
            all.iter().filter(|(peer, tensor)| *peer != self.rank && tensor.elem_count() > 0).cloned().collect()
        };
        let (sends, receives) = (some(sends), some(receives));
        if sends.is_empty() && receives.is_empty() {
            return Ok(());
        }
        comm.exchange(call, &sends, &receives)
    }

    fn gathered(&self, call: &str, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let own = self.on_gpu(send)?;
        let receives: Vec<Message> = (0..self.size())
            .map(|i| match i == self.rank {
                true => Ok((i, bytes::duplicate(&own)?)),
                false => Ok((i, bytes::zeros(&shapes[i], send.dtype(), &self.gpu.device)?)),
            })
            .collect::<Result<_>>()?;
        let sends: Vec<Message> = (0..self.size()).map(|i| (i, own.clone())).collect();
        self.exchange(call, &sends, &receives)?;
        receives.iter().map(|(_, t)| self.beside(t, send)).collect()
    }

    /// This rank's part of the 1-D `buffer` on the GPU, reduced over all ranks in rank order; `part(i)` is rank i's.
    fn reduced(&self, call: &str, buffer: &Tensor, part: impl Fn(usize) -> Range<usize>, op: Reduce) -> Result<Tensor> {
        let (dtype, own) = (buffer.dtype(), part(self.rank));
        let step = PIECE / dtype.size_in_bytes();
        let rounds = (0..self.size()).map(|i| part(i).len().div_ceil(step)).max().unwrap_or(0);
        let piece = |range: Range<usize>, round: usize| {
            let start = (range.start + round * step).min(range.end);
            start..(start + step).min(range.end)
        };
        let mut shares = vec![];
        for round in 0..rounds {
            let cut = |i: usize| {
                let range = piece(part(i), round);
                Ok((i, buffer.narrow(0, range.start, range.len())?))
            };
            let sends: Vec<Message> = (0..self.size()).map(cut).collect::<Result<_>>()?;
            let count = piece(own.clone(), round).len();
            let received = |i: usize| match i == self.rank {
                true => Ok(sends[i].clone()),
                false => Ok((i, bytes::zeros(&[count], dtype, &self.gpu.device)?)),
            };
            let parts: Vec<Message> = (0..self.size()).map(received).collect::<Result<_>>()?;
            self.exchange(call, &sends, &parts)?;
            if count > 0 {
                shares.push(ordered::reduce(parts.into_iter().map(|(_, part)| part), op)?);
            }
        }
        match shares.len() {
            0 => bytes::zeros(&[0], dtype, &self.gpu.device),
            1 => bytes::duplicate(&shares[0]), // of a rank alone it is the buffer itself
            _ => Ok(Tensor::cat(&shares, 0)?),
        }
    }
}

impl Communicator for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_to_all(&send, shapes, self.size(), self.movable())
            .and_then(|()| check::sent(send[self.rank].dims(), self.rank, &shapes[self.rank], self.rank));
        let dtype = send.first().map_or(DType::F32, Tensor::dtype);
        let call = self.begin(checked, format!("all_to_all of {dtype:?}"))?;
        let exchanged = || {
            let sends: Vec<Message> =
                send.iter().enumerate().map(|(i, t)| Ok((i, self.on_gpu(t)?))).collect::<Result<_>>()?;
            let received = |(i, shape): (usize, &Vec<usize>)| match i == self.rank {
                true => Ok((i, memory::handed_over(&sends[i].1, &self.gpu.compute)?)),
                false => Ok((i, bytes::zeros(shape, dtype, &self.gpu.device)?)),
            };
            let receives: Vec<Message> = shapes.iter().enumerate().map(received).collect::<Result<_>>()?;
            self.exchange(&call, &sends, &receives)?;
            receives.iter().map(|(_, t)| self.beside(t, &send[self.rank])).collect()
        };
        self.reported(exchanged())
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_gather(send, shapes, self.rank, self.size(), self.movable());
        let call = self.begin(checked, format!("all_gather of {:?} {shapes:?}", send.dtype()))?;
        self.reported(self.gathered(&call, send, shapes))
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let checked = check::reduce_scatter(buffer, counts, self.size(), self.movable());
        let call = self.begin(checked, format!("reduce_scatter of {:?} {counts:?}", buffer.dtype()))?;
        let reduced = || {
            let share = self.reduced(&call, &self.on_gpu(buffer)?, |i| range_of(counts, i), Reduce::Sum)?;
            self.beside(&share, buffer)
        };
        self.reported(reduced())
    }

    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        let checked = check::all_reduce(buffer, self.movable());
        let call = self.begin(checked, format!("all_reduce {op:?} of {:?} {:?}", buffer.dtype(), buffer.dims()))?;
        let reduced = || {
            let flat = self.on_gpu(&buffer.flatten_all()?)?; // a view, if it is on the GPU: the buffer is contiguous
            let split = Split::new(flat.elem_count(), self.size());
            let share = self.reduced(&call, &flat, |i| split.range(i), op)?;
            let part = |i: usize| Ok((i, flat.narrow(0, split.range(i).start, split.count(i))?));
            let parts: Vec<Message> = (0..self.size()).map(part).collect::<Result<_>>()?;
            let sends: Vec<Message> = (0..self.size()).map(|i| (i, share.clone())).collect();
            self.exchange(&call, &sends, &parts)?;
            if share.elem_count() > 0 {
                flat.slice_set(&share, 0, split.range(self.rank).start)?;
            }
            self.back(buffer, &flat)
        };
        self.reported(reduced())
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        let checked = check::broadcast(buffer, root, self.size(), self.movable());
        let call = self.begin(checked, format!("broadcast of {:?} {:?} from {root}", buffer.dtype(), buffer.dims()))?;
        let Some(comm) = self.comm.as_ref().filter(|_| buffer.elem_count() > 0) else { return Ok(()) };
        let broadcast = || {
            let flat = self.on_gpu(&buffer.flatten_all()?)?;
            comm.broadcast(&call, &flat, root)?;
            self.back(buffer, &flat)
        };
        self.reported(broadcast())
    }

    /// Work that was given to the GPU before is done as well when it returns.
    fn barrier(&self) -> Result<()> {
        let call = self.begin(Ok(()), "barrier".into())?;
        let meet = || {
            let note = bytes::zeros(&[1], DType::U8, &self.gpu.device)?;
            self.gathered(&call, &note, &vec![vec![1]; self.size()])?;
            self.gpu.device.synchronize().map_err(Error::from)
        };
        self.reported(meet())
    }

    fn reserve(&self) {
        if self.comm.is_some() {
            let turn = self.gpu.order.take();
            self.reserved.lock().push_back(turn);
        }
    }

    /// By a new meeting place, which the first rank of each color gives to the others. `ncclCommSplit` would say which
    /// communicator it makes only when it is made: one that waits for a lost rank could not be aborted.
    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        let call = self.begin(Ok(()), "split".into())?;
        let divide = || {
            let own = Tensor::new(&[color as i64, key as i64], &Device::Cpu)?;
            let mut sides = Vec::with_capacity(self.size());
            for side in self.gathered(&call, &own, &vec![vec![2]; self.size()])? {
                let side = side.to_vec1::<i64>()?; // the same 64 bits
                sides.push([side[0] as u64, side[1] as u64]);
            }
            let (ranks, rank) = group_of(&sides, self.rank);
            let gives = rank == 0 && ranks.len() > 1;
            let id = if gives { self.gpu.nccl.unique_id()? } else { UniqueId([0; 128]) };
            let ids = self.gathered(&call, &Tensor::new(&id.0[..], &Device::Cpu)?, &vec![vec![128]; self.size()])?;
            let id = UniqueId(ids[ranks[0]].to_vec1::<u8>()?.try_into().unwrap_or([0; 128]));
            let members = ranks.iter().map(|&r| self.members[r]).collect();
            Self::new(self.gpu.clone(), id, members, rank)
        };
        Ok(Arc::new(self.reported(divide())?))
    }
}

impl Group {
    /// Writes what became of a buffer back to where it was, if that is in memory.
    fn back(&self, buffer: &Tensor, flat: &Tensor) -> Result<()> {
        if buffer.device().is_cpu() { memory::overwrite(buffer, flat) } else { Ok(()) }
    }
}
