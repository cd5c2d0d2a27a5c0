//! MySQL's and MariaDB's statements other than queries, recognised by their tokens.

use super::{
    Cx, calls, classify_inner, mysql_kill, mysql_set, query, relations,
    survey::Named,
    transaction,
    verdict::{Touched, Verdict},
};
use crate::sql::{
    Reason, connection_id,
    effects::{Effect, Left, PinReason, ProxyCommand, Shown},
    lexer::{
        Kind,
        tokens::{Phrase, Tokens},
    },
};

/// Judges one statement.
pub(super) fn judge(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = judge_kind(phrase, cx);
    if let Some(name) = misplaced(phrase, &verdict) {
        return Verdict::session().with(Effect::Proxy(ProxyCommand::Misplaced { name }));
    }
    if connection_id::asks(phrase) {
        verdict.effect(Effect::AsksConnectionId);
    }
    verdict
}

fn judge_kind(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let leading = phrase.leading();
    match leading.as_str() {
        "begin" if phrase.is(1, "not") => Verdict::write(Reason::Command).with(Effect::Touches).apart(),
        "begin" | "commit" | "rollback" | "savepoint" | "release" => {
            transaction::command(phrase).unwrap_or_else(|| Verdict::write(Reason::Unparsed).apart())
        }
        "start" if phrase.is(1, "transaction") => {
            transaction::command(phrase).unwrap_or_else(|| Verdict::write(Reason::Unparsed).apart())
        }
        "select" if cx.depth == 0 => match shown_variables(phrase) {
            Some(verdict) => verdict,
            None => select(phrase, cx),
        },
        "select" | "with" | "values" | "table" | "" => select(phrase, cx),
        "insert" | "update" | "delete" | "replace" => query::judge(phrase, cx),
        "set" => mysql_set::set(phrase, cx),
        "show" => show(phrase, cx),
        "explain" | "describe" | "desc" | "analyze" => explain(phrase, &leading, cx),
        "use" => use_database(phrase),
        "kill" => mysql_kill::kill(phrase),
        "prepare" | "execute" | "deallocate" => prepared(phrase, &leading, cx),
        "drop" if phrase.is(1, "prepare") => prepared(phrase, &leading, cx),
        "xa" => xa(phrase),
        "backup" => backup(phrase),
        "lock" | "unlock" if phrase.is(1, "instance") => backup(phrase),
        "lock" | "unlock" | "flush" | "handler" => locks(phrase, &leading),
        "call" => call(phrase, cx),
        "do" => evaluate(phrase, cx),
        "load" | "import" => with_variables(
            Verdict::write(Reason::Dml).with(Effect::DrawsSequence).with(Effect::Touches),
            phrase,
        ),
        "get" => diagnostics(phrase),
        _ => definition(phrase, &leading, cx),
    }
}

/// What a procedure does is known by its bare name; its arguments are expressions.
fn call(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let name = phrase.qualified(1).map(|(name, _)| name);
    let known = name.as_ref().and_then(|name| cx.catalog.procedures.get(name.as_str()));
    let is_clean = name.as_ref().is_some_and(|name| cx.rules.clean.contains(name.as_str()));
    let mut verdict = Verdict::write(Reason::Command).with(Effect::DrawsSequence).with(Effect::Calls);
    if !is_clean && known.is_none_or(|procedure| procedure.touches) {
        verdict.effect(Effect::Touches);
    }
    if let Some(open) = (2..phrase.len()).find(|&at| phrase.punct(at, b'(')) {
        let arguments = phrase.from(open);
        calls::weigh_tokens(&mut verdict, &arguments, cx);
        relations::weigh_tokens(&mut verdict, &arguments, cx);
    }
    with_variables(verdict, phrase).apart()
}

/// `GET DIAGNOSTICS @a = NUMBER, …`.
fn diagnostics(phrase: &Phrase<'_>) -> Verdict {
    let left = if phrase.contains(&["row_count"]) { Left::Counts } else { Left::Diagnostics };
    let targets = (0..phrase.len())
        .filter(|&at| phrase.kind(at) == Some(Kind::UserVariable) && phrase.punct(at + 1, b'='));
    targets.fold(Verdict::state().with(Effect::NeedsLast(left)), |verdict, at| {
        verdict.with(mysql_set::assigns(phrase.raw(at)))
    })
}

/// Any of them may be given a value.
fn with_variables(verdict: Verdict, phrase: &Phrase<'_>) -> Verdict {
    let variables = (0..phrase.len()).filter(|&at| phrase.kind(at) == Some(Kind::UserVariable));
    variables.fold(verdict, |verdict, at| verdict.with(mysql_set::assigns(phrase.raw(at))))
}

fn select(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    if phrase.contains(&["lock", "in", "share", "mode"]) {
        let mut verdict = query::unparsed(phrase, cx, Reason::Lock);
        verdict.reason = Reason::Lock;
        return verdict;
    }
    if phrase.contains(&["sql_calc_found_rows"]) {
        // FOUND_ROWS() has to find this connection again.
        let mut verdict = query::judge(phrase, cx);
        verdict.raise(Reason::State);
        verdict.effect(Effect::DrawsSequence);
        return verdict;
    }
    query::judge(phrase, cx)
}

/// Variables in a query or a data-modifying statement.
pub(super) fn weigh_variables(verdict: &mut Verdict, phrase: &Phrase<'_>) {
    for at in 0..phrase.len() {
        match phrase.kind(at) {
            Some(Kind::UserVariable) => {
                verdict.raise(Reason::State);
                verdict.plain = false;
                let assigned = (phrase.punct(at + 1, b':') && phrase.punct(at + 2, b'='))
                    || phrase.contains(&["into"]) && is_into_list(phrase, at);
                if assigned {
                    verdict.effect(mysql_set::assigns(phrase.raw(at)));
                }
            }
            Some(Kind::SystemVariable) => weigh_system_variable(verdict, phrase, at),
            Some(Kind::Word)
                if phrase.says(at, &["into", "outfile"]) || phrase.says(at, &["into", "dumpfile"]) =>
            {
                verdict.raise(Reason::Command);
                verdict.plain = false;
            }
            Some(Kind::Word) if phrase.says(at, &["next", "value", "for"]) => {
                verdict.raise(Reason::State);
                verdict.effect(Effect::DrawsSequence);
            }
            Some(Kind::Word) if phrase.says(at, &["previous", "value", "for"]) => {
                verdict.raise(Reason::State);
                verdict.effect(Effect::NeedsPrevious);
            }
            _ => {}
        }
    }
}

/// Whether the variable at `at` stands in `INTO @a, @b`.
fn is_into_list(phrase: &Phrase<'_>, at: usize) -> bool {
    let mut before = at;
    while before >= 2 && phrase.punct(before - 1, b',') && phrase.kind(before - 2) == Some(Kind::UserVariable)
    {
        before -= 2;
    }
    before > 0 && phrase.is(before - 1, "into")
}

fn weigh_system_variable(verdict: &mut Verdict, phrase: &Phrase<'_>, at: usize) {
    let name = system_variable(phrase.raw(at));
    if !matches!(name.as_str(), "" | "global" | "session" | "local" | "persist") {
        return weigh_variable_named(verdict, &name);
    }
    // `@@session . name`: the name stands apart.
    let apart = at + 1 + usize::from(phrase.punct(at + 1, b'.'));
    if let Some(name) = phrase.name(apart) {
        weigh_variable_named(verdict, &name);
    }
    verdict.raise(Reason::Server);
}

fn weigh_variable_named(verdict: &mut Verdict, name: &str) {
    match name {
        name if tells_servers_apart(name) => verdict.raise(Reason::Server),
        "last_insert_id" | "identity" | "insert_id" => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::NeedsPrevious);
        }
        "warning_count" | "error_count" => {
            verdict.raise(Reason::State);
            verdict.effect(Effect::NeedsLast(Left::Diagnostics));
        }
        "pseudo_thread_id" | "rand_seed1" | "rand_seed2" | "timestamp" => verdict.raise(Reason::State),
        _ => {}
    }
}

/// Whether a system variable tells the primary from a replica.
pub(in crate::sql) fn tells_servers_apart(name: &str) -> bool {
    const READ_ONLY: [&str; 6] = [
        "read_only",
        "super_read_only",
        "innodb_read_only",
        "transaction_read_only",
        "tx_read_only",
        "in_transaction",
    ];
    READ_ONLY.contains(&name)
        || name.contains("gtid")
        || name.starts_with("rpl_")
        || name.starts_with("wsrep_")
}

/// The bare name of `@@session.name`.
pub(in crate::sql) fn system_variable(raw: &[u8]) -> String {
    let name = String::from_utf8_lossy(raw).to_lowercase().replace('`', "");
    let name = name.trim_start_matches('@');
    name.rsplit('.').next().unwrap_or(name).to_owned()
}

/// A variable of the proxy's own where only a server could answer for it, and would take it for one that was
/// never set.
fn misplaced(phrase: &Phrase<'_>, verdict: &Verdict) -> Option<Box<str>> {
    if verdict.effects.iter().any(|effect| matches!(effect, Effect::Proxy(_))) {
        return None;
    }
    let variables = (0..phrase.len()).filter(|&at| phrase.kind(at) == Some(Kind::UserVariable));
    variables.map(|at| phrase.raw(at)).find_map(mysql_set::proxy_variable)
}

/// `SELECT @pointsman_route, @pointsman_position AS p FROM DUAL LIMIT 1`.
fn shown_variables(phrase: &Phrase<'_>) -> Option<Verdict> {
    let (mut shown, mut at) = (Vec::new(), 1);
    loop {
        let (one, behind) = shown_variable(phrase, at)?;
        shown.push(one);
        at = behind;
        if !phrase.punct(at, b',') {
            break;
        }
        at += 1;
    }
    if phrase.says(at, &["from", "dual"]) {
        at += 2;
    }
    let alone = phrase.ends_at(at) || phrase.is(at, "limit");
    alone.then(|| Verdict::session().with(Effect::Proxy(ProxyCommand::Show { shown: shown.into() })))
}

/// One of them, in parentheses or not, and where it ends with its alias.
fn shown_variable(phrase: &Phrase<'_>, at: usize) -> Option<(Shown, usize)> {
    let opened = (at..).take_while(|&at| phrase.punct(at, b'(')).count();
    let variable = at + opened;
    let name = mysql_set::proxy_variable(phrase.raw(variable))?;
    let end = variable + 1 + opened;
    if !(variable + 1..end).all(|at| phrase.punct(at, b')')) {
        return None;
    }
    let says_as = phrase.is(end, "as");
    let behind = end + usize::from(says_as);
    let alias = alias(phrase, behind).filter(|_| says_as || !phrase.is_any(end, &["from", "limit", "into"]));
    let (column, end) = match alias {
        Some(alias) => (alias, behind + 1),
        None if says_as => return None,
        None => (phrase.range(at..end).source_text()?.to_owned(), end),
    };
    Some((Shown { name, column: column.into(), missing_ok: false }, end))
}

/// What a column is called: a name or a string.
fn alias(phrase: &Phrase<'_>, at: usize) -> Option<String> {
    let is_plain = |raw: &[u8]| matches!(raw.first(), Some(b'\'' | b'"'));
    match phrase.kind(at)? {
        Kind::Text if is_plain(phrase.raw(at)) => phrase.string(at),
        _ => phrase.spelled(at),
    }
}

fn show(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut at = 1;
    while phrase.is_any(at, &["full", "extended", "global", "session", "local", "all"]) {
        at += 1;
    }
    let diagnostics = phrase.is_any(at, &["warnings", "errors"])
        || (phrase.is(at, "count") && phrase.is_any(at + 4, &["warnings", "errors"]));
    if diagnostics {
        return Verdict::state().with(Effect::NeedsLast(Left::Diagnostics));
    }
    if phrase.is_any(at, &["profile", "profiles"]) {
        return Verdict::state().with(Effect::NeedsPrevious);
    }
    let reads_catalog = [
        "tables",
        "columns",
        "fields",
        "databases",
        "schemas",
        "create",
        "index",
        "indexes",
        "indices",
        "keys",
        "table",
        "triggers",
        "events",
        "function",
        "procedure",
        "package",
        "character",
        "charset",
        "collation",
        "grants",
        "privileges",
        "engines",
        "storage",
        "plugins",
    ];
    if !phrase.is_any(at, &reads_catalog) {
        return Verdict::server();
    }
    let mut verdict = Verdict::read();
    verdict.tables = Touched::All;
    // A WHERE clause may hold any expression.
    if phrase.contains(&["where"]) {
        super::calls::weigh_tokens(&mut verdict, phrase, cx);
        weigh_variables(&mut verdict, phrase);
    }
    verdict
}

fn explain(phrase: &Phrase<'_>, leading: &str, cx: &Cx<'_>) -> Verdict {
    if leading == "analyze" && phrase.is_any(1, &["table", "tables", "local", "no_write_to_binlog"]) {
        return definition(phrase, leading, cx);
    }
    let mut at = 1;
    while phrase.is_any(at, &["extended", "partitions", "analyze", "format"]) {
        at += if phrase.is(at, "format") { 3 } else { 1 };
    }
    if phrase.is_any(at, &["into", "for"]) {
        // EXPLAIN INTO @v, EXPLAIN FOR CONNECTION, EXPLAIN FOR SCHEMA.
        return with_variables(Verdict::server(), phrase);
    }
    let inner = phrase.from(at);
    let is_query = inner.punct(0, b'(')
        || inner.is_any(0, &["select", "insert", "update", "delete", "replace", "with", "values", "table"]);
    if is_query {
        return Verdict { plain: false, ..classify_inner(&inner, cx) };
    }
    match phrase.qualified(1).filter(|_| leading != "analyze") {
        Some((name, end)) => {
            let schema = if end > 2 { phrase.name(end - 3) } else { None };
            let mut verdict = Verdict::read();
            relations::weigh(&mut verdict, &Named { schema, name }, relations::Use::Read, cx);
            if !cx.catalog.loaded {
                verdict.tables = Touched::All;
            }
            verdict
        }
        None => Verdict::write(Reason::Unparsed),
    }
}

fn use_database(phrase: &Phrase<'_>) -> Verdict {
    let name = match phrase.kind(1) {
        // A database's name keeps its case. One in another character set is told by the server.
        Some(Kind::Word) => Some(String::from_utf8_lossy(phrase.raw(1)).into_owned()),
        Some(Kind::Quoted) => {
            let raw = String::from_utf8_lossy(phrase.raw(1));
            let quote = &raw[..1];
            Some(raw[1..raw.len() - 1].replace(&quote.repeat(2), quote))
        }
        _ => None,
    };
    match name.filter(|_| phrase.len() == 2) {
        Some(name) => Verdict::session().with(Effect::UseDatabase(name.into())),
        None => Verdict::state().with(Effect::Pin(PinReason::Setting)),
    }
}

fn prepared(phrase: &Phrase<'_>, leading: &str, cx: &Cx<'_>) -> Verdict {
    let odd = || Verdict::state().with(Effect::Touches).with(Effect::Pin(PinReason::Setting));
    match leading {
        "prepare" => prepare(phrase, cx).unwrap_or_else(|| match phrase.name(1) {
            Some(name) => odd().with(Effect::PreparesHere { name: name.into() }),
            None => odd(),
        }),
        "execute" if phrase.is(1, "immediate") => match killing(phrase, cx) {
            Some(kill) => odd().with(kill),
            None => odd(),
        },
        "execute" => match phrase.name(1) {
            Some(name) if phrase.len() == 2 || phrase.is(2, "using") => {
                Verdict::session().with(Effect::Execute { name: name.into() })
            }
            _ => odd(),
        },
        _ => match phrase.name(2) {
            Some(name) if phrase.is(1, "prepare") && phrase.len() == 3 => {
                Verdict::session().with(Effect::Deallocate { name: Some(name.into()) })
            }
            _ => Verdict::write(Reason::Unparsed),
        },
    }
}

/// `EXECUTE IMMEDIATE 'KILL …'`.
fn killing(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Option<Effect> {
    let text = phrase.string(2)?;
    let inner = super::classify(text.as_bytes(), cx.dialect, cx.modes, cx.catalog, cx.rules);
    inner.effects.into_iter().find(|effect| matches!(effect, Effect::Kill { .. }))
}

fn prepare(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Option<Verdict> {
    let name = phrase.name(1)?.into();
    let text = phrase.string(3).filter(|_| phrase.is(2, "from") && phrase.len() == 4)?;
    let mut inner = Box::new(super::classify(text.as_bytes(), cx.dialect, cx.modes, cx.catalog, cx.rules));
    inner.hints = inner.hints.over(cx.hints);
    let statement = phrase.source_text()?.into();
    Some(Verdict::session().with(Effect::Prepare { name, statement, inner }))
}

fn xa(phrase: &Phrase<'_>) -> Verdict {
    match () {
        () if phrase.is_any(1, &["start", "begin"]) => Verdict::transaction(Effect::BeginUnknown),
        () if phrase.is(1, "prepare") => {
            Verdict::write(Reason::Command).with(Effect::PrepareTransaction).apart()
        }
        () if phrase.is(1, "commit") => Verdict::write(Reason::Command).with(Effect::CommitXa).apart(),
        () if phrase.is(1, "recover") => Verdict::server().apart(),
        () => Verdict::write(Reason::Command).apart(),
    }
}

fn locks(phrase: &Phrase<'_>, leading: &str) -> Verdict {
    let tables = phrase.is_any(1, &["table", "tables"]);
    match leading {
        "lock" => Verdict::write(Reason::Lock).with(Effect::Pin(PinReason::TableLock)).outdoing(),
        "unlock" if tables => Verdict::write(Reason::Lock).with(Effect::Unpin(PinReason::TableLock)).apart(),
        "unlock" => Verdict::write(Reason::Lock).apart(),
        "handler" => {
            let verdict = Verdict { tables: Touched::All, ..Verdict::state() };
            let opens = (1..phrase.len()).any(|at| phrase.is(at, "open"));
            if opens { verdict.with(Effect::Pin(PinReason::Handler)) } else { verdict }
        }
        _ if phrase.contains(&["with", "read", "lock"]) || phrase.contains(&["for", "export"]) => {
            Verdict::write(Reason::Lock).with(Effect::Pin(PinReason::TableLock)).outdoing()
        }
        // FLUSH PRIVILEGES, after changes of the tables behind them.
        _ if phrase.contains(&["privileges"]) => {
            Verdict::write(Reason::Command).with(Effect::Logins).outdoing()
        }
        _ => Verdict::write(Reason::Command).outdoing(),
    }
}

/// MySQL's LOCK INSTANCE FOR BACKUP, MariaDB's BACKUP STAGE and BACKUP LOCK. BACKUP UNLOCK frees a table only:
/// the stage goes on.
fn backup(phrase: &Phrase<'_>) -> Verdict {
    let verdict = Verdict { outdoes: phrase.is(0, "backup"), ..Verdict::write(Reason::Lock).apart() };
    match () {
        () if phrase.is(0, "unlock") || phrase.says(1, &["stage", "end"]) => {
            verdict.with(Effect::Unpin(PinReason::BackupLock))
        }
        () if phrase.is(1, "unlock") => verdict,
        () => verdict.with(Effect::Pin(PinReason::BackupLock)),
    }
}

/// `DO expr, …`: judged as the SELECT of the same expressions, and sent to the primary.
fn evaluate(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = judge_values(&phrase.from(1), cx);
    verdict.raise(Reason::Command);
    Verdict { plain: false, ..verdict }
}

/// Judges expressions as a SELECT of them.
pub(super) fn judge_values(values: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut text = b"SELECT ".to_vec();
    text.extend_from_slice(values.source());
    let tokens = Tokens::of(&text, cx.dialect, cx.modes);
    query::judge(&Phrase { text: &text, tokens: &tokens.list, ..*values }, cx)
}

/// Whether the server commits what is open before it runs such a statement. Of temporary tables and what
/// belongs to replication it does not.
fn commits_first(phrase: &Phrase<'_>, leading: &str) -> bool {
    match leading {
        "create" | "drop" => !phrase.is(1, "temporary") && !phrase.says(1, &["or", "replace", "temporary"]),
        "alter" | "rename" | "truncate" | "grant" | "revoke" | "analyze" | "check" | "optimize"
        | "repair" | "install" | "uninstall" | "cache" => true,
        _ => false,
    }
}

/// Whether statements may run other code from then on than the catalog tells.
fn redefines(phrase: &Phrase<'_>, leading: &str) -> bool {
    const CODE: [&str; 5] = ["function", "procedure", "trigger", "view", "package"];
    const OTHERS: [&str; 8] =
        ["table", "index", "database", "schema", "sequence", "event", "server", "tablespace"];
    // OR REPLACE, ALGORITHM, DEFINER and SQL SECURITY may stand before it.
    let kind = (1..phrase.len()).find(|&at| phrase.is_any(at, &CODE) || phrase.is_any(at, &OTHERS));
    let is_code = kind.is_some_and(|at| phrase.is_any(at, &CODE));
    match leading {
        "create" => is_code,
        "alter" => is_code || phrase.contains(&["rename"]),
        "rename" => true,
        _ => false,
    }
}

/// The name that a temporary table is created by, if it stands without its schema.
fn temporary_name(phrase: &Phrase<'_>) -> Option<String> {
    let table = (1..phrase.len().min(6)).find(|&at| phrase.is(at, "table"))?;
    let at = if phrase.says(table + 1, &["if", "not", "exists"]) { table + 4 } else { table + 1 };
    phrase.name(at).filter(|_| !phrase.punct(at + 1, b'.'))
}

/// Whether a schema begins with other defaults from then on. Connections keep those that it had when they chose it,
/// also of one that was dropped: MariaDB creates tables by them.
fn begins_schema(phrase: &Phrase<'_>, leading: &str) -> bool {
    let at = if phrase.says(1, &["or", "replace"]) { 3 } else { 1 };
    matches!(leading, "create" | "alter") && phrase.is_any(at, &["database", "schema"])
}

/// Data definition and everything else that only a primary runs.
fn definition(phrase: &Phrase<'_>, leading: &str, _cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict::write(Reason::Ddl).apart();
    verdict.outdoes = commits_first(phrase, leading);
    match leading {
        "drop" | "alter" | "rename" if phrase.is_any(1, &["user", "role"]) => verdict.effect(Effect::Logins),
        "create" | "drop" | "alter" | "rename" | "truncate" => {
            verdict.effect(Effect::Ddl);
            if begins_schema(phrase, leading) {
                verdict.effect(Effect::Logins);
            }
            if redefines(phrase, leading) {
                verdict.effect(Effect::Redefines);
            }
            if phrase.is_any(1, &["temporary"]) || phrase.says(1, &["or", "replace", "temporary"]) {
                // What it is filled from may write.
                let filled = phrase.contains(&["select"]);
                verdict.reason = if filled { Reason::Ddl } else { Reason::State };
                if leading == "create" {
                    verdict.pin(PinReason::TempTable);
                    if let Some(name) = temporary_name(phrase) {
                        verdict.effect(Effect::Temporary { name: name.into(), until_end: false });
                    }
                }
            }
            if leading == "drop"
                && let Some(table) = (1..3).find(|&at| phrase.is_any(at, &["table", "tables"]))
            {
                verdict.effect(relations::drops(&phrase.from(table + 1)));
            }
            if phrase.contains(&["select"]) {
                verdict.effect(Effect::DrawsSequence);
            }
        }
        "grant" | "revoke" => verdict.effect(Effect::Logins),
        "analyze" | "check" | "checksum" | "optimize" | "repair" | "install" | "uninstall" => {}
        "change" | "start" | "stop" | "reset" | "purge" | "binlog" | "cache" | "clone" | "shutdown"
        | "restart" | "signal" | "resignal" | "help" | "change_master" => verdict.reason = Reason::Command,
        // Compound statements of MariaDB's among them, which may set anything.
        _ => {
            verdict.reason = Reason::Unparsed;
            verdict.effect(Effect::Touches);
        }
    }
    verdict
}
