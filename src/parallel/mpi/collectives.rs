//! Implements the collectives of a group of processes with MPI's point-to-point messages.
//!
//! Every call begins with a rendezvous: each rank sends its call's arguments to all others, so that all see a
//! disagreement before any data is sent. Then the data goes, from and to the tensors' own memory. Reductions receive
//! piece by piece and add in rank order, which gives the same bits as every other backend.

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::ffi::c_int;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Link;
use super::messages::Flight;
use crate::ops::bytes;
use crate::parallel::split::{group_of, range_of};
use crate::parallel::{Communicator, Reduce, Single, Split, check, sum};
use crate::{Error, Result, bail};

/// Bytes that are received from each rank before they are reduced: large against the cost of a message, small against
/// memory.
const PIECE: usize = 16 << 20;
/// The longest sleep while others have not come to a call, and while they send. The second is short, as shared memory
/// and sockets take only so much before both sides must look after them.
const RENDEZVOUS_SLEEP: Duration = Duration::from_millis(1);
const TRANSFER_SLEEP: Duration = Duration::from_micros(100);
/// MPI has at least 32768 tags; a group takes two.
const GROUPS: u64 = 16_384;

/// What a rank tells another of its call.
#[derive(Serialize, Deserialize)]
struct CallArgs {
    /// The call with all that must be equal on every rank, as text for people: "all_reduce Sum of F32 [3, 4]".
    call: String,
    /// Why this rank cannot take part, if so: all ranks then fail with it.
    refusal: Option<String>,
    /// The shape that is sent to the rank that is told, or color, key and a free group number.
    numbers: Vec<u64>,
}

/// One rank's side of a group.
pub(super) struct Group {
    link: Arc<Link>,
    number: u64,
    /// World ranks, in the group's order.
    members: Arc<[usize]>,
    rank: usize,
    /// Calls so far: the nth call of a rank meets the nth calls of the others.
    calls: AtomicU64,
}

impl Group {
    /// All `ranks` processes.
    pub fn world(link: Arc<Link>, rank: usize, ranks: usize) -> Self {
        Self { link, number: 0, members: (0..ranks).collect(), rank, calls: AtomicU64::new(0) }
    }

    /// The other ranks: their numbers in the group and in the world.
    fn others(&self) -> impl Iterator<Item = (usize, usize)> {
        let rank = self.rank;
        self.members.iter().copied().enumerate().filter(move |&(i, _)| i != rank)
    }

    fn tags(&self) -> [c_int; 2] {
        [2 * self.number as c_int, 2 * self.number as c_int + 1]
    }

    fn flight(&self) -> Flight {
        Flight::new(self.link.limits.message)
    }

    /// Waits until messages are done.
    fn land(&self, mut flight: Flight) -> Result<()> {
        self.link.wait(None, TRANSFER_SLEEP, || flight.done())
    }

    /// Gives `text(i)` to each rank i and returns what each gave to this one; `call` says to people what for.
    fn exchange(&self, call: &str, text: impl Fn(usize) -> Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        let Link { channel, control, .. } = &*self.link;
        control.check()?;
        control.links().begin();
        let (tag, mut flight) = (self.tags()[0], self.flight());
        for (i, member) in self.others() {
            flight.send_bytes(channel, text(i)?, member, tag)?;
        }
        let mut texts: Vec<Option<Vec<u8>>> = vec![None; self.members.len()];
        texts[self.rank] = Some(text(self.rank)?);
        self.link.wait(Some(call), RENDEZVOUS_SLEEP, || {
            for (i, member) in self.others() {
                if texts[i].is_none() {
                    texts[i] = channel.take(member, tag)?;
                }
                if texts[i].is_none() && control.links().gone(member) {
                    control.fail(member, &format!("it returned while rank {} waits in {call}", control.rank()));
                }
            }
            Ok(texts.iter().all(Option::is_some))
        })?;
        self.land(flight)?;
        Ok(texts.into_iter().flatten().collect())
    }

    /// Waits until all ranks have made this call. `checked` says whether this rank's arguments were sound, and
    /// `numbers(i)` are for rank i. Fails on every rank alike if one refuses or two disagree.
    fn meet(&self, checked: Result<()>, call: String, numbers: impl Fn(usize) -> Vec<u64>) -> Result<MatchedCall> {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        let refusal = checked.err().map(|e| e.to_string());
        let call_text = format!("{call} (call {number} of ranks {:?})", self.members);
        let own_args = |i| {
            let own_args = CallArgs { call: call.clone(), refusal: refusal.clone(), numbers: numbers(i) };
            serde_json::to_vec(&own_args).map_err(|e| Error::Environment(e.to_string()))
        };
        let read = |text: Vec<u8>| {
            serde_json::from_slice(&text).map_err(|e| Error::Environment(format!("a rank of another longreel? {e}")))
        };
        let args: Vec<CallArgs> = self.exchange(&call_text, own_args)?.into_iter().map(read).collect::<Result<_>>()?;
        if let Some(i) = args.iter().position(|args| args.refusal.is_some()) {
            let message = args[i].refusal.clone().unwrap_or_default();
            self.link.control.fail(self.members[i], &message);
            return Err(match i == self.rank {
                true => Error::Shape(message),
                false => Error::Rank { rank: self.members[i], message },
            });
        }
        let matched = MatchedCall { number, numbers: args.iter().map(|args| args.numbers.clone()).collect() };
        if let Some(i) = args.iter().position(|other| other.call != args[0].call) {
            let side = |i: usize| format!("rank {} calls {}", self.members[i], args[i].call);
            return self.disagree(&matched, i, format!("{}, {}", side(0), side(i)));
        }
        Ok(matched)
    }

    /// Fails the run; `i` is the rank to name.
    fn disagree<T>(&self, matched: &MatchedCall, i: usize, what: String) -> Result<T> {
        let message = format!("ranks disagree in call {} of ranks {:?}: {what}", matched.number, self.members);
        self.link.control.fail(self.members[i], &message);
        Err(Error::Shape(message))
    }

    /// Sends the parts of the 1-D `buffer` that `part` gives to the others, and returns this rank's part, reduced over
    /// all ranks in rank order. The buffer may be written to afterwards.
    fn reduce(&self, buffer: &Tensor, part: impl Fn(usize) -> Range<usize>, op: Reduce) -> Result<Tensor> {
        let (dtype, tag) = (buffer.dtype(), self.tags()[1]);
        let step = (PIECE.min(self.link.limits.message) / dtype.size_in_bytes()).max(1);
        let pieces =
            |range: Range<usize>| range.clone().step_by(step).map(move |start| (start, step.min(range.end - start)));
        let mut sends = self.flight();
        for (i, member) in self.others() {
            for (start, count) in pieces(part(i)) {
                sends.send(&self.link.channel, &buffer.narrow(0, start, count)?, member, tag)?;
            }
        }
        let own = part(self.rank);
        let share = bytes::build(dtype, &[own.len()], |_| Ok(()))?;
        let post = |(start, count): (usize, usize)| -> Result<_> {
            let mut flight = self.flight();
            let mut parts = Vec::with_capacity(self.members.len());
            for (i, &member) in self.members.iter().enumerate() {
                if i == self.rank {
                    parts.push(buffer.narrow(0, start, count)?);
                    continue;
                }
                let piece = bytes::build(dtype, &[count], |_| Ok(()))?;
                flight.receive(&self.link.channel, &piece, member, tag)?;
                parts.push(piece);
            }
            Ok((flight, parts, share.narrow(0, start - own.start, count)?))
        };
        let mut ahead = pieces(own.clone()).map(post);
        let mut next = ahead.next();
        while let Some(now) = next {
            let (flight, parts, out) = now?;
            next = ahead.next(); // comes while this one is added
            self.land(flight)?;
            let views: Vec<_> = parts.iter().map(Tensor::storage_and_layout).collect();
            let read = |(storage, layout)| bytes::view(bytes::raw(storage)?, layout, dtype);
            let parts = views.iter().map(|(s, l)| read((&**s, *l))).collect::<Result<Vec<_>>>()?;
            bytes::overwrite(&out, |out| sum::reduce(out, &parts, dtype, op))?;
        }
        self.land(sends)?;
        Ok(share)
    }
}

/// A call that all ranks have made, with equal arguments.
struct MatchedCall {
    /// The call's number in the group, from 0.
    number: u64,
    /// Each rank's for this one.
    numbers: Vec<Vec<u64>>,
}

impl Communicator for Group {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_to_all(&send, shapes, self.size(), bytes::check);
        let dtype = send.first().map_or(DType::F32, Tensor::dtype);
        let call = if send.is_empty() { "all_to_all of ".into() } else { format!("all_to_all of {dtype:?}") };
        let matched = self.meet(checked, call, |i| send.get(i).map_or(vec![], |t| wide(t.dims())))?;
        for (i, dims) in matched.numbers.iter().enumerate() {
            let dims: Vec<usize> = dims.iter().map(|&n| n as usize).collect();
            if let Err(e) = check::sent(&dims, i, &shapes[i], self.rank) {
                return self.disagree(&matched, i, e.to_string());
            }
        }
        let (mut flight, tag) = (self.flight(), self.tags()[1]);
        let mut received = Vec::with_capacity(self.size());
        for (i, shape) in shapes.iter().enumerate() {
            if i == self.rank {
                let own = &send[i];
                received.push(if bytes::owns_storage(own)? { own.detach() } else { bytes::duplicate(own)? });
                continue;
            }
            let t = bytes::build(dtype, shape, |_| Ok(()))?;
            flight.receive(&self.link.channel, &t, self.members[i], tag)?;
            received.push(t);
        }
        for (i, member) in self.others() {
            flight.send(&self.link.channel, &send[i].contiguous()?, member, tag)?;
        }
        self.land(flight)?;
        Ok(received)
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_gather(send, shapes, self.rank, self.size(), bytes::check);
        self.meet(checked, format!("all_gather of {:?} {shapes:?}", send.dtype()), |_| vec![])?;
        let (mut flight, tag, send) = (self.flight(), self.tags()[1], send.contiguous()?);
        let mut received = Vec::with_capacity(self.size());
        for (i, (shape, &member)) in shapes.iter().zip(self.members.iter()).enumerate() {
            if i == self.rank {
                received.push(bytes::duplicate(&send)?);
                continue;
            }
            let t = bytes::build(send.dtype(), shape, |_| Ok(()))?;
            flight.receive(&self.link.channel, &t, member, tag)?;
            flight.send(&self.link.channel, &send, member, tag)?;
            received.push(t);
        }
        self.land(flight)?;
        Ok(received)
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let checked = check::reduce_scatter(buffer, counts, self.size(), bytes::check);
        self.meet(checked, format!("reduce_scatter of {:?} {counts:?}", buffer.dtype()), |_| vec![])?;
        self.reduce(&buffer.contiguous()?, |i| range_of(counts, i), Reduce::Sum)
    }

    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        let checked = check::all_reduce(buffer, bytes::check);
        self.meet(checked, format!("all_reduce {op:?} of {:?} {:?}", buffer.dtype(), buffer.dims()), |_| vec![])?;
        let flat = buffer.flatten_all()?; // a view: the buffer is contiguous
        let split = Split::new(flat.elem_count(), self.size());
        let share = self.reduce(&flat, |i| split.range(i), op)?;
        let part = |i: usize| flat.narrow(0, split.range(i).start, split.count(i));
        let (mut flight, tag) = (self.flight(), self.tags()[1]);
        for (i, member) in self.others() {
            flight.receive(&self.link.channel, &part(i)?, member, tag)?;
            flight.send(&self.link.channel, &share, member, tag)?;
        }
        let (storage, _) = share.storage_and_layout();
        let reduced = bytes::raw(&storage)?;
        bytes::overwrite(&part(self.rank)?, |out| {
            bytes::copy(out, reduced);
            Ok(())
        })?;
        drop(storage);
        self.land(flight)
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        let checked = check::broadcast(buffer, root, self.size(), bytes::check);
        self.meet(checked, format!("broadcast of {:?} {:?} from {root}", buffer.dtype(), buffer.dims()), |_| vec![])?;
        let (mut flight, tag) = (self.flight(), self.tags()[1]);
        if self.rank != root {
            flight.receive(&self.link.channel, buffer, self.members[root], tag)?;
            return self.land(flight);
        }
        for (_, member) in self.others() {
            flight.send(&self.link.channel, buffer, member, tag)?;
        }
        self.land(flight)
    }

    fn barrier(&self) -> Result<()> {
        self.meet(Ok(()), "barrier".into(), |_| vec![]).map(|_| ())
    }

    /// As for every backend; a rank calls it from one thread at a time.
    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        let free = self.link.group_number();
        let matched = self.meet(Ok(()), "split".into(), |_| vec![color as u64, key as u64, free])?;
        // The largest of all is free on all of them, and the groups of one split have no ranks in common.
        let number = matched.numbers.iter().map(|n| n[2]).max().unwrap_or(free);
        self.link.took(number);
        if number >= GROUPS {
            bail!(Environment, "communicators were split {GROUPS} times; keep and use them again instead");
        }
        let sides: Vec<[u64; 2]> = matched.numbers.iter().map(|n| [n[0], n[1]]).collect();
        let (ranks, rank) = group_of(&sides, self.rank);
        let members: Arc<[usize]> = ranks.iter().map(|&r| self.members[r]).collect();
        if members.len() == 1 {
            return Ok(Arc::new(Single));
        }
        Ok(Arc::new(Self { link: self.link.clone(), number, members, rank, calls: AtomicU64::new(0) }))
    }
}

fn wide(dims: &[usize]) -> Vec<u64> {
    dims.iter().map(|&n| n as u64).collect()
}
