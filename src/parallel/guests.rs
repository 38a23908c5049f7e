//! Holds the connections to rank 0 that have not yet proven that they are of its job: few, for a short time, and nobody
//! waits for them.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::handshake::{HELLO, Hello, PROOF, REFUSED, Side, Transcript};
use super::secret::Key;

/// How long a connection may take to prove that it is of the job.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// More are not kept: of the address with most of them, the oldest goes.
const MOST: usize = 256;

/// Somebody whose handshake has ended.
pub(super) struct Arrival {
    pub address: SocketAddr,
    /// What it says it is.
    pub rank: usize,
    /// Of a process of the job its world size and the connection to it; none if it does not know the secret.
    pub known: Option<(usize, Connection)>,
}

/// All of them.
pub(super) struct Guests {
    key: Key,
    /// Of rank 0's job.
    size: usize,
    /// How long a frame of a known one may take.
    limit: Duration,
    guests: Vec<Guest>,
}

impl Guests {
    pub fn new(key: Key, size: usize, limit: Duration) -> Self {
        Self { key, size, limit, guests: vec![] }
    }

    /// Accepts new connections, reads what they send, and returns those whose handshake has ended.
    pub fn look(&mut self, listener: &TcpListener) -> Vec<Arrival> {
        for _ in 0..MOST {
            let Ok((stream, address)) = listener.accept() else { break };
            if self.guests.len() == MOST {
                self.guests.remove(self.crowded());
            }
            if stream.set_nonblocking(true).is_ok() {
                self.guests.push(Guest {
                    stream,
                    address,
                    since: Instant::now(),
                    said: [0; HELLO],
                    length: 0,
                    met: None,
                });
            }
        }
        let mut arrivals = vec![];
        let mut i = 0;
        while i < self.guests.len() {
            match self.guests[i].hear(&self.key, self.size) {
                Heard::Nothing => i += 1,
                Heard::Gone => drop(self.guests.remove(i)),
                Heard::All { known } => {
                    let Guest { stream, address, met, .. } = self.guests.remove(i);
                    let Some((hello, transcript)) = met else { continue };
                    let wire =
                        known.then(|| Connection::new(stream, transcript.seals(Side::Rank0), self.limit)).transpose();
                    // One with whom this fails has gone again.
                    if let Ok(wire) = wire {
                        let (rank, known) = (hello.rank, wire.map(|wire| (hello.size, wire)));
                        arrivals.push(Arrival { address, rank, known });
                    }
                }
            }
        }
        arrivals
    }

    /// The oldest guest of the address that has most, so that an address that connects often drives away only its own.
    fn crowded(&self) -> usize {
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        self.guests.iter().for_each(|guest| *counts.entry(guest.address.ip()).or_default() += 1);
        let most = counts.values().max().copied();
        self.guests.iter().position(|guest| counts.get(&guest.address.ip()).copied() == most).unwrap_or(0)
    }
}

struct Guest {
    stream: TcpStream,
    address: SocketAddr,
    since: Instant,
    /// Its hello, then its proof, as far as it has come.
    said: [u8; HELLO],
    length: usize,
    /// What it has said and was answered.
    met: Option<(Hello, Transcript)>,
}

enum Heard {
    Nothing,
    Gone,
    /// Its proof has come, and is one or not.
    All {
        known: bool,
    },
}

impl Guest {
    /// Reads what has come, without waiting, and answers.
    fn hear(&mut self, key: &Key, size: usize) -> Heard {
        if self.since.elapsed() > HANDSHAKE_TIMEOUT {
            return Heard::Gone;
        }
        let wanted = if self.met.is_none() { HELLO } else { PROOF };
        match self.stream.read(&mut self.said[self.length..wanted]) {
            Ok(0) => return Heard::Gone,
            Ok(n) => self.length += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Heard::Nothing,
            Err(_) => return Heard::Gone,
        }
        if self.met.is_none() && !Hello::may_begin(&self.said[..self.length]) {
            return Heard::Gone;
        }
        if self.length < wanted {
            return Heard::Nothing;
        }
        self.length = 0;
        let Some((_, transcript)) = &self.met else {
            self.met = self.greet(key, size);
            return if self.met.is_some() { Heard::Nothing } else { Heard::Gone };
        };
        let known = transcript.proves(Side::Rank, &self.said[..PROOF]);
        let answer = if known { transcript.proof(Side::Rank0) } else { REFUSED };
        match self.answer(&answer) {
            Some(()) => Heard::All { known },
            None => Heard::Gone,
        }
    }

    /// Answers a hello.
    fn greet(&mut self, key: &Key, size: usize) -> Option<(Hello, Transcript)> {
        let hello = Hello::parse(&self.said)?;
        let own = Hello::new(0, size).ok()?;
        let transcript = Transcript::new(key, &hello, &own);
        self.answer(&own.to_bytes())?;
        Some((hello, transcript))
    }

    /// So few bytes always find room in the connection's buffer, unless it is broken.
    fn answer(&mut self, bytes: &[u8]) -> Option<()> {
        self.stream.write_all(bytes).ok()
    }
}
