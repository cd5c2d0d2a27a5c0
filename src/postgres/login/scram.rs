//! SCRAM-SHA-256 (RFC 5802, RFC 7677): stored verifiers, the keys a login reveals, our side of the
//! exchange with servers.
//!
//! The exchange with clients is pgwire's `ScramServerAuth`; it keeps the client key to itself, so
//! [`Verifier::recover`] computes it from the messages that went by. Towards servers neither
//! pgwire nor postgres-protocol fits: the one has no channel binding, both want the password and
//! derive from it at every login, while we mostly have keys and no password.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use pgwire::api::auth::sasl::scram::{ScramSecret, gen_salted_password, random_nonce};
use ring::{digest, hmac};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

pub const SHA_256: &str = "SCRAM-SHA-256";
pub const SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The server's default `scram_iterations`, for verifiers that we derive.
const ITERATIONS: u32 = 4_096;
/// The server's `SCRAM_DEFAULT_SALT_LEN`.
const SALT_LENGTH: usize = 16;
/// Most iterations that a server may ask of us: 0.2 s of CPU. (Server's default: 4,096.)
pub const MAX_ITERATIONS: u32 = 1_000_000;

/// One SHA-256 output.
pub type Hash = [u8; 32];

/// What checks a proof and cannot make one: salt, StoredKey, ServerKey.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    salt: Vec<u8>,
    iterations: u32,
    stored_key: Hash,
    server_key: Hash,
}

/// What makes a proof for every server whose verifier has the same salt and iteration count.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    salt: Vec<u8>,
    iterations: u32,
    client_key: Hash,
    server_key: Hash,
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, what
    /// `pg_authid.rolpassword` holds.
    pub fn parse(text: &str) -> Option<Self> {
        let (iterations_salt, keys) = text.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = iterations_salt.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Self {
            salt: BASE64.decode(salt).ok().filter(|salt| !salt.is_empty())?,
            iterations: iterations.parse().ok().filter(|&count| count > 0)?,
            stored_key: decode_hash(stored_key)?,
            server_key: decode_hash(server_key)?,
        })
    }

    /// Derives a verifier with a random salt. Takes about a millisecond.
    pub fn derive(password: &str) -> Self {
        Keys::derive(password, &rand::random::<[u8; SALT_LENGTH]>(), ITERATIONS).verifier()
    }

    /// A verifier that no password fits, the same for the same name while this process lives, so
    /// that nobody learns from the salt which users exist (the server's `mock_scram_secret`).
    pub fn mock(user: &str, secret: &MockSecret) -> Self {
        let part = |name: &str| hmac(&secret.0, &[name.as_bytes(), user.as_bytes()]);
        let salt = part("salt ")[..SALT_LENGTH].to_vec();
        Self {
            salt,
            iterations: ITERATIONS,
            stored_key: part("stored key "),
            server_key: part("server key "),
        }
    }

    /// Whether this is that password's verifier (compared in constant time).
    pub fn is_of(&self, password: &str) -> bool {
        let keys = Keys::derive(password, &self.salt, self.iterations.min(MAX_ITERATIONS));
        bool::from(keys.verifier().stored_key.ct_eq(&self.stored_key))
    }

    /// In pgwire's words.
    pub fn for_pgwire(&self) -> ScramSecret {
        ScramSecret::Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations as usize,
            stored_key: self.stored_key.to_vec(),
            server_key: self.server_key.to_vec(),
        }
    }

    /// Recovers the client key from a client's proof: ClientProof XOR HMAC(StoredKey, AuthMessage).
    ///
    /// `None` if the proof is wrong (compared in constant time) or the messages make no sense.
    pub fn recover(&self, client_first: &[u8], server_first: &[u8], client_final: &[u8]) -> Option<Keys> {
        // client-first = gs2-cbind-flag "," [authzid] "," client-first-bare
        let bare = client_first.splitn(3, |&byte| byte == b',').nth(2)?;
        let proof_at = memchr::memmem::rfind(client_final, b",p=")?;
        let (without_proof, proof) = client_final.split_at(proof_at);
        let proof = decode_hash(str::from_utf8(&proof[3..]).ok()?)?;
        let signature = hmac(&self.stored_key, &[bare, b",", server_first, b",", without_proof]);
        let client_key = xor(proof, signature);
        let right: bool = sha256(&client_key).ct_eq(&self.stored_key).into();
        right.then(|| Keys {
            salt: self.salt.clone(),
            iterations: self.iterations,
            client_key,
            server_key: self.server_key,
        })
    }
}

impl Keys {
    /// PBKDF2 over the SASLprepped password, or over its bytes where SASLprep has no answer, as
    /// libpq and the server do.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let iterations = iterations.clamp(1, MAX_ITERATIONS);
        let salted = Zeroizing::new(gen_salted_password(password, salt, iterations as usize));
        Self {
            salt: salt.to_vec(),
            iterations,
            client_key: hmac(&salted, &[b"Client Key"]),
            server_key: hmac(&salted, &[b"Server Key"]),
        }
    }

    /// Whether they prove anything to a server with this salt and iteration count.
    pub fn fit(&self, salt: &[u8], iterations: u32) -> bool {
        self.iterations == iterations && self.salt == salt
    }

    pub fn verifier(&self) -> Verifier {
        Verifier {
            salt: self.salt.clone(),
            iterations: self.iterations,
            stored_key: sha256(&self.client_key),
            server_key: self.server_key,
        }
    }
}

/// Random bytes of this process that mock verifiers are made of.
pub struct MockSecret(Hash);

impl MockSecret {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What our side says about channel binding when it logs in to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// No TLS, or a certificate whose hash is undefined: `n`.
    Unsupported,
    /// We could, the server did not offer it: `y`.
    NotOffered,
    /// `tls-server-end-point` (RFC 5929): the hash of the server's certificate.
    EndPoint(Vec<u8>),
}

impl ChannelBinding {
    fn gs2_header(&self) -> &'static str {
        match self {
            Self::Unsupported => "n,,",
            Self::NotOffered => "y,,",
            Self::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn input(&self) -> String {
        let mut input = self.gs2_header().as_bytes().to_vec();
        if let Self::EndPoint(hash) = self {
            input.extend_from_slice(hash);
        }
        BASE64.encode(input)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExchangeError {
    #[error("the server's SCRAM message is malformed")]
    Malformed,
    #[error("the server's nonce does not extend ours")]
    Nonce,
    #[error("the server asks for {0} SCRAM iterations, more than {MAX_ITERATIONS}")]
    Iterations(u32),
    #[error("the server's signature is wrong: it does not know the password's verifier")]
    Signature,
    #[error("the server ended the SCRAM exchange: {0}")]
    Refused(String),
}

/// Our side of an exchange with a server, before the server said anything.
pub struct ClientFirst {
    binding: ChannelBinding,
    nonce: String,
}

/// The server's challenge, parsed.
pub struct Challenge {
    client_first: ClientFirst,
    server_first: String,
    nonce: String,
    pub salt: Vec<u8>,
    pub iterations: u32,
}

/// The signature that only a server with the right verifier can make.
pub struct ServerSignature(Hash);

impl ClientFirst {
    pub fn new(binding: ChannelBinding) -> Self {
        Self { binding, nonce: random_nonce() }
    }

    /// The user name stays empty: the server takes it from the startup packet.
    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// client-first-message.
    pub fn message(&self) -> String {
        format!("{}{}", self.binding.gs2_header(), self.bare())
    }

    /// Reads server-first-message: `r=<nonce>,s=<salt>,i=<iterations>`.
    pub fn challenge(self, server_first: &[u8]) -> Result<Challenge, ExchangeError> {
        let text = str::from_utf8(server_first).map_err(|_| ExchangeError::Malformed)?;
        let mut parts = text.split(',');
        let mut part =
            |name| parts.next().and_then(|part| part.strip_prefix(name)).ok_or(ExchangeError::Malformed);
        let (nonce, salt, iterations) = (part("r=")?, part("s=")?, part("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ExchangeError::Nonce);
        }
        let salt = BASE64.decode(salt).map_err(|_| ExchangeError::Malformed)?;
        let iterations = iterations.parse().map_err(|_| ExchangeError::Malformed)?;
        match iterations {
            0 => return Err(ExchangeError::Malformed),
            1..=MAX_ITERATIONS => {}
            _ => return Err(ExchangeError::Iterations(iterations)),
        }
        let nonce = nonce.to_owned();
        Ok(Challenge { server_first: text.to_owned(), nonce, salt, iterations, client_first: self })
    }
}

impl Challenge {
    /// client-final-message, and what the server must answer to it.
    pub fn answer(&self, keys: &Keys) -> (String, ServerSignature) {
        let without_proof = format!("c={},r={}", self.client_first.binding.input(), self.nonce);
        let bare = self.client_first.bare();
        let message: [&[u8]; 5] =
            [bare.as_bytes(), b",", self.server_first.as_bytes(), b",", without_proof.as_bytes()];
        let signature = hmac(&sha256(&keys.client_key), &message);
        let proof = BASE64.encode(xor(keys.client_key, signature));
        (format!("{without_proof},p={proof}"), ServerSignature(hmac(&keys.server_key, &message)))
    }
}

impl ServerSignature {
    /// Checks server-final-message: `v=<signature>`, or `e=<error>`.
    pub fn check(&self, server_final: &[u8]) -> Result<(), ExchangeError> {
        let text = str::from_utf8(server_final).map_err(|_| ExchangeError::Malformed)?;
        let first = text.split(',').next().unwrap_or(text);
        if let Some(error) = first.strip_prefix("e=") {
            return Err(ExchangeError::Refused(error.to_owned()));
        }
        let signature = first.strip_prefix("v=").and_then(decode_hash).ok_or(ExchangeError::Malformed)?;
        let right: bool = signature.ct_eq(&self.0).into();
        if right { Ok(()) } else { Err(ExchangeError::Signature) }
    }
}

fn hmac(key: &[u8], message: &[&[u8]]) -> Hash {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    message.iter().for_each(|part| context.update(part));
    context.sign().as_ref().try_into().expect("HMAC-SHA-256 has 32 bytes")
}

fn sha256(message: &[u8]) -> Hash {
    digest::digest(&digest::SHA256, message).as_ref().try_into().expect("SHA-256 has 32 bytes")
}

fn xor(mut left: Hash, right: Hash) -> Hash {
    left.iter_mut().zip(right).for_each(|(left, right)| *left ^= right);
    left
}

fn decode_hash(text: &str) -> Option<Hash> {
    BASE64.decode(text).ok()?.try_into().ok()
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 7677, section 3.
    const PASSWORD: &str = "pencil";
    const CLIENT_FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVER_FIRST: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
    const CLIENT_FINAL: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                                p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    const SERVER_FINAL: &str = "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";

    fn keys() -> Keys {
        Keys::derive(PASSWORD, &BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap(), 4096)
    }

    #[test]
    fn the_rfcs_proof_reveals_the_client_key() {
        let verifier = keys().verifier();
        let recovered = verifier
            .recover(CLIENT_FIRST.as_bytes(), SERVER_FIRST.as_bytes(), CLIENT_FINAL.as_bytes())
            .expect("the proof is right");
        assert_eq!(recovered.client_key, keys().client_key);
        assert_eq!(recovered.server_key, keys().server_key);
    }

    #[test]
    fn a_wrong_proof_reveals_nothing() {
        let verifier = keys().verifier();
        let finals = [
            CLIENT_FINAL.replace("p=dHzb", "p=dHzc"),
            CLIENT_FINAL.replace("c=biws", "c=eSws"),
            CLIENT_FINAL.replace(",p=", ",q="),
            CLIENT_FINAL.replace("ndVQ=", ""),
            ",p=".into(),
            String::new(),
        ];
        for client_final in finals {
            let keys =
                verifier.recover(CLIENT_FIRST.as_bytes(), SERVER_FIRST.as_bytes(), client_final.as_bytes());
            assert!(keys.is_none(), "{client_final}");
        }
    }

    #[test]
    fn our_side_makes_the_rfcs_proof_and_checks_the_rfcs_signature() {
        // The RFC names the user, we leave that to the startup packet: the same words otherwise.
        let first =
            ClientFirst { binding: ChannelBinding::Unsupported, nonce: "rOprNGfwEbeRWgbNEkqO".into() };
        assert_eq!(first.message(), CLIENT_FIRST.replace("n=user", "n="));
        let challenge = first.challenge(SERVER_FIRST.as_bytes()).expect("the RFC's challenge is right");
        assert_eq!(challenge.iterations, 4096);

        let (client_final, signature) = challenge.answer(&keys());

        let (without_proof, _) = client_final.rsplit_once(",p=").unwrap();
        assert_eq!(without_proof, CLIENT_FINAL.rsplit_once(",p=").unwrap().0);
        let verifier = keys().verifier();
        let ours = CLIENT_FIRST.replace("n=user", "n=");
        assert!(
            verifier.recover(ours.as_bytes(), SERVER_FIRST.as_bytes(), client_final.as_bytes()).is_some()
        );
        assert_eq!(signature.check(SERVER_FINAL.as_bytes()), Err(ExchangeError::Signature));
        assert_eq!(signature.check(b"e=unknown-user"), Err(ExchangeError::Refused("unknown-user".into())));
        assert_eq!(signature.check(b"v=AAAA"), Err(ExchangeError::Malformed));
    }

    #[test]
    fn the_rfcs_server_signature_follows_from_the_server_key() {
        let (without_proof, _) = CLIENT_FINAL.rsplit_once(",p=").unwrap();
        let message = format!("n=user,r=rOprNGfwEbeRWgbNEkqO,{SERVER_FIRST},{without_proof}");
        let signature = ServerSignature(hmac(&keys().server_key, &[message.as_bytes()]));
        assert_eq!(signature.check(SERVER_FINAL.as_bytes()), Ok(()));
    }

    #[test]
    fn a_challenge_that_makes_no_sense_is_refused() {
        let ours = "rOprNGfwEbeRWgbNEkqO";
        let table = [
            ("", ExchangeError::Malformed),
            ("r=", ExchangeError::Malformed),
            ("r=rOprNGfwEbeRWgbNEkqO,s=AAAA,i=4096", ExchangeError::Nonce),
            ("r=other,s=AAAA,i=4096", ExchangeError::Nonce),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=?,i=4096", ExchangeError::Malformed),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=0", ExchangeError::Malformed),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=-1", ExchangeError::Malformed),
            ("r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=4000000000", ExchangeError::Iterations(4_000_000_000)),
            ("m=x,r=rOprNGfwEbeRWgbNEkqOx,s=AAAA,i=1", ExchangeError::Malformed),
        ];
        for (challenge, fault) in table {
            let first = ClientFirst { binding: ChannelBinding::Unsupported, nonce: ours.into() };
            assert_eq!(first.challenge(challenge.as_bytes()).err(), Some(fault), "{challenge}");
        }
    }

    #[test]
    fn verifiers_are_read_as_the_server_writes_them() {
        let stored = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                      WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(Verifier::parse(stored), Some(keys().verifier()));
        let broken = [
            "",
            "SCRAM-SHA-256",
            "SCRAM-SHA-256$",
            "SCRAM-SHA-256$4096",
            "SCRAM-SHA-256$0:AAAA$AAAA:AAAA",
            "SCRAM-SHA-256$4096:AAAA$AAAA:AAAA",
            "SCRAM-SHA-1$4096:AAAA$AAAA:AAAA",
        ];
        for text in broken {
            assert_eq!(Verifier::parse(text), None, "{text}");
        }
    }

    #[test]
    fn verifiers_made_by_postgres_protocol_fit_the_password() {
        let stored = postgres_protocol::password::scram_sha_256("pass wörd\u{a0}Ⅸ".as_bytes());
        let verifier = Verifier::parse(&stored).expect("it is what ALTER ROLE takes");
        // SASLprep: a no-break space is a space, Ⅸ is IX.
        let keys = Keys::derive("pass wörd IX", &verifier.salt, verifier.iterations);
        assert_eq!(keys.verifier(), verifier);
    }

    #[test]
    fn a_mock_verifier_is_stable_and_the_users_own() {
        let secret = MockSecret::random();
        assert_eq!(Verifier::mock("a", &secret), Verifier::mock("a", &secret));
        assert_ne!(Verifier::mock("a", &secret).salt, Verifier::mock("b", &secret).salt);
        assert_ne!(Verifier::mock("a", &secret).salt, Verifier::mock("a", &MockSecret::random()).salt);
    }
}
