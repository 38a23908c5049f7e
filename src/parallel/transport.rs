//! Defines what moves tensors between the ranks of a group: a [`Transport`], over which
//! [`Collectives`](super::collectives::Collectives) are made.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Result;
use crate::ops::bytes;

/// What a rank tells the others of its call.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct CallArgs {
    /// The call with all that must be equal on every rank, as text for people: "all_reduce Sum of F32 [3, 4]".
    pub call: String,
    /// Why this rank cannot take part, if so: all ranks then fail with it.
    pub refusal: Option<String>,
    /// The shapes of what it sends, by receiver, where only both sides together know whether they fit.
    pub sends: BTreeMap<usize, Vec<usize>>,
    /// The shapes of what it is to receive, by sender.
    pub expects: BTreeMap<usize, Vec<usize>>,
}

impl CallArgs {
    pub fn of(call: impl Into<String>) -> Self {
        Self { call: call.into(), ..Self::default() }
    }

    /// What of it concerns rank `rank`.
    #[cfg(feature = "mpi")]
    pub fn for_rank(&self, rank: usize) -> Self {
        let of = |shapes: &BTreeMap<usize, Vec<usize>>| shapes.get(&rank).map(|dims| (rank, dims.clone()));
        let (sends, expects) = (of(&self.sends).into_iter().collect(), of(&self.expects).into_iter().collect());
        Self { sends, expects, ..self.clone() }
    }
}

/// What ranks told of a call, each with its number in the group.
pub(super) type AllArgs = Vec<(usize, CallArgs)>;

/// What a rank sends to each.
pub(super) type Sends = Vec<Option<Tensor>>;

/// What a rank is to receive from another.
pub(super) enum Receive {
    Nothing,
    /// A new tensor of this shape and dtype.
    #[cfg_attr(
        not(any(feature = "mpi", feature = "nccl")),
        expect(dead_code, reason = "threads hand over what was sent, which has them")
    )]
    New(Vec<usize>, DType),
    /// Elements for this contiguous tensor, which are written in place.
    Into(Tensor),
}

/// The other's place in the group, and a contiguous tensor that goes to or comes from it.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(super) type Message = (usize, Tensor);

/// The messages of an exchange, none of them empty and none from a rank to itself.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(super) struct Messages {
    pub outgoing: Vec<Message>,
    pub incoming: Vec<Message>,
    /// What is new, by rank, once they have come.
    pub received: Vec<Option<Tensor>>,
}

#[cfg(any(feature = "mpi", feature = "nccl"))]
impl Messages {
    /// Makes room on `device`, and does what rank `own` sends itself.
    pub fn new(own: usize, sends: Sends, receives: Vec<Receive>, device: &Device) -> Result<Self> {
        let (mut incoming, mut received) = (vec![], vec![]);
        for (i, receive) in receives.into_iter().enumerate() {
            let (into, new) = match receive {
                Receive::Nothing => (None, None),
                Receive::Into(t) => (Some(t), None),
                Receive::New(..) if i == own => (None, sends[own].clone()),
                Receive::New(shape, dtype) => {
                    let t = bytes::zeros(&shape, dtype, device)?;
                    (Some(t.clone()), Some(t))
                }
            };
            received.push(new);
            match (into.filter(|t| t.elem_count() > 0), &sends[i]) {
                (Some(t), Some(sent)) if i == own => bytes::set_rows(&t, sent, 0)?,
                (Some(t), _) => incoming.push((i, t)),
                (None, _) => {}
            }
        }
        let outgoing = sends.into_iter().enumerate().filter_map(|(i, t)| Some((i, t?)));
        let outgoing = outgoing.filter(|(i, t)| *i != own && t.elem_count() > 0).collect();
        Ok(Self { outgoing, incoming, received })
    }
}

/// The members of a group, as one of them sees it.
#[derive(Clone)]
pub(super) struct Members {
    /// World ranks, in the group's order.
    pub all: Arc<[usize]>,
    /// This rank's place among them.
    pub rank: usize,
}

impl Members {
    pub fn size(&self) -> usize {
        self.all.len()
    }
}

/// Moves tensors between the ranks of a group: as they are (threads), as bytes (MPI), from GPU to GPU (NCCL). Ranks are
/// numbered as in the group, except where it says world ranks.
pub(super) trait Transport: Send + Sync + Sized + 'static {
    /// A call that has begun.
    type Call;
    /// Tensors under way.
    type Flight;
    /// Whether what a rank receives is the sender's own memory.
    const SHARES: bool = false;

    /// The group.
    fn members(&self) -> &Members;

    /// Bytes that a rank gives each other one at a time while they reduce.
    fn piece(&self) -> usize;

    /// Refuses a tensor that cannot be moved.
    fn check(&self, t: &Tensor) -> Result<()> {
        bytes::check(t)
    }

    /// `t` with its elements in order, where they are sent from and received.
    fn stage(&self, t: &Tensor) -> Result<Tensor> {
        bytes::in_order(&t.detach())
    }

    /// The staged `t` on another device.
    fn unstage(&self, t: Tensor, _device: &Device) -> Result<Tensor> {
        Ok(t)
    }

    /// Writes a staged tensor that was changed back to where it was.
    fn write_back(&self, _to: &Tensor, _staged: &Tensor) -> Result<()> {
        Ok(())
    }

    /// The staged `t` for somebody who may keep it: itself, if nothing else would be given away with it, else a copy.
    fn give(&self, t: &Tensor) -> Result<Tensor> {
        if bytes::owns_storage(t)? { Ok(t.detach()) } else { bytes::duplicate(t) }
    }

    /// Begins a call when all ranks have, with `first` as what it sends first. `text` names it for people. Returns what
    /// the ranks told, as far as the transport compares.
    fn begin(&self, number: u64, text: &str, own: CallArgs, first: Sends) -> Result<(Self::Call, AllArgs)>;

    /// Starts to send a staged tensor to each rank, the first ones if there are no `sends`, and to receive from each.
    fn start(&self, call: &mut Self::Call, sends: Option<Sends>, receives: Vec<Receive>) -> Result<Self::Flight>;

    /// Waits until all has come; returns what is new. This rank's own is what it sent itself. What was sent may be
    /// written to afterwards, unless memory is shared.
    fn land(&self, call: &mut Self::Call, flight: Self::Flight) -> Result<Vec<Option<Tensor>>>;

    /// Waits until no rank reads another's memory any more.
    fn part(&self, _call: Self::Call) -> Result<()> {
        Ok(())
    }

    /// Copies what `root` sends first into the staged `buffer` of all others.
    fn broadcast(&self, call: &mut Self::Call, buffer: &Tensor, root: usize) -> Result<()> {
        let Members { rank, .. } = *self.members();
        let receive = |i| if i == root && i != rank { Receive::Into(buffer.clone()) } else { Receive::Nothing };
        let flight = self.start(call, None, (0..self.members().size()).map(receive).collect())?;
        self.land(call, flight).map(drop)
    }

    /// Waits until all ranks have begun the call, if that is not so already.
    fn barrier(&self, _call: &mut Self::Call) -> Result<()> {
        Ok(())
    }

    /// Makes all calls of the run fail with what went wrong at a world rank.
    fn fail(&self, rank: usize, message: &str);

    /// See [`Communicator::reserve`](super::Communicator::reserve).
    fn reserve(&self) {}

    /// A number that no group has which a rank of this process is in.
    fn free_number(&self) -> u64;

    /// The transport of a part of this group, which are its `ranks`; none where that is one rank. All ranks call it
    /// with the `sides` that they gave: color, key and a free number.
    fn split(
        &self,
        call: &mut Self::Call,
        sides: &[[u64; 3]],
        ranks: &[usize],
        members: Members,
    ) -> Result<Option<Self>>;
}
