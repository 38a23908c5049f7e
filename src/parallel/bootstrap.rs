//! Connects processes that know only rank 0's address: rank 0 listens, the others connect, and in the end each has a
//! link to rank 0. What they then say is of no concern here.
//!
//! The port is open to anybody. A process that connects must prove within a few seconds that it knows the job's secret
//! ([`handshake`](super::handshake)), or it is sent away. No more of what it sends is read than a handshake has bytes.
//! So a stranger becomes no rank, ends nothing, and keeps nobody waiting.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{Connection, Until, late};
use super::guests::{Arrival, Guests, HANDSHAKE_TIMEOUT};
use super::handshake::{HELLO, Hello, PROOF, REFUSED, Side, Transcript};
use super::secret::{self, Key};
use super::wire::{Failure, Frame};
use super::{Limits, TorchrunEnv, thread_refused};
use crate::{Error, Result, bail};

/// Time between two looks of rank 0 for new connections.
const LOOK: Duration = Duration::from_millis(5);
/// How often the others look whether it is there.
const RETRY: Duration = Duration::from_millis(100);
/// How many processes that were sent away are reported.
const ODD: usize = 8;

/// A process that is to meet the others of its job at rank 0.
pub(super) struct Joiner {
    pub rank: usize,
    pub size: usize,
    /// Names or addresses of rank 0's machine; any of them may be the one that this process reaches.
    pub hosts: Vec<String>,
    pub port: u16,
    pub key: Key,
    /// Has the others' addresses from torchrun's variables, which may be wrong, not from MPI.
    pub torchrun: bool,
}

impl Joiner {
    /// The process that `env` describes.
    pub fn by_torchrun(env: &TorchrunEnv, key: Key) -> Self {
        let TorchrunEnv { rank, size, port, .. } = *env;
        Self { rank, size, hosts: vec![env.host.clone()], port, key, torchrun: true }
    }

    /// Rank 0's addresses and port, for people.
    pub fn endpoint(&self) -> String {
        let one = |host: &String| match host.contains(':') {
            true => format!("[{host}]:{}", self.port),
            false => format!("{host}:{}", self.port),
        };
        self.hosts.iter().map(one).collect::<Vec<_>>().join(" or ")
    }

    /// All addresses of rank 0, or why there is none.
    fn resolve(&self) -> Result<Vec<SocketAddr>> {
        let mut addresses = vec![];
        for host in &self.hosts {
            match (host.as_str(), self.port).to_socket_addrs() {
                Ok(found) => addresses.extend(found),
                Err(e) => bail!(Environment, "MASTER_ADDR {host} has no address: {e}"),
            }
        }
        Ok(addresses)
    }
}

/// The last that a process hears.
fn dismiss(mut wire: Connection, why: &str) {
    let _ = wire.out.send(&Frame::Failed(Failure { rank: 0, message: why.to_owned(), lost: false }));
    wire.out.shutdown(Shutdown::Write);
}

/// Rank 0 waits `until` then for all others; returns their connections, from rank 1 on, once each knows that all have
/// come. Those that have come hear of an error too.
pub(super) fn gather(
    joiner: &Joiner,
    listener: &TcpListener,
    limits: &Limits,
    until: Instant,
) -> Result<Vec<Connection>> {
    let mut come: Vec<Option<Connection>> = (1..joiner.size).map(|_| None).collect();
    let refusal = wait_for_all(joiner, listener, limits, until, &mut come);
    let mut come: Vec<Connection> = come.into_iter().flatten().collect();
    if let Err(why) = refusal {
        come.into_iter().for_each(|wire| dismiss(wire, &why));
        bail!(Environment, "{why}");
    }
    for wire in &mut come {
        let _ = wire.out.send(&Frame::Ready); // one that is gone will be missed soon
    }
    Ok(come)
}

fn wait_for_all(
    joiner: &Joiner,
    listener: &TcpListener,
    limits: &Limits,
    until: Instant,
    come: &mut Vec<Option<Connection>>,
) -> std::result::Result<(), String> {
    let mut guests = Guests::new(joiner.key.clone(), joiner.size, limits.silence);
    let mut odd = BTreeSet::new();
    while come.iter().any(Option::is_none) {
        if Instant::now() > until {
            return Err(missing(joiner, limits.joining, come, &odd));
        }
        for Arrival { address, rank, known } in guests.look(listener) {
            let oddity = match known {
                Some((size, wire)) => seat(joiner, come, rank, size, wire)?,
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
    Ok(())
}

fn same_secret() -> String {
    format!("give all processes of a job the same {}", secret::TEXT)
}

/// The ranks that have not come, and what was odd about those that have.
fn missing(joiner: &Joiner, limit: Duration, come: &[Option<Connection>], odd: &BTreeSet<String>) -> String {
    let missing: Vec<String> =
        (1..joiner.size).filter(|&rank| come[rank - 1].is_none()).map(|rank| rank.to_string()).collect();
    let odd: String = odd.iter().map(|oddity| format!("; {oddity}")).collect();
    let hint = match joiner.torchrun {
        true => "that all have this MASTER_ADDR and MASTER_PORT and can reach it",
        false => "that their machines can reach one of these addresses",
    };
    format!(
        "of {} processes {} did not come to {} within {} s: rank {}; see what they say, and {hint}{odd}",
        joiner.size,
        missing.len(),
        joiner.endpoint(),
        limit.as_secs_f32(),
        missing.join(", ")
    )
}

/// Takes in a process of the job, or sends it away and says why. An error ends the wait: no rank can go on.
fn seat(
    joiner: &Joiner,
    come: &mut Vec<Option<Connection>>,
    rank: usize,
    size: usize,
    wire: Connection,
) -> std::result::Result<Option<String>, String> {
    if size != joiner.size {
        come.push(Some(wire)); // to be told too
        return Err(format!(
            "WORLD_SIZE is {size} at rank {rank} and {} at rank 0: start all processes with the same",
            joiner.size
        ));
    }
    // One that came before and has gone has left its place.
    if rank == 0 || rank >= size || come[rank - 1].as_ref().is_some_and(Connection::there) {
        let why = format!(
            "two processes have RANK={rank}: each needs its own; or does another job use {}?",
            joiner.endpoint()
        );
        dismiss(wire, &why);
        return Ok(Some(why));
    }
    come[rank - 1] = Some(wire);
    Ok(None)
}

/// Listens where the others are told to come; at any free port if there is none yet.
pub(super) fn listen(joiner: &Joiner) -> Result<TcpListener> {
    // An address is listened at as it is, so that one of this machine alone stays so. A name may stand for this
    // machine's loopback here and for its network elsewhere, and an address may be that of a gateway before it: both
    // mean all of its networks.
    let exact = joiner.hosts.iter().all(|host| host == "localhost" || host.parse::<IpAddr>().is_ok());
    let exact: Vec<SocketAddr> = if exact { joiner.resolve()? } else { vec![] };
    let unspecified = [IpAddr::from(Ipv6Addr::UNSPECIFIED), Ipv4Addr::UNSPECIFIED.into()];
    let mut why = None;
    for address in exact.into_iter().chain(unspecified.map(|ip| (ip, joiner.port).into())) {
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
    if !joiner.torchrun {
        bail!(Environment, "rank 0 cannot listen at any port: {why}");
    }
    bail!(
        Environment,
        "rank 0 cannot listen at {}: {why}; choose a free MASTER_PORT, and as MASTER_ADDR rank 0's machine",
        joiner.endpoint()
    )
}

/// Any other rank connects to rank 0, trying `until` then; returns the connection.
pub(super) fn come(joiner: &Joiner, limits: &Limits, until: Instant) -> Result<Connection> {
    // That the secrets differ says more than how a later try ends, such as one that rank 0's own end cuts off.
    let mut secrets_differ = None;
    loop {
        let why = match joiner.resolve().and_then(|addresses| reach(joiner, limits, addresses, until)) {
            Ok(link) => return Ok(link),
            Err(e) => e.to_string(),
        };
        if why.contains(&same_secret()) {
            secrets_differ = Some(why.clone());
        }
        if Instant::now() + RETRY > until {
            let why = secrets_differ.unwrap_or(why);
            let hint = match joiner.torchrun {
                true => "is MASTER_ADDR the machine of rank 0, and the port open?",
                false => "is one of these addresses, at any port, open to this machine?",
            };
            bail!(
                Environment,
                "rank {} did not reach rank 0 at {} within {} s: {why}; {hint}",
                joiner.rank,
                joiner.endpoint(),
                limits.joining.as_secs_f32()
            );
        }
        thread::sleep(RETRY);
    }
}

/// Connects to all addresses at once, and stays with the first where rank 0 is.
fn reach(joiner: &Joiner, limits: &Limits, addresses: Vec<SocketAddr>, until: Instant) -> Result<Connection> {
    let limit = until.saturating_duration_since(Instant::now()).clamp(RETRY, HANDSHAKE_TIMEOUT);
    let (connected, tried) = mpsc::channel();
    for address in addresses {
        let connected = connected.clone();
        let connect = move || drop(connected.send((address, TcpStream::connect_timeout(&address, limit))));
        let thread = thread::Builder::new().name("connect".into()).spawn(connect);
        thread.map_err(|e| thread_refused("a thread to reach rank 0", &e))?;
    }
    drop(connected);
    let mut why = vec![];
    for (address, link) in tried {
        let link = link.map_err(|e| Error::Environment(format!("no connection: {e}")));
        match link.and_then(|link| greet(joiner, limits, link, Instant::now() + limit)) {
            Ok(link) => return Ok(link),
            Err(e) if joiner.hosts.len() == 1 => why = vec![e.to_string()],
            Err(e) => why.push(format!("{}: {e}", address.ip())),
        }
    }
    if why.is_empty() {
        why.push("it has no address".into());
    }
    Err(Error::Environment(why.join("; ")))
}

/// Meets who listens at the other end, by `end`, if that is rank 0 of the same job.
fn greet(joiner: &Joiner, limits: &Limits, link: TcpStream, end: Instant) -> Result<Connection> {
    let unlike = |e: std::io::Error| match late(&e) {
        true => Error::Environment("what listens there does not answer as longreel does, or not in time".into()),
        false => Error::Environment(format!("what listens there does not answer as longreel does: {e}")),
    };
    let mut wire = Until::new(&link, end);
    let (own, mut answer) = (Hello::new(joiner.rank, joiner.size).map_err(unlike)?, [0; HELLO]);
    wire.write_all(&own.to_bytes()).and_then(|()| wire.read_exact(&mut answer)).map_err(unlike)?;
    let rank_0 = match Hello::parse(&answer) {
        Some(hello) if hello.rank == 0 => hello, // of another size: it will say so
        _ => bail!(Environment, "what listens there is no rank 0 of this longreel"),
    };
    let transcript = Transcript::new(&joiner.key, &own, &rank_0);
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
