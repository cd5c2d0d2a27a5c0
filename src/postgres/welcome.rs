//! From "authenticated" to "ready": what a client is told of the session it got, and which
//! settings it asked for at startup.

use std::sync::Arc;

use super::{
    backend::Backend,
    frame,
    frontend::{Frontend, names_temporary},
    parameters::{self, Parameters, Told},
    refusal,
    settings::{self, Carried, Settings, quote_literal},
};
use crate::{
    greetings::Since,
    protocol::{Begins, CancelKey, Fault, ReaderContext, Welcomed},
    refusal::{Refusal, RefusalKind},
    sql::{
        Isolation,
        effects::{ProxyCommand, Scope, TransactionModes},
    },
};

/// What the client's startup packet asked for.
#[derive(Debug, Default)]
pub struct StartupRequest {
    /// Settings beyond those that connections start with.
    pub settings: Settings,
    /// `pointsman.…` settings.
    pub commands: Vec<ProxyCommand>,
    pub minor: u16,
    /// When nobody knew what it is to be told.
    pub unknown_since: Option<Since>,
}

/// What every client with the same user, database and startup settings is told.
#[derive(Debug)]
pub struct Greeting {
    pub parameters: Arc<Parameters>,
    pub defaults: TransactionModes,
    /// The temporary schema is in the search_path that such sessions begin with.
    pub temporary_path: bool,
}

impl StartupRequest {
    /// Reads the parameters of a startup packet, `options` among them.
    ///
    /// # Errors
    /// What the server would say to `options` it cannot read.
    pub fn read(parameters: &[(String, String)], minor: u16) -> Result<Self, Refusal> {
        let mut request = Self { minor, ..Self::default() };
        // Wherever `options` stands, the server reads it first: what has a parameter of its own wins.
        for (_, value) in parameters.iter().filter(|(name, _)| name == "options") {
            for (name, value) in parse_options(value)? {
                request.set(&name, &value);
            }
        }
        for (name, value) in parameters {
            match name.as_str() {
                "user" | "database" | "replication" | "options" => {}
                _ if name.starts_with("_pq_.") => {}
                _ => request.set(name, value),
            }
        }
        Ok(request)
    }

    fn set(&mut self, name: &str, value: &str) {
        let name = name.to_ascii_lowercase();
        if let Some(own) = name.strip_prefix("pointsman.") {
            self.commands.push(ProxyCommand::Set {
                name: own.into(),
                value: value.into(),
                scope: Scope::Session,
                column: None,
            });
            return;
        }
        // set_config reads lists as a startup packet does; SET would take them for one name.
        let statement = format!(
            "SELECT pg_catalog.set_config({}, {}, false)",
            quote_literal(&name),
            quote_literal(value)
        );
        self.settings = self.settings.with(&name, value, &statement);
    }
}

/// Splits `options`: `-c name=value`, `-cname=value`, `--name=value`; a backslash keeps a space.
/// Source: the server's `pg_split_opts` and `process_postgres_switches`.
fn parse_options(options: &str) -> Result<Vec<(String, String)>, Refusal> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut characters = options.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.extend(characters.next()),
            space if space.is_ascii_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            other => word.push(other),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let assignment = match (word.strip_prefix("--"), word.strip_prefix("-c")) {
            (Some(rest), _) => rest.to_owned(),
            (None, Some("")) => words.next().unwrap_or_default(),
            (None, Some(rest)) => rest.to_owned(),
            (None, None) => {
                return Err(Refusal::fatal(
                    RefusalKind::Forbidden,
                    format!("invalid command-line argument for server process: {word}"),
                ));
            }
        };
        let Some((name, value)) = assignment.split_once('=') else {
            return Err(Refusal::fatal(RefusalKind::Protocol, format!("-c {assignment} requires a value")));
        };
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

impl Frontend {
    /// The key under which clients with the same startup settings share a greeting.
    pub(super) fn greeting_key(&self) -> u128 {
        self.startup.as_ref().map_or(0, |startup| startup.settings.hash())
    }

    /// Tells the client everything it is told before its first statement.
    pub(super) async fn greet(
        &mut self,
        greeting: &Greeting,
        context: ReaderContext,
        key: &CancelKey,
    ) -> Result<Welcomed, Fault> {
        let startup = self.startup.take().map_or_else(StartupRequest::default, |startup| *startup);
        let mut out = Vec::with_capacity(512);
        for (name, value) in greeting.parameters.iter() {
            parameters::put(&mut out, name, value);
        }
        frame::put(&mut out, b'K', |out| {
            out.extend_from_slice(&key.process.to_be_bytes());
            out.extend_from_slice(&key.secret);
        });
        out.extend_from_slice(&frame::READY_IDLE);
        self.write(&out).await?;
        self.told = Told::new(greeting.parameters.clone());
        for (name, value) in greeting.parameters.iter() {
            self.note_mode(name, value);
        }
        self.carried = Carried::new(startup.settings);
        self.begins_temporary = greeting.temporary_path;
        self.makes_temporary = self.has_temporary_path();
        self.reader = Some(context);
        Ok(Welcomed {
            defaults: greeting.defaults,
            implicit_transactions: false,
            begins: Begins::default(),
            first: Vec::new(),
        })
    }

    /// Asks a server what a session with this client's startup settings looks like.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error, FATAL as at a login, when it does not take them.
    pub(super) async fn ask_greeting(&mut self, server: &mut Backend) -> Result<Greeting, Fault> {
        let startup = self.startup.as_ref().expect("a client is welcomed once");
        let wanted = &startup.settings;
        let mut statements = wanted.statements_from(server.carried.now());
        if !statements.is_empty() {
            statements.insert(0, settings::RUN_ANYWHERE.into());
            server.execute_all(&statements).await.map_err(as_fatal)?;
            server.carried.bring(&Arc::new(wanted.copied()));
        }
        // A standby shows settings also to sessions that are serializable by default, and selects nothing.
        let rows = server
            .query_all(
                "SHOW default_transaction_isolation; SHOW default_transaction_read_only; SHOW search_path",
            )
            .await
            .map_err(as_fatal)?;
        let value = |row: usize| rows.get(row).and_then(|row| row.first()?.as_deref());
        let defaults = TransactionModes {
            isolation: value(0).and_then(Isolation::parse),
            read_only: value(1).map(|value| value == "on"),
            deferrable: None,
        };
        let parameters = server.parameters.iter().map(|(name, value)| match name {
            // The endpoint is a primary, whichever server answered.
            "in_hot_standby" => (name, "off"),
            _ => (name, value),
        });
        let temporary_path = value(2).is_some_and(names_temporary);
        Ok(Greeting { parameters: Arc::new(parameters.collect()), defaults, temporary_path })
    }
}

/// What a server does not take of a startup packet ends the login.
fn as_fatal(mut fault: Fault) -> Fault {
    if let Fault::Refused(refused) = &mut fault {
        make_fatal(&mut refused.raw);
    }
    fault
}

/// Turns a server's ERROR into the FATAL that it would be at a login.
fn make_fatal(raw: &mut [u8]) {
    let mut at = frame::HEADER;
    while at < raw.len() && raw[at] != 0 {
        let kind = raw[at];
        let Some(end) = memchr::memchr(0, &raw[at + 1..]).map(|end| at + 1 + end) else { return };
        if matches!(kind, b'S' | b'V') && &raw[at + 1..end] == b"ERROR" {
            raw[at + 1..end].copy_from_slice(b"FATAL");
        }
        at = end + 1;
    }
}

/// What a client is told when it cannot come in after all.
pub(super) fn fatal(refusal: &Refusal) -> Vec<u8> {
    let mut out = Vec::new();
    refusal::put_error(&mut out, &Refusal { fatal: true, ..refusal.clone() });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_split_as_the_server_splits_them() {
        let parsed = parse_options(r"-c a=1 -cb=two\ words --search-path=x,y  -c geqo=off").expect("valid");
        let expected = [("a", "1"), ("b", "two words"), ("search_path", "x,y"), ("geqo", "off")];
        assert_eq!(parsed.len(), expected.len());
        for ((name, value), (expected_name, expected_value)) in parsed.iter().zip(expected) {
            assert_eq!((name.as_str(), value.as_str()), (expected_name, expected_value));
        }
        assert!(parse_options("-c nothing").is_err());
        assert!(parse_options("-z").is_err());
    }

    #[test]
    fn settings_of_the_proxy_are_kept_from_the_server() {
        let parameters = [("options".to_owned(), "-c pointsman.consistency=global -c jit=off".to_owned())];
        let request = StartupRequest::read(&parameters, 0).expect("valid");
        assert_eq!(request.settings.get("jit"), Some("off"));
        assert_eq!(
            request.commands,
            [ProxyCommand::Set {
                name: "consistency".into(),
                value: "global".into(),
                scope: Scope::Session,
                column: None
            }]
        );
    }
}
