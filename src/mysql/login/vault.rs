//! What logins by caching_sha2_password need beyond the users: a key for passwords that come
//! without TLS, and the passwords that clients have proved.
//!
//! A verifier of MySQL's or of MariaDB's ed25519 opens no servers: whoever logs in against one has
//! to send the password once, which is kept in memory for server connections, and for the fast path
//! of later logins, until the process ends or the verifier changes.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rsa::{
    Oaep, RsaPrivateKey,
    pkcs8::{EncodePublicKey, LineEnding},
    rand_core::OsRng,
};
use sha1::Sha1;
use tokio::sync::OnceCell;
use zeroize::Zeroizing;

/// As the server's own keys.
const KEY_BITS: usize = 2048;

/// Passwords that are kept. With more users than that, some have to send theirs again.
const MAX_KNOWN: usize = 10_000;

/// One per process, shared by all clusters' gates.
#[derive(Default)]
pub struct Vault {
    key: OnceCell<Arc<Key>>,
    known: Mutex<HashMap<Arc<str>, Known>>,
}

struct Known {
    /// The password is this one's.
    verifier: Arc<str>,
    password: Arc<Zeroizing<String>>,
}

/// A key for the passwords of clients without TLS. Made when the first of them asks.
pub struct Key {
    private: RsaPrivateKey,
    /// The public half in PEM form, as clients ask for it.
    pub public: String,
}

impl Vault {
    /// The key, which takes a moment to make; `None`: the system would not.
    pub async fn key(&self) -> Option<Arc<Key>> {
        let made = self.key.get_or_try_init(async || {
            tokio::task::spawn_blocking(Key::make).await.ok().flatten().map(Arc::new).ok_or(())
        });
        made.await.ok().cloned()
    }

    /// A password that was proved against this verifier before.
    pub fn password(&self, user: &str, verifier: &str) -> Option<Arc<Zeroizing<String>>> {
        let known = self.known.lock();
        known.get(user).filter(|known| *known.verifier == *verifier).map(|known| known.password.clone())
    }

    /// Keeps a password that was proved.
    pub fn remember(&self, user: &str, verifier: Arc<str>, password: Arc<Zeroizing<String>>) {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN && !known.contains_key(user) {
            // Any of them: its user has to send the password again.
            let some = known.keys().next().cloned();
            some.map(|some| known.remove(&some));
        }
        known.insert(user.into(), Known { verifier, password });
    }
}

impl Key {
    fn make() -> Option<Self> {
        let private = RsaPrivateKey::new(&mut OsRng, KEY_BITS).ok()?;
        let public = private.to_public_key().to_public_key_pem(LineEnding::LF).ok()?;
        Some(Self { private, public })
    }

    /// The password that a client has encrypted, with a NUL behind it, over the nonce.
    pub fn password(&self, encrypted: &[u8], nonce: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        // Blinded, against conclusions from how long it takes (RUSTSEC-2023-0071).
        let plain = self.private.decrypt_blinded(&mut OsRng, Oaep::new::<Sha1>(), encrypted).ok()?;
        let mut plain = Zeroizing::new(plain);
        plain.iter_mut().zip(nonce.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
        Some(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_forgotten_with_its_verifier() {
        let vault = Vault::default();
        let password = Arc::new(Zeroizing::new("secret".to_owned()));
        vault.remember("app", "$A$1".into(), password);
        assert!(vault.password("app", "$A$1").is_some_and(|password| **password == "secret"));
        assert!(vault.password("app", "$A$2").is_none());
        assert!(vault.password("other", "$A$1").is_none());
    }

    #[tokio::test]
    async fn what_is_encrypted_for_the_key_is_read_once_the_nonce_is_taken_off() {
        let vault = Vault::default();
        let key = vault.key().await.expect("it is made");
        let nonce = *b"01234567890123456789";
        let masked: Vec<u8> = b"a longer password than the nonce\0"
            .iter()
            .zip(nonce.iter().cycle())
            .map(|(byte, mask)| byte ^ mask)
            .collect();
        let encrypted =
            key.private.to_public_key().encrypt(&mut OsRng, Oaep::new::<Sha1>(), &masked).expect("it fits");
        let read = key.password(&encrypted, &nonce).expect("it is ours");
        assert_eq!(read.as_slice(), b"a longer password than the nonce\0");
        assert!(key.password(&encrypted[1..], &nonce).is_none());
        assert!(key.public.starts_with("-----BEGIN PUBLIC KEY-----\n"));
    }
}
