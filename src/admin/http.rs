//! `/metrics`, `/healthz` and `/readyz`.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    config::HostPort,
    metrics::Metrics,
    shutdown::{Phase, Shutdown},
};

#[derive(Clone)]
struct Door {
    metrics: Arc<Metrics>,
    shutdown: Shutdown,
}

/// Opens the door and serves it until the proxy stops. Returns where it is.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn open(at: &HostPort, metrics: Arc<Metrics>, shutdown: Shutdown) -> io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind((at.host(), at.port())).await?;
    let address = listener.local_addr()?;
    let door = Door { metrics, shutdown: shutdown.clone() };
    let router = Router::new()
        .route("/metrics", get(metrics_text))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(door);
    let served =
        axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.stopping().await });
    tokio::spawn(async move {
        if let Err(error) = served.await {
            tracing::error!(%error, "the HTTP door has closed");
        }
    });
    Ok(address)
}

async fn metrics_text(State(door): State<Door>) -> Response {
    let text = door.metrics.text();
    ([(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"))], text)
        .into_response()
}

async fn ready(State(door): State<Door>) -> Response {
    match door.shutdown.phase() {
        Phase::Running => "ready\n".into_response(),
        Phase::Draining | Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response(),
    }
}
