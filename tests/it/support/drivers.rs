//! Where the programs of other languages are.

use std::path::PathBuf;

/// What `scripts/setup` has installed for them.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("POINTSMAN_DRIVERS").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/drivers"))
}

/// One of them.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(name)
}
