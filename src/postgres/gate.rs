//! How clients get in and how servers are reached: built from a cluster's configuration.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    backend::Backend,
    frontend::Frontend,
    login::{
        self, ConnectError, Credentials, Login, LoginContext, LoginFailure, Secret, SecretError, client::Door,
    },
    prepared::{Origin, Statement},
    welcome::{Greeting as Known, StartupRequest, fatal},
};
use crate::{
    cluster::Parts,
    config,
    greetings::{Greetings, Since},
    protocol::{ConnectFault, Greeting, Identity, LoginFault, TurnedAway, VerifierSource},
    refusal::{Refusal, RefusalKind},
    sql::Intent,
    tls::{self, ServerTls},
};

/// Statement texts that sessions share.
const MAX_INTERNED: usize = 100_000;

/// What logins go by. Built anew at each reload.
pub struct Gate {
    door: Arc<Door>,
    users: HashMap<Arc<str>, Secret>,
    /// Asks servers for verifiers of users that the file does not list.
    source: Option<Arc<dyn VerifierSource>>,
    shared: Arc<Shared>,
}

/// User, database and a hash of the settings: servers greet these alike.
type GreetingKey = (Arc<str>, Arc<str>, u128);

/// What outlives a reload.
pub struct Shared {
    greetings: Greetings<GreetingKey, Known>,
    interned: Mutex<HashMap<u128, Weak<Statement>>>,
    mock: Arc<login::scram::MockSecret>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            greetings: Greetings::default(),
            interned: Mutex::default(),
            mock: Arc::new(login::scram::MockSecret::random()),
        }
    }
}

/// [`Identity::flavour`] of connections for questions of the proxy's own and of the operator's (`auth.query`).
const OWN_QUESTIONS: u64 = 1;
const OPERATORS_QUESTIONS: u64 = 2;

/// What connections of a flavour begin with, whatever the server, database or role begins sessions with.
fn startup_settings(flavour: u64) -> Vec<(String, String)> {
    // A standby answers no question under SERIALIZABLE.
    let isolation = ("default_transaction_isolation", "read committed");
    // Names and operators of ours are the server's own, not those that somebody has made in a database.
    let names = ("search_path", "pg_catalog");
    // A database of another encoding would tell names in that.
    let letters = ("client_encoding", "UTF8");
    // Each question has a limit of ours, and a catalog may take longer than statements of users may.
    let patience = ("statement_timeout", "0");
    let settings: &[_] = match flavour {
        OWN_QUESTIONS => &[isolation, names, letters, patience],
        OPERATORS_QUESTIONS => &[isolation],
        _ => &[],
    };
    settings.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// How server connections are opened.
pub struct Link {
    pub tls: ServerTls,
    pub prepared_statements: usize,
    pub timeout: Duration,
}

impl Gate {
    pub fn new(
        tls: Arc<tls::ClientTls>,
        trust_loopback: bool,
        users: HashMap<Arc<str>, Secret>,
        source: Option<Arc<dyn VerifierSource>>,
        shared: Arc<Shared>,
    ) -> Self {
        let door = Arc::new(Door::new(tls, trust_loopback, shared.mock.clone()));
        Self { door, users, source, shared }
    }

    pub(super) fn forget_greetings(&self) {
        self.shared.greetings.forget();
    }
}

impl Gate {
    /// What opens servers for a user of the configuration; `None`: only the user's own login tells.
    pub(super) fn configured_credentials(&self, user: &str) -> Option<Credentials> {
        match self.users.get(user)? {
            Secret::Plain(password) => Some(Credentials::Plain(password.clone())),
            Secret::Md5(hash) => Some(Credentials::Md5Hash(hash.clone())),
            Secret::Scram(_) | Secret::Unknown => None,
        }
    }
}

impl LoginContext for Gate {
    fn door(&self) -> Arc<Door> {
        self.door.clone()
    }

    async fn secret(&self, user: &str, database: &str) -> Result<Secret, SecretError> {
        if let Some(secret) = self.users.get(user) {
            return Ok(secret.clone());
        }
        match &self.source {
            Some(source) => match source.verifier(user, database).await {
                Ok(Some(text)) => Ok(Secret::parse(&text)),
                Ok(None) => Ok(Secret::Unknown),
                Err(reason) => Err(SecretError(reason)),
            },
            None => Ok(Secret::Unknown),
        }
    }
}

/// Turns a login into a frontend.
pub(super) async fn greet(login: Login, gate: &Arc<Gate>) -> Result<Greeting<super::Postgres>, TurnedAway> {
    let identity = Identity {
        user: login.user.as_str().into(),
        database: login.database.as_str().into(),
        flavour: 0,
        credentials: login.credentials,
    };
    let startup = match StartupRequest::read(&login.parameters, login.minor) {
        Ok(startup) => startup,
        Err(refusal) => {
            let mut stream = login.stream;
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &fatal(&refusal)).await;
            return Err(TurnedAway { fault: LoginFault::Protocol, detail: refusal.message.into_owned() });
        }
    };
    let frontend = Frontend::new(login.stream, &login.unread, startup, Origins::new(gate, &identity));
    Ok(Greeting::Client { frontend, identity })
}

/// What a frontend shares with the others of its cluster.
pub struct Origins {
    shared: Arc<Shared>,
    user: Arc<str>,
    database: Arc<str>,
}

impl Origins {
    /// Of a client without a cluster: what fuzzing reads with.
    pub(super) fn detached() -> Self {
        Self { shared: Arc::default(), user: "app".into(), database: "app".into() }
    }

    fn new(gate: &Gate, identity: &Identity<super::Postgres>) -> Self {
        Self { shared: gate.shared.clone(), user: identity.user.clone(), database: identity.database.clone() }
    }

    fn key(&self, settings: u128) -> GreetingKey {
        (self.user.clone(), self.database.clone(), settings)
    }

    pub(super) fn greeting(&self, settings: u128) -> Result<Arc<Known>, Since> {
        self.shared.greetings.find(&self.key(settings))
    }

    pub(super) fn remember(&self, settings: u128, greeting: &Arc<Known>, since: Since) {
        self.shared.greetings.remember(self.key(settings), greeting, since);
    }

    /// One copy of a statement for all sessions that prepare it; `text`: of its `body`.
    pub(super) fn intern(&self, text: &[u8], body: &[u8], intent: Arc<Intent>) -> Arc<Statement> {
        if Statement::reads_clock(text) {
            return Arc::new(Statement::alone(body, intent));
        }
        let key = Statement::key_of(body, Origin::Parse);
        let mut interned = self.shared.interned.lock();
        if let Some(found) = interned.get(&key).and_then(Weak::upgrade)
            && Arc::ptr_eq(&found.intent, &intent)
        {
            return found;
        }
        if interned.len() >= MAX_INTERNED {
            interned.retain(|_, statement| statement.strong_count() > 0);
        }
        let statement = Arc::new(Statement::new(body, Origin::Parse, intent));
        if interned.len() < MAX_INTERNED {
            interned.insert(key, Arc::downgrade(&statement));
        }
        statement
    }
}

/// A new server connection, as the user who logged in.
pub(super) async fn connect(
    address: &str,
    link: &Link,
    identity: &Identity<super::Postgres>,
) -> Result<Backend, ConnectFault> {
    let startup = login::Startup {
        user: identity.user.to_string(),
        database: identity.database.to_string(),
        parameters: startup_settings(identity.flavour),
        minor: 0,
    };
    login::connect_within(link.timeout, address, &link.tls, &startup, &identity.credentials)
        .await
        .map(|connected| Backend::new(connected, link.prepared_statements))
        .map_err(connect_fault)
}

fn connect_fault(error: ConnectError) -> ConnectFault {
    match error {
        ConnectError::Server(error) => match error.sqlstate.as_str() {
            "57P03" | "57P01" | "57P02" => ConnectFault::NotReady,
            "53300" => ConnectFault::TooMany,
            state => {
                let code = state.as_bytes().try_into().unwrap_or(*b"XX000");
                ConnectFault::Refused { raw: error.raw.to_vec(), code }
            }
        },
        ConnectError::Unreachable(error) | ConnectError::Io(error) => ConnectFault::Unreachable(error),
        ConnectError::TimedOut(_) => ConnectFault::Unreachable(io::ErrorKind::TimedOut.into()),
        other @ (ConnectError::Tls(_) | ConnectError::Credentials(_) | ConnectError::Protocol(_)) => {
            // As fatal as a server's own refusal of a login.
            let refusal =
                Refusal::fatal(RefusalKind::ServerLost, format!("cannot log in to a server: {other}"));
            let mut raw = Vec::new();
            super::refusal::put_error(&mut raw, &refusal);
            ConnectFault::Refused { raw, code: *b"08006" }
        }
    }
}

pub(super) fn turned_away(failure: &LoginFailure) -> TurnedAway {
    let detail = match failure {
        LoginFailure::WrongPassword { .. } | LoginFailure::UnknownUser { .. } => format!("28P01: {failure}"),
        LoginFailure::Refused { sqlstate, .. } => format!("{sqlstate}: {failure}"),
        LoginFailure::Uncertified { .. } => format!("28000: {failure}"),
        _ => failure.to_string(),
    };
    TurnedAway { fault: login_fault(failure), detail }
}

fn login_fault(failure: &LoginFailure) -> LoginFault {
    match failure {
        LoginFailure::Closed | LoginFailure::Io(_) => LoginFault::Closed,
        LoginFailure::Garbage(_) | LoginFailure::Refused { .. } => LoginFault::Protocol,
        LoginFailure::Tls(_) | LoginFailure::Uncertified { .. } => LoginFault::Tls,
        LoginFailure::WrongPassword { .. } => LoginFault::Password,
        LoginFailure::UnknownUser { .. } => LoginFault::UnknownUser,
        LoginFailure::Lookup { .. } => LoginFault::Unavailable,
    }
}

/// What opens servers for a user of the configuration.
fn credentials(password: Option<&config::Secret>) -> Credentials {
    match password.map(|password| Secret::parse(password.expose())) {
        Some(Secret::Plain(password)) => Credentials::Plain(password),
        Some(Secret::Md5(hash)) => Credentials::Md5Hash(hash),
        _ => Credentials::None,
    }
}

/// What a cluster is made of, from its configuration.
///
/// # Errors
/// When a certificate, key or CA cannot be used.
pub fn parts(
    config: &config::Cluster,
    shared: &Arc<Shared>,
    source: Option<Arc<dyn VerifierSource>>,
) -> Result<Parts<super::Postgres>, tls::TlsError> {
    let client = tls::ClientTls::build(&config.tls.client_parameters())?;
    let server = ServerTls::build(&config.tls.server_parameters())?;
    let users = config
        .users
        .iter()
        .filter_map(|user| Some((user.name.clone(), Secret::parse(user.password.as_ref()?.expose()))))
        .collect();
    let monitor = Identity {
        user: config.monitor.user.clone(),
        database: config.monitor.database.clone(),
        flavour: OWN_QUESTIONS,
        credentials: credentials(config.monitor.password.as_ref()),
    };
    Ok(Parts {
        gate: Gate::new(Arc::new(client), config.auth.trust_loopback, users, source, shared.clone()),
        link: Link {
            tls: server,
            prepared_statements: config.pool.prepared_statements,
            timeout: config.pool.checkout_timeout,
        },
        verifier_identity: Identity { flavour: OPERATORS_QUESTIONS, ..monitor.clone() },
        monitor_identity: monitor,
    })
}
