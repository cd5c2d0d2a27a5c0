//! What servers store of a password, as far as a password can be checked against it.
//!
//! Sources: MySQL's `sha2_password_common` and `i_sha2_password.h`; U. Drepper's "Unix crypt using
//! SHA-256 and SHA-512", which they follow with a longer salt; MariaDB's `plugin/auth_ed25519`.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::scramble;

/// Longest password that is hashed, in bytes, as in the server: hashing takes time by length.
const MAX_PASSWORD: usize = 256;
/// Length of the salt of caching_sha2_password.
const SALT: usize = 20;
/// Length of the hash behind it, in crypt's base 64.
const HASH: usize = 43;
/// The number of rounds is stored in thousands.
const ROUNDS_UNIT: u32 = 1000;
/// Most rounds that the server itself configures.
const MAX_ROUNDS: u32 = 4095 * ROUNDS_UNIT;
/// Length of ed25519's public key in base 64 without padding.
const ED25519_KEY: usize = 43;
/// crypt's own base 64.
const CRYPT64: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A hash that tells whether a password is right, and nothing that opens servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verifier {
    /// caching_sha2_password: `$A$005$`, salt, hash.
    Sha256Crypt { salt: [u8; SALT], hash: [u8; HASH], rounds: u32 },
    /// MariaDB's ed25519: the public key.
    Ed25519([u8; ED25519_KEY]),
}

impl Verifier {
    /// Reads `authentication_string` of `mysql.user`. `None`: it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("$A$") {
            let (rounds, rest) = rest.split_once('$')?;
            let rounds = u32::from_str_radix(rounds, 16).ok()?.checked_mul(ROUNDS_UNIT)?;
            let (salt, hash) = rest.as_bytes().split_first_chunk::<SALT>()?;
            let hash = hash.try_into().ok()?;
            return (rounds > 0 && rounds <= MAX_ROUNDS).then_some(Self::Sha256Crypt {
                salt: *salt,
                hash,
                rounds,
            });
        }
        let key: [u8; ED25519_KEY] = text.as_bytes().try_into().ok()?;
        STANDARD_NO_PAD.decode(key).is_ok_and(|key| key.len() == 32).then_some(Self::Ed25519(key))
    }

    /// Whether the password is right. Takes milliseconds: not for a thread that serves others.
    pub fn is_of(&self, password: &[u8]) -> bool {
        if password.len() > MAX_PASSWORD {
            return false;
        }
        match self {
            Self::Sha256Crypt { salt, hash, rounds } => {
                bool::from(sha256_crypt(password, salt, *rounds).ct_eq(hash))
            }
            Self::Ed25519(key) => scramble::ed25519_public_key(password)
                .is_some_and(|public| STANDARD_NO_PAD.encode(public).as_bytes().ct_eq(key).into()),
        }
    }
}

/// SHA-256 crypt's hash in its base 64.
fn sha256_crypt(password: &[u8], salt: &[u8], rounds: u32) -> [u8; HASH] {
    let sum = |parts: &[&[u8]]| -> [u8; 32] {
        parts.iter().fold(Sha256::new(), |hasher, part| hasher.chain_update(part)).finalize().into()
    };
    let alternate = sum(&[password, salt, password]);
    let mut hasher = Sha256::new().chain_update(password).chain_update(salt);
    hasher.update(stretched(&alternate, password.len()));
    let mut bits = password.len();
    while bits > 0 {
        if bits & 1 == 1 {
            hasher.update(alternate)
        } else {
            hasher.update(password)
        }
        bits >>= 1;
    }
    let mut digest: [u8; 32] = hasher.finalize().into();

    let password_sum: [u8; 32] =
        password.iter().fold(Sha256::new(), |hasher, _| hasher.chain_update(password)).finalize().into();
    let long_password = stretched(&password_sum, password.len());
    let repeats = 16 + usize::from(digest[0]);
    let salt_sum: [u8; 32] =
        (0..repeats).fold(Sha256::new(), |hasher, _| hasher.chain_update(salt)).finalize().into();
    let long_salt = stretched(&salt_sum, salt.len());

    for round in 0..rounds {
        let odd = round & 1 == 1;
        let mut hasher = Sha256::new();
        if odd {
            hasher.update(&long_password)
        } else {
            hasher.update(digest)
        }
        if round % 3 != 0 {
            hasher.update(&long_salt);
        }
        if round % 7 != 0 {
            hasher.update(&long_password);
        }
        if odd {
            hasher.update(digest)
        } else {
            hasher.update(&long_password)
        }
        digest = hasher.finalize().into();
    }
    crypt64(&digest)
}

/// As many bytes as asked for, by repeating the sum.
fn stretched(sum: &[u8; 32], length: usize) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(sum.iter().copied().cycle().take(length).collect())
}

/// The digest's bytes in crypt's order: threes that lie ten apart, then the last two.
fn crypt64(digest: &[u8; 32]) -> [u8; HASH] {
    let mut out = [0; HASH];
    let mut at = 0;
    let mut put = |value: u32, characters: usize| {
        for place in 0..characters {
            out[at] = CRYPT64[(value >> (6 * place) & 0x3F) as usize];
            at += 1;
        }
    };
    let (mut a, mut b, mut c) = (0, 10, 20);
    for _ in 0..10 {
        put(u32::from(digest[a]) << 16 | u32::from(digest[b]) << 8 | u32::from(digest[c]), 4);
        (a, b, c) = (c + 1, a + 1, b + 1);
    }
    put(u32::from(digest[31]) << 8 | u32::from(digest[30]), 3);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_published_vectors() {
        // As `crypt(3)` gives them.
        let long = "a very much longer text to encrypt.  This one even stretches over more than one line.";
        for (password, salt, rounds, hash) in [
            ("Hello world!", "saltstring", 5000, "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"),
            ("Hello world!", "saltstringsaltst", 10000, "3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA"),
            (long, "anotherlongsalts", 1400, "epZZlHtH1tHOZ8DnGj41SJcfP6bNgf3t.hurPudKyU6"),
            ("x", "a", 1000, "VbIDF0arCpWJaQNqhQUNvv2q0J63xNeUoG4WUjSmlQD"),
        ] {
            let found = sha256_crypt(password.as_bytes(), salt.as_bytes(), rounds);
            assert_eq!(String::from_utf8_lossy(&found), hash);
        }
    }

    #[test]
    fn what_a_server_stores_is_read_and_checked() {
        let salt = b"abcdefghijklmnopqrst";
        let hash = String::from_utf8_lossy(&sha256_crypt(b"secret", salt, 5000)).into_owned();
        let sha2 = format!("$A$005$abcdefghijklmnopqrst{hash}");
        // Of `SELECT ed25519_password('secret')` in MariaDB.
        let ed25519 = "ZIgUREUg5PVgQ6LskhXmO+eZLS0nC8be6HPjYWR4YJY";
        for text in [sha2.as_str(), ed25519] {
            let verifier = Verifier::parse(text).expect("it is one");
            assert!(verifier.is_of(b"secret"), "{text}");
            assert!(!verifier.is_of(b"Secret"), "{text}");
            assert!(!verifier.is_of(b""), "{text}");
            assert!(!verifier.is_of(&[b'x'; MAX_PASSWORD + 1]), "{text}");
        }
        for text in
            ["", "secret", "$A$005$short", "$A$FFFFFFFF$", "*94BDCEBE19083CE2A1F959FD02F964C7AF4CFC29"]
        {
            assert_eq!(Verifier::parse(text), None, "{text}");
        }
    }
}
