//! Questions of our own to a server.

use std::io;

use tokio::io::AsyncWriteExt;

use super::{Backend, Row, UNKNOWN_STATEMENT, lost};
use crate::{
    postgres::{
        encode,
        frame::{self, HEADER},
        frontend::eof,
        prepared::{self, Shape, Statement},
    },
    protocol::{Fault, Refused, RefusedCause, Transaction},
};

/// Longest message in an answer to a question of our own, in bytes: the body of a function in the
/// catalog.
pub(super) const LONGEST_OWN_ANSWER: usize = 64 * 1024 * 1024;

impl Backend {
    /// Prepares a statement if need be, and finds out the shape of its result.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error.
    pub(in crate::postgres) async fn describe(
        &mut self,
        key: u128,
        statement: &Statement,
    ) -> Result<Shape, Fault> {
        let mut out = Vec::new();
        let found = self.statements.find(key);
        let number = found.unwrap_or_else(|| {
            let (number, evicted) = self.statements.insert(key);
            self.retired.extend(evicted);
            encode::put_parse_number(number, &statement.body, &mut out);
            number
        });
        encode::put_describe_number(number, &mut out);
        out.extend_from_slice(&frame::SYNC);
        self.stream.write_all(&out).await.map_err(lost)?;
        self.described = None;
        if let Err(fault) = self.collect().await {
            if found.is_none() {
                self.statements.remove(key);
            }
            return Err(fault);
        }
        Ok(self.described.take().unwrap_or(prepared::NO_RESULT))
    }

    /// Runs statements of ours, in one flight and one implicit transaction.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the first error: none of them took effect.
    pub(in crate::postgres) async fn execute_all(&mut self, statements: &[Box<str>]) -> Result<(), Fault> {
        let mut out = Vec::new();
        for statement in statements {
            frame::put_execute(&mut out, statement);
        }
        out.extend_from_slice(&frame::SYNC);
        self.statements.unnamed = Some(UNKNOWN_STATEMENT);
        self.stream.write_all(&out).await.map_err(lost)?;
        self.collect().await.map(drop)
    }

    /// Runs one simple query of ours and returns its rows as text.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error, [`Fault::Server`] when the connection broke.
    pub(crate) async fn query_all(&mut self, sql: &str) -> Result<Vec<Row>, Fault> {
        let mut out = Vec::new();
        frame::put_query(&mut out, sql);
        self.statements.unnamed = None;
        self.stream.write_all(&out).await.map_err(lost)?;
        self.collect().await
    }

    /// Runs a query of ours with one text parameter.
    pub(in crate::postgres) async fn query_with(
        &mut self,
        sql: &str,
        parameter: &str,
    ) -> Result<Vec<Row>, Fault> {
        let mut out = Vec::new();
        frame::put(&mut out, b'P', |out| {
            out.push(0);
            frame::put_cstring(out, sql.as_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        frame::put(&mut out, b'B', |out| {
            // Unnamed portal and statement, parameters as text.
            out.extend_from_slice(&[0, 0, 0, 0, 0, 1]);
            let length = u32::try_from(parameter.len()).expect("names are bounded by a startup packet");
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(parameter.as_bytes());
            out.extend_from_slice(&[0, 0]);
        });
        frame::put(&mut out, b'E', |out| out.extend_from_slice(&[0; 5]));
        out.extend_from_slice(&frame::SYNC);
        self.statements.unnamed = Some(UNKNOWN_STATEMENT);
        self.stream.write_all(&out).await.map_err(lost)?;
        self.collect().await
    }

    /// Gathers rows up to ReadyForQuery.
    pub(super) async fn collect(&mut self) -> Result<Vec<Row>, Fault> {
        self.stream.flush().await.map_err(lost)?;
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let Some(header) = self.whole_message().await? else { return Err(lost(eof())) };
            let body = &self.inbox.data()[HEADER..header.length];
            match header.tag {
                b'D' => rows.push(parse_row(body).ok_or_else(|| lost(io::ErrorKind::InvalidData.into()))?),
                b'E' if error.is_none() => {
                    let fields = frame::error_fields(body);
                    let raw = self.inbox.data()[..header.length].to_vec();
                    self.closed |= fields.fatal;
                    error = Some(Refused { raw, cause: RefusedCause::Setting, code: fields.code });
                }
                b'S' => self.note_parameter(header.length),
                b'T' => self.described = prepared::shape(body),
                b'Z' => {
                    self.transaction = match body {
                        b"I" => Transaction::Idle,
                        b"T" => Transaction::Open,
                        _ => Transaction::Failed,
                    };
                    self.inbox.consume(header.length);
                    return error.map_or(Ok(rows), |refused| Err(refused.into()));
                }
                _ => {}
            }
            self.inbox.consume(header.length);
            if self.closed
                && let Some(refused) = error.take()
            {
                return Err(refused.into());
            }
        }
    }

    /// Waits until a whole message stands at the front of the inbox; for answers to our own
    /// questions, which are small.
    pub(super) async fn whole_message(&mut self) -> Result<Option<frame::Header>, Fault> {
        loop {
            if let Some(header) = frame::header(self.inbox.data()) {
                if !(HEADER..=LONGEST_OWN_ANSWER).contains(&header.length) {
                    return Err(lost(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "impossible message length",
                    )));
                }
                if header.length <= self.inbox.len() {
                    return Ok(Some(header));
                }
            }
            if self.inbox.fill(&mut self.stream).await.map_err(lost)? == 0 {
                return Ok(None);
            }
        }
    }
}

fn parse_row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut row = Vec::with_capacity(usize::from(u16::from_be_bytes(*count)));
    for _ in 0..u16::from_be_bytes(*count) {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            row.push(None);
            rest = tail;
            continue;
        }
        let (value, tail) = tail.split_at_checked(length as usize)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        rest = tail;
    }
    Some(row)
}
