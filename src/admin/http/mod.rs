//! The HTTP door: metrics, health, the API and the dashboard.
//!
//! `/metrics`, `/healthz` and `/readyz` are open; the rest asks for a login of `[admin].users`
//! unless the door is on loopback. Nothing can be changed here.

mod sample;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{
        Html, IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{Stream, StreamExt, stream};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, broadcast::error::RecvError},
};

use self::sample::Recorder;
use crate::{
    admin::{
        console::{
            self,
            command::{Command, Show},
            table::{Kind, Table},
        },
        control::{Control, Managed},
    },
    config::{Engine, SecretForm},
    listener::ACCEPT_PAUSE,
    postgres::login::Verifier,
    route::{self, Floor, Question},
    shutdown::{Phase, Shutdown},
    sql::Access,
    topology::{Snapshot, State as NodeState},
};

/// Connections on one address at a time: `/metrics` asks nobody who they are.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to ask, the first time and again.
const ASKED_WITHIN: Duration = Duration::from_secs(10);

/// Pages that are kept up to date at a time.
const MAX_STREAMS: usize = 64;

/// The page, whole: it asks nobody else for anything.
const PAGE: &str = include_str!("dashboard.html");

/// What the API answers, for programs.
const OPENAPI: &str = include_str!("openapi.json");

#[derive(Clone)]
struct Door {
    control: Control,
    recorder: Arc<Recorder>,
    streams: Arc<Semaphore>,
}

/// Opens the door and serves it until the proxy stops. Returns where it is.
///
/// # Errors
/// When there is no listener, or it cannot say where it is.
pub fn open(listeners: Vec<TcpListener>, control: &Control) -> io::Result<SocketAddr> {
    let first =
        listeners.first().ok_or_else(|| io::Error::other("the name stands for no address"))?.local_addr()?;
    let recorder = Recorder::start(control.clone());
    let streams = Arc::new(Semaphore::new(MAX_STREAMS));
    for listener in listeners {
        let door = Door { control: control.clone(), recorder: recorder.clone(), streams: streams.clone() };
        let router = router(door, listener.local_addr()?.ip().is_loopback());
        tokio::spawn(accept(listener, router, control.shutdown().clone()));
    }
    Ok(first)
}

async fn accept(listener: TcpListener, router: Router, shutdown: Shutdown) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = shutdown.doors_close() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        // Beyond the bound the connection is closed.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        tokio::spawn(async move {
            let _place = place;
            serve(socket, router, &shutdown).await;
        });
    }
}

/// Answers one connection; what is under way when the doors close is answered still.
async fn serve(socket: TcpStream, router: Router, shutdown: &Shutdown) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ASKED_WITHIN)
        .serve_connection(TokioIo::new(socket), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = shutdown.doors_close() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection to the HTTP door has ended");
    }
}

fn router(door: Door, loopback: bool) -> Router {
    let guarded = Router::new()
        .route("/", get(page))
        .route("/api/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }))
        .route("/api/v1/stream", get(follow))
        .route("/api/v1/status", get(status))
        .route("/api/v1/{what}", get(table));
    let guarded = if loopback {
        guarded
    } else {
        guarded.layer(middleware::from_fn_with_state(door.clone(), ask_for_login))
    };
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .merge(guarded)
        .with_state(door)
}

async fn metrics_text(State(door): State<Door>) -> Response {
    let text = door.control.metrics_text();
    ([(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))], text)
        .into_response()
}

/// Ready: every cluster has a primary; with `?reads`, a node that serves reads is enough.
async fn ready(State(door): State<Door>, Query(query): Query<Map<String, Value>>) -> Response {
    let refused = |text: String| (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    // Whoever is still connected when another process has taken over asks about the endpoint, which
    // that one serves.
    let shutdown = door.control.shutdown();
    if shutdown.phase() != Phase::Running && !shutdown.has_yielded() {
        return refused("draining\n".to_owned());
    }
    let reads = query.contains_key("reads");
    for cluster in door.control.clusters() {
        if !serves(&**cluster, reads) {
            let lack = if reads { "node that serves reads" } else { "primary" };
            return refused(format!("cluster {} has no {lack}\n", cluster.name()));
        }
    }
    "ready\n".into_response()
}

fn serves(cluster: &dyn Managed, reads: bool) -> bool {
    let snapshot = cluster.snapshot();
    let usable = |state: &NodeState| matches!(state, NodeState::Up | NodeState::Suspect);
    snapshot.primary().is_some_and(|node| usable(&node.state)) || reads && serves_reads(cluster, &snapshot)
}

/// Whether the first read of a new session would go somewhere. That replicas are up is not enough: of
/// a proxy that has seen no primary yet nobody knows how far they are behind.
fn serves_reads(cluster: &dyn Managed, snapshot: &Snapshot) -> bool {
    let config = cluster.config();
    let policy = config.policy();
    let question = Question {
        access: Access::Read,
        target: None,
        consistency: policy.consistency,
        floor: &Floor::None,
        max_lag: None,
        exclude: &[],
    };
    route::choose(&question, snapshot, &policy, Instant::now(), &mut || 0.0).is_ok()
}

async fn ask_for_login(State(door): State<Door>, request: Request, next: Next) -> Response {
    if is_known(&door.control, request.headers()) {
        return next.run(request).await;
    }
    let challenge = [(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"pointsman\", charset=\"UTF-8\""),
    )];
    (StatusCode::UNAUTHORIZED, challenge, "log in as one of [admin].users\n").into_response()
}

/// Whether a request carries the name and password of one of `[admin].users`.
fn is_known(control: &Control, headers: &HeaderMap) -> bool {
    let credentials = || {
        let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let decoded = STANDARD.decode(value.strip_prefix("Basic ")?.trim()).ok()?;
        let text = String::from_utf8(decoded).ok()?;
        let (name, password) = text.split_once(':')?;
        Some((name.to_owned(), password.to_owned()))
    };
    let Some((name, password)) = credentials() else { return false };
    let Some(secret) = console::user(control, &name).and_then(|user| user.password) else { return false };
    match secret.form(Engine::Postgres) {
        // Hashed, so that the time tells nothing of the length either.
        SecretForm::Plain => {
            bool::from(Sha256::digest(secret.expose()).as_slice().ct_eq(Sha256::digest(&password).as_slice()))
        }
        SecretForm::ScramSha256 => {
            Verifier::parse(secret.expose()).is_some_and(|verifier| verifier.is_of(&password))
        }
        SecretForm::Md5 | SecretForm::MysqlNative | SecretForm::MysqlSha2 => false,
    }
}

async fn page() -> Response {
    let script = PAGE
        .split_once("<script>")
        .and_then(|(_, rest)| rest.split_once("</script>"))
        .map_or("", |(script, _)| script);
    let hash = STANDARD.encode(Sha256::digest(script));
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::CACHE_CONTROL, "no-cache".to_owned()),
        (HeaderName::from_static("referrer-policy"), "no-referrer".to_owned()),
    ];
    (headers, Html(PAGE)).into_response()
}

/// `SHOW …` as JSON: an object per row.
async fn table(State(door): State<Door>, Path(what): Path<String>) -> Response {
    match console::command::parse(&format!("SHOW {what}")) {
        Ok(Command::Show(show)) => {
            Json(rows(&show.answer(&door.control, door.control.clusters()))).into_response()
        }
        _ => (StatusCode::NOT_FOUND, Json(json!({ "error": format!("there is no {what:?} here") })))
            .into_response(),
    }
}

fn rows(table: &Table) -> Value {
    let row = |cells: &Vec<Option<String>>| {
        let value = |kind: Kind, text: &Option<String>| match (kind, text) {
            (_, None) => Value::Null,
            (Kind::Text, Some(text)) => text.as_str().into(),
            (Kind::Integer, Some(text)) => text.parse::<i64>().ok().into(),
            (Kind::Float, Some(text)) => text.parse::<f64>().ok().into(),
        };
        let pairs = table.columns.iter().zip(cells);
        Value::Object(pairs.map(|(column, text)| (column.name.clone(), value(column.kind, text))).collect())
    };
    table.rows.iter().map(row).collect()
}

/// The whole state at a glance.
async fn status(State(door): State<Door>) -> Json<Value> {
    let control = &door.control;
    let nodes = rows(&Show::Nodes.answer(control, control.clusters()));
    let clusters: Vec<Value> = control
        .clusters()
        .iter()
        .map(|cluster| {
            let snapshot = cluster.snapshot();
            json!({
                "name": &**cluster.name(),
                "paused": cluster.is_paused(),
                "primary": snapshot.primary().map(|node| &*node.address),
                "clients": cluster.metrics().clients.get(),
                "held": cluster.metrics().held.get(),
            })
        })
        .collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "started": humantime::format_rfc3339_seconds(control.started()).to_string(),
        "phase": format!("{:?}", control.shutdown().phase()).to_lowercase(),
        "clusters": clusters,
        "nodes": nodes,
    }))
}

/// Server-sent events: `history` once, then a `sample` a second, and `statements` where they are kept.
async fn follow(State(door): State<Door>) -> Response {
    let Ok(place) = door.streams.clone().try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages are open\n").into_response();
    };
    Sse::new(events(&door, place)).keep_alive(KeepAlive::default()).into_response()
}

fn events(door: &Door, place: OwnedSemaphorePermit) -> impl Stream<Item = Result<Event, Infallible>> + use<> {
    let (kept, fresh) = door.recorder.follow();
    let history = Event::default().event("history").data(format!("[{}]", kept.join(",")));
    let shutdown = door.control.shutdown().clone();
    let coming = stream::unfold((fresh, place), |(mut fresh, place)| async move {
        loop {
            match fresh.recv().await {
                Ok((name, text)) => {
                    return Some((Ok(Event::default().event(name).data(&*text)), (fresh, place)));
                }
                // A page that is too slow misses some samples.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    stream::once(async { Ok(history) })
        .chain(coming)
        // Otherwise an open page would keep a stopping proxy from ending, and go on showing one that
        // another process has relieved.
        .take_until(async move { shutdown.doors_close().await })
}
