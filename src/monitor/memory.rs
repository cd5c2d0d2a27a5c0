//! The last election, kept in a small file over restarts of the proxy (hard case 8).

use std::{env, fs, io, io::Read, path::PathBuf};

use crate::{
    config,
    topology::board::{MAX_MEMORY, Remembered},
};

/// Where a cluster's state file is, if it has one.
pub(super) fn path(config: &config::Cluster) -> Option<PathBuf> {
    if let Some(path) = &config.failover.state_file {
        return Some(path.clone());
    }
    // systemd separates several folders by colons.
    let folders = env::var_os("STATE_DIRECTORY")?;
    let first = env::split_paths(&folders).next().filter(|folder| folder.is_absolute())?;
    Some(first.join(format!("{}.state", config.name)))
}

/// What was remembered, if anything was and it makes sense.
pub(super) fn read(config: &config::Cluster) -> Option<Remembered> {
    let path = path(config)?;
    let mut text = String::new();
    let limit = MAX_MEMORY as u64 + 1;
    match fs::File::open(&path).and_then(|file| file.take(limit).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(cluster = %config.name, path = %path.display(), "the state file cannot be read: {error}");
            return None;
        }
    }
    match text.parse::<Remembered>() {
        Ok(remembered) => {
            tracing::info!(
                cluster = %config.name,
                node = %remembered.incumbent.address,
                timeline = remembered.incumbent.timeline,
                "remembering the last election"
            );
            Some(remembered)
        }
        Err(fault) => {
            tracing::warn!(cluster = %config.name, path = %path.display(), "the state file is of no use: {fault}");
            None
        }
    }
}

/// Writes the file whole or not at all. Blocks.
pub(super) fn save(config: &config::Cluster, remembered: &Remembered) {
    let Some(path) = path(config) else { return };
    let fresh = path.with_extension("new");
    let saved = fs::write(&fresh, remembered.to_string()).and_then(|()| fs::rename(&fresh, &path));
    if let Err(error) = saved {
        tracing::warn!(cluster = %config.name, path = %path.display(), "the state file cannot be written: {error}");
    }
}
