//! What the body of a routine or trigger of MySQL's or MariaDB's has in it.

use std::collections::HashSet;

use crate::sql::{
    Dialect, LexModes,
    classify::{system_variable, tells_servers_apart},
    functions::{Builtin, builtin},
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// Names, folded.
pub type Names = HashSet<Box<str>>;

/// What is known of a body by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// It may leave state in the session, or hides what would.
    pub leaves: bool,
    /// It has a verb that writes, runs what is not known, or asks for what only the primary has.
    pub writes: bool,
    /// Whatever is named in it.
    pub names: Names,
    /// The procedures that it calls. `None`: the name is not to be told.
    pub called: Vec<Option<Box<str>>>,
}

/// Words that leave state, or hide what would.
const TELLTALES: [&str; 18] = [
    "get_lock",
    "release_lock",
    "release_all_locks",
    "temporary",
    "prepare",
    "execute",
    "last_insert_id",
    "lastval",
    "currval",
    "sql_calc_found_rows",
    "flush",
    "xa",
    "lock",
    "unlock",
    "backup",
    "install",
    "uninstall",
    "use",
];

const WRITES: [&str; 10] =
    ["insert", "update", "delete", "replace", "truncate", "call", "load", "create", "alter", "drop"];

/// Words behind which a statement begins.
const OPENERS: [&str; 6] = ["begin", "then", "else", "do", "loop", "repeat"];

/// Statements with a SET of their own.
const ASSIGNING: [&str; 7] = ["update", "insert", "replace", "load", "create", "alter", "with"];

impl Body {
    /// Reads a body by the modes that it was made in. `parameters`: those of its routine.
    pub fn read(text: &str, modes: LexModes, parameters: &Names) -> Self {
        let tokens = Tokens::of(text.as_bytes(), Dialect::Mysql, modes);
        if !tokens.scan.clean || tokens.scan.executable {
            return Self { leaves: true, writes: true, ..Self::default() };
        }
        let body = Phrase { text: text.as_bytes(), tokens: &tokens.list, dialect: Dialect::Mysql, modes };
        let names: Names = (0..body.len()).filter_map(|at| folded(&body, at)).collect();
        let locals: Names = parameters.iter().cloned().chain(declared(&body)).collect();
        let leaves = (0..body.len()).any(|at| tells(&body, at, &locals));
        let writes = WRITES.iter().any(|verb| names.contains(*verb))
            || (0..body.len()).any(|at| needs_primary(&body, at));
        let called =
            (0..body.len()).filter(|&at| body.is(at, "call")).map(|at| procedure(&body, at)).collect();
        Self { leaves, writes, names, called }
    }
}

fn folded(body: &Phrase<'_>, at: usize) -> Option<Box<str>> {
    Some(body.name(at)?.to_lowercase().into())
}

/// The variables of its blocks.
fn declared<'a>(body: &'a Phrase<'_>) -> impl Iterator<Item = Box<str>> + 'a {
    let declares = (0..body.len()).filter(|&at| body.is(at, "declare"));
    declares.flat_map(|declare| {
        let mut at = declare + 1;
        let mut names: Vec<Box<str>> = folded(body, at).into_iter().collect();
        while body.punct(at + 1, b',') {
            at += 2;
            names.extend(folded(body, at));
        }
        names
    })
}

/// The bare name of what the CALL at `call` calls.
fn procedure(body: &Phrase<'_>, call: usize) -> Option<Box<str>> {
    let first = folded(body, call + 1)?;
    if body.punct(call + 2, b'.') { folded(body, call + 3) } else { Some(first) }
}

fn tells(body: &Phrase<'_>, at: usize, locals: &Names) -> bool {
    match body.kind(at) {
        Some(Kind::UserVariable) => return true,
        Some(Kind::SystemVariable) => return is_last_id(body.raw(at)) || body.punct(at + 1, b'.'),
        Some(Kind::Word | Kind::Quoted) => {}
        _ => return false,
    }
    if body.is(at, "set") {
        return begins_statement(body, at) && !assigns_locals(body, at, locals);
    }
    // Not that of DECLARE … HANDLER.
    if body.is(at, "handler") {
        return at.checked_sub(1).is_none_or(|before| !body.is_any(before, &["continue", "exit", "undo"]));
    }
    body.says(at, &["previous", "value"]) || (body.is_any(at, &TELLTALES) && !is_harmless(body, at))
}

/// LAST_INSERT_ID() by other names: `@@identity`, `@@session.last_insert_id`; or the name stands apart.
fn is_last_id(variable: &[u8]) -> bool {
    matches!(system_variable(variable).as_str(), "identity" | "last_insert_id" | "")
}

/// Whether it locks rows for others, or asks what a server alone tells.
fn needs_primary(body: &Phrase<'_>, at: usize) -> bool {
    match body.kind(at) {
        Some(Kind::SystemVariable) => tells_servers_apart(&system_variable(body.raw(at))),
        Some(Kind::Word | Kind::Quoted) => {
            let calls = |name: String| builtin(Dialect::Mysql, &name) == Some(Builtin::Server);
            body.says(at, &["lock", "in", "share"])
                || body.says(at, &["for", "share"])
                || body.is(at, "performance_schema")
                || (body.punct(at + 1, b'(') && body.name(at).is_some_and(calls))
        }
        _ => false,
    }
}

/// `LOCK IN SHARE MODE`; and the USE of an index is none of a schema.
fn is_harmless(body: &Phrase<'_>, at: usize) -> bool {
    body.says(at, &["lock", "in"]) || (body.is(at, "use") && body.is_any(at + 1, &["index", "key"]))
}

/// Whether this SET is a statement. In doubt it is.
fn begins_statement(body: &Phrase<'_>, set: usize) -> bool {
    if set > 0 && body.is_any(set - 1, &["character", "char"]) {
        return false;
    }
    let is_boundary = |&at: &usize| {
        body.kind(at) == Some(Kind::Semicolon)
            || body.is_any(at, &OPENERS)
            || (body.punct(at, b':') && !body.punct(at + 1, b'='))
    };
    let begin = (0..set).rev().find(is_boundary).map_or(0, |at| at + 1);
    !body.is_any(begin, &ASSIGNING)
}

/// Whether this SET changes nothing but variables of the body and the row that a trigger is for.
fn assigns_locals(body: &Phrase<'_>, set: usize, locals: &Names) -> bool {
    let end = (set..body.len()).find(|&at| body.kind(at) == Some(Kind::Semicolon)).unwrap_or(body.len());
    body.range(set + 1..end).split_commas().iter().all(|assignment| {
        let is_field = assignment.punct(1, b'.');
        let assigned = is_field || assignment.punct(1, b'=') || assignment.punct(1, b':');
        let is_local = folded(assignment, 0).is_some_and(|name| locals.contains(&name));
        assigned && (is_local || (is_field && assignment.is(0, "new")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Body {
        let parameters = ["p".into(), "total".into()].into();
        Body::read(text, LexModes::default_of(Dialect::Mysql), &parameters)
    }

    #[test]
    fn bodies_that_may_leave_state_are_found() {
        for body in [
            "BEGIN SET sort_buffer_size = 65536; RETURN 1; END",
            "BEGIN SET p = 1, wait_timeout = 77; END",
            "BEGIN SET SESSION sql_safe_updates = 1; END",
            "BEGIN SET @@timestamp = 5; END",
            "BEGIN SET TRANSACTION ISOLATION LEVEL READ COMMITTED; END",
            "BEGIN SET NAMES latin1; END",
            "BEGIN SET ROLE admin; END",
            "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION SET sql_mode = ''; END",
            "BEGIN UPDATE t SET a = 1; SET time_zone = 'UTC'; END",
            "IF a THEN SET time_zone = 'UTC'; END IF",
            "BEGIN again: LOOP SET time_zone = 'UTC'; END LOOP; END",
            "SET @x = 1",
            "SELECT 1 INTO @x",
            "SELECT GET_LOCK('a', 0)",
            "BEGIN CREATE TEMPORARY TABLE x (a INT); END",
            "BEGIN PREPARE s FROM 'SELECT 1'; END",
            "BEGIN EXECUTE IMMEDIATE 'SELECT 1'; END",
            "HANDLER t OPEN",
            "XA START 'a'",
            "BEGIN FLUSH TABLES WITH READ LOCK; END",
            "BEGIN RETURN LAST_INSERT_ID(); END",
            "RETURN @@Identity",
            "RETURN @@session . identity",
            "RETURN @@session. identity",
            "RETURN LASTVAL(s)",
            "RETURN PREVIOUS VALUE FOR s",
            "BEGIN RETURN 'an open quote; END",
            "BEGIN /*!50000 SET time_zone = 'UTC'; */ END",
        ] {
            assert!(read(body).leaves, "{body}");
        }
    }

    #[test]
    fn bodies_that_work_on_rows_and_variables_of_their_own_leave_nothing() {
        for body in [
            "RETURN p + 1",
            "SET NEW.x = UPPER(NEW.x), new.y = 1",
            "BEGIN DECLARE a, b INT; DECLARE `c` INT DEFAULT 0; SET a = 1, b := f(1, 2), `C` = 3, p = a; END",
            "BEGIN DECLARE done INT; DECLARE c CURSOR FOR SELECT 1; \
             DECLARE CONTINUE HANDLER FOR NOT FOUND SET done = TRUE; OPEN c; END",
            "BEGIN DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END; START TRANSACTION; COMMIT; END",
            "BEGIN UPDATE t JOIN u ON t.a = u.a SET t.b = 1, t.time_zone = 2; INSERT INTO t SET a = 1; END",
            "BEGIN INSERT INTO t VALUES (1) ON DUPLICATE KEY UPDATE a = 'x@y'; -- @x\nEND",
            "BEGIN DECLARE v VARCHAR(9) CHARACTER SET latin1; SELECT @@port INTO v; SET total = 1; END",
            "SELECT 1 FROM t USE INDEX (i) LOCK IN SHARE MODE",
        ] {
            assert!(!read(body).leaves, "{body}");
        }
    }

    #[test]
    fn what_a_body_calls_is_told_without_its_schema() {
        let called = |text: &str| read(text).called;
        assert_eq!(
            called("BEGIN CALL One(p); CALL `s`.`Two`(); call s.three; SELECT 'call four()'; END"),
            ["one", "two", "three"].map(|name| Some(name.into()))
        );
        assert_eq!(called("BEGIN CALL 1; END"), [None]);
    }

    #[test]
    fn verbs_write_and_what_only_the_primary_has_is_asked_there() {
        for (body, writes) in [
            ("RETURN 1", false),
            ("SELECT 'insert' FROM t", false),
            ("INSERT INTO t VALUES (1)", true),
            ("CALL p()", true),
            ("RETURN 'open", true),
            ("RETURN @@read_only", true),
            ("RETURN @@global.gtid_executed", true),
            ("RETURN @@port", false),
            ("RETURN IS_FREE_LOCK('a')", true),
            ("SELECT a INTO b FROM t FOR SHARE", true),
            ("SELECT a INTO b FROM t LOCK IN SHARE MODE", true),
            ("SELECT share INTO b FROM t", false),
        ] {
            assert_eq!(read(body).writes, writes, "{body}");
        }
    }
}
