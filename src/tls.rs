//! TLS on both sides, built from files. A reload builds again: running connections keep what they
//! were made with.
//!
//! The modes are libpq's `sslmode` toward servers and PgBouncer's `client_tls_sslmode` toward
//! clients.

mod verify;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::CryptoProvider,
    server::{NoClientAuth, NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, ServerName,
    pem::{self, PemObject},
};
use thiserror::Error;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub use verify::{common_name, end_point};

/// ALPN protocol name of PostgreSQL.
pub const ALPN: &[u8] = b"postgresql";

/// Whether TLS is spoken and what is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    Disable,
    /// To servers: only if the server refuses to talk without. To clients: if they ask for it.
    Allow,
    /// To servers: if the server can. To clients: if they ask for it.
    #[default]
    Prefer,
    /// Always. To servers: without verification, unless a CA is named, as libpq does.
    Require,
    /// The peer's certificate must come from the CA.
    VerifyCa,
    /// And it must be the peer's own: a server's names its host, a client's its user.
    VerifyFull,
}

impl Mode {
    pub fn requires_tls(self) -> bool {
        matches!(self, Self::Require | Self::VerifyCa | Self::VerifyFull)
    }
}

/// One side's settings, as files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    pub mode: Mode,
    /// PEM: our certificate, then the intermediate ones.
    pub certificate: Option<PathBuf>,
    /// PEM: its private key.
    pub key: Option<PathBuf>,
    /// PEM: who signs the peers' certificates. Toward servers the system's roots if not named.
    pub ca: Option<PathBuf>,
}

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("cannot read {}: {reason}", file.display())]
    Read { file: PathBuf, reason: String },
    #[error("{} holds no {what} in PEM form", file.display())]
    Empty { file: PathBuf, what: &'static str },
    #[error("certificate {} and key {}: {reason}", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, reason: rustls::Error },
    #[error("CA {}: {reason}", file.display())]
    Ca { file: PathBuf, reason: String },
    #[error("a certificate and its key are named together or not at all")]
    Half,
    #[error("mode {mode:?} needs {what}")]
    Missing { mode: Mode, what: &'static str },
    #[error("no root certificates of the system could be read: {0}")]
    NoRoots(String),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

/// How clients reach us.
#[derive(Debug)]
pub struct ClientTls {
    mode: Mode,
    config: Option<Arc<ServerConfig>>,
    certificate_pem: Option<Vec<u8>>,
}

impl ClientTls {
    pub fn disabled() -> Self {
        Self { mode: Mode::Disable, config: None, certificate_pem: None }
    }

    /// Reads the files. Without a certificate the modes up to `prefer` mean no TLS.
    pub fn build(parameters: &Parameters) -> Result<Self, TlsError> {
        let Parameters { mode, certificate, key, ca } = parameters;
        let (certificate, key) = match (certificate, key) {
            _ if *mode == Mode::Disable => return Ok(Self::disabled()),
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) if !mode.requires_tls() => return Ok(Self { mode: *mode, ..Self::disabled() }),
            (None, None) => return Err(TlsError::Missing { mode: *mode, what: "a certificate and a key" }),
            _ => return Err(TlsError::Half),
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(client_verifier(*mode, ca.as_deref())?)
            .with_single_cert(read_certificates(certificate)?, read_key(key)?)
            .map_err(|reason| pair_error(certificate, key, reason))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No PostgreSQL client resumes a session: tickets would only cost time and memory.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let pem = std::fs::read(certificate).map_err(|error| read_error(certificate, &error))?;
        Ok(Self { mode: *mode, config: Some(Arc::new(config)), certificate_pem: Some(pem) })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `None` where no TLS is spoken.
    pub fn acceptor(&self) -> Option<TlsAcceptor> {
        self.config.clone().map(TlsAcceptor::from)
    }

    /// The file of our certificate, for channel binding.
    pub fn certificate_pem(&self) -> Option<&[u8]> {
        self.certificate_pem.as_deref()
    }
}

/// How we reach servers.
#[derive(Debug)]
pub struct ServerTls {
    mode: Mode,
    config: Option<Arc<ClientConfig>>,
}

impl ServerTls {
    pub fn disabled() -> Self {
        Self { mode: Mode::Disable, config: None }
    }

    /// Reads the files; `verify-ca` and `verify-full` without a CA use the system's roots.
    pub fn build(parameters: &Parameters) -> Result<Self, TlsError> {
        let Parameters { mode, certificate, key, ca } = parameters;
        if *mode == Mode::Disable {
            return Ok(Self::disabled());
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(server_verifier(*mode, ca.as_deref())?));
        let mut config = match (certificate, key) {
            (Some(certificate), Some(key)) => builder
                .with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)
                .map_err(|reason| pair_error(certificate, key, reason))?,
            (None, None) => builder.with_no_client_auth(),
            _ => return Err(TlsError::Half),
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        // No PostgreSQL server resumes one either.
        config.resumption = Resumption::disabled();
        Ok(Self { mode: *mode, config: Some(Arc::new(config)) })
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// `None` where no TLS is spoken.
    pub fn connector(&self) -> Option<TlsConnector> {
        self.config.clone().map(TlsConnector::from)
    }
}

/// How `https` endpoints are reached: their certificates and the names in them are always checked,
/// by the certificates in `ca` or the system's roots.
pub fn web_client(ca: Option<&Path>) -> Result<TlsConnector, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(server_verifier(Mode::VerifyFull, ca)?))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The name by which a server's certificate is checked: the host of `host:port`.
///
/// `None` if it is neither an IP address nor a DNS name.
pub fn server_name(address: &str) -> Option<ServerName<'static>> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match host.parse::<IpAddr>() {
        Ok(ip) => Some(ServerName::IpAddress(ip.into())),
        Err(_) => ServerName::try_from(host.to_owned()).ok(),
    }
}

/// Named, so that the choice does not hang on which features other crates switch on.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn client_verifier(mode: Mode, ca: Option<&Path>) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let required = matches!(mode, Mode::VerifyCa | Mode::VerifyFull);
    let Some(ca) = ca else {
        return match required {
            true => Err(TlsError::Missing { mode, what: "a ca" }),
            false => Ok(Arc::new(NoClientAuth)),
        };
    };
    let (roots, _) = read_roots(ca)?;
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = if required { builder } else { builder.allow_unauthenticated() };
    builder.build().map_err(|reason| TlsError::Ca { file: ca.to_owned(), reason: reason.to_string() })
}

fn server_verifier(mode: Mode, ca: Option<&Path>) -> Result<verify::ServerVerifier, TlsError> {
    let check = match mode {
        Mode::VerifyFull => verify::Check::ChainAndName,
        Mode::VerifyCa => verify::Check::Chain,
        Mode::Require if ca.is_some() => verify::Check::Chain,
        _ => return Ok(verify::ServerVerifier::unchecked(provider())),
    };
    let (roots, pinned) = match ca {
        Some(ca) => read_roots(ca)?,
        None => (system_roots()?, Vec::new()),
    };
    Ok(verify::ServerVerifier::new(provider(), check, roots, pinned))
}

fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    match added {
        0 => Err(TlsError::NoRoots(found.errors.first().map_or("none found".into(), ToString::to_string))),
        _ => Ok(roots),
    }
}

/// The file's certificates as trust anchors, and as they are.
fn read_roots(file: &Path) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let certificates = read_certificates(file)?;
    let mut roots = RootCertStore::empty();
    for certificate in &certificates {
        roots
            .add(certificate.clone())
            .map_err(|reason| TlsError::Ca { file: file.to_owned(), reason: reason.to_string() })?;
    }
    Ok((roots, certificates))
}

fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| pem_error(file, error, "certificate"))?;
    match certificates.is_empty() {
        true => Err(TlsError::Empty { file: file.to_owned(), what: "certificate" }),
        false => Ok(certificates),
    }
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(file).map_err(|error| pem_error(file, error, "private key"))
}

fn pem_error(file: &Path, error: pem::Error, what: &'static str) -> TlsError {
    match error {
        pem::Error::NoItemsFound => TlsError::Empty { file: file.to_owned(), what },
        pem::Error::Io(error) => read_error(file, &error),
        other => TlsError::Read { file: file.to_owned(), reason: format!("{other:?}") },
    }
}

/// Whether a certificate and a private key belong together, and the key is of a kind that is known.
pub fn check_pair(certificate: &Path, key: &Path) -> Result<(), TlsError> {
    CertifiedKey::from_der(read_certificates(certificate)?, read_key(key)?, &provider())
        .map(drop)
        .map_err(|reason| pair_error(certificate, key, reason))
}

fn read_error(file: &Path, error: &io::Error) -> TlsError {
    TlsError::Read { file: file.to_owned(), reason: error.to_string() }
}

fn pair_error(certificate: &Path, key: &Path, reason: rustls::Error) -> TlsError {
    TlsError::Pair { certificate: certificate.to_owned(), key: key.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            std::fs::write(folder.path().join(name), text).unwrap();
            Some(folder.path().join(name))
        };
        let key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let good = file("good.pem", &key.cert.pem());
        let good_key = file("good.key", &key.signing_key.serialize_pem());
        let other_key = file("other.key", &other.signing_key.serialize_pem());
        let empty = file("empty.pem", "nothing here");
        let broken = file("broken.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let missing = Some(folder.path().join("missing.pem"));
        let of = |mode, certificate: &Option<PathBuf>, key: &Option<PathBuf>, ca: &Option<PathBuf>| {
            Parameters { mode, certificate: certificate.clone(), key: key.clone(), ca: ca.clone() }
        };
        let table = [
            (of(Mode::Require, &missing, &good_key, &None), "missing.pem"),
            (of(Mode::Require, &empty, &good_key, &None), "empty.pem"),
            (of(Mode::Require, &broken, &good_key, &None), "broken.pem"),
            (of(Mode::Require, &good, &good, &None), "good.pem holds no private key"),
            (of(Mode::Require, &good, &other_key, &None), "other.key"),
            (of(Mode::Require, &good, &None, &None), "together"),
            (of(Mode::VerifyCa, &good, &good_key, &missing), "missing.pem"),
            (of(Mode::VerifyCa, &good, &good_key, &broken), "broken.pem"),
        ];
        for (parameters, expected) in table {
            for error in [
                ClientTls::build(&parameters).expect_err("a file is wrong").to_string(),
                ServerTls::build(&parameters).expect_err("a file is wrong").to_string(),
            ] {
                assert!(error.contains(expected), "{expected}: {error}");
            }
        }
        let nothing = of(Mode::Require, &None, &None, &None);
        assert!(matches!(ClientTls::build(&nothing), Err(TlsError::Missing { .. })));
        assert!(matches!(
            ClientTls::build(&of(Mode::VerifyFull, &good, &good_key, &None)),
            Err(TlsError::Missing { what: "a ca", .. })
        ));
    }

    #[test]
    fn without_a_certificate_no_tls_is_offered_and_none_demanded() {
        for mode in [Mode::Disable, Mode::Allow, Mode::Prefer] {
            let tls = ClientTls::build(&Parameters { mode, ..Parameters::default() }).unwrap();
            assert!(tls.acceptor().is_none() && !tls.mode().requires_tls());
        }
        let tls = ServerTls::build(&Parameters { mode: Mode::Disable, ..Parameters::default() }).unwrap();
        assert!(tls.connector().is_none());
    }

    #[test]
    fn the_host_of_an_address_is_what_certificates_name() {
        for (address, name) in [
            ("db.example:5432", Some("db.example")),
            ("10.0.0.1:5432", Some("10.0.0.1")),
            ("[::1]:5432", Some("::1")),
            ("no host:5432", None),
        ] {
            assert_eq!(server_name(address).map(|name| name.to_str().into_owned()).as_deref(), name);
        }
    }
}
