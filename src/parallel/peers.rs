//! Keeps what a process knows of all ranks: when each was heard, the call it waits in, and whether its work has ended.

use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::wire::{Failure, Presence};

/// A message may come after the note that its sender has left, by another way, but not this much later.
#[cfg(feature = "mpi")]
const GRACE: Duration = Duration::from_secs(2);
/// Ranks that all wait, and have not moved for this long, never will: longer than news of a call takes to rank 0.
const STUCK: Duration = Duration::from_secs(8);

/// One rank.
struct Peer {
    heard: Instant,
    presence: Presence,
    /// Since when it has been at that.
    since: Instant,
    left: Option<Instant>,
}

/// All ranks, this one too.
pub(super) struct Peers {
    own: usize,
    /// The thread that this rank's work runs in.
    main: Option<ThreadId>,
    peers: Vec<Peer>,
}

impl Peers {
    pub fn new(own: usize, size: usize) -> Self {
        let now = Instant::now();
        let peer = |_| Peer { heard: now, presence: Presence::default(), since: now, left: None };
        Self { own, main: None, peers: (0..size).map(peer).collect() }
    }

    pub fn own(&self) -> &Presence {
        &self.peers[self.own].presence
    }

    /// Says that the calling thread is the one that this rank's work runs in.
    pub fn enter(&mut self) {
        self.main = Some(thread::current().id());
    }

    /// Says that this rank begins a call.
    #[cfg(feature = "mpi")]
    pub fn begin(&mut self) {
        let Presence { calls, off_main, waits } = self.own().clone();
        let off_main = off_main || self.main.is_some_and(|main| main != thread::current().id());
        self.take(self.own, Presence { calls: calls + 1, off_main, waits });
    }

    /// Says in which call this rank waits for others, if in any.
    #[cfg(feature = "mpi")]
    pub fn wait_in(&mut self, call: Option<&str>) {
        self.take(self.own, Presence { waits: call.map(str::to_owned), ..self.own().clone() });
    }

    /// Says that something was heard from `rank`.
    pub fn hear(&mut self, rank: usize) {
        self.peers[rank].heard = Instant::now();
    }

    /// Takes what `rank` says of itself.
    pub fn take(&mut self, rank: usize, presence: Presence) {
        let peer = &mut self.peers[rank];
        if presence != peer.presence {
            (peer.presence, peer.since) = (presence, Instant::now());
        }
    }

    /// Says that the work of `rank` has ended; nothing of a rank that there is not.
    pub fn leave(&mut self, rank: usize) {
        if let Some(peer) = self.peers.get_mut(rank) {
            peer.left.get_or_insert_with(Instant::now);
        }
    }

    pub fn left(&self, rank: usize) -> bool {
        self.peers[rank].left.is_some()
    }

    pub fn all_left(&self) -> bool {
        self.peers.iter().all(|peer| peer.left.is_some())
    }

    /// Whether `rank` left so long ago that nothing more can come from it.
    #[cfg(feature = "mpi")]
    pub fn gone(&self, rank: usize) -> bool {
        self.peers[rank].left.is_some_and(|left| left.elapsed() > GRACE)
    }

    /// The other ranks at work that nothing was heard from for `least`.
    pub fn silent(&self, least: Duration) -> Vec<usize> {
        let silent = |&rank: &usize| {
            let peer = &self.peers[rank];
            rank != self.own && peer.left.is_none() && peer.heard.elapsed() > least
        };
        (0..self.peers.len()).filter(silent).collect()
    }

    /// What is wrong if all ranks wait and none has moved for a while. Ranks that were not heard for `stale` may be
    /// elsewhere by now.
    pub fn stuck(&self, stale: Duration) -> Option<Failure> {
        let still = |(rank, peer): (usize, &Peer)| {
            let fresh = rank == self.own || peer.heard.elapsed() < stale;
            let waits = peer.presence.waits.is_some() && !peer.presence.off_main && peer.since.elapsed() > STUCK;
            peer.left.is_some() || (waits && fresh)
        };
        if !self.peers.iter().enumerate().all(still) {
            return None;
        }
        let waiting =
            self.peers.iter().enumerate().filter_map(|(rank, peer)| Some((rank, peer.presence.waits.as_ref()?)));
        let (ranks, calls): (Vec<usize>, Vec<String>) =
            waiting.map(|(rank, call)| (rank, format!("rank {rank} waits in {call}"))).unzip();
        let message = format!("the ranks wait for each other and none can go on: {}", calls.join("; "));
        Some(Failure { rank: *ranks.first()?, message, lost: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_stuck_if_all_wait_and_none_may_go_on() {
        let Some(long_ago) = Instant::now().checked_sub(2 * STUCK) else { return };
        let waits = |off_main| Presence { calls: 1, off_main, waits: Some("barrier".into()) };
        let peers = |change: &dyn Fn(&mut Peers)| {
            let mut peers = Peers::new(0, 3);
            for rank in 0..3 {
                peers.take(rank, waits(false));
                peers.peers[rank].since = long_ago;
            }
            change(&mut peers);
            peers.stuck(STUCK).map(|failure| failure.message)
        };
        let all = peers(&|_| {}).unwrap();
        assert!(all.ends_with("rank 0 waits in barrier; rank 1 waits in barrier; rank 2 waits in barrier"), "{all}");
        assert!(peers(&|peers| peers.leave(1)).is_some(), "one that has left will not help");
        assert_eq!(peers(&|peers| peers.take(1, waits(true))), None, "another thread of it may go on");
        assert_eq!(peers(&|peers| peers.take(1, Presence::default())), None, "it works");
        assert_eq!(peers(&|peers| peers.take(1, Presence { calls: 2, ..waits(false) })), None, "it has just come");
        assert_eq!(peers(&|peers| peers.peers[1].heard = long_ago), None, "old news");
    }
}
