//! Authentication of a client: by password (SCRAM, md5), certificate, or not at all.

use std::sync::Arc;

use bytes::BytesMut;
use pgwire::{error::PgWireError, messages::startup::Authentication};

use super::{
    Credentials, Md5Hash, Secret,
    client::{Arrival, Door, LoginContext, LoginFailure, SecretError},
    scram::{self, Keys, Verifier},
    startup::{Fault, refused},
};
use crate::{
    postgres::message::{
        MAX_PASSWORD_MESSAGE, MAX_SASL_MESSAGE, put_authentication, read_frame, take_cstring, take_u32,
    },
    stream::Stream,
    tls::{self, Mode},
};

impl Arrival {
    /// Has the client prove that it is `user`, up to AuthenticationOk or the error in its place.
    pub(super) async fn authenticate<C: LoginContext>(
        &mut self,
        door: &Door,
        user: &str,
        database: &str,
        context: &C,
    ) -> Result<Credentials, LoginFailure> {
        let mode = door.tls.mode();
        if mode.requires_tls() && !self.stream.is_tls() {
            return Err(self.uncertified("connection requires TLS (SSL)".into()).await);
        }
        if mode == Mode::VerifyFull && !self.certified_as(user) {
            let message = format!("certificate authentication failed for user \"{user}\"");
            return Err(self.uncertified(message).await);
        }
        let proven = mode == Mode::VerifyFull || door.trust_loopback && self.peer.ip().is_loopback();
        let secret = match context.secret(user, database).await {
            Ok(secret) => secret,
            Err(reason) => return Err(self.no_secret(user, reason).await),
        };
        if proven {
            self.welcome(BytesMut::new()).await?;
            return Ok(secret.into_credentials());
        }
        match secret {
            Secret::Plain(password) => {
                self.scram(door, user, &password.verifier()).await?;
                Ok(Credentials::Plain(password))
            }
            Secret::Scram(verifier) => {
                let keys = self.scram(door, user, &verifier).await?;
                Ok(Credentials::ScramKeys(Arc::new(keys)))
            }
            Secret::Md5(hash) => {
                self.md5(user, &hash).await?;
                Ok(Credentials::Md5Hash(hash))
            }
            Secret::Unknown => match self.scram(door, user, &Verifier::mock(user, &door.mock)).await {
                Err(LoginFailure::WrongPassword { user }) => Err(LoginFailure::UnknownUser { user }),
                Err(failure) => Err(failure),
                // Nobody has a preimage of the mock verifier's stored key.
                Ok(_) => Err(self.wrong_password(user).await),
            },
        }
    }

    async fn uncertified(&mut self, message: String) -> LoginFailure {
        match self.refuse("28000", message).await {
            LoginFailure::Refused { message, .. } => LoginFailure::Uncertified { message },
            failure => failure,
        }
    }

    /// Whether the client's certificate, verified in the handshake, is this user's: the subject's
    /// common name, compared as `clientcert=verify-full` does.
    fn certified_as(&self, user: &str) -> bool {
        let Stream::Tls(session) = &self.stream else { return false };
        let certificate = session.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        certificate.and_then(|certificate| tls::common_name(certificate)).is_some_and(|name| name == user)
    }

    /// The whole SCRAM exchange up to AuthenticationOk; the client key is what its proof reveals.
    async fn scram(&mut self, door: &Door, user: &str, verifier: &Verifier) -> Result<Keys, LoginFailure> {
        let plus = door.scram_plus.as_ref().filter(|_| self.stream.is_tls());
        let mut mechanisms = vec![scram::SHA_256.to_owned()];
        if plus.is_some() {
            mechanisms.insert(0, scram::SHA_256_PLUS.to_owned());
        }
        self.request_authentication(Authentication::SASL(mechanisms)).await?;

        let initial = self.read_answer(MAX_SASL_MESSAGE, "SASL").await?;
        let client_first = match initial_response(&initial, plus.is_some()) {
            Ok(data) => data,
            Err(fault) => return Err(self.fault(fault).await),
        };
        let exchange = plus.unwrap_or(&door.scram);
        let begun = exchange.on_client_first_message_with_secret(client_first, verifier.for_pgwire());
        let Ok((server_first, exchange)) = begun else {
            return Err(self.fault(malformed()).await);
        };
        self.request_authentication(Authentication::SASLContinue(server_first.clone().into())).await?;

        let client_final = self.read_answer(MAX_SASL_MESSAGE, "SASL").await?;
        let server_final = match exchange.on_client_final_message(&client_final) {
            Ok(server_final) => server_final,
            Err(PgWireError::InvalidPassword(_)) => return Err(self.wrong_password(user).await),
            Err(_) => return Err(self.fault(malformed()).await),
        };
        let Some(keys) = verifier.recover(client_first, server_first.as_bytes(), &client_final) else {
            return Err(self.wrong_password(user).await);
        };
        let mut answer = BytesMut::new();
        put_authentication(&mut answer, Authentication::SASLFinal(server_final.into()));
        self.welcome(answer).await?;
        Ok(keys)
    }

    async fn md5(&mut self, user: &str, hash: &Md5Hash) -> Result<(), LoginFailure> {
        let salt: [u8; 4] = rand::random();
        self.request_authentication(Authentication::MD5Password(salt.to_vec())).await?;
        let answer = self.read_answer(MAX_PASSWORD_MESSAGE, "password").await?;
        match answer.split_last() {
            Some((0, password)) if hash.accepts(salt, password) => self.welcome(BytesMut::new()).await,
            Some((0, _)) => Err(self.wrong_password(user).await),
            _ => Err(self.refuse("08P01", "invalid password packet size".into()).await),
        }
    }

    /// Reads a message of type `p`, whose meaning depends on what was asked.
    async fn read_answer(&mut self, limit: usize, kind: &str) -> Result<BytesMut, LoginFailure> {
        let frame = read_frame(&mut self.stream, &mut self.unread, limit).await?;
        if frame.tag == b'p' {
            return Ok(frame.body);
        }
        let message = format!("expected {kind} response, got message type {}", frame.tag);
        Err(self.refuse("08P01", message).await)
    }

    async fn request_authentication(&mut self, request: Authentication) -> Result<(), LoginFailure> {
        let mut message = BytesMut::new();
        put_authentication(&mut message, request);
        self.send(&message).await
    }

    /// Sends AuthenticationOk behind what is in `answer`, in one packet.
    async fn welcome(&mut self, mut answer: BytesMut) -> Result<(), LoginFailure> {
        put_authentication(&mut answer, Authentication::Ok);
        self.send(&answer).await
    }

    async fn wrong_password(&mut self, user: &str) -> LoginFailure {
        self.refuse("28P01", format!("password authentication failed for user \"{user}\"")).await;
        LoginFailure::WrongPassword { user: user.to_owned() }
    }

    async fn no_secret(&mut self, user: &str, reason: SecretError) -> LoginFailure {
        self.refuse("57P03", format!("the password of user \"{user}\" cannot be looked up now")).await;
        LoginFailure::Lookup { user: user.to_owned(), reason }
    }
}

/// Takes the client-first-message out of a SASLInitialResponse, after checking that its mechanism
/// was offered and that mechanism and channel binding flag go together (RFC 5802, section 6).
fn initial_response(mut body: &[u8], plus_offered: bool) -> Result<&[u8], Fault> {
    let mechanism = take_cstring(&mut body).ok_or_else(malformed)?;
    let length = take_u32(&mut body).ok_or_else(malformed)?;
    if length as usize != body.len() {
        // Also a length of -1: a mechanism without its first message, which no driver sends.
        return Err(malformed());
    }
    let plus = mechanism == scram::SHA_256_PLUS.as_bytes();
    if mechanism != scram::SHA_256.as_bytes() && !(plus && plus_offered) {
        return Err(refused("08P01", "client selected an invalid SASL authentication mechanism"));
    }
    match body.first() {
        Some(b'p') if plus => Ok(body),
        Some(b'n') if !plus => Ok(body),
        // The client can bind and believes that we can not: somebody took -PLUS off our offer.
        Some(b'y') if !plus && plus_offered => {
            Err(refused("28000", "SCRAM channel binding negotiation error"))
        }
        Some(b'y') if !plus => Ok(body),
        _ => Err(malformed()),
    }
}

fn malformed() -> Fault {
    refused("08P01", "malformed SCRAM message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn initial(mechanism: &str, first: &str) -> Vec<u8> {
        let length = (first.len() as u32).to_be_bytes();
        [mechanism.as_bytes(), b"\0", &length, first.as_bytes()].concat()
    }

    #[test]
    fn mechanism_and_channel_binding_flag_go_together() {
        let plus = scram::SHA_256_PLUS;
        let plain = scram::SHA_256;
        let bound = "p=tls-server-end-point,,n=,r=x";
        // Mechanism, message, whether -PLUS was offered, SQLSTATE of the refusal.
        let table = [
            (plain, "n,,n=,r=x", false, None),
            (plain, "n,,n=,r=x", true, None),
            (plain, "y,,n=,r=x", false, None),
            (plain, "y,,n=,r=x", true, Some("28000")),
            (plain, bound, true, Some("08P01")),
            (plus, bound, true, None),
            (plus, bound, false, Some("08P01")),
            (plus, "n,,n=,r=x", true, Some("08P01")),
            (plus, "y,,n=,r=x", true, Some("08P01")),
            (plain, "x,,n=,r=x", true, Some("08P01")),
            (plain, "", true, Some("08P01")),
        ];
        for (mechanism, first, offered, refusal) in table {
            let refused = match initial_response(&initial(mechanism, first), offered) {
                Ok(message) => {
                    assert_eq!(message, first.as_bytes());
                    None
                }
                Err(Fault::Refused { sqlstate, .. }) => Some(sqlstate),
                Err(Fault::Garbage(what)) => panic!("{what}"),
            };
            assert_eq!(refused, refusal, "{mechanism} {first} {offered}");
        }
    }
}
