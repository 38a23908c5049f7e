//! Implements the collectives of a group of ranks once, over whatever moves its tensors: checks of a call's arguments,
//! what is said of it, who disagrees with whom, and sums in rank order.
//!
//! Every rank adds all ranks' elements of its own part, so sums have the same bits by every [`Transport`].

use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::split::{group_of, range_of};
use super::transport::{CallArgs, Members, Receive, Sends, Transport};
use super::{Communicator, Reduce, Single, Split, check, sum};
use crate::ops::bytes;
use crate::{Error, Result};

/// One rank's side of a group.
pub(super) struct Collectives<T> {
    transport: T,
    /// Calls so far: the nth call of a rank meets the nth calls of the others.
    calls: AtomicU64,
}

impl<T: Transport> Collectives<T> {
    pub fn new(transport: T) -> Self {
        Self { transport, calls: AtomicU64::new(0) }
    }

    /// Begins a call, once all ranks have. `checked` says whether this rank's arguments are sound; `first` makes what
    /// it sends first. Fails on every rank alike if one refuses or two disagree.
    fn begin(&self, checked: Result<()>, own: CallArgs, first: impl FnOnce() -> Result<Sends>) -> Result<T::Call> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let first = if checked.is_ok() { first()? } else { vec![] };
        let own = CallArgs { refusal: checked.err().map(|e| e.to_string()), ..own };
        let text = format!("{} (call {number} of ranks {:?})", own.call, self.transport.members().all);
        let (call, args) = self.transport.begin(number, &text, own, first)?;
        self.judge(number, &args)?;
        Ok(call)
    }

    /// Fails if a rank refuses, or two disagree, as every rank does that sees the same.
    fn judge(&self, number: u64, args: &[(usize, CallArgs)]) -> Result<()> {
        let Members { all, rank } = self.transport.members();
        if let Some((i, message)) = args.iter().find_map(|(i, args)| Some((*i, args.refusal.clone()?))) {
            self.transport.fail(all[i], &message);
            return Err(if i == *rank { Error::Shape(message) } else { Error::Rank { rank: all[i], message } });
        }
        let disagree = |i: usize, what: String| {
            let message = format!("ranks disagree in call {number} of ranks {all:?}: {what}");
            self.transport.fail(all[i], &message);
            Err(Error::Shape(message))
        };
        let side = |(i, args): &(usize, CallArgs)| format!("rank {} calls {}", all[*i], args.call);
        if let Some(other) = args.iter().find(|(_, other)| other.call != args[0].1.call) {
            return disagree(other.0, format!("{}, {}", side(&args[0]), side(other)));
        }
        for (i, from) in args {
            for (j, to) in args {
                if let (Some(dims), Some(expected)) = (from.sends.get(j), to.expects.get(i))
                    && let Err(e) = check::sent(dims, *i, expected, *j)
                {
                    return disagree(*i, e.to_string());
                }
            }
        }
        Ok(())
    }

    /// Does this rank's own work; the other ranks are told of a failure.
    fn reported<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        let Members { all, rank } = self.transport.members();
        work().inspect_err(|e| match e {
            Error::Rank { rank, message } => self.transport.fail(*rank, message),
            e => self.transport.fail(all[*rank], &e.to_string()),
        })
    }

    /// Sends and receives, and waits for it.
    fn exchange(&self, call: &mut T::Call, sends: Option<Sends>, receives: Vec<Receive>) -> Result<Vec<Tensor>> {
        let flight = self.transport.start(call, sends, receives)?;
        Ok(self.transport.land(call, flight)?.into_iter().flatten().collect())
    }

    /// Begins a call with the 1-D staged `buffer`, of which each rank gets its `part`; returns this rank's, reduced
    /// over all ranks in rank order.
    fn reduce(
        &self,
        checked: Result<()>,
        name: String,
        buffer: &Tensor,
        part: &dyn Fn(usize) -> Range<usize>,
        op: Reduce,
    ) -> Result<(T::Call, Tensor)> {
        let (size, rank, dtype) = (self.size(), self.rank(), buffer.dtype());
        let step = (self.transport.piece() / dtype.size_in_bytes()).max(1);
        let piece = |i: usize, round: usize| {
            let range = part(i);
            let start = range.end.min(range.start + round * step);
            start..range.end.min(start.saturating_add(step))
        };
        let cut = |round: usize| -> Result<Sends> {
            let one = |range: Range<usize>| buffer.narrow(0, range.start, range.len());
            (0..size).map(|i| Ok(Some(one(piece(i, round))?))).collect()
        };
        let receives = |round| (0..size).map(|_| Receive::New(vec![piece(rank, round).len()], dtype)).collect();
        let mut call = self.begin(checked, CallArgs::of(name), || cut(0))?;
        let rounds = (0..size).map(|i| part(i).len().div_ceil(step)).max().unwrap_or(0);
        let share = bytes::zeros(&[part(rank).len()], dtype, buffer.device())?;
        let mut next = Some(self.transport.start(&mut call, None, receives(0))?);
        let mut round = 0;
        while let Some(now) = next.take() {
            if round + 1 < rounds {
                // Comes while this one is added.
                next = Some(self.transport.start(&mut call, Some(cut(round + 1)?), receives(round + 1))?);
            }
            let parts: Vec<Tensor> = self.transport.land(&mut call, now)?.into_iter().flatten().collect();
            let count = piece(rank, round).len();
            if count > 0 {
                sum::reduce_tensors(&share.narrow(0, piece(rank, round).start - part(rank).start, count)?, &parts, op)?;
            }
            round += 1;
        }
        Ok((call, share))
    }
}

impl<T: Transport> Communicator for Collectives<T> {
    fn rank(&self) -> usize {
        self.transport.members().rank
    }

    fn size(&self) -> usize {
        self.transport.members().size()
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_to_all(&send, shapes, self.size(), |t| self.transport.check(t));
        let dtype = send.first().map_or(DType::F32, Tensor::dtype);
        let call = if send.is_empty() { "all_to_all of ".into() } else { format!("all_to_all of {dtype:?}") };
        let sends = send.iter().map(|t| t.dims().to_vec()).enumerate().collect();
        let expects = shapes.iter().cloned().enumerate().collect();
        let own = CallArgs { sends, expects, ..CallArgs::of(call) };
        let device = send.first().map_or(Device::Cpu, |t| t.device().clone());
        let first = || {
            let ready = |(i, t): (usize, Tensor)| {
                let t = self.transport.stage(&t)?;
                Ok(Some(if T::SHARES || i == self.rank() { self.transport.give(&t)? } else { t }))
            };
            send.into_iter().enumerate().map(ready).collect()
        };
        self.reported(|| {
            let mut call = self.begin(checked, own, first)?;
            let receives = shapes.iter().map(|shape| Receive::New(shape.clone(), dtype)).collect();
            let received = self.exchange(&mut call, None, receives)?;
            received.into_iter().map(|t| self.transport.unstage(t, &device)).collect()
        })
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_gather(send, shapes, self.rank(), self.size(), |t| self.transport.check(t));
        let call = format!("all_gather of {:?} {shapes:?}", send.dtype());
        self.reported(|| {
            let first = || Ok(vec![Some(self.transport.stage(send)?); self.size()]);
            let mut call = self.begin(checked, CallArgs::of(call), first)?;
            let receives = shapes.iter().map(|shape| Receive::New(shape.clone(), send.dtype())).collect();
            let received = self.exchange(&mut call, None, receives)?;
            let own_copy = |(i, t): (usize, Tensor)| {
                let t = if T::SHARES || i == self.rank() { bytes::duplicate(&t)? } else { t };
                self.transport.unstage(t, send.device())
            };
            let received = received.into_iter().enumerate().map(own_copy).collect();
            self.transport.part(call)?;
            received
        })
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let checked = check::reduce_scatter(buffer, counts, self.size(), |t| self.transport.check(t));
        let name = format!("reduce_scatter of {:?} {counts:?}", buffer.dtype());
        self.reported(|| {
            let staged = if checked.is_ok() { self.transport.stage(buffer)? } else { buffer.clone() };
            let (call, share) = self.reduce(checked, name, &staged, &|i| range_of(counts, i), Reduce::Sum)?;
            self.transport.part(call)?;
            self.transport.unstage(share, buffer.device())
        })
    }

    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        let checked = check::all_reduce(buffer, |t| self.transport.check(t));
        let name = format!("all_reduce {op:?} of {:?} {:?}", buffer.dtype(), buffer.dims());
        self.reported(|| {
            // A view where it is received, as the buffer is contiguous.
            let flat = if checked.is_ok() { self.transport.stage(&buffer.flatten_all()?)? } else { buffer.clone() };
            let split = Split::new(flat.elem_count(), self.size());
            let (mut call, share) = self.reduce(checked, name, &flat, &|i| split.range(i), op)?;
            let into = |i| Ok(Receive::Into(flat.narrow(0, split.range(i).start, split.count(i))?));
            let receives = (0..self.size()).map(into).collect::<Result<_>>()?;
            self.exchange(&mut call, Some(vec![Some(share); self.size()]), receives)?;
            self.transport.write_back(buffer, &flat)
        })
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        let checked = check::broadcast(buffer, root, self.size(), |t| self.transport.check(t));
        let call = format!("broadcast of {:?} {:?} from {root}", buffer.dtype(), buffer.dims());
        self.reported(|| {
            let flat = if checked.is_ok() { self.transport.stage(&buffer.flatten_all()?)? } else { buffer.clone() };
            let first = || {
                if self.rank() != root {
                    return Ok(vec![None; self.size()]);
                }
                let sent = if T::SHARES { bytes::duplicate(&flat)? } else { flat.clone() };
                Ok((0..self.size()).map(|i| (i != root).then(|| sent.clone())).collect())
            };
            let mut call = self.begin(checked, CallArgs::of(call), first)?;
            self.transport.broadcast(&mut call, &flat, root)?;
            self.transport.write_back(buffer, &flat)
        })
    }

    fn barrier(&self) -> Result<()> {
        self.reported(|| {
            let mut call = self.begin(Ok(()), CallArgs::of("barrier"), || Ok(vec![]))?;
            self.transport.barrier(&mut call)
        })
    }

    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        self.reported(|| {
            // The same 64 bits: Candle has no u64.
            let side = [color as u64, key as u64, self.transport.free_number()].map(|number| number as i64);
            let own = self.transport.stage(&Tensor::new(&side, &Device::Cpu)?)?;
            let mut call = self.begin(Ok(()), CallArgs::of("split"), || Ok(vec![Some(own); self.size()]))?;
            let receives = (0..self.size()).map(|_| Receive::New(vec![side.len()], DType::I64)).collect();
            let read = |side: Tensor| -> Result<[u64; 3]> {
                let side = self.transport.unstage(side, &Device::Cpu)?.to_vec1::<i64>()?;
                Ok(std::array::from_fn(|i| side[i] as u64))
            };
            let sides = self.exchange(&mut call, None, receives)?.into_iter().map(read).collect::<Result<Vec<_>>>()?;
            let (ranks, rank) = group_of(&sides, self.rank());
            let all = ranks.iter().map(|&r| self.transport.members().all[r]).collect();
            let part: Arc<dyn Communicator> =
                match self.transport.split(&mut call, &sides, &ranks, Members { all, rank })? {
                    Some(transport) => Arc::new(Self::new(transport)),
                    None => Arc::new(Single),
                };
            Ok(part)
        })
    }

    fn reserve(&self) {
        self.transport.reserve();
    }
}
