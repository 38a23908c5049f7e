//! Connects processes that know only rank 0's address: rank 0 listens, the others connect, and in the end each has a
//! link to rank 0. What they then say is of no concern here.
//!
//! The port is open to anybody. A process that connects must prove within a few seconds that it knows the job's secret
//! ([`handshake`](super::handshake)), or it is sent away. No more of what it sends is read than a handshake has bytes.
//! So a stranger becomes no rank, ends nothing, and keeps nobody waiting.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{Connection, Until, late};
use super::guests::{Arrival, Guests, HANDSHAKE_TIMEOUT};
use super::handshake::{HELLO, Hello, PROOF, REFUSED, Side, Transcript};
use super::secret::{self, Key};
use super::wire::{Failure, Frame};
use super::{Limits, TorchrunEnv};
use crate::{Result, bail};

/// Time between two looks of rank 0 for new connections.
const LOOK: Duration = Duration::from_millis(5);
/// How often the others look whether it is there.
const RETRY: Duration = Duration::from_millis(100);
/// How many processes that were sent away are reported.
const ODD: usize = 8;

/// Why ranks did not come together, and those who are to be told, as they have come.
pub(super) struct Refusal {
    why: String,
    come: Vec<Connection>,
}

impl Refusal {
    /// Tells them; why.
    pub fn tell(self) -> String {
        self.come.into_iter().for_each(|wire| dismiss(wire, &self.why));
        self.why
    }
}

/// The last that a process hears.
fn dismiss(mut wire: Connection, why: &str) {
    let _ = wire.out.send(&Frame::Failed(Failure { rank: 0, message: why.to_owned(), lost: false }));
    wire.out.shutdown(Shutdown::Write);
}

/// Rank 0 waits `until` then for all others; returns their connections, from rank 1 on.
pub(super) fn gather(
    env: &TorchrunEnv,
    key: Key,
    limits: &Limits,
    until: Instant,
) -> std::result::Result<Vec<Connection>, Refusal> {
    let listener = listen(env).map_err(|e| Refusal { why: e.to_string(), come: vec![] })?;
    let mut guests = Guests::new(key, env.size, limits.silence);
    let mut come: Vec<Option<Connection>> = (1..env.size).map(|_| None).collect();
    let mut odd = BTreeSet::new();
    while come.iter().any(Option::is_none) {
        if Instant::now() > until {
            let why = missing(env, limits.joining, &come, &odd);
            return Err(Refusal { why, come: come.into_iter().flatten().collect() });
        }
        for Arrival { address, rank, known } in guests.look(&listener) {
            let oddity = match known {
                Some((size, wire)) => match seat(env, &mut come, rank, size, wire) {
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

/// The ranks that have not come, and what was odd about those that have.
fn missing(env: &TorchrunEnv, limit: Duration, come: &[Option<Connection>], odd: &BTreeSet<String>) -> String {
    let missing: Vec<String> =
        (1..env.size).filter(|&rank| come[rank - 1].is_none()).map(|rank| rank.to_string()).collect();
    let odd: String = odd.iter().map(|oddity| format!("; {oddity}")).collect();
    format!(
        "of {} processes {} did not come to {} within {} s: rank {}; see what they say, and that all have this MASTER_ADDR and MASTER_PORT \
         and can reach it{odd}",
        env.size,
        missing.len(),
        endpoint(env),
        limit.as_secs_f32(),
        missing.join(", ")
    )
}

/// Takes in a process of the job, or sends it away and says why. An error ends the wait: no rank can go on.
fn seat(
    env: &TorchrunEnv,
    come: &mut Vec<Option<Connection>>,
    rank: usize,
    size: usize,
    wire: Connection,
) -> std::result::Result<Option<String>, String> {
    if size != env.size {
        come.push(Some(wire)); // to be told too
        return Err(format!(
            "WORLD_SIZE is {size} at rank {rank} and {} at rank 0: start all processes with the same",
            env.size
        ));
    }
    // One that came before and has gone has left its place.
    if rank == 0 || rank >= size || come[rank - 1].as_ref().is_some_and(Connection::there) {
        let why =
            format!("two processes have RANK={rank}: each needs its own; or does another job use {}?", endpoint(env));
        dismiss(wire, &why);
        return Ok(Some(why));
    }
    come[rank - 1] = Some(wire);
    Ok(None)
}

/// Listens where the others are told to come.
fn listen(env: &TorchrunEnv) -> Result<TcpListener> {
    // An address is listened at as it is, so that one of this machine alone stays so. A name may stand for this
    // machine's loopback here and for its network elsewhere, and an address may be that of a gateway before it: both
    // mean all of its networks.
    let exact = env.host == "localhost" || env.host.parse::<std::net::IpAddr>().is_ok();
    let exact: Vec<SocketAddr> = if exact { resolve(env)? } else { vec![] };
    let unspecified =
        [SocketAddr::from((Ipv6Addr::UNSPECIFIED, env.port)), SocketAddr::from((Ipv4Addr::UNSPECIFIED, env.port))];
    let mut why = None;
    for address in exact.into_iter().chain(unspecified) {
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
        Environment,
        "rank 0 cannot listen at {}: {why}; choose a free MASTER_PORT, and as MASTER_ADDR rank 0's machine",
        endpoint(env)
    )
}

/// Any other rank connects to rank 0, trying `until` then; returns the connection.
pub(super) fn come(env: &TorchrunEnv, key: &Key, limits: &Limits, until: Instant) -> Result<Connection> {
    // That the secrets differ says more than how a later try ends, such as one that rank 0's own end cuts off.
    let mut secrets_differ = None;
    loop {
        let mut why = String::from("it has no address");
        match resolve(env) {
            Err(e) => why = e.to_string(),
            Ok(addresses) => {
                for address in addresses {
                    match greet(env, key, limits, &address, until) {
                        Ok(link) => return Ok(link),
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
                Environment,
                "rank {} did not reach rank 0 at {} within {} s: {why}; is MASTER_ADDR the machine of rank 0, and the port open?",
                env.rank,
                endpoint(env),
                limits.joining.as_secs_f32()
            );
        }
        thread::sleep(RETRY);
    }
}

/// Meets who listens at an address, if that is rank 0 of the same job.
fn greet(env: &TorchrunEnv, key: &Key, limits: &Limits, address: &SocketAddr, until: Instant) -> Result<Connection> {
    let failed = |what: &str, e: &dyn Display| crate::Error::Environment(format!("{what}: {e}"));
    let left = until.saturating_duration_since(Instant::now()).clamp(RETRY, HANDSHAKE_TIMEOUT);
    let end = Instant::now() + left;
    let link = TcpStream::connect_timeout(address, left).map_err(|e| failed("no connection", &e))?;
    let unlike = |e: std::io::Error| match late(&e) {
        true => crate::Error::Environment("what listens there does not answer as longreel does, or not in time".into()),
        false => failed("what listens there does not answer as longreel does", &e),
    };
    let mut wire = Until::new(&link, end);
    let (own, mut answer) = (Hello::new(env.rank, env.size).map_err(unlike)?, [0; HELLO]);
    wire.write_all(&own.to_bytes()).and_then(|()| wire.read_exact(&mut answer)).map_err(unlike)?;
    let rank_0 = match Hello::parse(&answer) {
        Some(hello) if hello.rank == 0 => hello, // of another size: it will say so
        _ => bail!(Environment, "what listens there is no rank 0 of this longreel"),
    };
    let transcript = Transcript::new(key, &own, &rank_0);
    let mut proof = [0; PROOF];
    let exchanged = wire.write_all(&transcript.proof(Side::Rank)).and_then(|()| wire.read_exact(&mut proof));
    exchanged.map_err(unlike)?;
    if proof == REFUSED {
        bail!(Environment, "rank 0 there has another job secret: {}", same_secret());
    }
    if !transcript.proves(Side::Rank0, &proof) {
        bail!(Environment, "what listens there does not know the job's secret: {}", same_secret());
    }
    Connection::new(link, transcript.seals(Side::Rank), limits.silence).map_err(unlike)
}

fn resolve(env: &TorchrunEnv) -> Result<Vec<SocketAddr>> {
    match (env.host.as_str(), env.port).to_socket_addrs() {
        Ok(addresses) => Ok(addresses.collect()),
        Err(e) => bail!(Environment, "MASTER_ADDR {} has no address: {e}", env.host),
    }
}

/// Rank 0's address and port, for people.
pub(super) fn endpoint(env: &TorchrunEnv) -> String {
    let host = if env.host.contains(':') { format!("[{}]", env.host) } else { env.host.clone() };
    format!("{host}:{}", env.port)
}
