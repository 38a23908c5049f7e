//! How processes that know nothing but rank 0's address find each other: rank 0 listens, the others come, and when all are there
//! each has a line to rank 0. What they then say is of no concern here.
//!
//! The port is open to anybody. Who comes must prove within a few seconds that it knows the job's secret
//! ([`handshake`](super::handshake)), and is otherwise sent away; of what it sends no more is read than a handshake has bytes. So
//! a stranger is no rank, ends nothing, and keeps nobody waiting.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::frames::{Failure, Frame};
use super::guests::{Arrival, Guests, PATIENCE};
use super::handshake::{HELLO, Hello, PROOF, REFUSED, Side, Transcript};
use super::secret::{self, Key};
use super::wire::{Until, Wire, late};
use super::{Job, Limits};
use crate::{Result, bail};

/// How often rank 0 looks who has come.
const LOOK: Duration = Duration::from_millis(5);
/// How often the others look whether it is there.
const RETRY: Duration = Duration::from_millis(100);
/// Of who was sent away, as many are told of.
const ODD: usize = 8;

/// Why ranks did not come together, and those who are to be told, as they have come.
pub(super) struct Refusal {
    why: String,
    come: Vec<Wire>,
}

impl Refusal {
    /// Tells them; why.
    pub fn tell(self) -> String {
        self.come.into_iter().for_each(|wire| dismiss(wire, &self.why));
        self.why
    }
}

/// The last that a process hears.
fn dismiss(mut wire: Wire, why: &str) {
    let _ = wire.out.send(&Frame::Failed(Failure { rank: 0, message: why.to_owned(), lost: false }));
    wire.out.shutdown(Shutdown::Write);
}

/// Rank 0: waits `until` then for all others; their lines, from rank 1 on.
pub(super) fn gather(job: &Job, key: Key, limits: &Limits, until: Instant) -> std::result::Result<Vec<Wire>, Refusal> {
    let listener = listen(job).map_err(|e| Refusal { why: e.to_string(), come: vec![] })?;
    let mut guests = Guests::new(key, job.size, limits.silence);
    let mut come: Vec<Option<Wire>> = (1..job.size).map(|_| None).collect();
    let mut odd = BTreeSet::new();
    while come.iter().any(Option::is_none) {
        if Instant::now() > until {
            let why = missing(job, limits.joining, &come, &odd);
            return Err(Refusal { why, come: come.into_iter().flatten().collect() });
        }
        for Arrival { address, rank, known } in guests.look(&listener) {
            let oddity = match known {
                Some((size, wire)) => match seat(job, &mut come, rank, size, wire) {
                    Ok(oddity) => oddity,
                    Err(why) => return Err(Refusal { why, come: come.into_iter().flatten().collect() }),
                },
                None => Some(format!("a process at {} has another job secret: {}", address.ip(), same_secret())),
            };
            // Not so many that somebody could fill a log.
            if let Some(oddity) = oddity
                && odd.len() < ODD
                && odd.insert(oddity.clone())
            {
                tracing::warn!("{oddity}; it was sent away");
            }
        }
        thread::sleep(LOOK);
    }
    Ok(come.into_iter().flatten().collect())
}

fn same_secret() -> String {
    format!("give all processes of a job the same {}", secret::TEXT)
}

/// Who has not come, and what was odd about those who have.
fn missing(job: &Job, limit: Duration, come: &[Option<Wire>], odd: &BTreeSet<String>) -> String {
    let missing: Vec<String> =
        (1..job.size).filter(|&rank| come[rank - 1].is_none()).map(|rank| rank.to_string()).collect();
    let odd: String = odd.iter().map(|oddity| format!("; {oddity}")).collect();
    format!(
        "of {} processes {} did not come to {} within {} s: rank {}; see what they say, and that all have this MASTER_ADDR and MASTER_PORT \
         and can reach it{odd}",
        job.size,
        missing.len(),
        place(job),
        limit.as_secs_f32(),
        missing.join(", ")
    )
}

/// Takes in a process of the job, or sends it away and says why. An error ends the wait: no rank can go on.
fn seat(
    job: &Job,
    come: &mut Vec<Option<Wire>>,
    rank: usize,
    size: usize,
    wire: Wire,
) -> std::result::Result<Option<String>, String> {
    if size != job.size {
        come.push(Some(wire)); // to be told too
        return Err(format!(
            "WORLD_SIZE is {size} at rank {rank} and {} at rank 0: start all processes with the same",
            job.size
        ));
    }
    // One that came before and has gone has left its place.
    if rank == 0 || rank >= size || come[rank - 1].as_ref().is_some_and(Wire::there) {
        let why =
            format!("two processes have RANK={rank}: each needs its own; or does another job use {}?", place(job));
        dismiss(wire, &why);
        return Ok(Some(why));
    }
    come[rank - 1] = Some(wire);
    Ok(None)
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

/// Another rank: comes to rank 0, `until` then; the line to it.
pub(super) fn come(job: &Job, key: &Key, limits: &Limits, until: Instant) -> Result<Wire> {
    // That the secrets differ says more than how a later try ends, such as one that rank 0's own end cuts off.
    let mut secrets_differ = None;
    loop {
        let mut why = String::from("it has no address");
        match resolve(job) {
            Err(e) => why = e.to_string(),
            Ok(addresses) => {
                for address in addresses {
                    match greet(job, key, limits, &address, until) {
                        Ok(line) => return Ok(line),
                        Err(e) => why = e.to_string(),
                    }
                    if why.ends_with(&same_secret()) {
                        secrets_differ = Some(why.clone());
                    }
                }
            }
        }
        if Instant::now() + RETRY > until {
            let why = secrets_differ.unwrap_or(why);
            bail!(
                "rank {} did not reach rank 0 at {} within {} s: {why}; is MASTER_ADDR the machine of rank 0, and the port open?",
                job.rank,
                place(job),
                limits.joining.as_secs_f32()
            );
        }
        thread::sleep(RETRY);
    }
}

/// Meets who listens at an address, if that is rank 0 of the same job.
fn greet(job: &Job, key: &Key, limits: &Limits, address: &SocketAddr, until: Instant) -> Result<Wire> {
    let failed = |what: &str, e: &dyn Display| crate::Error::Invalid(format!("{what}: {e}"));
    let left = until.saturating_duration_since(Instant::now()).clamp(RETRY, PATIENCE);
    let end = Instant::now() + left;
    let line = TcpStream::connect_timeout(address, left).map_err(|e| failed("no connection", &e))?;
    let unlike = |e: std::io::Error| match late(&e) {
        true => crate::Error::Invalid("what listens there does not answer as longreel does, or not in time".into()),
        false => failed("what listens there does not answer as longreel does", &e),
    };
    let mut wire = Until::new(&line, end);
    let (own, mut answer) = (Hello::new(job.rank, job.size).map_err(unlike)?, [0; HELLO]);
    wire.write_all(&own.to_bytes()).and_then(|()| wire.read_exact(&mut answer)).map_err(unlike)?;
    let rank_0 = match Hello::parse(&answer) {
        Some(hello) if hello.rank == 0 => hello, // of another size: it will say so
        _ => bail!("what listens there is no rank 0 of this longreel"),
    };
    let transcript = Transcript::new(key, &own, &rank_0);
    let mut proof = [0; PROOF];
    let exchanged = wire.write_all(&transcript.proof(Side::Rank)).and_then(|()| wire.read_exact(&mut proof));
    exchanged.map_err(unlike)?;
    if proof == REFUSED {
        bail!("rank 0 there has another job secret: {}", same_secret());
    }
    if !transcript.proves(Side::Rank0, &proof) {
        bail!("what listens there does not know the job's secret: {}", same_secret());
    }
    Wire::new(line, transcript.seals(Side::Rank), limits.silence).map_err(unlike)
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
