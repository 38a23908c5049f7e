//! Lists the addresses of this machine, by which processes on other machines may reach it: the system's own list, so
//! that no name needs to resolve.

use std::collections::BTreeSet;
use std::ffi::c_int;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;

/// The addresses of all network interfaces that are up, the loopback's last.
pub(super) fn addresses() -> io::Result<Vec<IpAddr>> {
    let mut first = ptr::null_mut();
    // SAFETY: a pointer to a local, which the system sets to a list that `freeifaddrs` frees below.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = BTreeSet::new();
    let mut next = first;
    while !next.is_null() {
        // SAFETY: an entry of the list, which has not been freed.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() || entry.ifa_flags & libc::IFF_UP as u32 == 0 {
            continue;
        }
        // SAFETY: not null, and an address of the family that it says it has, wherever it is aligned.
        let ip = unsafe {
            match c_int::from(ptr::read_unaligned(&raw const (*entry.ifa_addr).sa_family)) {
                libc::AF_INET => {
                    let address: libc::sockaddr_in = ptr::read_unaligned(entry.ifa_addr.cast());
                    IpAddr::from(Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes()))
                }
                libc::AF_INET6 => {
                    let address: libc::sockaddr_in6 = ptr::read_unaligned(entry.ifa_addr.cast());
                    IpAddr::from(Ipv6Addr::from(address.sin6_addr.s6_addr))
                }
                _ => continue,
            }
        };
        // One of a link alone means nothing without the name of the interface, which differs by machine.
        if !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()) {
            found.insert((ip.is_loopback(), ip));
        }
    }
    // SAFETY: the list of above, once.
    unsafe { libc::freeifaddrs(first) };
    Ok(found.into_iter().map(|(_, ip)| ip).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn every_address_of_this_machine_reaches_it() {
        let addresses = addresses().unwrap();
        assert!(addresses.contains(&Ipv4Addr::LOCALHOST.into()), "{addresses:?}");
        for ip in addresses {
            let listener = TcpListener::bind((ip, 0)).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        }
    }
}
