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
use std::thread;

use super::collectives::Collectives;
use super::rendezvous::{Deposit, Rendezvous};
use super::transport::{AllArgs, CallArgs, Members, Receive, Sends, Transport};
use super::{Communicator, Single, thread_refused};
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
    let all: Arc<[usize]> = (0..ranks).collect();
    let parent = tracing::Span::current();
    let mut results: Vec<Result<T>> = thread::scope(|scope| {
        let start = |rank: usize| {
            let (rendezvous, f, members) = (&rendezvous, &f, Members { all: all.clone(), rank });
            // A rank that is alone needs no name in the log.
            let span = if ranks == 1 { parent.clone() } else { tracing::error_span!(parent: &parent, "rank", rank) };
            let comm: Arc<dyn Communicator> = match ranks {
                1 => Arc::new(Single),
                _ => Arc::new(Collectives::new(Threads { rendezvous: rendezvous.clone(), id: 0, members })),
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

/// Hands tensors from thread to thread.
struct Threads {
    rendezvous: Arc<Rendezvous>,
    /// The group's number.
    id: u64,
    members: Members,
}

/// A call that has begun.
struct Call {
    /// A call takes two at most: one for its arguments and what is sent first, and one for what is sent next, or its
    /// end.
    ticket: u64,
    text: String,
    /// What all brought to its begin, until it is taken.
    first: Option<Arc<Vec<Deposit>>>,
}

impl Threads {
    fn meet(&self, ticket: u64, own: Deposit) -> Result<Arc<Vec<Deposit>>> {
        self.rendezvous.meet(self.id, &self.members, ticket, own)
    }

    /// The second time that ranks meet in a call.
    fn meet_again(&self, call: &Call, tensors: Sends) -> Result<Arc<Vec<Deposit>>> {
        let text = format!("the end of {}", call.text);
        self.meet(call.ticket + 1, Deposit { text, tensors, ..Deposit::default() })
    }
}

impl Transport for Threads {
    type Call = Call;
    type Flight = Vec<Option<Tensor>>;
    const SHARES: bool = true;

    fn members(&self) -> &Members {
        &self.members
    }

    /// All at once: nothing is copied.
    fn piece(&self) -> usize {
        usize::MAX
    }

    fn begin(&self, number: u64, text: &str, own: CallArgs, first: Sends) -> Result<(Call, AllArgs)> {
        let (ticket, text) = (2 * number, text.to_owned());
        let deposits = self.meet(ticket, Deposit { text: text.clone(), args: own, tensors: first })?;
        let args = deposits.iter().map(|deposit| deposit.args.clone()).enumerate().collect();
        Ok((Call { ticket, text, first: Some(deposits) }, args))
    }

    fn start(&self, call: &mut Call, sends: Option<Sends>, receives: Vec<Receive>) -> Result<Self::Flight> {
        let deposits = match (sends, call.first.take()) {
            (None, Some(first)) => first,
            (sends, _) => self.meet_again(call, sends.unwrap_or_default())?,
        };
        let take = |(i, receive): (usize, Receive)| {
            let sent = || deposits[i].tensors.get(self.members.rank).cloned().flatten();
            Ok(match receive {
                Receive::Nothing => None,
                Receive::New(..) => sent(),
                Receive::Into(t) => {
                    sent().map_or(Ok(()), |sent| bytes::set_rows(&t, &sent, 0))?;
                    None
                }
            })
        };
        receives.into_iter().enumerate().map(take).collect()
    }

    fn land(&self, _call: &mut Call, flight: Self::Flight) -> Result<Vec<Option<Tensor>>> {
        Ok(flight)
    }

    fn part(&self, call: Call) -> Result<()> {
        self.meet_again(&call, vec![]).map(drop)
    }

    fn fail(&self, rank: usize, message: &str) {
        self.rendezvous.fail(rank, message.to_owned());
    }

    fn free_number(&self) -> u64 {
        self.rendezvous.new_group_id()
    }

    fn split(&self, _: &mut Call, sides: &[[u64; 3]], ranks: &[usize], members: Members) -> Result<Option<Self>> {
        let id = sides[ranks[0]][2]; // all agree on the first member's
        Ok((ranks.len() > 1).then(|| Self { rendezvous: self.rendezvous.clone(), id, members }))
    }
}
