//! Tells all processes by one MPI broadcast how to reach rank 0: its addresses, a port that it listens at, and a secret
//! that was made for this job.

use serde::{Deserialize, Serialize};
use std::net::{IpAddr, TcpListener};

use super::interfaces;
use super::messages::Channel;
use crate::parallel::bootstrap::{self, Joiner};
use crate::parallel::secret::{Key, random};
use crate::{Error, Result, bail};

/// Bytes of the broadcast: room for some 80 addresses.
const LENGTH: usize = 4096;
/// More than any machine needs.
const MOST_ADDRESSES: usize = 64;

#[derive(Serialize, Deserialize)]
struct Invitation {
    addresses: Vec<IpAddr>,
    port: u16,
    secret: [u8; 32],
}

/// What rank `rank` of `size` needs to join the others; of rank 0, also where it listens. All ranks call it.
pub(super) fn exchange(channel: &Channel, rank: usize, size: usize) -> Result<(Joiner, Option<TcpListener>)> {
    let joiner =
        |hosts, port, secret: &[u8]| Joiner { rank, size, hosts, port, key: Key::new(secret), torchrun: false };
    let (mut bytes, mut listener) = (vec![0; LENGTH], None);
    if rank == 0 {
        // The others wait for the broadcast: they are told of an error as well.
        let own = bootstrap::listen(&joiner(vec![], 0, &[])).and_then(|own| Ok((invite(&own)?, own)));
        let told = own.as_ref().map(|(invitation, _)| invitation).map_err(Error::to_string);
        let text = serde_json::to_vec(&told).map_err(|e| Error::Environment(e.to_string()))?;
        let length = text.len().min(LENGTH);
        bytes[..length].copy_from_slice(&text[..length]);
        channel.broadcast(&mut bytes)?;
        listener = Some(own?.1);
    } else {
        channel.broadcast(&mut bytes)?;
    }
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(LENGTH);
    let Ok(told) = serde_json::from_slice::<std::result::Result<Invitation, String>>(&bytes[..end]) else {
        bail!(Environment, "rank 0 does not say where it is: is it the same longreel?")
    };
    let Invitation { addresses, port, secret } = told.map_err(|message| Error::Rank { rank: 0, message })?;
    Ok((joiner(addresses.iter().map(IpAddr::to_string).collect(), port, &secret), listener))
}

/// What rank 0 tells.
fn invite(listener: &TcpListener) -> Result<Invitation> {
    let of_system = |what: &str, e: &dyn std::fmt::Display| Error::Environment(format!("rank 0 has no {what}: {e}"));
    let mut addresses = interfaces::addresses().map_err(|e| of_system("list of its network's addresses", &e))?;
    addresses.truncate(MOST_ADDRESSES);
    let port = listener.local_addr().map_err(|e| of_system("port", &e))?.port();
    let secret = random().map_err(|e| of_system("random bytes", &e))?;
    Ok(Invitation { addresses, port, secret })
}
