//! What the tests stand on: real servers, the real binary, links that can be cut.

pub mod client;
pub mod cluster;
pub mod link;
pub mod proxy;
pub mod wire;

use std::time::{Duration, Instant};

pub use client::{Session, code, ports, text};
pub use cluster::{Cluster, Database};
pub use proxy::Proxy;

/// Longer than anything that works may take on a busy two-core machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until `condition` holds and panics with `what` when it does not within [`PATIENCE`].
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Bounds a step that could hang; panics with `what` when it takes longer than [`PATIENCE`].
pub async fn soon<T>(what: &str, step: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, step).await {
        Ok(value) => value,
        Err(_) => panic!("took longer than {PATIENCE:?}: {what}"),
    }
}
