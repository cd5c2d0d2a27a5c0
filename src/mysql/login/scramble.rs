//! What each plugin sends to prove a password.

use mysql_common::auth::plugins::{
    AuthProc, ChallengeResponsePlugin, Context, Error, Response, caching_sha2_password::scramble_sha256,
    mysql_native_password::scramble_native,
};
use mysql_common::packets::AuthPlugin;
use rand::{TryRngCore, rngs::OsRng};
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// Length of a nonce of the password plugins, in bytes.
pub const NONCE: usize = 20;
/// Length of a nonce of client_ed25519.
pub const ED25519_NONCE: usize = 32;

/// A fresh nonce without NUL and without `$`, as servers make them.
pub fn nonce<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    OsRng.try_fill_bytes(&mut bytes).expect("the system's random numbers never run out");
    bytes.map(|byte| match byte & 0x7F {
        0 => 1,
        b'$' => b'%',
        other => other,
    })
}

/// What is at hand for a step of a plugin.
pub struct Password<'a> {
    pub password: &'a [u8],
    pub nonce: &'a [u8],
    pub tls: bool,
}

impl Context for &Password<'_> {
    fn pass(&self) -> &[u8] {
        self.password
    }
    fn is_ipc_transport(&self) -> bool {
        false
    }
    fn is_tls_transport(&self) -> bool {
        self.tls
    }
    fn scramble(&self) -> &[u8] {
        self.nonce
    }
    fn server_key_pem(&self) -> Option<&[u8]> {
        None
    }
}

/// One plugin's part in a login.
pub struct Plugin(AuthProc);

impl Plugin {
    /// `None`: it is not known, or it would give the password away.
    pub fn named(name: &[u8], tls: bool) -> Option<Self> {
        match AuthPlugin::from_bytes(name) {
            AuthPlugin::MysqlOldPassword | AuthPlugin::Other(_) => None,
            AuthPlugin::MysqlClearPassword if !tls => None,
            plugin => plugin.init().ok().map(Self),
        }
    }

    /// The answer to a challenge; `None`: nothing is to be sent.
    pub fn answer(&mut self, context: &Password<'_>, challenge: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(match self.0.run(context, challenge)? {
            Response::Next { packet } | Response::Last { packet } => packet,
        })
    }
}

/// Whether `response` proves `password` by `plugin`.
pub fn proves(plugin: &str, nonce: &[u8], password: &[u8], response: &[u8]) -> bool {
    let expected = match plugin {
        super::NATIVE => scramble_native(nonce, password).map(|proof| proof.to_vec()),
        super::CACHING_SHA2 => {
            let nonce = nonce.try_into().ok();
            nonce.and_then(|nonce| scramble_sha256(nonce, password)).map(|proof| proof.to_vec())
        }
        super::ED25519 => {
            let context = Password { password, nonce, tls: false };
            Plugin::named(plugin.as_bytes(), false)
                .and_then(|mut plugin| plugin.answer(&context, nonce).ok()?)
        }
        _ => return false,
    };
    match expected {
        Some(expected) => bool::from(expected.ct_eq(response)),
        None => password.is_empty() && response.is_empty(),
    }
}

/// The public key that MariaDB's ed25519 stores of a password.
pub fn ed25519_public_key(password: &[u8]) -> Option<[u8; 32]> {
    let context = Password { password, nonce: &[], tls: false };
    AuthPlugin::Ed25519.init().ok()?.password_hash(&context)?.try_into().ok()
}

/// SHA1 of the password, if `response` proves the password behind `verifier` (SHA1 of SHA1).
pub fn native_hash(nonce: &[u8], verifier: &[u8; 20], response: &[u8]) -> Option<[u8; 20]> {
    let response: [u8; 20] = response.try_into().ok()?;
    let mask: [u8; 20] = Sha1::new().chain_update(nonce).chain_update(verifier).finalize().into();
    let hash = xor(response, mask);
    let found: [u8; 20] = Sha1::digest(hash).into();
    bool::from(found.ct_eq(verifier)).then_some(hash)
}

/// mysql_native_password's answer by SHA1 of the password.
pub fn native_by_hash(nonce: &[u8], hash: &[u8; 20]) -> [u8; 20] {
    let verifier = Sha1::digest(hash);
    let mask: [u8; 20] = Sha1::new().chain_update(nonce).chain_update(verifier).finalize().into();
    xor(*hash, mask)
}

fn xor(mut one: [u8; 20], other: [u8; 20]) -> [u8; 20] {
    one.iter_mut().zip(other).for_each(|(one, other)| *one ^= other);
    one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_native_login_reveals_what_opens_servers_and_nothing_else_does() {
        let nonce = nonce::<NONCE>();
        let hash: [u8; 20] = Sha1::digest(b"secret").into();
        let verifier: [u8; 20] = Sha1::digest(hash).into();
        let response = scramble_native(&nonce, b"secret").expect("there is a password");

        assert_eq!(native_hash(&nonce, &verifier, &response), Some(hash));
        assert_eq!(native_by_hash(&nonce, &hash), response);

        let wrong = scramble_native(&nonce, b"Secret").expect("there is a password");
        assert_eq!(native_hash(&nonce, &verifier, &wrong), None);
        assert_eq!(native_hash(&nonce, &verifier, b""), None);
    }

    #[test]
    fn each_plugin_takes_the_right_password_only() {
        let short = nonce::<NONCE>();
        let long = nonce::<ED25519_NONCE>();
        for (plugin, nonce) in [
            (super::super::NATIVE, &short[..]),
            (super::super::CACHING_SHA2, &short),
            (super::super::ED25519, &long),
        ] {
            let context = Password { password: b"secret", nonce, tls: false };
            let mut ours = Plugin::named(plugin.as_bytes(), false).expect("it is known");
            let response = ours.answer(&context, nonce).expect("it answers").expect("with something");
            assert!(proves(plugin, nonce, b"secret", &response), "{plugin}");
            assert!(!proves(plugin, nonce, b"other", &response), "{plugin}");
            assert!(!proves(plugin, nonce, b"secret", b""), "{plugin}");
        }
        assert!(proves(super::super::NATIVE, &short, b"", b""));
        assert!(Plugin::named(b"mysql_clear_password", false).is_none());
    }
}
