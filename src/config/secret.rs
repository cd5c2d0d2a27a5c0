//! Passwords and verifiers that never show.

use std::{fmt, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use super::Engine;

/// A password or verifier. `Debug` and `Display` never show it; the memory is wiped when the last
/// copy is dropped.
#[derive(Clone)]
pub struct Secret(Arc<Zeroizing<String>>);

/// What kind of text a secret is, told as PostgreSQL tells it: by its complete shape, so that a
/// password that merely begins like a verifier is a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretForm {
    /// The password itself.
    Plain,
    /// `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`, as in `pg_authid.rolpassword`.
    ScramSha256,
    /// `md5` and 32 hexadecimal digits: md5(password ‖ user).
    Md5,
    /// `*` and 40 hexadecimal digits: mysql_native_password's SHA1(SHA1(password)).
    MysqlNative,
    /// `$A$rounds$`, a salt of 20 bytes and a hash of 43: caching_sha2_password's SHA-256 crypt.
    MysqlSha2,
}

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(text.into())))
    }

    /// The secret itself: for computing proofs, never for logs, errors or metrics.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What an engine's server would take the text for.
    pub fn form(&self, engine: Engine) -> SecretForm {
        let text = self.expose();
        let hex = |digits: &str, count| {
            digits.len() == count && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        match engine {
            Engine::Postgres if text.strip_prefix("md5").is_some_and(|digits| hex(digits, 32)) => {
                SecretForm::Md5
            }
            Engine::Postgres if is_scram_verifier(text) => SecretForm::ScramSha256,
            Engine::Mysql if text.strip_prefix('*').is_some_and(|digits| hex(digits, 40)) => {
                SecretForm::MysqlNative
            }
            Engine::Mysql if is_sha2_verifier(text) => SecretForm::MysqlSha2,
            Engine::Postgres | Engine::Mysql => SecretForm::Plain,
        }
    }
}

fn is_scram_verifier(text: &str) -> bool {
    const KEY_LENGTH: usize = 32;
    let decoded = |part: &str| STANDARD.decode(part).ok();
    let shape = || {
        let (parameters, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = parameters.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let iterations: u32 = iterations.parse().ok()?;
        let salt = decoded(salt)?;
        let keys_fit = decoded(stored)?.len() == KEY_LENGTH && decoded(server)?.len() == KEY_LENGTH;
        Some(iterations > 0 && !salt.is_empty() && keys_fit)
    };
    shape().unwrap_or(false)
}

fn is_sha2_verifier(text: &str) -> bool {
    const SALT_AND_HASH: usize = 20 + 43;
    let parts = text.strip_prefix("$A$").and_then(|rest| rest.split_once('$'));
    parts.is_some_and(|(rounds, rest)| {
        u32::from_str_radix(rounds, 16).is_ok_and(|rounds| rounds > 0) && rest.len() == SALT_AND_HASH
    })
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("…")
    }
}

/// For telling whether a reload changes it; comparing what a client sends takes constant time
/// and is the login's business.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows() {
        let secret = Secret::new("hunter2");

        let shown = format!("{secret} {secret:?} {:?}", Some(&secret));

        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn verifiers_are_told_from_passwords_by_their_whole_shape() {
        let keys = "W2pVz0Tp3sTrGXXs7RXXBBVZzLRs0xRhKqhbHCkRbSs=";
        let hash = "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19".to_owned();
        let cases = [
            (Engine::Postgres, "secret".to_owned(), SecretForm::Plain),
            (Engine::Postgres, format!("SCRAM-SHA-256$4096:c2FsdA==${keys}:{keys}"), SecretForm::ScramSha256),
            (Engine::Postgres, format!("SCRAM-SHA-256$4096:c2FsdA==${keys}"), SecretForm::Plain),
            (Engine::Postgres, format!("SCRAM-SHA-256$0:c2FsdA==${keys}:{keys}"), SecretForm::Plain),
            (Engine::Postgres, format!("SCRAM-SHA-256$4096:c2FsdA==${keys}:c2FsdA=="), SecretForm::Plain),
            (Engine::Postgres, "md5d41d8cd98f00b204e9800998ecf8427e".to_owned(), SecretForm::Md5),
            (Engine::Mysql, "md5d41d8cd98f00b204e9800998ecf8427e".to_owned(), SecretForm::Plain),
            (Engine::Postgres, "md5sum".to_owned(), SecretForm::Plain),
            (Engine::Mysql, hash.clone(), SecretForm::MysqlNative),
            (Engine::Postgres, hash, SecretForm::Plain),
            (Engine::Mysql, "*2470C0C06".to_owned(), SecretForm::Plain),
            (Engine::Mysql, format!("$A$005${}", "x".repeat(63)), SecretForm::MysqlSha2),
            (Engine::Mysql, format!("$A$005${}", "x".repeat(62)), SecretForm::Plain),
            (Engine::Mysql, "$A$ secret".to_owned(), SecretForm::Plain),
            (Engine::Postgres, format!("$A$005${}", "x".repeat(63)), SecretForm::Plain),
        ];
        for (engine, text, form) in cases {
            assert_eq!(Secret::new(text.as_str()).form(engine), form, "{engine:?} {text}");
        }
    }
}
