//! One request → what is sent to this server connection for it, and what is expected back.

use std::collections::VecDeque;

use super::{
    batch::{Batch, End, Kind, Message, Subject},
    bind,
    frame::{self, HEADER},
    frontend::{Frontend, body_at},
    prepared::{self, Origin, Own, Resolved, ServerStatements, Statement},
};

/// One answer that is due, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Expect {
    /// ParseComplete. `key`: forget that statement if it fails. `named`: the client defined a name.
    Parse {
        forward: bool,
        key: Option<u128>,
        named: bool,
    },
    Bind {
        forward: bool,
    },
    Close {
        forward: bool,
    },
    /// ParameterDescription, then RowDescription or NoData. `named`: the client's name and the
    /// server's key of the statement whose shape this tells.
    DescribeStatement {
        named: Option<(Box<[u8]>, u128)>,
    },
    /// RowDescription or NoData. `named`: as above, of the statement that the portal was bound to.
    DescribePortal {
        named: Option<(Box<[u8]>, u128)>,
    },
    /// Rows and CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute(Whose),
    /// ReadyForQuery.
    Sync {
        forward: bool,
    },
    /// Everything up to ReadyForQuery.
    Query,
    FunctionCall,
    /// Comes from us, not from the server. `named`: a name of the client's changes with it.
    Inject {
        bytes: [u8; 5],
        named: bool,
    },
    /// Comes from nobody: what the server has under this name of a client's is now as it was noted.
    Own(Box<[u8]>),
    /// The server is made to fail here; the client gets this message instead of the server's.
    FailAs(Vec<u8>),
}

/// Whose Execute it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Client,
    /// A carried setting, or a statement sent ahead: the client sees nothing of its success.
    Ours,
    /// A question for the transaction's id: the same.
    Id,
}

/// The name that every version has; qualified, whatever the session's search_path.
const ID: &str = "SELECT pg_catalog.txid_current_if_assigned()";

/// The name of a portal of ours.
const PORTAL: &[u8] = b"pointsman";

/// Asks for the id of the transaction that the request is to commit.
pub fn put_question_for_id(out: &mut Vec<u8>, expect: &mut VecDeque<Expect>) {
    put_between(ID, Whose::Id, out, expect);
    out.extend_from_slice(&frame::FLUSH);
}

/// Runs a statement where a client may have bound its unnamed portal and not executed it yet: an earlier
/// part of its pipeline has.
fn put_between(sql: &str, whose: Whose, out: &mut Vec<u8>, expect: &mut VecDeque<Expect>) {
    frame::put_execute_in(out, PORTAL, sql);
    frame::put(out, b'C', |out| {
        out.push(b'P');
        frame::put_cstring(out, PORTAL);
    });
    expect.extend([
        Expect::Parse { forward: false, key: None, named: false },
        Expect::Bind { forward: false },
        Expect::Execute(whose),
        Expect::Close { forward: false },
    ]);
}

/// Sends statements ahead, in the same flight and the same implicit transaction.
pub fn put_ahead(statements: &[Box<str>], out: &mut Vec<u8>, expect: &mut VecDeque<Expect>) {
    for statement in statements {
        frame::put_execute(out, statement);
        expect.push_back(Expect::Parse { forward: false, key: None, named: false });
        expect.push_back(Expect::Bind { forward: false });
        expect.push_back(Expect::Execute(Whose::Ours));
    }
}

/// Prepares under a client's own name what its next statement will call by that name.
pub fn put_own(
    statement: &Statement,
    plan_key: u64,
    name: &[u8],
    server: &mut ServerStatements,
    out: &mut Vec<u8>,
    expect: &mut VecDeque<Expect>,
) {
    let own = Own { key: statement.key, plan_key };
    if server.own(name) == Some(own) {
        return;
    }
    if server.own(name).is_some() {
        put_close(name, out, expect);
    }
    match statement.origin {
        Origin::Sql => {
            put_between(&String::from_utf8_lossy(&statement.body), Whose::Ours, out, expect);
        }
        Origin::Parse => {
            put_parse(name, &statement.body, out);
            expect.push_back(Expect::Parse { forward: false, key: None, named: false });
        }
    }
    server.set_own(name, own);
    expect.push_back(Expect::Own(name.into()));
}

/// Makes sure that a client's own name is taken, by whatever statement.
pub fn put_taken(
    name: &[u8],
    server: &mut ServerStatements,
    out: &mut Vec<u8>,
    expect: &mut VecDeque<Expect>,
) {
    if server.own(name).is_none() {
        // Without types of parameters.
        put_parse(name, b"SELECT 1\0\0\0", out);
        expect.push_back(Expect::Parse { forward: false, key: None, named: false });
        server.doubt_own(name);
    }
}

/// Closes what has a name that the client has not given.
pub fn put_no_own(
    name: &[u8],
    server: &mut ServerStatements,
    out: &mut Vec<u8>,
    expect: &mut VecDeque<Expect>,
) {
    if server.own(name).is_some() {
        put_close(name, out, expect);
        server.remove_own(name);
        expect.push_back(Expect::Own(name.into()));
    }
}

/// Closes a prepared statement by its name on the server.
pub fn put_close(name: &[u8], out: &mut Vec<u8>, expect: &mut VecDeque<Expect>) {
    frame::put(out, b'C', |out| {
        out.push(b'S');
        frame::put_cstring(out, name);
    });
    expect.push_back(Expect::Close { forward: false });
}

/// Closes a shared statement by its number.
pub fn put_close_number(number: u32, out: &mut Vec<u8>, expect: &mut VecDeque<Expect>) {
    frame::put(out, b'C', |out| {
        out.push(b'S');
        prepared::put_server_name(out, number);
    });
    expect.push_back(Expect::Close { forward: false });
}

/// Prepares a statement under its number.
pub fn put_parse_number(number: u32, body: &[u8], out: &mut Vec<u8>) {
    frame::put(out, b'P', |out| {
        prepared::put_server_name(out, number);
        out.extend_from_slice(body);
    });
}

/// Describes a shared statement.
pub fn put_describe_number(number: u32, out: &mut Vec<u8>) {
    frame::put(out, b'D', |out| {
        out.push(b'S');
        prepared::put_server_name(out, number);
    });
}

fn put_parse(name: &[u8], body: &[u8], out: &mut Vec<u8>) {
    frame::put(out, b'P', |out| {
        frame::put_cstring(out, name);
        out.extend_from_slice(body);
    });
}

/// Writes an extended batch for one server connection.
pub struct BatchWriter<'a> {
    pub server: &'a mut ServerStatements,
    pub expect: &'a mut VecDeque<Expect>,
    pub out: &'a mut Vec<u8>,
    /// Of those settings of the session that a Parse depends on.
    pub plan_key: u64,
    /// The transaction has failed: whatever is bound, the server refuses it by that.
    pub failed: bool,
    /// The batch's bytes.
    pub data: &'a [u8],
    /// What the last message bound, if that was a named statement.
    pub bound: Option<Bound<'a>>,
}

/// Names of a portal and of its statement, and the server's key of that.
#[derive(Clone, Copy)]
pub struct Bound<'a> {
    portal: &'a [u8],
    name: &'a [u8],
    key: u128,
}

impl BatchWriter<'_> {
    /// Writes all messages. Returns whether anything differs from what the client sent; if not,
    /// nothing was written.
    pub fn write(&mut self, batch: &Batch, frontend: &Frontend) -> bool {
        let rewritten = self.must_rewrite(batch);
        for (index, message) in batch.messages.iter().enumerate() {
            if rewritten {
                self.message(index, message, batch, frontend);
            } else {
                self.expect_plain(message);
            }
            if let Subject::Unnamed(key) = message.subject {
                self.note_unnamed(message.tag, self.planned(key));
            }
        }
        rewritten
    }

    fn must_rewrite(&self, batch: &Batch) -> bool {
        let mut has = self.server.unnamed;
        batch.messages.iter().any(|message| match &message.subject {
            Subject::Plain => false,
            Subject::Unnamed(key) if matches!(message.tag, b'P' | b'C') => {
                has = self.planned(*key);
                false
            }
            Subject::Unnamed(key) => has != self.planned(*key),
            Subject::Named(_) | Subject::CloseNamed | Subject::Duplicate(_) => true,
        })
    }

    /// The key of a statement that is prepared under the session's settings.
    fn planned(&self, key: Option<u128>) -> Option<u128> {
        key.map(|key| key ^ u128::from(self.plan_key))
    }

    /// Follows what the server's unnamed statement becomes.
    fn note_unnamed(&mut self, tag: u8, key: Option<u128>) {
        if matches!(tag, b'P' | b'C') {
            self.server.unnamed = key;
        }
    }

    fn expect_plain(&mut self, message: &Message) {
        match message.tag {
            b'P' => self.expect.push_back(Expect::Parse { forward: true, key: None, named: false }),
            b'B' => self.expect.push_back(Expect::Bind { forward: true }),
            b'D' => self.expect.push_back(self.describes(message)),
            b'C' => self.expect.push_back(Expect::Close { forward: true }),
            b'E' => self.expect.push_back(Expect::Execute(Whose::Client)),
            b'S' => self.expect.push_back(Expect::Sync { forward: true }),
            _ => {}
        }
    }

    fn describes(&self, message: &Message) -> Expect {
        match self.data.get(body_at(message)) {
            Some(b'S') => Expect::DescribeStatement { named: None },
            _ => Expect::DescribePortal { named: None },
        }
    }

    fn message(&mut self, index: usize, message: &Message, batch: &Batch, frontend: &Frontend) {
        let bound = self.bound.take();
        match &message.subject {
            Subject::Plain => {
                self.copy(message);
                match bound.filter(|bound| self.tells_shape(message, bound, frontend)) {
                    Some(Bound { name, key, .. }) => {
                        self.expect.push_back(Expect::DescribePortal { named: Some((name.into(), key)) });
                    }
                    None => self.expect_plain(message),
                }
            }
            Subject::Unnamed(key) => {
                if !matches!(message.tag, b'P' | b'C') && self.server.unnamed != self.planned(*key) {
                    self.repair_unnamed(*key, batch, frontend);
                }
                self.copy(message);
                self.expect_plain(message);
            }
            Subject::Named(statement) => self.named((index, message), statement, batch, frontend),
            Subject::CloseNamed => {
                self.expect.push_back(Expect::Inject { bytes: frame::CLOSE_COMPLETE, named: true });
            }
            Subject::Duplicate(taken) => self.duplicate(message, taken),
        }
    }

    /// Whether a message describes what was just bound, and not as it is known already.
    fn tells_shape(&self, message: &Message, bound: &Bound<'_>, frontend: &Frontend) -> bool {
        let body = &self.data[body_at(message)..message.at + message.length];
        let described = body.strip_prefix(b"P").and_then(frame::split_cstring);
        let told = frontend.statements.told(bound.name);
        message.tag == b'D'
            && described.is_some_and(|(portal, _)| portal == bound.portal)
            && (told.is_none() || told != self.server.shape(bound.key))
    }

    fn copy(&mut self, message: &Message) {
        self.out.extend_from_slice(&self.data[message.at..message.at + message.length]);
    }

    /// Brings the server's unnamed statement to what the client means by it: defined as it was
    /// before, or none, so that another session's does not answer to this client's Bind.
    fn repair_unnamed(&mut self, key: Option<u128>, batch: &Batch, frontend: &Frontend) {
        let previous = batch.previous_unnamed.as_ref().map(|(key, body)| (*key, &**body));
        let current = match frontend.statements.resolve(b"") {
            Some(Resolved::Unnamed { key, body, .. }) => Some((key, body)),
            _ => None,
        };
        let body = [previous, current].into_iter().flatten().find(|(other, _)| Some(*other) == key);
        match body {
            Some((_, body)) => {
                put_parse(b"", body, self.out);
                self.expect.push_back(Expect::Parse { forward: false, key: None, named: false });
            }
            None => put_close(b"", self.out, self.expect),
        }
        self.server.unnamed = self.planned(key);
    }

    /// Parse, Bind or Describe of a named statement: by the name it has on this server.
    fn named(
        &mut self,
        (index, message): (usize, &Message),
        statement: &Statement,
        batch: &Batch,
        frontend: &Frontend,
    ) {
        let data = self.data;
        let body = &data[body_at(message)..message.at + message.length];
        let key = statement.key ^ u128::from(self.plan_key);
        if message.tag == b'P' {
            self.close_outdated(key);
            match self.server.find(key) {
                Some(_) => {
                    self.expect.push_back(Expect::Inject { bytes: frame::PARSE_COMPLETE, named: true });
                }
                None => self.prepare(key, statement, true),
            }
            return;
        }
        let number = match self.server.find(key) {
            Some(number) => number,
            None => {
                self.prepare(key, statement, false);
                self.server.find(key).expect("it has just been prepared")
            }
        };
        match message.tag {
            b'B' if !self.failed
                && self.is_out_of_shape(body, key, frontend)
                && !batch.takes_any_shape(index, data) =>
            {
                self.fail_shape();
            }
            b'B' => {
                self.bind(message, body, number);
                self.bound = bind::names(body).map(|(portal, name, _)| Bound { portal, name, key });
            }
            _ => {
                let name = frame::split_cstring(&body[1..]).map_or(&body[1..], |(name, _)| name).into();
                put_describe_number(number, self.out);
                self.expect.push_back(Expect::DescribeStatement { named: Some((name, key)) });
            }
        }
    }

    /// Whether this server would answer a Bind with other columns than the client was told.
    fn is_out_of_shape(&self, body: &[u8], key: u128, frontend: &Frontend) -> bool {
        let told = bind::names(body).and_then(|(_, name, _)| frontend.statements.told(name));
        matches!((told, self.server.shape(key)), (Some(told), Some(has)) if told != has)
    }

    /// The error by which drivers know that they have to prepare anew, as the server gives it;
    /// the rest of the unit is skipped and what came before is undone, as behind the server's own.
    fn fail_shape(&mut self) {
        frame::put(self.out, b'D', |out| {
            out.push(b'S');
            frame::put_cstring(out, b"pointsman_no_such_statement");
        });
        let mut error = Vec::new();
        frame::put(&mut error, b'E', |out| {
            for field in [
                "SERROR",
                "VERROR",
                "C0A000",
                "Mcached plan must not change result type",
                "Fplancache.c",
                "RRevalidateCachedQuery",
            ] {
                frame::put_cstring(out, field.as_bytes());
            }
            out.push(0);
        });
        self.expect.push_back(Expect::FailAs(error));
    }

    /// A server would prepare it anew, behind definitions by which it may be another statement.
    fn close_outdated(&mut self, key: u128) {
        if self.server.is_outdated(key)
            && let Some(number) = self.server.retire(key)
        {
            put_close_number(number, self.out, self.expect);
        }
    }

    fn prepare(&mut self, key: u128, statement: &Statement, forward: bool) {
        let (number, evicted) = self.server.insert(key);
        if let Some(evicted) = evicted {
            put_close_number(evicted, self.out, self.expect);
        }
        put_parse_number(number, &statement.body, self.out);
        self.expect.push_back(Expect::Parse { forward, key: Some(key), named: forward });
    }

    /// A Bind whose end may not have arrived: the length word counts what is still to come.
    fn bind(&mut self, message: &Message, body: &[u8], number: u32) {
        let (portal, _, rest) = bind::names(body).expect("the frontend has found the names");
        let start = self.out.len();
        frame::put(self.out, b'B', |out| {
            frame::put_cstring(out, portal);
            prepared::put_server_name(out, number);
            out.extend_from_slice(rest);
        });
        let announced = frame::header(&self.data[message.at..]).expect("the message is in the batch").length;
        let missing = announced - message.length;
        if missing > 0 {
            let length =
                u32::try_from(self.out.len() - start - 1 + missing).expect("the client's was within bounds");
            self.out[start + 1..start + HEADER].copy_from_slice(&length.to_be_bytes());
        }
        self.expect.push_back(Expect::Bind { forward: true });
    }

    /// The server itself says that the name is taken: it gets both definitions under it.
    fn duplicate(&mut self, message: &Message, taken: &Statement) {
        let body = &self.data[body_at(message)..message.at + message.length];
        let (name, _) = frame::split_cstring(body).expect("the frontend has found the name");
        put_own(taken, self.plan_key, name, self.server, self.out, self.expect);
        self.copy(message);
        self.expect_plain(message);
    }
}

/// What is due for a request that goes out as it is.
pub fn expect_single(batch: &Batch, expect: &mut VecDeque<Expect>) {
    match batch.kind {
        Kind::Query => expect.push_back(Expect::Query),
        Kind::FunctionCall => expect.push_back(Expect::FunctionCall),
        Kind::Extended => unreachable!("extended batches have a writer"),
    }
}

/// Whether an answer is due at the end of this batch: a Query and a FunctionCall are sent to their end.
pub const fn answer_due(batch: &Batch) -> bool {
    !matches!((batch.kind, batch.end), (Kind::Extended, End::More { .. }))
}
