//! What the body of a function may leave behind in the session that calls it: of one of PostgreSQL's here.

pub mod mysql;

use super::{
    Dialect, LexModes,
    functions::{Builtin, PRIMARY_SETTINGS, builtin},
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
    system_view,
};

/// Words after which a session may not be as it was, or that hide what is run.
const TELLTALES: [&str; 16] = [
    "set_config",
    "setseed",
    "reset",
    "temp",
    "temporary",
    "listen",
    "prepare",
    "deallocate",
    "currval",
    "lastval",
    "execute",
    "discard",
    "load",
    "dblink",
    "ts_stat",
    "ts_rewrite",
];

/// Words of what sets off event triggers. (In SQL, `SELECT … INTO` does as well.)
pub const DEFINITIONS: [&str; 11] = [
    "create", "alter", "drop", "import", "comment", "security", "grant", "revoke", "refresh", "reindex",
    "reassign",
];

/// Words behind which a statement may begin, and with it an UPDATE.
const OPENERS: [&str; 11] =
    ["begin", "then", "else", "loop", "do", "atomic", "query", "in", "explain", "analyze", "verbose"];

/// What is known of the body of a function in SQL or PL/pgSQL by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    /// It has a word that may leave state behind. `SET LOCAL` counts too, which errs on the safe side, and so
    /// does what cannot be split into words.
    pub leaves: bool,
    /// It sets, locks or asks for what only the primary has, or what it alone tells: the server lets functions
    /// do so that are declared STABLE, and a standby as well.
    pub needs_primary: bool,
}

impl Body {
    pub fn read(text: &str) -> Self {
        let modes = LexModes::default_of(Dialect::Postgres);
        let tokens = Tokens::of(text.as_bytes(), Dialect::Postgres, modes);
        let body = Phrase { text: text.as_bytes(), tokens: &tokens.list, dialect: Dialect::Postgres, modes };
        Self {
            leaves: !tokens.scan.clean || has_telltale(&body),
            needs_primary: (0..body.len()).any(|at| names_primary(&body, at)),
        }
    }
}

fn names_primary(body: &Phrase<'_>, at: usize) -> bool {
    let Some(name) = body.name(at) else { return false };
    match builtin(Dialect::Postgres, &name) {
        Some(Builtin::Pure | Builtin::ReadsAll) => false,
        // A standby refuses these by itself.
        Some(Builtin::Writes | Builtin::Draws) => false,
        // Without its argument it is one that the catalog has looked at.
        Some(Builtin::CurrentSetting) => {
            let setting = body.string(at + 2).map(|setting| setting.to_ascii_lowercase());
            !body.punct(at + 1, b'(') || setting.is_some_and(|name| PRIMARY_SETTINGS.contains(&name.as_str()))
        }
        Some(_) => true,
        None => system_view(&name).is_some(),
    }
}

/// Whether a body that is in words already has such a word.
pub(super) fn has_telltale(body: &Phrase<'_>) -> bool {
    (0..body.len()).any(|at| tells(body, at))
}

fn tells(body: &Phrase<'_>, at: usize) -> bool {
    let Some(word) = body.name(at) else { return false };
    match word.as_str() {
        "set" => body.is(at, "set") && !assigns(body, at),
        // DECLARE of a PL/pgSQL block is none of a cursor; a held one says so.
        "hold" => at > 0 && body.is(at - 1, "with"),
        "create" | "alter" | "drop" => changes_code(body, at),
        // Not that of ON CONFLICT or a rule: a block of its own.
        "do" => body.is(at + 1, "language") || body.kind(at + 1) == Some(Kind::Text),
        word => {
            TELLTALES.contains(&word)
                || word.contains("advisory")
                || word.starts_with("pg_temp")
                || word.starts_with("query_to_xml")
        }
    }
}

/// Whether a definition changes what others run, which may be called before any catalog tells of it.
fn changes_code(body: &Phrase<'_>, at: usize) -> bool {
    const CODE: [&str; 6] = ["function", "procedure", "routine", "aggregate", "extension", "rule"];
    let at = if body.says(at + 1, &["or", "replace"]) { at + 3 } else { at + 1 };
    body.is_any(at, &CODE)
}

/// Whether this SET is that of an UPDATE.
fn assigns(body: &Phrase<'_>, set: usize) -> bool {
    // `UPDATE ONLY (database.schema.t) * AS alias SET`
    const LONGEST: usize = 12;
    (set.saturating_sub(LONGEST)..set)
        .any(|at| begins_update(body, at) && set_of_update(body, at) == Some(set))
}

/// Not the UPDATE of FOR UPDATE or of a trigger's events.
fn begins_update(body: &Phrase<'_>, at: usize) -> bool {
    let opened = at.checked_sub(1).is_none_or(|before| {
        body.kind(before) == Some(Kind::Semicolon)
            || body.is_any(before, &OPENERS)
            || [b'(', b')', b'>'].iter().any(|&byte| body.punct(before, byte))
    });
    opened && body.is(at, "update")
}

/// Where the SET of the UPDATE that begins at `at` stands.
fn set_of_update(body: &Phrase<'_>, at: usize) -> Option<usize> {
    let mut at = at + 1;
    // ON CONFLICT DO UPDATE SET, WHEN MATCHED THEN UPDATE SET
    if body.is(at, "set") {
        return Some(at);
    }
    at += usize::from(body.is(at, "only"));
    at += usize::from(body.punct(at, b'('));
    at = body.qualified(at)?.1;
    at += usize::from(body.punct(at, b')'));
    at += usize::from(body.punct(at, b'*'));
    at += usize::from(body.is(at, "as"));
    if !body.is(at, "set") && body.name(at).is_some() {
        at += 1;
    }
    body.is(at, "set").then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_that_may_leave_state_are_found() {
        for body in [
            "begin perform set_config('app.tenant', x, false); end",
            "begin set search_path = a; end",
            "begin execute 'select 1'; end",
            "select pg_try_advisory_lock(1)",
            "create temporary table x (a int)",
            "create table pg_temp.x (a int)",
            "select 1 into pg_temp_3.x",
            "begin perform 1 from t for update; set app.k = 'x'; end",
            "begin for r in select 1 from t for update loop set app.k = 'x'; end loop; end",
            "begin if tg_op = 'UPDATE' then set app.k = 'x'; end if; end",
            "begin -- update\n set app.k = 'x'; end",
            "begin /* update t */ set app.k = 'x'; end",
            "begin update t set a = 1; set app.k = 'x'; end",
            "begin update t set a = 1 where b = 'c'; if d then set role x; end if; end",
            "begin do $x$ begin null; end $x$; end",
            "declare c cursor with hold for select 1",
            "select query_to_xml('select 1', true, true, '')",
            "begin deallocate all; end",
            "begin create or replace function f() returns int language sql as ''; end",
            "begin drop procedure p; end",
            "\"set_config\" \"t\"",
            "begin return 'an open quote; end",
        ] {
            assert!(Body::read(body).leaves, "{body}");
        }
    }

    #[test]
    fn bodies_that_need_the_primary_are_told_from_those_that_hide_what_they_do() {
        for body in [
            "select set_config('app.tenant', $1, false)",
            "begin return pg_try_advisory_xact_lock(1); end",
            "select currval('s')",
            "select setseed(0.5)",
            "select not Pg_Is_In_Recovery()",
            "select count(*) from pg_stat_activity",
            "select current_setting('Transaction_Read_Only')",
            "\"current_setting\" ",
        ] {
            assert!(Body::read(body).needs_primary, "{body}");
        }
        for body in [
            "begin return query execute 'select ' || $1; end",
            "select 'set_config'",
            "select a from t",
            "select a, advisory from advisory_board",
            "select current_setting('app.tenant', true)",
            "select current_setting($1)",
            "select \"Pg_Is_In_Recovery\"",
            "select nextval('s')",
        ] {
            assert!(!Body::read(body).needs_primary, "{body}");
        }
    }

    #[test]
    fn bodies_that_change_rows_alone_leave_nothing() {
        for body in [
            "select a from t where b = $1",
            "begin update t set a = 1; return 2; end",
            "begin update only s.t as u set a = 1; end",
            "begin update t * u set a = 1, b = 2; update \"T\" set a = 2; end",
            "<<b>> begin if a then update t set a = 1; else update t set a = 2; end if; end",
            "begin return query update t set a = 1 returning a; end",
            "with u as (update t set a = 1 returning a) select a from u",
            "with u as (select 1) update t set a = 1",
            "insert into t values (1) on conflict do update set a = 2",
            "insert into t values (1) on conflict do nothing",
            "merge into t using u on t.a = u.a when matched then update set a = 1",
            "declare i int; begin return i; end",
            "begin create table t (rule text, function text); drop table t; end",
            "begin raise notice 'set to %, reset by execute', a; -- set a, then reset\n return new; end",
        ] {
            assert!(!Body::read(body).leaves, "{body}");
        }
    }
}
