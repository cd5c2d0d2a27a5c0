//! Listening sockets: our own, or those that systemd holds for us, so that a restart of the proxy
//! refuses nobody (`sd_listen_fds(3)`).

use std::{
    env, io,
    net::{SocketAddr, TcpListener as StdListener},
    os::fd::{FromRawFd, RawFd},
};

use tokio::net::TcpListener;

use crate::{config::HostPort, listener};

/// What a service manager has passed on, as far as nobody has claimed it.
#[derive(Debug, Default)]
pub struct Sockets {
    held: Vec<StdListener>,
    /// Whether another process of ours may listen there already.
    sharing: Sharing,
}

/// How an address is listened on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else may listen there.
    #[default]
    Alone,
    /// Beside the process that is being relieved.
    Beside,
}

impl Sockets {
    /// Takes over what was passed on to this process. Call it once, before threads are started:
    /// it removes the environment variables that say so.
    ///
    /// # Errors
    /// When the variables make no sense.
    pub fn inherited(sharing: Sharing) -> io::Result<Self> {
        if env::var_os("LISTEN_FDS").is_none() {
            return Ok(Self { held: Vec::new(), sharing });
        }
        let held = sd_notify::listen_fds()?.filter_map(adopt).collect();
        Ok(Self { held, sharing })
    }

    /// Listens on every address that a host name stands for; on those that are held for us
    /// already, by taking them over.
    ///
    /// # Errors
    /// When the name does not resolve, or an address is taken or not ours.
    pub async fn bind(&mut self, at: &HostPort) -> io::Result<Vec<TcpListener>> {
        let mut bound = Vec::new();
        for address in tokio::net::lookup_host((at.host(), at.port())).await? {
            bound.push(match self.claim(address) {
                Some(held) => {
                    tracing::info!(%address, "takes over the service manager's socket");
                    TcpListener::from_std(held)?
                }
                None => listener::listen(address, self.sharing)?,
            });
        }
        Ok(bound)
    }

    fn claim(&mut self, address: SocketAddr) -> Option<StdListener> {
        let at = self.held.iter().position(|held| held.local_addr().is_ok_and(|own| own == address))?;
        Some(self.held.swap_remove(at))
    }

    /// Addresses that nothing in the configuration listens on.
    pub fn unclaimed(&self) -> Vec<SocketAddr> {
        self.held.iter().filter_map(|held| held.local_addr().ok()).collect()
    }
}

/// A descriptor as a listening TCP socket, if it is one.
fn adopt(descriptor: RawFd) -> Option<StdListener> {
    #[expect(unsafe_code, reason = "descriptors come as numbers from the service manager")]
    // SAFETY: sd_listen_fds(3): the descriptor was passed on for us alone, and is open.
    let socket = unsafe { StdListener::from_raw_fd(descriptor) };
    let usable = socket.local_addr().is_ok() && socket.set_nonblocking(true).is_ok();
    usable.then_some(socket)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;
    use crate::stream;

    #[tokio::test]
    async fn every_address_is_listened_on_where_the_configuration_says_so() {
        let mut bound = Sockets::default().bind(&HostPort::new("::", 0)).await.expect("a port is free");
        let listener = bound.pop().expect("one address, one socket");
        let port = listener.local_addr().expect("it is bound").port();

        for host in ["127.0.0.1", "::1"] {
            let client = TcpStream::connect((host, port)).await;
            let client = client.unwrap_or_else(|error| panic!("{host}: {error}"));
            let (server, _) = listener.accept().await.expect("it has come");
            let peer = stream::peer_of(&server).expect("it is there");
            assert_eq!(peer, client.local_addr().expect("it is bound"), "as the client knows itself");
        }
    }
}
