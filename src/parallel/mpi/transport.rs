//! Moves tensors between processes with MPI's point-to-point messages.
//!
//! Every call begins with each rank telling all others its arguments, so that all see a disagreement before any data is
//! sent. Then the data goes, from and to the tensors' own memory.

use candle_core::{Device, Tensor};
use std::ffi::c_int;
use std::sync::Arc;
use std::time::Duration;

use super::Link;
use super::messages::Flight;
use crate::parallel::peers::Peers;
use crate::parallel::transport::{AllArgs, CallArgs, Members, Messages, Receive, Sends, Transport};
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

/// One rank's side of a group.
pub(super) struct ByMpi {
    link: Arc<Link>,
    number: u64,
    members: Members,
}

impl ByMpi {
    /// All processes.
    pub fn world(link: Arc<Link>, rank: usize, ranks: usize) -> Self {
        Self { link, number: 0, members: Members { all: (0..ranks).collect(), rank } }
    }

    /// The other ranks: their numbers in the group and in the world.
    fn others(&self) -> impl Iterator<Item = (usize, usize)> {
        let rank = self.members.rank;
        self.members.all.iter().copied().enumerate().filter(move |&(i, _)| i != rank)
    }

    /// For arguments, and for tensors.
    fn tags(&self) -> [c_int; 2] {
        [2 * self.number as c_int, 2 * self.number as c_int + 1]
    }

    /// Waits until messages are done.
    fn wait(&self, mut flight: Flight) -> Result<()> {
        self.link.wait(None, TRANSFER_SLEEP, || flight.done())
    }
}

impl Transport for ByMpi {
    /// What this rank sends first.
    type Call = Sends;
    /// With what is received.
    type Flight = (Flight, Vec<Option<Tensor>>);

    fn members(&self) -> &Members {
        &self.members
    }

    fn piece(&self) -> usize {
        PIECE.min(self.link.limits.message)
    }

    fn begin(&self, _: u64, text: &str, own: CallArgs, first: Sends) -> Result<(Sends, AllArgs)> {
        let Link { channel, control, .. } = &*self.link;
        control.check()?;
        control.links().peers(Peers::begin);
        let (tag, mut flight) = (self.tags()[0], Flight::new(self.link.limits.message));
        for (i, member) in self.others() {
            let note = serde_json::to_vec(&own.for_rank(i)).map_err(|e| Error::Environment(e.to_string()))?;
            flight.send_bytes(channel, note, member, tag)?;
        }
        let mut notes: Vec<Option<CallArgs>> = vec![None; self.members.size()];
        notes[self.members.rank] = Some(own);
        self.link.wait(Some(text), RENDEZVOUS_SLEEP, || {
            for (i, member) in self.others().filter(|&(i, _)| notes[i].is_none()).collect::<Vec<_>>() {
                if let Some(note) = channel.take(member, tag)? {
                    let note = serde_json::from_slice(&note);
                    notes[i] = Some(note.map_err(|e| Error::Environment(format!("a rank of another longreel? {e}")))?);
                } else if control.links().peers(|peers| peers.gone(member)) {
                    control.fail(member, &format!("it returned while rank {} waits in {text}", control.rank()));
                }
            }
            Ok(notes.iter().all(Option::is_some))
        })?;
        self.wait(flight)?;
        Ok((first, notes.into_iter().flatten().enumerate().collect()))
    }

    fn start(&self, first: &mut Sends, sends: Option<Sends>, receives: Vec<Receive>) -> Result<Self::Flight> {
        let sends = sends.unwrap_or_else(|| std::mem::take(first));
        let messages = Messages::new(self.members.rank, sends, receives, &Device::Cpu)?;
        let (mut flight, tag) = (Flight::new(self.link.limits.message), self.tags()[1]);
        for (i, t) in messages.incoming {
            flight.receive(&self.link.channel, &t, self.members.all[i], tag)?;
        }
        for (i, t) in messages.outgoing {
            flight.send(&self.link.channel, &t, self.members.all[i], tag)?;
        }
        Ok((flight, messages.received))
    }

    fn land(&self, _: &mut Sends, (flight, received): Self::Flight) -> Result<Vec<Option<Tensor>>> {
        self.wait(flight)?;
        Ok(received)
    }

    fn fail(&self, rank: usize, message: &str) {
        self.link.control.fail(rank, message);
    }

    fn free_number(&self) -> u64 {
        self.link.free_number()
    }

    fn split(&self, _: &mut Sends, sides: &[[u64; 3]], ranks: &[usize], members: Members) -> Result<Option<Self>> {
        // The largest of all is free on all of them, and the groups of one split have no ranks in common.
        let number = sides.iter().map(|side| side[2]).max().unwrap_or(0);
        self.link.take_number(number);
        if number >= GROUPS {
            bail!(Environment, "communicators were split {GROUPS} times; keep and use them again instead");
        }
        Ok((ranks.len() > 1).then(|| Self { link: self.link.clone(), number, members }))
    }
}
