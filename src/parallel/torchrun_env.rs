//! Reads what torchrun and its like tell the processes that they start: rank, world size, and rank 0's address.

use std::net::IpAddr;
use std::str::FromStr;

use super::Secret;
use crate::{Error, Result, bail};

/// One process of a job, as its environment has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TorchrunEnv {
    /// `RANK`.
    pub rank: usize,
    /// `WORLD_SIZE`.
    pub size: usize,
    /// `LOCAL_RANK`: the process's number on its machine.
    pub local: usize,
    /// `MASTER_ADDR`: a name or an address, of rank 0's machine.
    pub host: String,
    /// Where rank 0 listens there.
    pub port: u16,
    /// `LONGREEL_JOB_SECRET` or `LONGREEL_JOB_SECRET_FILE`.
    pub secret: Secret,
}

impl TorchrunEnv {
    /// The variables without which there is no job.
    pub(super) const NEEDED: [&str; 4] = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"];

    /// Of variables that `get` gives.
    ///
    /// # Errors
    /// One is missing or no number, or they contradict each other. What only this process can know is wrong is an error
    /// of its rank.
    pub fn from(get: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let text = |name: &str| match get(name) {
            Some(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            _ => bail!(
                Environment,
                "{name} is missing: a process that torchrun starts has it; set it, or start one process with --ranks"
            ),
        };
        let size: usize = number("WORLD_SIZE", &text("WORLD_SIZE")?)?;
        let rank: usize = number("RANK", &text("RANK")?)?;
        if size == 0 || u32::try_from(size).is_err() {
            bail!(Environment, "WORLD_SIZE is {size}: it is the number of all processes of the job");
        }
        if rank >= size {
            bail!(
                Environment,
                "RANK is {rank}, but WORLD_SIZE is {size}: processes are numbered from 0 to {}",
                size - 1
            );
        }
        let own = |e: Error| Error::Rank { rank, message: e.to_string() };
        let local: usize = text("LOCAL_RANK").and_then(|text| number("LOCAL_RANK", &text)).map_err(own)?;
        if local >= size {
            let message = format!(
                "LOCAL_RANK is {local}, but WORLD_SIZE is {size}: it counts the job's processes on one machine"
            );
            return Err(own(Error::Environment(message)));
        }
        let host = text("MASTER_ADDR")?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host).to_owned();
        let mut port: u16 = number("MASTER_PORT", &text("MASTER_PORT")?)?;
        if port == 0 {
            bail!(Environment, "MASTER_PORT is 0: it is the port at which rank 0 listens, 1 to 65535");
        }
        // torchrun listens there itself then.
        if get("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.trim().eq_ignore_ascii_case("true")) {
            port = match port.checked_add(1) {
                Some(next) => next,
                None => bail!(
                    Environment,
                    "MASTER_PORT is 65535, where torchrun listens, and longreel takes the next one: choose a lower port"
                ),
            };
        }
        // torchrun says how many there are on a machine, whatever it calls the machine.
        let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let together = get("LOCAL_WORLD_SIZE").is_some_and(|count| count.trim() == size.to_string());
        let secret = Secret::from(&get, loopback || together).map_err(own)?;
        Ok(Self { rank, size, local, host, port, secret })
    }
}

fn number<T: FromStr>(name: &str, text: &str) -> Result<T> {
    text.parse()
        .map_err(|_| Error::Environment(format!("{name} is {text:?}: it must be a whole number, as torchrun sets it")))
}
