//! Files of certificates and keys, with what was in them.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// A PEM file as it was when the configuration was loaded. Two are equal when their contents are as
/// well: certificates are renewed in their place.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    digest: [u8; 32],
}

impl PemFile {
    /// Reads the file. Returns its bytes too, which may be a secret.
    pub(super) fn read(path: PathBuf) -> io::Result<(Self, Vec<u8>)> {
        let bytes = fs::read(&path)?;
        let digest = Sha256::digest(&bytes).into();
        Ok((Self { path, digest }, bytes))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What changes with the contents.
    pub(super) fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

/// The path alone.
impl fmt::Debug for PemFile {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.path.display())
    }
}
