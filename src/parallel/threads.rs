//! Runs ranks as threads of one process, and implements their collectives.
//!
//! What is copied, so that nobody ever sees another rank's later writes:
//! - `all_to_all` hands a tensor over as it is when the tensor is all of its storage (the sender gives it away and must
//!   not write into it afterwards); a view into something larger is copied by the sender.
//! - `all_gather` copies on every receiver; `broadcast` once on the root, then on every receiver.
//! - `reduce_scatter` and `all_reduce` read the other ranks' buffers in place: each rank reduces its share of the
//!   elements, in rank order, and shares are then exchanged. No rank returns, or writes, before all have read.

use candle_core::Tensor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use super::rendezvous::{CallArgs, Group, Rendezvous, call_number};
use super::split::{group_of, range_of};
use super::{Communicator, Reduce, Single, Split, check, sum, thread_refused};
use crate::ops::bytes;
use crate::{Error, Result, bail};

/// Candle walks graphs by recursion, deeper than a thread's usual 2 MiB; only what is touched becomes memory.
const STACK: usize = 64 << 20;

/// Runs `f` on `ranks` ranks and returns what each returned, in rank order.
///
/// A rank is a thread called `rank-N` within a rayon pool of its own with `threads_per_rank` threads; its log lines
/// carry the rank. If a rank returns an error or panics, the calls of all others, pending or later, return
/// [`Error::Rank`], also through communicators made by `split`; so they do if a rank returns while others still wait
/// for it, or if all ranks wait for each other.
///
/// # Errors
/// The first failing rank's own error; a panic becomes [`Error::Rank`] with the panic's text.
pub fn run<T, F>(ranks: usize, threads_per_rank: usize, f: F) -> Result<Vec<T>>
where
    T: Send,
    F: Fn(Arc<dyn Communicator>) -> Result<T> + Sync,
{
    if ranks == 0 || threads_per_rank == 0 {
        bail!(Config, "cannot run {ranks} ranks with {threads_per_rank} threads each; both must be at least 1");
    }
    let rendezvous = Arc::new(Rendezvous::new(ranks));
    let world = Group { id: 0, members: (0..ranks).collect() };
    let parent = tracing::Span::current();
    let mut results: Vec<Result<T>> = thread::scope(|scope| {
        let start = |rank: usize| {
            let (rendezvous, world, f) = (&rendezvous, &world, &f);
            // A rank that is alone needs no name in the log.
            let span = if ranks == 1 { parent.clone() } else { tracing::error_span!(parent: &parent, "rank", rank) };
            let comm: Arc<dyn Communicator> = match ranks {
                1 => Arc::new(Single),
                _ => Arc::new(Threads::new(rendezvous.clone(), world.clone(), rank)),
            };
            let body = move || {
                let outcome = in_pool(rank, threads_per_rank, span, || {
                    rendezvous.enter(rank);
                    f(comm)
                });
                match &outcome {
                    Ok(_) => rendezvous.leave(rank),
                    Err(e) => rendezvous.fail(rank, message_of(e, rank)),
                }
                outcome
            };
            thread::Builder::new().name(format!("rank-{rank}")).spawn_scoped(scope, body).map_err(|e| {
                let e = thread_refused(&format!("a thread for rank {rank}"), &e);
                rendezvous.fail(rank, e.to_string());
                e
            })
        };
        let handles: Vec<_> = (0..ranks).map(start).collect();
        let join = |(rank, handle): (usize, Result<thread::ScopedJoinHandle<_>>)| {
            handle?.join().unwrap_or_else(|panic| Err(panicked(rank, panic.as_ref())))
        };
        handles.into_iter().enumerate().map(join).collect()
    });
    if let Some(rank) = rendezvous.failed()
        && results[rank].is_err()
    {
        return Err(results.swap_remove(rank).err().expect("just seen"));
    }
    results.into_iter().collect()
}

/// Runs `f` in a rayon pool of its own; a panic becomes an error.
pub(super) fn in_pool<T: Send>(
    rank: usize,
    threads: usize,
    span: tracing::Span,
    f: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(move |_| format!("rank-{rank}"))
        .stack_size(STACK);
    let run = |pool: &rayon::ThreadPool| {
        catch_unwind(AssertUnwindSafe(|| pool.install(f))).unwrap_or_else(|panic| Err(panicked(rank, panic.as_ref())))
    };
    pool.build_scoped(|worker| span.in_scope(|| worker.run()), run)
        .unwrap_or_else(|e| Err(thread_refused(&format!("the threads of rank {rank}, {threads} of them"), &e)))
}

pub(super) fn panicked(rank: usize, panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    Error::Rank { rank, message: format!("panicked: {}", text.unwrap_or("(no message)")) }
}

/// What other ranks are told: the error without a repeated "rank N failed".
fn message_of(e: &Error, rank: usize) -> String {
    match e {
        Error::Rank { rank: r, message } if *r == rank => message.clone(),
        other => other.to_string(),
    }
}

/// One rank's side of a group.
struct Threads {
    rendezvous: Arc<Rendezvous>,
    group: Group,
    rank: usize,
    /// Calls so far: the nth call of a rank meets the nth calls of the others.
    calls: AtomicU64,
}

/// A call under way.
struct Call<'a> {
    comm: &'a Threads,
    ticket: u64,
}

impl Threads {
    fn new(rendezvous: Arc<Rendezvous>, group: Group, rank: usize) -> Self {
        Self { rendezvous, group, rank, calls: AtomicU64::new(0) }
    }

    fn call(&self) -> Call<'_> {
        Call { comm: self, ticket: 2 * self.calls.fetch_add(1, Ordering::Relaxed) }
    }
}

impl Call<'_> {
    /// Waits until all ranks have made this call; `checked` says whether this rank's arguments were sound. Fails on
    /// every rank alike if one refuses or two disagree.
    fn meet(&mut self, checked: Result<()>, own_args: CallArgs) -> Result<Arc<Vec<CallArgs>>> {
        let Threads { rendezvous, group, rank, .. } = self.comm;
        let refusal = checked.err().map(|e| e.to_string());
        let args = rendezvous.meet(group, *rank, self.ticket, CallArgs { refusal, ..own_args })?;
        self.ticket += 1;
        if let Some(i) = args.iter().position(|args| args.refusal.is_some()) {
            let message = args[i].refusal.clone().unwrap_or_default();
            rendezvous.fail(group.members[i], message.clone());
            return Err(match i == *rank {
                true => Error::Shape(message),
                false => Error::Rank { rank: group.members[i], message },
            });
        }
        if let Some(i) = args.iter().position(|other| other.call != args[0].call) {
            let side = |i: usize| format!("rank {} calls {}", group.members[i], args[i].call);
            return self.disagree(i, format!("{}, {}", side(0), side(i)));
        }
        Ok(args)
    }

    /// Fails, as every rank does that sees the same arguments; `i` is the rank to name.
    fn disagree<T>(&self, i: usize, what: String) -> Result<T> {
        let Threads { rendezvous, group, .. } = self.comm;
        let number = call_number(self.ticket);
        let message = format!("ranks disagree in call {number} of ranks {:?}: {what}", group.members);
        rendezvous.fail(group.members[i], message.clone());
        Err(Error::Shape(message))
    }

    /// Waits until no rank reads another's buffers any more.
    fn part(mut self) -> Result<()> {
        self.meet(Ok(()), CallArgs { call: "the end of a call".into(), ..CallArgs::default() }).map(|_| ())
    }
}

impl Communicator for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.members.len()
    }

    fn all_to_all(&self, send: Vec<Tensor>, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_to_all(&send, shapes, self.size(), bytes::check);
        let dtype = send.first().map(|t| format!("{:?}", t.dtype())).unwrap_or_default();
        let own = |t: Tensor| if bytes::owns_storage(&t)? { Ok(t.detach()) } else { bytes::duplicate(&t) };
        let tensors = if checked.is_ok() { send.into_iter().map(own).collect::<Result<_>>()? } else { Vec::new() };
        let own_args = CallArgs {
            call: format!("all_to_all of {dtype}"),
            tensors,
            shapes: shapes.to_vec(),
            ..CallArgs::default()
        };
        let mut call = self.call();
        let args = call.meet(checked, own_args)?;
        for (i, from) in args.iter().enumerate() {
            for (j, to) in args.iter().enumerate() {
                if let Err(e) = check::sent(from.tensors[j].dims(), i, &to.shapes[i], j) {
                    return call.disagree(i, e.to_string());
                }
            }
        }
        Ok(args.iter().map(|from| from.tensors[self.rank].clone()).collect())
    }

    fn all_gather(&self, send: &Tensor, shapes: &[Vec<usize>]) -> Result<Vec<Tensor>> {
        let checked = check::all_gather(send, shapes, self.rank, self.size(), bytes::check);
        let call_text = format!("all_gather of {:?} {shapes:?}", send.dtype());
        let tensors = vec![send.contiguous()?];
        let mut call = self.call();
        let args = call.meet(checked, CallArgs { call: call_text, tensors, ..CallArgs::default() })?;
        let received = args.iter().map(|from| bytes::duplicate(&from.tensors[0])).collect();
        call.part()?;
        received
    }

    fn reduce_scatter(&self, buffer: &Tensor, counts: &[usize]) -> Result<Tensor> {
        let checked = check::reduce_scatter(buffer, counts, self.size(), bytes::check);
        let call_text = format!("reduce_scatter of {:?} {counts:?}", buffer.dtype());
        let tensors = vec![buffer.contiguous()?];
        let mut call = self.call();
        let args = call.meet(checked, CallArgs { call: call_text, tensors, ..CallArgs::default() })?;
        let own = range_of(counts, self.rank);
        let share = reduce_share(&args, own.start, own.len(), Reduce::Sum);
        call.part()?;
        share
    }

    fn all_reduce(&self, buffer: &Tensor, op: Reduce) -> Result<()> {
        let checked = check::all_reduce(buffer, bytes::check);
        let call_text = format!("all_reduce {op:?} of {:?} {:?}", buffer.dtype(), buffer.dims());
        let mut call = self.call();
        let args =
            call.meet(checked, CallArgs { call: call_text, tensors: vec![buffer.clone()], ..CallArgs::default() })?;
        let split = Split::new(buffer.elem_count(), self.size());
        let share = reduce_share(&args, split.range(self.rank).start, split.count(self.rank), op)?;
        let own_args = CallArgs { call: "the end of all_reduce".into(), tensors: vec![share], ..CallArgs::default() };
        let shares = call.meet(Ok(()), own_args)?;
        let size = buffer.dtype().size_in_bytes();
        bytes::overwrite(buffer, |out| {
            for (r, share) in shares.iter().enumerate() {
                let (storage, _) = share.tensors[0].storage_and_layout();
                let range = split.range(r);
                bytes::copy(&mut out[range.start * size..range.end * size], bytes::raw(&storage)?);
            }
            Ok(())
        })
    }

    fn broadcast(&self, buffer: &Tensor, root: usize) -> Result<()> {
        let checked = check::broadcast(buffer, root, self.size(), bytes::check);
        let call_text = format!("broadcast of {:?} {:?} from {root}", buffer.dtype(), buffer.dims());
        let sends = checked.is_ok() && self.rank == root;
        let tensors = if sends { vec![bytes::duplicate(buffer)?] } else { Vec::new() };
        let args = self.call().meet(checked, CallArgs { call: call_text, tensors, ..CallArgs::default() })?;
        if sends {
            return Ok(());
        }
        let (storage, _) = args[root].tensors[0].storage_and_layout();
        let sent = bytes::raw(&storage)?;
        bytes::overwrite(buffer, |out| {
            bytes::copy(out, sent);
            Ok(())
        })
    }

    fn barrier(&self) -> Result<()> {
        self.call().meet(Ok(()), CallArgs { call: "barrier".into(), ..CallArgs::default() }).map(|_| ())
    }

    fn split(&self, color: usize, key: usize) -> Result<Arc<dyn Communicator>> {
        let split = [color as u64, key as u64, self.rendezvous.new_group_id()];
        let args = self.call().meet(Ok(()), CallArgs { call: "split".into(), split, ..CallArgs::default() })?;
        let sides: Vec<[u64; 2]> = args.iter().map(|own_args| [own_args.split[0], own_args.split[1]]).collect();
        let (ranks, own) = group_of(&sides, self.rank);
        let members = ranks.iter().map(|&r| self.group.members[r]).collect();
        let group = Group { id: args[ranks[0]].split[2], members }; // all agree on the first member's number
        Ok(Arc::new(Self::new(self.rendezvous.clone(), group, own)))
    }
}

/// Elements `start..start + count` of all ranks' first tensors, reduced in rank order.
fn reduce_share(args: &[CallArgs], start: usize, count: usize, op: Reduce) -> Result<Tensor> {
    let dtype = args[0].tensors[0].dtype();
    let size = dtype.size_in_bytes();
    let views: Vec<_> = args.iter().map(|args| args.tensors[0].storage_and_layout()).collect();
    let mut parts = Vec::with_capacity(views.len());
    for (storage, layout) in &views {
        let data = bytes::view(bytes::raw(storage)?, layout, dtype)?;
        parts.push(&data[start * size..(start + count) * size]);
    }
    bytes::build(dtype, &[count], |out| sum::reduce(out, &parts, dtype, op))
}
