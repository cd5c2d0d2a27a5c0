//! Where the programs of other languages are.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// What `scripts/setup` has installed for them.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("POINTSMAN_DRIVERS").map(PathBuf::from);
    folder.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/drivers"))
}

/// One of them.
pub fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/drivers").join(name)
}

/// A script in Python, with the drivers that were installed for it.
pub fn python(name: &str) -> Command {
    let mut command = Command::new(folder().join("venv/bin/python"));
    command.arg(script(name));
    command
}

/// Runs a program; fails with what it said when it fails.
pub fn succeeds(command: &mut Command) -> Output {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run scripts/setup first"));
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
