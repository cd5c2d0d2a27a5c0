//! What is checked of a server's certificate, and what is read from certificates.

use std::sync::Arc;

use ring::digest;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature_with_raw_key},
    server::ParsedCertificate,
};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, x509::X509Version,
};

/// How far a server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// libpq's checks for the `sslmode`s. The handshake's signature is checked in all of them.
#[derive(Debug)]
pub struct ServerVerifier {
    provider: Arc<CryptoProvider>,
    check: Check,
    roots: RootCertStore,
    /// The CA file's certificates themselves: see [`ServerVerifier::chain`].
    pinned: Vec<CertificateDer<'static>>,
}

impl ServerVerifier {
    /// Encryption without verification: `sslmode=require` and below.
    pub fn unchecked(provider: Arc<CryptoProvider>) -> Self {
        Self::new(provider, Check::Nothing, RootCertStore::empty(), Vec::new())
    }

    pub fn new(
        provider: Arc<CryptoProvider>,
        check: Check,
        roots: RootCertStore,
        pinned: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self { provider, check, roots, pinned }
    }

    /// A chain from the server's certificate to a root.
    ///
    /// webpki refuses two kinds of certificate that OpenSSL, and so libpq, takes, and that most
    /// private set-ups have because they come out of PostgreSQL's own manual: a self-signed one
    /// that is its own CA, and one of X.509 version 1.
    fn chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.pinned.iter().any(|pinned| pinned.as_ref() == end_entity.as_ref()) {
            return within_validity(&parse(end_entity)?, now);
        }
        let certificate = parse(end_entity)?;
        if certificate.version() == X509Version::V1 {
            return self.issued_directly(&certificate, now);
        }
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)
    }

    /// A version 1 certificate counts if a CA of the file itself signed it: what it may be used
    /// for, and by whom it may have been issued otherwise, it cannot say.
    fn issued_directly(&self, certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
        within_validity(certificate, now)?;
        let issued = self.pinned.iter().filter_map(|pinned| parse(pinned).ok()).any(|ca| {
            ca.subject() == certificate.issuer()
                && within_validity(&ca, now).is_ok()
                && certificate.verify_signature(Some(ca.public_key())).is_ok()
        });
        if issued { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check != Check::Nothing {
            self.chain(end_entity, intermediates, now)?;
            if self.check == Check::ChainAndName {
                name(end_entity, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // By the key alone, so that version 1 certificates work where the mode takes them.
        let certificate = parse(certificate)?;
        verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(certificate.public_key().raw),
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    Ok(parsed)
}

fn within_validity(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).map_err(|_| CertificateError::Expired)?;
    if now < certificate.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > certificate.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// The host must be among the alternative names or, where there are none, be the common name, as
/// in libpq.
fn name(end_entity: &CertificateDer<'_>, host: &ServerName<'_>) -> Result<(), Error> {
    let certificate = parse(end_entity)?;
    if has_alternative_names(&certificate) {
        return verify_server_name(&ParsedCertificate::try_from(end_entity)?, host);
    }
    match common_name(end_entity) {
        Some(name) if covers(&name, &host.to_str()) => Ok(()),
        _ => Err(CertificateError::NotValidForName.into()),
    }
}

fn has_alternative_names(certificate: &X509Certificate<'_>) -> bool {
    let names = certificate.subject_alternative_name().ok().flatten();
    names.is_some_and(|extension| {
        let mut names = extension.value.general_names.iter();
        names.any(|name| matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_)))
    })
}

/// The name itself in any case, or `*.` for exactly one label (`wildcard_certificate_match` in
/// libpq's `fe-secure-common.c`).
fn covers(name: &str, host: &str) -> bool {
    match name.strip_prefix("*.") {
        None => name.eq_ignore_ascii_case(host),
        Some(domain) => host
            .split_once('.')
            .is_some_and(|(label, rest)| !label.is_empty() && rest.eq_ignore_ascii_case(domain)),
    }
}

/// Channel binding data `tls-server-end-point` (RFC 5929, section 4): the certificate hashed with
/// the hash of its signature, SHA-256 in place of MD5 and SHA-1.
///
/// `None` where the signature has no hash of its own (EdDSA) or names it elsewhere (RSA-PSS):
/// there the RFC defines nothing and channel binding is not used.
pub fn end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let parsed = parse(certificate).ok()?;
    let algorithm = match parsed.signature_algorithm.algorithm.to_id_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256 (RFC 3279, 4055, 5758).
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => &digest::SHA256,
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => &digest::SHA384,
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => &digest::SHA512,
        _ => return None,
    };
    Some(digest::digest(algorithm, certificate).as_ref().to_vec())
}

/// The subject's only common name; `None` if there is none, or more than one to choose from.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let parsed = parse(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label() {
        let table = [
            ("db.example", "DB.example", true),
            ("db.example", "db.example.com", false),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", ".example", false),
            ("*.example", "example", false),
            ("*", "example", false),
            ("10.0.0.1", "10.0.0.1", true),
        ];
        for (name, host, covered) in table {
            assert_eq!(covers(name, host), covered, "{name} {host}");
        }
    }
}
