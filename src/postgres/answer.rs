//! Answers that no server gives: of statements held back, of the proxy's own settings, and errors.

use super::{
    batch::{Batch, End, Kind, Message, Subject},
    done::Done,
    frame::{self, HEADER},
    frontend::Frontend,
    refusal,
    relay::Outcome,
};
use crate::{
    protocol::{Answer, Column, Fault, Request, Transaction},
    sql::{Effect, Intent},
};

/// Type of the one column of an answer of ours.
const TEXT_OID: u32 = 25;

impl Frontend {
    pub(super) async fn answer_here(
        &mut self,
        request: &Request<Box<Batch>>,
        answer: Answer<'_>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        let batch = &request.wire;
        let answer = self.without_unwanted(answer);
        let mut out = Vec::with_capacity(64);
        if batch.kind == Kind::Extended {
            for message in &batch.messages {
                self.answer_message(message, batch, &request.intent, answer, &mut out);
            }
        } else {
            if matches!(answer, Answer::Row(_)) {
                put_description(&mut out, answer);
            }
            put_completion(&mut out, batch, &request.intent, answer);
        }
        if matches!(request.intent.effects[..], [Effect::Commit { .. } | Effect::Rollback { .. }]) {
            // What the transaction set stays set, or does not.
            let rolled_back = matches!(answer, Answer::RolledBack);
            let outcome = Outcome { failed: false, rolled_back, transaction, had_failed: false };
            self.learn(&request.intent, outcome, &Done::All);
        }
        self.finish_answer(batch, out, transaction).await
    }

    /// The answer without a warning that the client has turned off.
    fn without_unwanted<'a>(&self, answer: Answer<'a>) -> Answer<'a> {
        let level = self.carried.now().get("client_min_messages").unwrap_or_default();
        let is_off = level.trim_matches('\'').eq_ignore_ascii_case("error");
        match answer {
            Answer::WithoutEffect if is_off => Answer::Done,
            other => other,
        }
    }

    fn answer_message(
        &mut self,
        message: &Message,
        batch: &Batch,
        intent: &Intent,
        answer: Answer<'_>,
        out: &mut Vec<u8>,
    ) {
        match message.tag {
            b'P' => out.extend_from_slice(&frame::PARSE_COMPLETE),
            b'B' => out.extend_from_slice(&frame::BIND_COMPLETE),
            b'C' => out.extend_from_slice(&frame::CLOSE_COMPLETE),
            b'D' => {
                if self.inbox.data().get(message.at + HEADER) == Some(&b'S') {
                    // No parameters.
                    frame::put(out, b't', |out| out.extend_from_slice(&[0, 0]));
                }
                put_description(out, answer);
            }
            b'E' => put_completion(out, batch, intent, answer),
            _ => {}
        }
        let defines =
            matches!((message.tag, &message.subject), (b'P', Subject::Named(_)) | (_, Subject::CloseNamed));
        if defines {
            self.statements.confirm();
        }
    }

    /// Answers a request with an error message that is written already.
    pub(super) async fn fail_request(
        &mut self,
        batch: &Batch,
        error: Vec<u8>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.statements.forget_expected();
        if batch.kind == Kind::Extended && batch.end != End::Whole {
            // As the server does: nothing more is answered until the Sync.
            self.skip_to_sync = true;
        }
        self.finish_answer(batch, error, transaction).await
    }

    async fn finish_answer(
        &mut self,
        batch: &Batch,
        mut out: Vec<u8>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        if batch.end == End::Whole || batch.kind != Kind::Extended {
            let status = match transaction {
                Transaction::Idle | Transaction::Unit => b'I',
                Transaction::Open => b'T',
                Transaction::Failed => b'E',
            };
            out.extend_from_slice(&[b'Z', 0, 0, 0, 5, status]);
        }
        self.consume(batch);
        self.statements.settle();
        self.write(&out).await
    }
}

fn put_count(out: &mut Vec<u8>, columns: &[Column<'_>]) {
    let count = u16::try_from(columns.len()).expect("SHOW names one");
    out.extend_from_slice(&count.to_be_bytes());
}

fn put_description(out: &mut Vec<u8>, answer: Answer<'_>) {
    let Answer::Row(columns) = answer else {
        out.extend_from_slice(&frame::NO_DATA);
        return;
    };
    frame::put(out, b'T', |out| {
        put_count(out, columns);
        for column in columns {
            frame::put_cstring(out, column.name.as_bytes());
            // No table and column; the type, of variable length, without modifier; as text.
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&TEXT_OID.to_be_bytes());
            out.extend_from_slice(&(-1i16).to_be_bytes());
            out.extend_from_slice(&(-1i32).to_be_bytes());
            out.extend_from_slice(&[0; 2]);
        }
    });
}

fn put_completion(out: &mut Vec<u8>, batch: &Batch, intent: &Intent, answer: Answer<'_>) {
    if let Answer::Row(columns) = answer {
        frame::put(out, b'D', |out| {
            put_count(out, columns);
            for Column { value, .. } in columns {
                let Some(value) = value else {
                    out.extend_from_slice(&(-1i32).to_be_bytes());
                    continue;
                };
                let length = u32::try_from(value.len()).expect("values of ours are short");
                out.extend_from_slice(&length.to_be_bytes());
                out.extend_from_slice(value.as_bytes());
            }
        });
    }
    if let Answer::WithoutEffect = answer {
        refusal::put_warning(out, "25P01", "SET LOCAL can only be used in transaction blocks");
    }
    if intent.statements == 0 {
        out.extend_from_slice(&[b'I', 0, 0, 0, 4]);
        return;
    }
    let tag = match answer {
        Answer::Row(_) if is_select(batch.text.as_deref().unwrap_or("")) => "SELECT 1",
        Answer::Row(_) => "SHOW",
        Answer::RolledBack => "ROLLBACK",
        Answer::Done | Answer::WithoutEffect => command_tag(batch.text.as_deref().unwrap_or("")),
    };
    frame::put(out, b'C', |out| frame::put_cstring(out, tag.as_bytes()));
}

/// The command tag of a statement that can be held back or is the proxy's own.
fn command_tag(text: &str) -> &'static str {
    let mut words = words_outside_comments(text);
    let first = words.next().unwrap_or_default();
    match first.as_str() {
        "BEGIN" => "BEGIN",
        "START" => "START TRANSACTION",
        "COMMIT" | "END" => "COMMIT",
        "ROLLBACK" | "ABORT" => "ROLLBACK",
        "SAVEPOINT" => "SAVEPOINT",
        "RELEASE" => "RELEASE",
        "RESET" => "RESET",
        "SET" if words.next().is_some_and(|word| word == "CONSTRAINTS") => "SET CONSTRAINTS",
        _ => "SET",
    }
}

/// `SELECT set_config(…)` and `current_setting`.
fn is_select(text: &str) -> bool {
    words_outside_comments(text).next().is_some_and(|word| word == "SELECT")
}

/// The first words of a statement, in capitals.
fn words_outside_comments(text: &str) -> impl Iterator<Item = String> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start();
            if let Some(comment) = rest.strip_prefix("--") {
                rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
            } else if rest.starts_with("/*") {
                rest = &rest[comment_length(rest)..];
            } else {
                break;
            }
        }
        let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        rest = behind;
        (!word.is_empty()).then(|| word.to_ascii_uppercase())
    })
}

/// Length of the comment at the start of `text`; comments nest.
fn comment_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let (mut at, mut depth) = (0, 0);
    while at + 1 < bytes.len() {
        match &bytes[at..at + 2] {
            b"/*" => {
                depth += 1;
                at += 2;
            }
            b"*/" => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_statements_are_answered_with_the_servers_tags() {
        for (text, tag) in [
            ("begin", "BEGIN"),
            ("/* a /* b */ */ START TRANSACTION READ ONLY", "START TRANSACTION"),
            ("-- x\n commit;", "COMMIT"),
            ("end", "COMMIT"),
            ("abort", "ROLLBACK"),
            ("set constraints all deferred", "SET CONSTRAINTS"),
            ("SET LOCAL a = 1", "SET"),
        ] {
            assert_eq!(command_tag(text), tag, "{text}");
        }
    }
}
