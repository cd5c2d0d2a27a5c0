//! Logging in, both ways: clients to us ([`client`]), us to servers as the same user ([`server`]).
//!
//! What a login of a client reveals is what logs us in to servers: see [`Credentials`].

mod authenticate;
pub mod client;
mod dial;
pub mod md5;
pub mod scram;
pub mod server;
pub mod startup;

#[cfg(test)]
mod tests;

use std::{collections::VecDeque, fmt, sync::Arc, sync::OnceLock};

use parking_lot::Mutex;
use zeroize::Zeroizing;

pub use client::{Accepted, Cancel, Door, Login, LoginContext, LoginFailure, SecretError, accept};
pub use dial::send_cancel;
pub use md5::Md5Hash;
pub use scram::{Keys, MockSecret, Verifier};
pub use server::{ConnectError, Connected, ServerError, Startup, connect, connect_within};

/// What is known of a user's password: what a client must prove.
#[derive(Clone, Debug)]
pub enum Secret {
    /// The password itself.
    Plain(Arc<Password>),
    /// `pg_authid.rolpassword` as `SCRAM-SHA-256$…`.
    Scram(Arc<Verifier>),
    /// `pg_authid.rolpassword` as `md5…`.
    Md5(Md5Hash),
    /// Nobody of this name may log in, or not with a password.
    Unknown,
}

impl Secret {
    /// Tells a verifier, an md5 hash and a plain password apart as the server does with the text
    /// of `ALTER ROLE … PASSWORD` (`get_password_type` in the server's `crypt.c`).
    pub fn parse(text: &str) -> Self {
        if let Some(verifier) = Verifier::parse(text) {
            return Self::Scram(Arc::new(verifier));
        }
        if let Some(hash) = Md5Hash::parse(text) {
            return Self::Md5(hash);
        }
        Self::Plain(Arc::new(Password::new(text.to_owned())))
    }

    /// What logs in to servers where the client proved itself without the password.
    fn into_credentials(self) -> Credentials {
        match self {
            Self::Plain(password) => Credentials::Plain(password),
            Self::Md5(hash) => Credentials::Md5Hash(hash),
            // A verifier proves nothing.
            Self::Scram(_) | Self::Unknown => Credentials::None,
        }
    }
}

/// What logs us in to servers as the user who logged in to us.
#[derive(Clone, Debug)]
pub enum Credentials {
    Plain(Arc<Password>),
    /// Recovered from the client's proof: good at every server with the same verifier, and
    /// replicas have the primary's.
    ScramKeys(Arc<Keys>),
    /// Good at servers that ask for md5.
    Md5Hash(Md5Hash),
    /// The client proved itself by certificate or was trusted: servers must trust us too.
    None,
}

/// Salts for which a password's keys are remembered: one per server verifier of the role, so one
/// per cluster, and a few for passwords that were changed to the same text again.
const REMEMBERED_SALTS: usize = 4;

/// A plain password, and what PBKDF2 made of it: a millisecond or more that is spent once.
pub struct Password {
    text: Zeroizing<String>,
    verifier: OnceLock<Arc<Verifier>>,
    keys: Mutex<VecDeque<Arc<Keys>>>,
}

impl Password {
    pub fn new(text: impl Into<Zeroizing<String>>) -> Self {
        Self { text: text.into(), verifier: OnceLock::new(), keys: Mutex::new(VecDeque::new()) }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What clients prove the password against: made at the first login, with a random salt.
    pub fn verifier(&self) -> Arc<Verifier> {
        self.verifier.get_or_init(|| Arc::new(Verifier::derive(&self.text))).clone()
    }

    /// The keys that prove the password to a server with this salt and iteration count, if they
    /// were computed lately.
    pub fn remembered_keys(&self, salt: &[u8], iterations: u32) -> Option<Arc<Keys>> {
        self.keys.lock().iter().find(|keys| keys.fit(salt, iterations)).cloned()
    }

    /// Computes and remembers the keys. Takes `iterations` × 0.2 µs or so of CPU.
    pub fn compute_keys(&self, salt: &[u8], iterations: u32) -> Arc<Keys> {
        let keys = Arc::new(Keys::derive(&self.text, salt, iterations));
        let mut remembered = self.keys.lock();
        if remembered.len() == REMEMBERED_SALTS {
            remembered.pop_front();
        }
        remembered.push_back(keys.clone());
        keys
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
