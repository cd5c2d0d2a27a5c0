//! Prepared statements: the client's by ids of our own, a server connection's by the server's.

use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use xxhash_rust::xxh3::xxh3_128;

use super::settings::Settings;
use crate::sql::{Intent, LexModes};

/// Most statements of one client: MySQL's default of `max_prepared_stmt_count`.
pub const MAX_STATEMENTS: usize = 16_382;

/// In place of an id: the statement prepared last (`LAST_STMT_ID`, MariaDB). Clients so send both in
/// one flight.
pub const NEWEST: u32 = u32::MAX;

/// Bytes of long parameter values that are kept for one client: the largest `max_allowed_packet`
/// would be 1 GiB, the default is 64 MiB.
pub const MAX_LONG_DATA: usize = 64 * 1024 * 1024;

/// A statement that a client has prepared.
#[derive(Clone, Debug)]
pub struct Statement {
    pub text: Box<[u8]>,
    /// By which its text was read, and in whose schema names in it were looked up.
    pub settings: Arc<Settings>,
    /// By text and the settings that its meaning depends on.
    pub key: u128,
    /// The modes in which its text is read.
    pub modes: LexModes,
    pub intent: Arc<Intent>,
    /// That of the classifier and catalog by which it was judged last.
    pub generation: u64,
    pub parameters: u16,
}

impl Statement {
    pub fn key_of(text: &[u8], settings: &Settings) -> u128 {
        xxh3_128(&[&settings.reading().to_le_bytes(), text].concat())
    }
}

/// What a client has given a name by SQL PREPARE.
#[derive(Debug)]
pub struct OwnStatement {
    /// The statement that prepares it.
    pub statement: Box<str>,
    /// What executing it does.
    pub inner: Arc<Intent>,
    /// As [`Statement::settings`].
    pub settings: Arc<Settings>,
    /// As [`Statement::key`].
    pub key: u128,
    /// As [`Statement::modes`].
    pub modes: LexModes,
}

impl OwnStatement {
    pub fn new(statement: Box<str>, inner: Intent, settings: Arc<Settings>, modes: LexModes) -> Self {
        let key = Statement::key_of(statement.as_bytes(), &settings);
        Self { statement, inner: Arc::new(inner), settings, key, modes }
    }
}

/// What is wrong with long parameter values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LongDataFault {
    /// They were too many to be kept.
    TooMuch,
    /// One was for a parameter that the statement does not have. That holds until it is reset.
    NoParameter,
}

/// One client's use of a statement.
#[derive(Debug)]
pub struct Handle {
    pub statement: Arc<Statement>,
    /// The types of its parameters as sent last: executions may leave them out.
    pub types: Box<[u8]>,
    /// COM_STMT_SEND_LONG_DATA packets that wait for the execution.
    pub long_data: Vec<u8>,
    /// Why the execution they are for must not run.
    pub long_data_fault: Option<LongDataFault>,
    /// It opened a cursor.
    pub cursor: bool,
}

/// One client's statements, by the ids it was given.
#[derive(Debug, Default)]
pub struct ClientStatements {
    handles: HashMap<u32, Handle>,
    last: u32,
    /// The id of the statement prepared last, unless that failed.
    newest: Option<u32>,
    /// Statements so far that are shared with nobody.
    unshared: u64,
    long_data: usize,
}

impl ClientStatements {
    pub fn is_full(&self) -> bool {
        self.handles.len() >= MAX_STATEMENTS
    }

    /// Enters a statement and returns its id.
    pub fn enter(&mut self, statement: Arc<Statement>) -> u32 {
        loop {
            self.last = self.last.wrapping_add(1);
            if self.last != 0 && self.last != NEWEST && !self.handles.contains_key(&self.last) {
                break;
            }
        }
        let handle = Handle {
            statement,
            types: Box::default(),
            long_data: Vec::new(),
            long_data_fault: None,
            cursor: false,
        };
        self.handles.insert(self.last, handle);
        self.newest = Some(self.last);
        self.last
    }

    /// The key of a statement that is shared with nobody: prepared anew, it is another one.
    pub fn key_of_its_own(&mut self, session: u32) -> u128 {
        self.unshared += 1;
        let parts = [&session.to_le_bytes()[..], &self.unshared.to_le_bytes()[..]];
        xxh3_128(&parts.concat())
    }

    /// A statement is being prepared: there is no newest one until that has succeeded.
    pub fn begin(&mut self) {
        self.newest = None;
    }

    /// The id that MariaDB's clients mean by [`NEWEST`].
    pub fn newest(&self) -> Option<u32> {
        self.newest
    }

    pub fn get(&self, id: u32) -> Option<&Handle> {
        self.handles.get(&id)
    }

    pub fn get_mut(&mut self, id: u32) -> Option<&mut Handle> {
        self.handles.get_mut(&id)
    }

    /// Whether a cursor of any of them is open.
    pub fn has_cursor(&self) -> bool {
        self.handles.values().any(|handle| handle.cursor)
    }

    pub fn remove(&mut self, id: u32) -> Option<Handle> {
        let handle = self.handles.remove(&id)?;
        self.long_data -= handle.long_data.len();
        Some(handle)
    }

    pub fn clear(&mut self) {
        self.handles.clear();
        self.newest = None;
        self.long_data = 0;
    }

    /// Keeps packets of a long value of a parameter. Nothing answers them: that there is no such statement or
    /// parameter, or that they are too many, is told to the execution. A server connection's statement,
    /// which others use, too, must not get them then.
    pub fn keep_long_data(&mut self, id: u32, parameter: u16, packets: &[u8]) {
        let Some(handle) = self.handles.get_mut(&id).filter(|handle| handle.long_data_fault.is_none()) else {
            return;
        };
        let fault = match () {
            () if parameter >= handle.statement.parameters => Some(LongDataFault::NoParameter),
            () if self.long_data + packets.len() > MAX_LONG_DATA => Some(LongDataFault::TooMuch),
            () => None,
        };
        if fault.is_some() {
            handle.long_data_fault = fault;
            self.long_data -= std::mem::take(&mut handle.long_data).len();
            return;
        }
        handle.long_data.extend_from_slice(packets);
        self.long_data += packets.len();
    }

    pub fn forget_long_data(&mut self, id: u32) {
        if let Some(handle) = self.handles.get_mut(&id) {
            self.long_data -= std::mem::take(&mut handle.long_data).len();
            handle.long_data_fault = None;
        }
    }
}

/// Statements of a server connection, bounded; the one not used for longest goes first.
#[derive(Debug)]
pub struct ServerStatements {
    ids: HashMap<u128, (u32, u64)>,
    capacity: usize,
    clock: u64,
}

impl ServerStatements {
    pub fn new(capacity: usize) -> Self {
        Self { ids: HashMap::new(), capacity: capacity.max(1), clock: 0 }
    }

    pub fn get(&mut self, key: u128) -> Option<u32> {
        self.clock += 1;
        let entry = self.ids.get_mut(&key)?;
        entry.1 = self.clock;
        Some(entry.0)
    }

    /// Enters a statement; returns the id of one that has to be closed for it.
    pub fn enter(&mut self, key: u128, id: u32) -> Option<u32> {
        self.clock += 1;
        let replaced = self.ids.insert(key, (id, self.clock)).map(|(id, _)| id);
        if replaced.is_some() || self.ids.len() <= self.capacity {
            return replaced;
        }
        let oldest = self.ids.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key)?;
        self.ids.remove(&oldest).map(|(id, _)| id)
    }

    /// Forgets a statement that is to be closed; returns its id.
    pub fn remove(&mut self, key: u128) -> Option<u32> {
        self.ids.remove(&key).map(|(id, _)| id)
    }

    pub fn clear(&mut self) {
        self.ids.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Dialect;

    #[test]
    fn the_newest_statement_is_the_one_prepared_last_if_that_succeeded() {
        let intent = Arc::new(Intent::of_session(1));
        let statement = Arc::new(Statement {
            text: Box::default(),
            settings: Arc::default(),
            key: 1,
            modes: LexModes::default_of(Dialect::Mysql),
            intent,
            generation: 0,
            parameters: 0,
        });
        let mut statements = ClientStatements::default();
        assert_eq!(statements.newest(), None);
        for _ in 0..2 {
            statements.begin();
            let id = statements.enter(statement.clone());
            assert_eq!(statements.newest(), Some(id));
        }
        statements.begin();
        assert_eq!(statements.newest(), None);
    }

    #[test]
    fn the_statement_not_used_for_longest_is_closed() {
        let mut statements = ServerStatements::new(2);
        assert_eq!(statements.enter(1, 11), None);
        assert_eq!(statements.enter(2, 12), None);
        assert_eq!(statements.get(1), Some(11));
        assert_eq!(statements.enter(3, 13), Some(12));
        assert_eq!((statements.get(1), statements.get(2), statements.get(3)), (Some(11), None, Some(13)));
        assert_eq!(statements.enter(3, 14), Some(13));
    }
}
