//! One process hands its addresses over to another: `pointsman run --take-over`.
//!
//! The new process listens beside the old one (`SO_REUSEPORT`), and when it knows its servers asks
//! the old one to yield: that closes its listeners and drains. They find each other by a unix socket
//! in the abstract namespace that bears the name of the first listening address.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::{config::Config, shutdown::Shutdown};

/// What the new process says. The old one closes the connection when nobody new reaches it.
const YIELD: &[u8; 6] = b"yield\n";

/// How long the old process may take to close its listeners.
const YIELDED_WITHIN: Duration = Duration::from_secs(5);

/// How often a process that has taken over tries to get the name that the old one still has.
const NAME_POLL: Duration = Duration::from_millis(100);

/// A process that listens where this configuration says.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

fn name(config: &Config) -> io::Result<SocketAddr> {
    let first = config.clusters.iter().flat_map(|cluster| &cluster.listen).next();
    let first = first.map_or_else(|| "nowhere".to_owned(), ToString::to_string);
    SocketAddr::from_abstract_name(format!("pointsman-run-{first}"))
}

/// Whose process this is.
fn own_uid() -> io::Result<u32> {
    Ok(std::fs::metadata("/proc/self")?.uid())
}

/// The process to take over from, if there is one of the same user.
///
/// # Errors
/// When another user's process has the name.
pub fn predecessor(config: &Config) -> io::Result<Option<Predecessor>> {
    let stream = match StdStream::connect_addr(&name(config)?) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_nonblocking(true)?;
    let stream = UnixStream::from_std(stream)?;
    let owner = stream.peer_cred()?.uid();
    if owner != own_uid()? && owner != 0 {
        return Err(io::Error::other(format!("the process that listens there is another user's ({owner})")));
    }
    Ok(Some(Predecessor(stream)))
}

impl Predecessor {
    /// Asks it to close its listeners and to drain; answers when the listeners are closed.
    ///
    /// # Errors
    /// When it does not do so in time.
    pub async fn relieve(mut self) -> io::Result<()> {
        self.0.write_all(YIELD).await?;
        let closed = async {
            let mut rest = [0; 1];
            self.0.read(&mut rest).await
        };
        match tokio::time::timeout(YIELDED_WITHIN, closed).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(_)) => Err(io::Error::other("the old process says something else")),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Lets a later process take over from this one, for as long as this one runs.
pub async fn offer(config: Config, shutdown: Shutdown) {
    let Ok(name) = name(&config) else { return };
    let listener = loop {
        match StdListener::bind_addr(&name) {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(NAME_POLL).await,
        }
    };
    let Ok(listener) = listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)) else {
        return;
    };
    loop {
        let accepted = tokio::select! {
            () = shutdown.draining() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(NAME_POLL).await;
            continue;
        };
        tokio::spawn(answer(stream, shutdown.clone()));
    }
}

async fn answer(mut stream: UnixStream, shutdown: Shutdown) {
    let trusted = |uid| uid == 0 || own_uid().is_ok_and(|own| own == uid);
    if !stream.peer_cred().is_ok_and(|peer| trusted(peer.uid())) {
        return;
    }
    let mut said = [0; YIELD.len()];
    if stream.read_exact(&mut said).await.is_ok() && said == *YIELD {
        tracing::info!("another process takes over: no new clients, open transactions may end");
        shutdown.yield_doors();
        shutdown.drain();
        // The listeners close in the same turn of their tasks; the new process hears of it by the
        // end of this connection.
        tokio::task::yield_now().await;
    }
}
