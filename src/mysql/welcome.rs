//! From "authenticated" to "ready": the schema is checked, and what new sessions begin with is
//! known.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use mysql_common::collations::{Collation, CollationId};

use super::{
    backend::Backend,
    completion::Completion,
    compress::{Algorithm, Wire},
    frontend::{Frontend, Startup},
    packet::{self, HEADER, capability as can, status},
    settings::{Carried, NAMES, Settings},
};
use crate::{
    protocol::{Begins, Fault, Frontend as _, ReaderContext, Welcomed},
    refusal::{Refusal, RefusalKind},
    sql::{
        Effect, Isolation,
        effects::{Scope, TransactionModes},
    },
    stream::Stream,
};

/// What every session with the same user and schema begins with.
#[derive(Debug)]
pub struct Greeting {
    sql_mode: Box<str>,
    autocommit: bool,
    completion: Completion,
    defaults: TransactionModes,
    /// What servers run first for this user.
    init_connect: Box<str>,
    /// The collation that sessions begin with, whatever their clients ask for.
    forced_collation: Option<Box<str>>,
    mariadb: bool,
}

/// Names of both, since MariaDB renamed the isolation's variable with 11.1 and MySQL with 8.0.
const MARIADB_DEFAULTS: &str = "SELECT @@GLOBAL.sql_mode, @@GLOBAL.autocommit, @@GLOBAL.tx_isolation, @@GLOBAL.init_connect, \
     @@GLOBAL.completion_type";
const MYSQL_DEFAULTS: &str = "SELECT @@GLOBAL.sql_mode, @@GLOBAL.autocommit, @@GLOBAL.transaction_isolation, @@GLOBAL.init_connect, \
     @@GLOBAL.completion_type";

/// MariaDB's collation of names of files; to MySQL there is none of that number.
const FILENAME: u8 = 17;

/// For who has one of these no server runs `init_connect`.
const EXEMPT: [&str; 3] = ["SUPER", "CONNECTION ADMIN", "CONNECTION_ADMIN"];

impl Frontend {
    pub(super) fn known_greeting(&mut self) -> Option<Arc<Greeting>> {
        let startup = self.startup.as_mut()?;
        match self.gate.shared.greeting(&self.user, startup.schema.as_deref()) {
            Ok(greeting) => Some(greeting),
            Err(since) => {
                startup.unknown_since.get_or_insert(since);
                None
            }
        }
    }

    /// Asks a server what sessions begin with, and for the schema.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error, when there is no such schema for this user.
    pub(super) async fn ask_greeting(&mut self, server: &mut Backend) -> Result<Greeting, Fault> {
        let schema = self.startup.as_ref().and_then(|startup| startup.schema.clone());
        let wanted = Arc::new(Settings::default().with_schema(schema.as_deref()));
        if schema.is_some() {
            server.bring(&wanted).await?;
        }
        let mariadb = server.is_mariadb();
        let question = if mariadb { MARIADB_DEFAULTS } else { MYSQL_DEFAULTS };
        let rows = server.query_all(question).await?;
        let text =
            |column: usize| rows.first().and_then(|row| row.get(column)?.as_deref()).unwrap_or_default();
        let mut init_connect = text(3).trim();
        if !init_connect.is_empty() {
            self.gate.shared.has_init_connect.store(true, Ordering::Relaxed);
            server.clean().await?;
            if server.privileges().await?.iter().any(|held| EXEMPT.contains(&&**held)) {
                init_connect = "";
            }
        }
        Ok(Greeting {
            init_connect: init_connect.into(),
            forced_collation: self.gate.shared.forced_collation(),
            sql_mode: text(0).into(),
            autocommit: text(1) != "0",
            completion: Completion::parse(text(4)),
            defaults: TransactionModes {
                isolation: Isolation::parse(text(2)),
                ..TransactionModes::default()
            },
            mariadb,
        })
    }

    pub(super) fn remember_greeting(&self, greeting: &Arc<Greeting>) {
        let Some(startup) = &self.startup else { return };
        if let Some(since) = startup.unknown_since {
            self.gate.shared.remember(&self.user, startup.schema.as_deref(), greeting, since);
        }
    }

    /// Tells the client that it is in.
    pub(super) async fn greet(
        &mut self,
        greeting: &Greeting,
        context: ReaderContext,
    ) -> Result<Welcomed, Fault> {
        self.reader = Some(context);
        self.mariadb = greeting.mariadb;
        self.note_sql_mode(&greeting.sql_mode);
        self.autocommit = greeting.autocommit;
        (self.completion, self.startup_completion) = (greeting.completion, greeting.completion);
        let modes = self.modes;
        self.lexing = if modes.standard_strings { status::NO_BACKSLASH_ESCAPES } else { 0 }
            | if modes.ansi_quotes && greeting.mariadb { status::ANSI_QUOTES } else { 0 };
        let startup = self.startup.take();
        if let Some(startup) = &startup {
            let names = greeting.names_for(startup.collation);
            if let Some((charset, _)) = &names
                && !is_for_clients(charset)
            {
                return Err(self.refuse_charset(charset).await);
            }
            let first = self.first_settings(startup, names.as_ref());
            let names = match greeting.mariadb {
                true => names.map(|(_, statement)| statement),
                false => Some("SET NAMES DEFAULT".to_owned()),
            };
            let reset = names.map_or_else(Settings::default, |names| Settings::default().with(NAMES, &names));
            self.carried = Carried::new(first, reset);
        }
        self.startup_modes = self.modes;
        let first = self.first_effects(&greeting.init_connect);
        let mut out = Vec::new();
        packet::put_ok(&mut out, self.sequence, self.status(crate::protocol::Transaction::Idle));
        self.write(&out).await?;
        self.compress(startup.and_then(|startup| startup.compression));
        Ok(Welcomed {
            defaults: greeting.defaults,
            implicit_transactions: !greeting.autocommit,
            begins: if greeting.mariadb { Begins::Anew } else { Begins::AsBefore },
            first,
        })
    }

    /// As servers answer a login whose character set they could not read statements in.
    async fn refuse_charset(&mut self, charset: &str) -> Fault {
        let message = format!("Variable 'character_set_client' can't be set to the value of '{charset}'");
        let refusal = Refusal::fatal(RefusalKind::InvalidSetting, message);
        self.farewell(&refusal).await;
        Fault::Protocol(refusal)
    }

    /// Has the session carry what `init_connect` sets, as if its client had said so: server connections, which
    /// sessions share, are reset where they were opened.
    fn first_effects(&mut self, init_connect: &str) -> Vec<Effect> {
        let Some(reader) = self.reader.as_ref().filter(|_| !init_connect.is_empty()) else {
            return Vec::new();
        };
        let (database, catalog) = (&reader.database, reader.database.catalog());
        let text = init_connect.as_bytes();
        let intent = reader.classifier.intent(database.id(), &catalog, self.modes, text, Instant::now);
        let sets = |effect: &&Effect| matches!(effect, Effect::Set { scope: Scope::Session, .. });
        let first: Vec<Effect> = intent.effects.iter().filter(sets).cloned().collect();
        self.carried.learn(&first);
        for effect in &first {
            if let Effect::Set { name, value, .. } = effect {
                self.note_setting(name, value);
            }
        }
        first
    }

    /// What follows the last packet of the login is compressed, in both directions.
    fn compress(&mut self, algorithm: Option<Algorithm>) {
        if let Some(algorithm) = algorithm {
            let bare = std::mem::replace(&mut self.stream, Wire::Bare(Stream::Moving));
            self.stream = bare.compressed(algorithm, std::mem::take(&mut self.inbox));
        }
    }

    fn first_settings(&mut self, startup: &Startup, names: Option<&(String, String)>) -> Settings {
        let multi_statements = self.capabilities & can::MULTI_STATEMENTS != 0;
        let settings = Settings::default()
            .with_schema(startup.schema.as_deref())
            .with_multi_statements(multi_statements);
        match names {
            Some((charset, statement)) => {
                self.note_setting(NAMES, charset);
                settings.with(NAMES, statement)
            }
            None => settings,
        }
    }

    /// A server's error as the answer to what the client waits for.
    pub(super) async fn farewell_with(&mut self, raw: &[u8]) {
        let mut raw = raw.to_vec();
        if let Some(sequence) = raw.get_mut(HEADER - 1) {
            *sequence = self.sequence;
        }
        // The client may be gone already: then there is nobody to tell.
        let _ = self.write(&raw).await;
    }
}

impl Greeting {
    /// The character set that a session begins with whose login asks for a collation by number, and the statement
    /// that sets both. `None`: the server's own.
    fn names_for(&self, collation: u8) -> Option<(String, String)> {
        let Some(forced) = &self.forced_collation else { return names_of(collation, self.mariadb) };
        let charset = forced.split_once('_').map_or(&**forced, |(charset, _)| charset);
        Some((charset.to_owned(), format!("SET NAMES {charset} COLLATE {forced}")))
    }
}

/// Whether text of clients can be in it: not where a character of ASCII has more bytes than one, and not in
/// the one that MariaDB has for names of files (`is_supported_parser_charset`).
fn is_for_clients(charset: &str) -> bool {
    !matches!(charset, "ucs2" | "utf16" | "utf16le" | "utf32" | "filename")
}

/// The character set of a collation, and the statement that sets both. `None`: there is no such collation.
fn names_of(collation: u8, mariadb: bool) -> Option<(String, String)> {
    if mariadb && collation == FILENAME {
        return Some(("filename".to_owned(), "SET NAMES filename".to_owned()));
    }
    let id = CollationId::from(u16::from(collation));
    if id == CollationId::UNKNOWN_COLLATION_ID {
        return None;
    }
    let collation = Collation::resolve(id);
    let (charset, name) = (collation.charset(), collation.collation());
    let statement = if mariadb && name.contains("_0900_") {
        // MySQL 8's: MariaDB takes the character set and its own collation.
        format!("SET NAMES {charset}")
    } else {
        format!("SET NAMES {charset} COLLATE {name}")
    };
    Some((charset.to_owned(), statement))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collations_number_becomes_the_statement_that_sets_it() {
        for (number, mariadb, statement) in [
            (45, true, Some("SET NAMES utf8mb4 COLLATE utf8mb4_general_ci")),
            (8, false, Some("SET NAMES latin1 COLLATE latin1_swedish_ci")),
            (255, false, Some("SET NAMES utf8mb4 COLLATE utf8mb4_0900_ai_ci")),
            (255, true, Some("SET NAMES utf8mb4")),
            (0, false, None),
        ] {
            let found = names_of(number, mariadb).map(|(_, statement)| statement);
            assert_eq!(found.as_deref(), statement, "{number}");
        }
    }
}
