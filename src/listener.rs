//! Accepts clients, within limits, and hands them to the workers.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::FutureExt;
use socket2::{Domain, Protocol as Layer, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{Instant, timeout_at},
};

use crate::{
    arrivals::Arrival,
    cluster::Cluster,
    config::TlsMode,
    protocol::{
        Backend as _, ConnectFault, Fault, Frontend, Greeting, Identity, LoginFault, Protocol, ReaderContext,
        TurnedAway, Welcomed,
    },
    refusal::{Refusal, RefusalKind},
    route::{self, Consistency, Floor, Question},
    runtime::Places,
    session::{
        After, Client, OwnSettings, Session,
        cancel::{CancelKey, Registered},
        check_token,
    },
    sockets::Sharing,
    sql::{
        Access, Dialect,
        effects::{Ending, ProxyCommand},
    },
    stream,
    topology::Snapshot,
};

/// Connections the kernel holds for us before they are accepted.
const BACKLOG: i32 = 1024;

/// Pause after the system gave no descriptor for a new connection.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// It is said no more often than this that there is none.
const ACCEPT_TOLD: Duration = Duration::from_secs(10);

/// How long a client that did not get in has for hearing why.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Listens on one address.
pub(crate) fn listen(address: SocketAddr, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Layer::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` is every address, IPv4's too, whatever the system's own default is.
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    if sharing == Sharing::Beside {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    // Only now: who starts without meaning to take over must find a taken address taken, but a
    // later process may listen beside this one.
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Accepts clients of one cluster until the proxy drains.
pub async fn accept<P: Protocol>(listener: TcpListener, cluster: Arc<Cluster<P>>, workers: Arc<Places>) {
    let mut told: Option<Instant> = None;
    loop {
        let accepted = tokio::select! {
            () = cluster.shutdown.draining() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, _)) => hand_over(socket, &cluster, &workers),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if told.is_none_or(|told| told.elapsed() >= ACCEPT_TOLD) {
                    told = Some(Instant::now());
                    tracing::warn!(cluster = %cluster.name, %error, "cannot accept a client");
                }
                // Whoever is served, and the monitor, needs them more than those that say nothing.
                cluster.arrivals.make_room();
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // The kernel has greeted some already: they are told why they are not served.
    for _ in 0..BACKLOG {
        let Some(Ok((socket, _))) = listener.accept().now_or_never() else { return };
        hand_over(socket, &cluster, &workers);
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

fn hand_over<P: Protocol>(socket: TcpStream, cluster: &Arc<Cluster<P>>, workers: &Arc<Places>) {
    let Ok(socket) = socket.into_std() else { return };
    let (cluster, places) = (cluster.clone(), workers.clone());
    // Whoever will be within TLS stays where it begins.
    let stays = cluster.config.load().tls.client.mode != TlsMode::Disable;
    let worker = if stays { workers.next() } else { workers.place() };
    let arrival = cluster.arrivals.enter(cluster.config.load().limits.clients);
    worker.spawn(async move {
        if let Ok(socket) = TcpStream::from_std(socket) {
            admit(socket, arrival, cluster, places).await;
        }
    });
}

/// Counts a connection among the cluster's for as long as it lives.
struct Counted<P: Protocol>(Arc<Cluster<P>>);

impl<P: Protocol> Counted<P> {
    fn new(cluster: &Arc<Cluster<P>>) -> Self {
        cluster.metrics.clients.inc();
        Self(cluster.clone())
    }
}

impl<P: Protocol> Drop for Counted<P> {
    fn drop(&mut self) {
        self.0.metrics.clients.dec();
    }
}

/// Greets a new connection; the session is a task of its own, without what a login takes.
async fn admit<P: Protocol>(
    socket: TcpStream,
    arrival: Arrival,
    cluster: Arc<Cluster<P>>,
    places: Arc<Places>,
) {
    let counted = Counted::new(&cluster);
    let session = log_in(socket, &arrival, &cluster).await;
    // From here on a session counts as one.
    drop(arrival);
    if let Some(session) = session {
        begin(session, counted, places);
    }
}

/// Serves a session to its end, or for as long as it stays on this worker.
async fn live<P: Protocol>(mut session: Box<Session<P>>, counted: Counted<P>, places: Arc<Places>) {
    loop {
        match session.run().await {
            After::Over => return,
            After::Renewed(identity) => {
                let renewed = Box::pin(renew(session.into_client(), identity, &counted.0)).await;
                let Some(next) = renewed else { return };
                session = next;
            }
            After::Moves(to) => {
                places.at(to).spawn(arrive(session, counted, places.clone()));
                return;
            }
        }
    }
}

/// A session goes on here.
async fn arrive<P: Protocol>(mut session: Box<Session<P>>, counted: Counted<P>, places: Arc<Places>) {
    if session.adopt().is_ok() {
        begin(session, counted, places);
    }
}

fn begin<P: Protocol>(session: Box<Session<P>>, counted: Counted<P>, places: Arc<Places>) {
    tokio::spawn(live(session, counted, places));
}

async fn log_in<P: Protocol>(
    socket: TcpStream,
    arrival: &Arrival,
    cluster: &Arc<Cluster<P>>,
) -> Option<Box<Session<P>>> {
    let peer = stream::peer_of(&socket).map_or_else(|_| "unknown".to_owned(), |peer| peer.to_string());
    let until = Instant::now() + cluster.config.load().limits.login_timeout;
    let gate = cluster.gate.load_full();
    let greeting = tokio::select! {
        greeting = timeout_at(until, P::Frontend::login(socket, &gate)) => greeting,
        () = arrival.shed() => Ok(Err(LoginFault::Crowded.into())),
    };
    arrival.is_known();
    let entering = async {
        match greeting.unwrap_or(Err(LoginFault::TimedOut.into())) {
            Ok(Greeting::Client { frontend, identity }) => {
                enter(frontend, identity, peer.clone(), until, cluster).await
            }
            Ok(Greeting::Cancel { key, until }) => {
                cancel(cluster, &key).await;
                drop(until);
                Ok(None)
            }
            Err(turned_away) => Err(turned_away),
        }
    };
    let result = timeout_at(until + LAST_WORDS, entering).await;
    let result = result.unwrap_or(Err(LoginFault::TimedOut.into()));
    match result {
        Ok(Some(session)) => {
            cluster.metrics.login("ok");
            Some(session)
        }
        Ok(None) => None,
        Err(TurnedAway { fault, detail }) => {
            cluster.metrics.turned_away(fault);
            // They come by the thousand.
            if !matches!(fault, LoginFault::Closed | LoginFault::Crowded) {
                tracing::info!(cluster = %cluster.name, %peer, reason = fault.label(), detail, "a client did not get in");
            }
            None
        }
    }
}

/// Says why a connection ends that is no session yet.
async fn dismiss<P: Protocol>(frontend: &mut P::Frontend, refusal: &Refusal, cluster: &Cluster<P>) {
    cluster.metrics.error(refusal.kind.label());
    frontend.farewell(refusal).await;
}

/// A session for a client that has become another user.
async fn renew<P: Protocol>(
    client: Client<P>,
    identity: Identity<P>,
    cluster: &Arc<Cluster<P>>,
) -> Option<Box<Session<P>>> {
    let until = Instant::now() + cluster.config.load().limits.login_timeout;
    let entering = enter(client.frontend, identity, client.peer, until, cluster);
    let result = timeout_at(until + LAST_WORDS, entering).await.unwrap_or(Err(LoginFault::TimedOut.into()));
    cluster.metrics.login(result.as_ref().map_or_else(|away| away.fault.label(), |_| "ok"));
    let mut session = result.ok().flatten()?;
    session.goes_on_from(client.floor);
    Some(session)
}

/// From "authenticated" to a session, which begins before `until`.
async fn enter<P: Protocol>(
    mut frontend: P::Frontend,
    identity: Identity<P>,
    peer: String,
    until: Instant,
    cluster: &Arc<Cluster<P>>,
) -> Result<Option<Box<Session<P>>>, TurnedAway> {
    if let Some(refusal) = over_limit(cluster, &identity.user) {
        dismiss(&mut frontend, &refusal, cluster).await;
        return Err(TurnedAway::told(LoginFault::Forbidden, refusal.message));
    }
    let (own, adopted) = match asked_of_the_proxy(frontend.startup_commands(), cluster).await {
        Ok(asked) => asked,
        Err(refusal) => {
            dismiss(&mut frontend, &refusal, cluster).await;
            // A token that no primary could be asked about may be right.
            let fault = match refusal.kind {
                RefusalKind::NoPrimary => LoginFault::Unavailable,
                _ => LoginFault::Setting,
            };
            return Err(TurnedAway::told(fault, refusal.message));
        }
    };
    let (number, secret_length) = (frontend.session_number(), frontend.cancel_key_length());
    let registered = cluster.sessions.enter(&identity.user, &identity.database, peer, number, secret_length);
    if let Some(schema) = frontend.schema() {
        registered.entry.set_schema(schema);
    }
    let database = cluster.database(&identity.database);
    let context = ReaderContext {
        classifier: cluster.classifier.clone(),
        database: database.clone(),
        metrics: Some(cluster.metrics.clone()),
        entry: Some(registered.entry.clone()),
    };
    let welcomed = match welcome(&mut frontend, &identity, &registered, context, until, cluster).await {
        Ok(welcomed) => welcomed,
        Err(fault) => {
            drop(database);
            cluster.forget_unused(&identity);
            return Err(fault);
        }
    };
    database.enter();
    // Until the catalog is known, every call of a function and every write may leave state behind: a
    // session that begins in that moment would keep its connection for good.
    let patience = Instant::now() + cluster.config.load().monitor.catalog_timeout();
    tokio::select! {
        _ = timeout_at(patience.min(until), database.settled()) => {}
        () = cluster.shutdown.draining() => {}
    }
    let mut session = Box::new(Session::new(frontend, cluster.clone(), &identity, registered));
    session.start(&welcomed, own, adopted);
    Ok(Some(session))
}

/// The proxy's own settings in a startup packet.
async fn asked_of_the_proxy<P: Protocol>(
    commands: &[ProxyCommand],
    cluster: &Cluster<P>,
) -> Result<(OwnSettings, Floor), Refusal> {
    let own = OwnSettings::at_startup(commands)?;
    let token = commands.iter().rev().find_map(|command| match command {
        ProxyCommand::Set { name, value, .. } if &**name == "position" => Some(value),
        _ => None,
    });
    let checked = match token {
        Some(token) => check_token(cluster, token).await?,
        None => None,
    };
    Ok((own, checked.map_or(Floor::None, |(position, _)| Floor::At(position))))
}

fn over_limit<P: Protocol>(cluster: &Cluster<P>, user: &str) -> Option<Refusal> {
    let config = cluster.config.load();
    let too_many = |message: &'static str| Some(Refusal::fatal(RefusalKind::TooManyClients, message));
    let (all, own) = match P::DIALECT {
        Dialect::Postgres => ("sorry, too many clients already", "too many connections for this role"),
        Dialect::Mysql => ("Too many connections", "Too many connections of this user"),
    };
    if cluster.sessions.len() >= config.limits.clients {
        return too_many(all);
    }
    if config.limits.clients_per_user.is_some_and(|limit| cluster.sessions.of_user(user) >= limit) {
        return too_many(own);
    }
    None
}

async fn welcome<P: Protocol>(
    frontend: &mut P::Frontend,
    identity: &Identity<P>,
    registered: &Registered,
    context: ReaderContext,
    until: Instant,
    cluster: &Arc<Cluster<P>>,
) -> Result<Welcomed, TurnedAway> {
    if let Some(welcomed) = frontend.welcome(context.clone(), &registered.key, None).await.map_err(told)? {
        return Ok(welcomed);
    }
    // The first of its kind: a server says what its session looks like, or why there is none.
    let mut access = Access::Read;
    loop {
        let mut held = any_server_until(until, frontend, cluster, identity, access).await?;
        let welcomed = frontend.welcome(context.clone(), &registered.key, Some(held.backend())).await;
        let is_copy = is_copy(&cluster.topology.load(), held.address());
        let fate = if welcomed.is_ok() { crate::pool::Fate::Reuse } else { crate::pool::Fate::Close };
        held.release(fate, std::time::Instant::now());
        match welcomed {
            // What a copy has not heard of yet, or cannot do, the primary may.
            Err(Fault::Refused(_)) if is_copy && access == Access::Read => access = Access::Write,
            Err(Fault::Refused(refused)) => {
                frontend.farewell_raw(&refused.raw).await;
                return Err(TurnedAway::told(LoginFault::Refused, refused));
            }
            other => return other.map_err(told)?.ok_or(LoginFault::Unavailable.into()),
        }
    }
}

/// Whether another server than the one at `address` is the primary.
fn is_copy(snapshot: &Snapshot, address: &Arc<str>) -> bool {
    snapshot.primary.is_some_and(|primary| snapshot.node(primary).address != *address)
}

/// [`any_server`], or its client is told why there is none.
async fn any_server_until<P: Protocol>(
    until: Instant,
    frontend: &mut P::Frontend,
    cluster: &Arc<Cluster<P>>,
    identity: &Identity<P>,
    access: Access,
) -> Result<crate::pool::Held<P>, TurnedAway> {
    let refusal = tokio::select! {
        found = timeout_at(until, any_server(cluster, identity, access)) => match found.unwrap_or(Err(None)) {
            Ok(held) => return Ok(held),
            Err(Some(refused)) => {
                if let ConnectFault::Refused { raw, .. } = &refused {
                    frontend.farewell_raw(raw).await;
                }
                return Err(TurnedAway::told(LoginFault::Refused, refused));
            }
            Err(None) => {
                Refusal::fatal(RefusalKind::NoPrimary, "no server can be reached to begin a session")
            }
        },
        () = cluster.shutdown.draining() => {
            Refusal::fatal(RefusalKind::ShuttingDown, "the proxy is shutting down")
        }
    };
    dismiss(frontend, &refusal, cluster).await;
    Err(TurnedAway::told(LoginFault::Unavailable, refusal.message))
}

fn told(fault: Fault) -> TurnedAway {
    let kind = match fault {
        Fault::Client(_) => LoginFault::Closed,
        Fault::Protocol(_) => LoginFault::Protocol,
        Fault::Server { .. } => LoginFault::Unavailable,
        Fault::Refused(_) => LoginFault::Refused,
    };
    TurnedAway::told(kind, fault)
}

/// A connection of this user and database to a node that serves such `access`, else to any, waiting
/// for one to come up.
///
/// # Errors
/// The primary's own refusal, if there was one.
async fn any_server<P: Protocol>(
    cluster: &Arc<Cluster<P>>,
    identity: &Identity<P>,
    access: Access,
) -> Result<crate::pool::Held<P>, Option<ConnectFault>> {
    let pools = cluster.pools(identity);
    let deadline = Instant::now() + cluster.config.load().failover.hold;
    let mut exclude = Vec::new();
    loop {
        let changed = cluster.topology.changed.notified();
        let snapshot = cluster.topology.load_full();
        // Until every node has it, only the primary surely tells what accounts were changed to.
        let from_primary = access == Access::Write || cluster.changes_logins();
        let mut question = Question {
            access: if from_primary { Access::Write } else { Access::Read },
            target: None,
            consistency: Consistency::Eventual,
            floor: &Floor::None,
            max_lag: None,
            exclude: &exclude,
        };
        let policy = cluster.config.load().policy();
        let now = std::time::Instant::now();
        let mut choice = route::choose(&question, &snapshot, &policy, now, &mut rand::random::<f64>);
        if choice.is_err() {
            question.access = if from_primary { Access::Read } else { Access::Write };
            choice = route::choose(&question, &snapshot, &policy, now, &mut rand::random::<f64>);
        }
        let Ok(choice) = choice else {
            exclude.clear();
            if timeout_at(deadline, changed).await.is_err() {
                return Err(None);
            }
            continue;
        };
        let node = snapshot.node(choice.node);
        match pools.checkout(node).await {
            Ok(held) => return Ok(held),
            Err(crate::pool::CheckoutFault::Connect(refused @ ConnectFault::Refused { .. }))
                if snapshot.primary == Some(choice.node) || snapshot.primary.is_none() =>
            {
                return Err(Some(refused));
            }
            Err(_) => exclude.push(choice.node),
        }
    }
}

/// Sends a cancel request on to where the named session's statement runs.
async fn cancel<P: Protocol>(cluster: &Arc<Cluster<P>>, key: &CancelKey) {
    let Some(entry) = cluster.sessions.find(key) else { return ask_peers(cluster, key).await };
    let identity = cluster.monitor_identity.load_full();
    cluster.interrupt(&entry, &identity, Ending::STATEMENT).await;
}

/// Hands a cancel request for nobody here on to the other proxies before the same servers, once:
/// they may know each other, and would hand it back.
async fn ask_peers<P: Protocol>(cluster: &Arc<Cluster<P>>, key: &CancelKey) {
    let config = cluster.config.load_full();
    if config.peers.is_empty() || !cluster.operator.is_first(key.process) {
        return;
    }
    let link = cluster.link.load_full();
    let identity = cluster.monitor_identity.load_full();
    let timeout = config.monitor.timeout;
    let asked = config.peers.iter().map(|peer| {
        let (link, identity) = (&link, &identity);
        async move {
            let peer = peer.to_string();
            let sent = P::Backend::cancel(&peer, link, identity, key, Ending::STATEMENT);
            if !matches!(tokio::time::timeout(timeout, sent).await, Ok(Ok(()))) {
                tracing::info!(cluster = %cluster.name, peer, "a cancel request could not be handed on");
            }
        }
    });
    futures_util::future::join_all(asked).await;
}
