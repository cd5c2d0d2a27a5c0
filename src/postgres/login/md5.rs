//! md5 passwords, for users whose stored password is still one.

use std::fmt;

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// `md5` and the hex of md5(password ‖ user): as good as the password to whoever holds it.
#[derive(Clone)]
pub struct Md5Hash(Zeroizing<String>);

impl Md5Hash {
    /// Reads what `pg_authid.rolpassword` holds: `md5` and 32 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("md5")?;
        let digits = hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (hex.len() == 32 && digits).then(|| Self(Zeroizing::new(hex.to_owned())))
    }

    pub fn derive(user: &str, password: &str) -> Self {
        Self(Zeroizing::new(hex::encode(Md5::new().chain_update(password).chain_update(user).finalize())))
    }

    /// The answer to AuthenticationMD5Password: `md5` and the hex of md5(hash ‖ salt).
    pub fn answer(&self, salt: [u8; 4]) -> String {
        format!(
            "md5{}",
            hex::encode(Md5::new().chain_update(self.0.as_bytes()).chain_update(salt).finalize())
        )
    }

    /// Whether a client's answer to `salt` is right. Takes the same time wherever it is wrong.
    pub fn accepts(&self, salt: [u8; 4], answer: &[u8]) -> bool {
        self.answer(salt).as_bytes().ct_eq(answer).into()
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_stores_is_taken_for_a_hash() {
        let hash = format!("md5{}", "0123456789abcdef".repeat(2));
        assert!(Md5Hash::parse(&hash).is_some());
        for other in ["md5", "md5 is my password", &hash[..34], &hash.to_uppercase(), &format!("{hash}0")] {
            assert!(Md5Hash::parse(other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_answer_is_the_one_that_postgres_protocol_computes() {
        let salt = [1, 2, 3, 255];
        let theirs = postgres_protocol::authentication::md5_hash(b"app", b"secret", salt);
        let hash = Md5Hash::derive("app", "secret");
        assert_eq!(hash.answer(salt), theirs);
        assert!(hash.accepts(salt, theirs.as_bytes()));
        assert!(!hash.accepts([1, 2, 3, 4], theirs.as_bytes()));
        assert!(!hash.accepts(salt, b""));
    }
}
