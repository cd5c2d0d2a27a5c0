//! Free TCP ports that stay ours while a server on them is down.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Below Linux's range for outgoing connections (32768 and up): the port of a stopped server must
/// not become somebody's source port.
const RANGE: std::ops::Range<u16> = 20_000..32_000;
const ATTEMPTS: usize = 2_000;

/// A claimed port on 127.0.0.1; free again when this is dropped.
///
/// The claim is an abstract unix socket of that name: it holds among all processes that claim ports
/// this way, also while nothing listens on the port, and ends with the process.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claim: UnixListener,
}

impl Port {
    /// Claims a port that nobody listens on; errs when none was found in 2,000 attempts.
    pub fn claim() -> io::Result<Self> {
        Ok(Self::listen()?.0)
    }

    /// Claims a port and listens on it. Whoever listens in this process takes this: a process that another thread
    /// starts holds what listened until it executes its program, so that a second attempt may find the port in use.
    ///
    /// # Errors
    /// As [`Port::claim`].
    pub fn listen() -> io::Result<(Self, TcpListener)> {
        for _ in 0..ATTEMPTS {
            let number = rand::random_range(RANGE);
            let name = SocketAddr::from_abstract_name(format!("pointsman-port-{number}"))?;
            let Ok(claim) = UnixListener::bind_addr(&name) else { continue };
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, number)) {
                return Ok((Self { number, _claim: claim }, listener));
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "no free port between 20000 and 32000"))
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn claimed_ports_are_never_given_twice() {
        let ports: Vec<Port> = (0..100).map(|_| Port::claim().expect("ports are to be had")).collect();
        let distinct: HashSet<u16> = ports.iter().map(Port::number).collect();
        assert_eq!(distinct.len(), ports.len());
    }
}
