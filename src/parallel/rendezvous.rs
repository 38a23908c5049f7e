//! How processes that know nothing but rank 0's address find each other: rank 0 listens, the others come, and when all are there
//! each has a line to rank 0. What they then say is of no concern here.
//!
//! The port is open to anybody, so who comes must greet as longreel does, within a few seconds, and is otherwise sent away; of
//! what it sends no more is read than the greeting has bytes. Who greets in the name of a rank is believed: a network that others
//! can reach is no place for a job, as for MPI and NCCL themselves.

use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::Job;
use crate::{Result, bail};

/// What each side says first: this, then its rank and how many ranks it knows of. The last byte is the protocol's version.
const MAGIC: [u8; 12] = *b"longreel\0\0\0\x01";
const GREETING: usize = MAGIC.len() + 8;
/// How long somebody who has come may take to greet.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often rank 0 looks who has come, and the others whether it is there.
const LOOK: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_millis(100);
/// Who has come and not greeted yet: more are not kept, the oldest goes.
const GUESTS: usize = 256;

type Greeting = [u8; GREETING];

fn greeting(rank: usize, size: usize) -> Greeting {
    let mut text = [0; GREETING];
    text[..MAGIC.len()].copy_from_slice(&MAGIC);
    text[MAGIC.len()..][..4].copy_from_slice(&(rank as u32).to_le_bytes());
    text[MAGIC.len() + 4..].copy_from_slice(&(size as u32).to_le_bytes());
    text
}

/// The rank and size of who greets so, if it is one of us.
fn understand(text: &Greeting) -> Option<(usize, usize)> {
    let word = |at: usize| text[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or_default() as usize;
    (text[..MAGIC.len()] == MAGIC).then(|| (word(MAGIC.len()), word(MAGIC.len() + 4)))
}

/// Why ranks did not come together, and those who are to be told, as they have come.
pub(super) struct Refusal {
    pub why: String,
    pub come: Vec<TcpStream>,
}

/// Rank 0: waits for all others; their lines, from rank 1 on.
pub(super) fn gather(job: &Job, limit: Duration) -> std::result::Result<Vec<TcpStream>, Refusal> {
    let alone = |why: String| Refusal { why, come: vec![] };
    let listener = listen(job).map_err(|e| alone(e.to_string()))?;
    let until = Instant::now() + limit;
    let mut guests: Vec<Guest> = vec![];
    let mut come: Vec<Option<TcpStream>> = (1..job.size).map(|_| None).collect();
    while come.iter().any(Option::is_none) {
        if Instant::now() > until {
            let missing: Vec<String> =
                (1..job.size).filter(|&rank| come[rank - 1].is_none()).map(|rank| rank.to_string()).collect();
            let why = format!(
                "of {} processes {} did not come to {} within {} s: rank {}; see what they say, and that all have this MASTER_ADDR and \
                 MASTER_PORT and can reach it",
                job.size,
                missing.len(),
                place(job),
                limit.as_secs_f32(),
                missing.join(", ")
            );
            return Err(Refusal { why, come: come.into_iter().flatten().collect() });
        }
        while let Ok((stream, _)) = listener.accept() {
            if guests.len() == GUESTS {
                guests.remove(0);
            }
            guests.extend(Guest::welcome(stream));
        }
        let mut i = 0;
        while i < guests.len() {
            match guests[i].look() {
                None => i += 1,
                Some(who) => {
                    let stream = guests.remove(i).stream;
                    let Some((rank, size)) = who else { continue };
                    if let Err(why) = seat(job, &mut come, stream, rank, size) {
                        return Err(Refusal { why, come: come.into_iter().flatten().collect() });
                    }
                }
            }
        }
        thread::sleep(LOOK);
    }
    Ok(come.into_iter().flatten().collect())
}

/// Takes in who has greeted, answering with rank 0's own greeting.
fn seat(
    job: &Job,
    come: &mut Vec<Option<TcpStream>>,
    mut stream: TcpStream,
    rank: usize,
    size: usize,
) -> std::result::Result<(), String> {
    let answered = stream.set_nonblocking(false).and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
    if answered.and_then(|()| stream.write_all(&greeting(0, job.size))).is_err() {
        return Ok(()); // it has gone again
    }
    let why = if size != job.size {
        format!("WORLD_SIZE is {size} at rank {rank} and {} at rank 0: start all processes with the same", job.size)
    } else if rank == 0 || rank >= size || come[rank - 1].as_ref().is_some_and(there) {
        format!("two processes have RANK={rank}: each needs its own; or does another job use {}?", place(job))
    } else {
        come[rank - 1] = Some(stream);
        return Ok(());
    };
    come.push(Some(stream)); // to be told too
    Err(why)
}

/// Whether the other side of a line is still there.
fn there(line: &TcpStream) -> bool {
    let looked = line.set_nonblocking(true).and_then(|()| line.peek(&mut [0]));
    let _ = line.set_nonblocking(false);
    !matches!(looked, Ok(0)) && looked.err().is_none_or(|e| e.kind() == ErrorKind::WouldBlock)
}

/// Somebody who has come and not greeted yet.
struct Guest {
    stream: TcpStream,
    since: Instant,
    said: Greeting,
    length: usize,
}

impl Guest {
    fn welcome(stream: TcpStream) -> Option<Self> {
        stream.set_nonblocking(true).ok()?;
        Some(Self { stream, since: Instant::now(), said: [0; GREETING], length: 0 })
    }

    /// None as long as it may still greet; then who it is, if it is one of us.
    fn look(&mut self) -> Option<Option<(usize, usize)>> {
        match self.stream.read(&mut self.said[self.length..]) {
            Ok(0) => Some(None),
            Ok(n) => {
                self.length += n;
                (self.length == GREETING).then(|| understand(&self.said))
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::Interrupted => {
                (self.since.elapsed() > PATIENCE).then_some(None)
            }
            Err(_) => Some(None),
        }
    }
}

/// Listens where the others are told to come.
fn listen(job: &Job) -> Result<TcpListener> {
    // An address is listened at as it is, so that one of this machine alone stays so. A name may stand for this machine's loopback
    // here and for its network elsewhere, and an address may be that of a gateway before it: both mean all of its networks.
    let exact = job.host == "localhost" || job.host.parse::<std::net::IpAddr>().is_ok();
    let exact: Vec<SocketAddr> = if exact { resolve(job)? } else { vec![] };
    let all =
        [SocketAddr::from((Ipv6Addr::UNSPECIFIED, job.port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, job.port))];
    let mut why = None;
    for address in exact.into_iter().chain(all) {
        let bound = TcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(e) => {
                let taken = e.kind() == ErrorKind::AddrInUse;
                why = Some(e);
                if taken {
                    break; // by another job perhaps, whose ranks must not come here
                }
            }
        }
    }
    let why = why.map_or_else(|| "no address".to_owned(), |e| e.to_string());
    bail!(
        "rank 0 cannot listen at {}: {why}; choose a free MASTER_PORT, and as MASTER_ADDR rank 0's machine",
        place(job)
    )
}

/// Another rank: comes to rank 0; the line to it.
pub(super) fn come(job: &Job, limit: Duration) -> Result<TcpStream> {
    let until = Instant::now() + limit;
    loop {
        let mut why = String::from("it has no address");
        match resolve(job) {
            Err(e) => why = e.to_string(),
            Ok(addresses) => {
                for address in addresses {
                    match greet(job, &address, until) {
                        Ok(line) => return Ok(line),
                        Err(e) => why = e.to_string(),
                    }
                }
            }
        }
        if Instant::now() + RETRY > until {
            bail!(
                "rank {} did not reach rank 0 at {} within {} s: {why}; is MASTER_ADDR the machine of rank 0, and the port open?",
                job.rank,
                place(job),
                limit.as_secs_f32()
            );
        }
        thread::sleep(RETRY);
    }
}

/// Says who this is, and hears that it is rank 0 of the same who answers.
fn greet(job: &Job, address: &SocketAddr, until: Instant) -> Result<TcpStream> {
    let failed = |what: &str, e: &dyn Display| crate::Error::Invalid(format!("{what}: {e}"));
    let left = until.saturating_duration_since(Instant::now()).clamp(RETRY, PATIENCE);
    let mut line = TcpStream::connect_timeout(address, left).map_err(|e| failed("no connection", &e))?;
    let mut answer = [0; GREETING];
    let exchanged = line.set_read_timeout(Some(left)).and_then(|()| line.set_write_timeout(Some(left)));
    exchanged
        .and_then(|()| line.write_all(&greeting(job.rank, job.size)))
        .and_then(|()| line.read_exact(&mut answer))
        .map_err(|e| failed("what listens there does not answer as longreel does", &e))?;
    match understand(&answer) {
        Some((0, _)) => Ok(line), // of another size: it will say so
        _ => bail!("what listens there is no rank 0 of this longreel"),
    }
}

fn resolve(job: &Job) -> Result<Vec<SocketAddr>> {
    match (job.host.as_str(), job.port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(e) => bail!("MASTER_ADDR {} has no address: {e}", job.host),
    }
}

/// The place to meet, for people.
pub(super) fn place(job: &Job) -> String {
    let host = if job.host.contains(':') { format!("[{}]", job.host) } else { job.host.clone() };
    format!("{host}:{}", job.port)
}
