//! Answers that no server gives: of statements held back, of the proxy's own settings, and errors.

use super::{
    command::{Command, code},
    frontend::Frontend,
    packet::{self, HEADER, capability as can, put_lenenc, put_lenenc_bytes},
};
use crate::{
    protocol::{Answer, Column, Fault, Request, Transaction},
    sql::Effect,
};

/// In the place of the length of a value, in a row of text.
const NULL_VALUE: u8 = 0xFB;
/// `MYSQL_TYPE_VAR_STRING`.
const VAR_STRING: u8 = 253;
/// utf8mb4_general_ci.
const UTF8: u16 = 45;
/// Of an answer's column, in characters.
const WIDTH: u32 = 1024;

impl Frontend {
    pub(super) async fn answer_here(
        &mut self,
        request: &Request<Command>,
        answer: Answer<'_>,
        transaction: Transaction,
    ) -> Result<(), Fault> {
        self.told = transaction;
        match request.intent.effects[..] {
            [Effect::SetTransaction(modes)] => {
                self.next_read_only = modes.read_only.or(self.next_read_only);
                self.next_said = true;
            }
            [Effect::Begin(modes)] => {
                let said_before = self.next_read_only.take();
                self.next_said = false;
                self.read_only = modes.read_only.or(said_before).unwrap_or(self.reads_only);
            }
            [Effect::Commit { .. } | Effect::Rollback { .. }, ..] => {
                (self.next_read_only, self.next_said) = (None, false);
            }
            _ => {}
        }
        let status = self.status(transaction);
        let mut out = Vec::with_capacity(64);
        match answer {
            Answer::Done if request.intent.statements == 0 => {
                packet::put_err(&mut out, self.sequence, 1065, "42000", b"Query was empty");
            }
            Answer::Done | Answer::RolledBack | Answer::WithoutEffect => {
                packet::put_ok(&mut out, self.sequence, status)
            }
            Answer::Row(columns) => {
                let binary = request.wire.code == code::STMT_EXECUTE;
                self.put_row(&mut out, columns, binary, status);
            }
        }
        self.finish_answer(&out).await
    }

    fn put_row(&self, out: &mut Vec<u8>, columns: &[Column<'_>], binary: bool, status: u16) {
        let deprecates_eof = self.capabilities & can::DEPRECATE_EOF != 0;
        let mut sequence = self.sequence;
        let mut next = || {
            let this = sequence;
            sequence = sequence.wrapping_add(1);
            this
        };
        packet::put(out, next(), |out| put_lenenc(out, columns.len() as u64));
        for column in columns {
            packet::put(out, next(), |out| self.put_definition(out, column.name));
        }
        if !deprecates_eof {
            put_eof(out, next(), status);
        }
        packet::put(out, next(), |out| {
            if binary {
                // A row's mark, and which columns are NULL, from the third bit on.
                out.push(0);
                let nulls = out.len();
                out.resize(nulls + (columns.len() + 9) / 8, 0);
                for (at, _) in columns.iter().enumerate().filter(|(_, column)| column.value.is_none()) {
                    out[nulls + (at + 2) / 8] |= 1 << ((at + 2) % 8);
                }
            }
            for column in columns {
                match column.value {
                    Some(value) => put_lenenc_bytes(out, value.as_bytes()),
                    None if binary => {}
                    None => out.push(NULL_VALUE),
                }
            }
        });
        if deprecates_eof {
            packet::put(out, next(), |out| {
                out.extend_from_slice(&[packet::EOF, 0, 0]);
                out.extend_from_slice(&status.to_le_bytes());
                out.extend_from_slice(&[0, 0]);
            });
        } else {
            put_eof(out, next(), status);
        }
    }

    fn put_definition(&self, out: &mut Vec<u8>, column: &str) {
        put_lenenc_bytes(out, b"def");
        for text in ["", "", "", column, ""] {
            put_lenenc_bytes(out, text.as_bytes());
        }
        if self.capabilities & can::EXTENDED_METADATA != 0 {
            put_lenenc_bytes(out, b"");
        }
        out.push(12);
        out.extend_from_slice(&UTF8.to_le_bytes());
        out.extend_from_slice(&WIDTH.to_le_bytes());
        out.extend_from_slice(&[VAR_STRING, 0, 0, 0, 0, 0]);
    }

    /// Answers a request with an error packet that is written already.
    pub(super) async fn fail_request(&mut self, mut error: Vec<u8>) -> Result<(), Fault> {
        self.consume();
        self.drop_tail().await?;
        if let Some(sequence) = error.get_mut(HEADER - 1) {
            *sequence = self.sequence;
        }
        self.finish_answer(&error).await
    }

    async fn finish_answer(&mut self, out: &[u8]) -> Result<(), Fault> {
        self.consume();
        self.write(out).await
    }
}

fn put_eof(out: &mut Vec<u8>, sequence: u8, status: u16) {
    packet::put(out, sequence, |out| {
        out.extend_from_slice(&[packet::EOF, 0, 0]);
        out.extend_from_slice(&status.to_le_bytes());
    });
}
