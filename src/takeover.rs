//! One process hands its addresses over to another: `pointsman run --take-over`.
//!
//! The new process listens beside the old one (`SO_REUSEPORT`), and when it knows its servers asks
//! the old one to yield: that closes its listeners and drains. They find each other by a unix socket
//! in the abstract namespace that bears the name of the first listening address.

use std::{
    collections::HashMap,
    fmt::Write,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::MetadataExt,
            net::{SocketAddr, UnixListener as StdListener, UnixStream as StdStream},
        },
    },
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use crate::{
    admin::control::Managed,
    config::Config,
    shutdown::Shutdown,
    topology::board::{MAX_MEMORY, Remembered},
};

/// What the new process says. The old one closes the connection when nobody new reaches it.
const YIELD: &[u8; 6] = b"yield\n";

/// … and before that: who is primary? What it hears may be all that tells a fenced server from the
/// one that was elected.
const RECALL: &[u8; 6] = b"recall";

/// How long the old process may take to say what it remembers.
const RECALLED_WITHIN: Duration = Duration::from_secs(5);

/// The longest answer that is read: more clusters than anybody has.
const MAX_ANSWER: u64 = 64 * MAX_MEMORY as u64;

/// How long the old process may take to close its listeners.
const YIELDED_WITHIN: Duration = Duration::from_secs(5);

/// How often a process that has taken over tries to get the name that the old one still has.
const NAME_POLL: Duration = Duration::from_millis(100);

/// A process that listens where this configuration says.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// What an old process knows of its clusters, by their names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Legacy(HashMap<Arc<str>, Inherited>);

/// What an old process knows of one cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inherited {
    /// It has a primary now.
    pub has_primary: bool,
    /// Its last election.
    pub election: Option<Remembered>,
}

impl Legacy {
    /// What this process leaves to another.
    fn of(clusters: &[Arc<dyn Managed>]) -> Self {
        let one = |cluster: &Arc<dyn Managed>| {
            let has_primary = cluster.snapshot().primary().is_some();
            (cluster.name().clone(), Inherited { has_primary, election: cluster.remembered() })
        };
        Self(clusters.iter().map(one).collect())
    }

    pub fn of_cluster(&self, name: &str) -> Inherited {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// A line that begins a cluster, then the lines of its state file.
    fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, Inherited { has_primary, election }) in &self.0 {
            let election = election.as_ref().map(ToString::to_string).unwrap_or_default();
            write!(text, "cluster {name} {has_primary}\n{election}").expect("a String takes all");
        }
        text
    }

    /// What makes no sense is not there: an older version may say something else, or nothing.
    fn read(text: &str) -> Self {
        let mut legacy = HashMap::new();
        for part in text.split("cluster ").skip(1) {
            let (head, election) = part.split_once('\n').unwrap_or((part, ""));
            if let Some((name, has_primary)) = head.split_once(' ') {
                let inherited =
                    Inherited { has_primary: has_primary == "true", election: election.parse().ok() };
                legacy.insert(name.into(), inherited);
            }
        }
        Self(legacy)
    }
}

/// Asks the process to take over from what it remembers; nothing where it does not say.
pub async fn recall(config: &Config) -> Legacy {
    let Ok(Some(Predecessor(mut stream))) = predecessor(config) else { return Legacy::default() };
    let asked = async {
        stream.write_all(RECALL).await?;
        let mut said = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut said).await?;
        io::Result::Ok(Legacy::read(&said))
    };
    match tokio::time::timeout(RECALLED_WITHIN, asked).await {
        Ok(Ok(legacy)) => legacy,
        _ => Legacy::default(),
    }
}

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

/// Lets a later process take over from this one and its clusters, for as long as this one runs.
pub async fn offer(config: Config, clusters: Vec<Arc<dyn Managed>>, shutdown: Shutdown) {
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
        tokio::spawn(answer(stream, clusters.clone(), shutdown.clone()));
    }
}

async fn answer(mut stream: UnixStream, clusters: Vec<Arc<dyn Managed>>, shutdown: Shutdown) {
    let trusted = |uid| uid == 0 || own_uid().is_ok_and(|own| own == uid);
    if !stream.peer_cred().is_ok_and(|peer| trusted(peer.uid())) {
        return;
    }
    let mut said = [0; YIELD.len()];
    if stream.read_exact(&mut said).await.is_err() {
        return;
    }
    if said == *RECALL {
        // It goes on without, if it cannot hear it.
        let _ = stream.write_all(Legacy::of(&clusters).to_text().as_bytes()).await;
    }
    if said == *YIELD {
        tracing::info!("another process takes over: no new clients, open transactions may end");
        shutdown.yield_doors();
        shutdown.drain();
        // The listeners close in the same turn of their tasks; the new process hears of it by the
        // end of this connection.
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_read_back_and_nonsense_is_nothing() {
        let election = "primary = a:1\nsystem = 7300000000000000000\ntimeline = 3\n".parse().ok();
        assert!(election.is_some());
        let legacy = Legacy(HashMap::from([
            ("shop".into(), Inherited { has_primary: true, election }),
            ("new".into(), Inherited::default()),
        ]));

        assert_eq!(Legacy::read(&legacy.to_text()), legacy);
        for nonsense in ["", "what?", "cluster ", "cluster x"] {
            assert_eq!(Legacy::read(nonsense), Legacy::default(), "{nonsense}");
        }
        assert_eq!(Legacy::read("cluster x true\nnonsense\n").of_cluster("x").election, None);
    }
}
