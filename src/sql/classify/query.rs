//! Queries and INSERT, UPDATE, DELETE, MERGE: parsed, surveyed, judged by the catalog.

use std::borrow::Cow;

use sqlparser::{
    ast::Statement,
    dialect::{MySqlDialect, PostgreSqlDialect},
    parser::Parser,
    tokenizer::Token,
};

use super::{
    Cx, calls,
    relations::{self, Use},
    survey::{Into, Survey},
    verdict::{Touched, Verdict},
};
use crate::sql::{
    Access, Dialect, Reason,
    effects::{Effect, PinReason},
    lexer::{Kind, strip::strip, tokens::Phrase},
};

/// Stripped text that is parsed at most, in bytes. A chain of operators as long as this allows
/// must not overflow the stack when its tree is dropped.
pub(in crate::sql) const MAX_PARSED_BYTES: usize = 32 * 1024;
/// Tokens of stripped text that are parsed at most.
pub(in crate::sql) const MAX_PARSED_TOKENS: usize = 4000;
/// Nesting that is parsed at most.
const MAX_NESTING: usize = 48;

/// Judges a query or a data-modifying statement.
pub(super) fn judge(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let Some(source) = parser_text(phrase, cx) else { return unparsed(phrase, cx, Reason::Unparsed) };
    if source.len() > MAX_PARSED_BYTES || phrase.len() > MAX_PARSED_TOKENS {
        return unparsed(phrase, cx, Reason::TooLong);
    }
    let Some(statement) = parse(&source, cx.dialect) else {
        return unparsed(phrase, cx, Reason::Unparsed);
    };
    let survey = Survey::of(&statement, cx.dialect);
    if survey.strange {
        return unparsed(phrase, cx, Reason::Unparsed);
    }
    let mut verdict = weigh(&survey, phrase, cx);
    calls::weigh_unlisted(&mut verdict, &survey.calls, phrase, cx);
    tokens_of_interest(&mut verdict, phrase, cx, survey.writes);
    verdict
}

/// What the parser gets to read. `None`: not text.
fn parser_text(phrase: &Phrase<'_>, cx: &Cx<'_>) -> Option<String> {
    let stripped = match cx.dialect {
        Dialect::Postgres => strip(&without_only(phrase), cx.dialect, cx.modes),
        Dialect::Mysql => strip(&without_modifiers(phrase), cx.dialect, cx.modes),
    };
    let mut text = match (cx.dialect, String::from_utf8(stripped)) {
        (_, Ok(text)) => text,
        // Bytes of a single-byte encoding in an identifier: a letter to PostgreSQL, possibly white
        // space to MySQL.
        (Dialect::Postgres, Err(error)) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        (Dialect::Mysql, Err(_)) => return None,
    };
    if phrase.is(0, "table") {
        text.replace_range(..5, "SELECT * FROM");
    }
    Some(text)
}

/// Blanks the ONLY of `FROM ONLY t`, which the parser takes for the name of a table.
fn without_only<'a>(phrase: &Phrase<'a>) -> Cow<'a, [u8]> {
    let mut source = Cow::Borrowed(phrase.source());
    for at in (1..phrase.len()).filter(|&at| phrase.is(at, "only")) {
        let names_relation = phrase.is_any(at - 1, &["from", "join", "update", "into", "table", "using"])
            || phrase.punct(at - 1, b',');
        if names_relation && matches!(phrase.kind(at + 1), Some(Kind::Word | Kind::Quoted)) {
            let start = phrase.tokens[at].start - phrase.tokens[0].start;
            source.to_mut()[start..start + "only".len()].fill(b' ');
        }
    }
    source
}

/// Blanks the IGNORE of `UPDATE IGNORE t` and its like, which the parser takes for the name of a table.
fn without_modifiers<'a>(phrase: &Phrase<'a>) -> Cow<'a, [u8]> {
    let mut source = Cow::Borrowed(phrase.source());
    for verb in (0..phrase.len()).filter(|&at| phrase.is_any(at, &["update", "delete"])) {
        // QUICK is a name elsewhere.
        let words: &[&str] = if phrase.is(verb, "delete") {
            &["low_priority", "quick", "ignore"]
        } else {
            &["low_priority", "ignore"]
        };
        for at in (verb + 1..phrase.len()).take_while(|&at| phrase.is_any(at, words)) {
            let token = &phrase.tokens[at];
            let start = phrase.tokens[0].start;
            source.to_mut()[token.start - start..token.end - start].fill(b' ');
        }
    }
    source
}

fn parse(source: &str, dialect: Dialect) -> Option<Statement> {
    let dialect: &dyn sqlparser::dialect::Dialect = match dialect {
        Dialect::Postgres => &PostgreSqlDialect {},
        Dialect::Mysql => &MySqlDialect {},
    };
    let mut parser = Parser::new(dialect).with_recursion_limit(MAX_NESTING).try_with_sql(source).ok()?;
    let statement = parser.parse_statement().ok()?;
    (parser.peek_token_ref().token == Token::EOF).then_some(statement)
}

fn weigh(survey: &Survey, phrase: &Phrase<'_>, cx: &Cx<'_>) -> Verdict {
    let mut verdict = Verdict { plain: cx.catalog.loaded, by_text: survey.by_text, ..Verdict::read() };
    if survey.writes {
        verdict.raise(Reason::Dml);
        if survey.inserts || phrase.contains(&["default"]) {
            verdict.effect(Effect::DrawsSequence);
        }
    }
    if let Some(into) = survey.into {
        verdict.raise(if cx.dialect == Dialect::Mysql { Reason::State } else { Reason::Ddl });
        verdict.plain = false;
        let into = if into_temporary(phrase, cx.dialect) { Into::Temporary } else { into };
        match (into, cx.dialect) {
            (Into::Temporary, _) => verdict.pin(PinReason::TempTable),
            (Into::Table, Dialect::Postgres) => verdict.effect(Effect::Ddl),
            (Into::Table, Dialect::Mysql) => {}
        }
        if cx.dialect == Dialect::Postgres {
            relations::weigh_definition(&mut verdict, cx);
        }
    }
    if survey.locks {
        verdict.raise(Reason::Lock);
    }
    for call in &survey.calls {
        calls::weigh(&mut verdict, call, phrase, cx);
    }
    // What the operators of a relation's column types do is part of a loaded catalog.
    if survey.foreign_operator || (survey.added_operator && !cx.catalog.loaded) {
        verdict.raise(Reason::Function);
        calls::unknown_code(&mut verdict);
    }
    for relation in &survey.relations {
        relations::weigh(&mut verdict, relation, Use::Read, cx);
    }
    for target in &survey.targets {
        relations::weigh(&mut verdict, target, Use::Write, cx);
    }
    if !cx.catalog.loaded {
        verdict.tables = Touched::All;
    }
    verdict
}

/// Whether a query puts its rows into a temporary table, by whichever word says so.
fn into_temporary(phrase: &Phrase<'_>, dialect: Dialect) -> bool {
    let makes_one = |at: usize| {
        let kind = at + 1 + usize::from(phrase.is_any(at + 1, &["local", "global"]));
        let name = kind + usize::from(phrase.is(kind, "table"));
        let in_schema = phrase.punct(name + 1, b'.')
            && [name, name + 2].iter().any(|&part| {
                phrase.punct(part + 1, b'.')
                    && phrase.name(part).is_some_and(|schema| schema.starts_with("pg_temp"))
            });
        in_schema || phrase.is_any(kind, &["temp", "temporary"])
    };
    let inserts = |at: usize| at > 0 && phrase.is_any(at - 1, &["insert", "merge"]);
    dialect == Dialect::Postgres
        && (0..phrase.len()).any(|at| phrase.is(at, "into") && !inserts(at) && makes_one(at))
}

/// What is seen in the tokens rather than in the tree: variables, attribute notation, and words
/// that a read never holds, in case the parser took them for something else.
fn tokens_of_interest(verdict: &mut Verdict, phrase: &Phrase<'_>, cx: &Cx<'_>, writes: bool) {
    for at in 0..phrase.len() {
        let after_dot = at > 0 && phrase.punct(at - 1, b'.');
        match phrase.kind(at) {
            Some(Kind::Word | Kind::Quoted) if after_dot => calls::weigh_attribute(verdict, phrase, at, cx),
            // The tree does not name the relation of `… UNION TABLE t`.
            Some(Kind::Word) if at > 0 && phrase.is(at, "table") && !phrase.is(at - 1, "as") => {
                verdict.raise(Reason::Unparsed);
                verdict.tables = Touched::All;
                verdict.plain = false;
            }
            Some(Kind::Word) if !writes && !phrase.punct(at + 1, b'(') => {
                let suspicious = phrase.is_any(at, &["insert", "update", "delete", "merge", "into"]);
                let named = at > 0 && phrase.is(at - 1, "as");
                if suspicious && !named {
                    verdict.raise(Reason::Unparsed);
                }
            }
            _ => {}
        }
    }
    if cx.dialect == Dialect::Mysql {
        super::mysql::weigh_variables(verdict, phrase);
    }
}

/// A statement that was not parsed: judged by its leading keyword and by the names before `(`.
pub(super) fn unparsed(phrase: &Phrase<'_>, cx: &Cx<'_>, reason: Reason) -> Verdict {
    let is_dml = phrase.is_any(0, &["insert", "update", "delete", "merge", "replace"]);
    let locks = ["update", "share", "no", "key"].iter().any(|strength| phrase.contains(&["for", strength]));
    let mut verdict = Verdict::write(match reason {
        _ if is_dml => Reason::Dml,
        Reason::Unparsed if locks => Reason::Lock,
        reason => reason,
    });
    verdict.effect(Effect::DrawsSequence);
    calls::weigh_tokens(&mut verdict, phrase, cx);
    relations::weigh_tokens(&mut verdict, phrase, cx);
    if into_temporary(phrase, cx.dialect) {
        verdict.pin(PinReason::TempTable);
    } else if cx.dialect == Dialect::Postgres && phrase.contains(&["into"]) && !is_dml {
        verdict.effect(Effect::Ddl);
        relations::weigh_definition(&mut verdict, cx);
    }
    if cx.dialect == Dialect::Mysql {
        super::mysql::weigh_variables(&mut verdict, phrase);
    }
    verdict.plain = false;
    verdict.access = Access::Write;
    verdict
}
