//! Questions of our own to a server.

use std::io;

use tokio::io::AsyncWriteExt;

use super::{Backend, Row, garbage, lost};
use crate::{
    mysql::{
        command::code,
        packet::{
            self, ErrPacket, HEADER, MAX_PAYLOAD, OkPacket, capability as can, lenenc, lenenc_bytes, status,
        },
        parameters::NO_ATTRIBUTES,
    },
    protocol::{Fault, Refused, RefusedCause},
};

/// Rows in an answer to a question of our own: routines and views of a server.
const MOST_OWN_ROWS: usize = 1_000_000;

/// The global privileges of who asks; whoever may read `mysql.*` is shown everybody's. A host has no
/// `@`, a user may. Every `sql_mode` reads a doubled quote.
const PRIVILEGES: &str = "SELECT privilege_type FROM information_schema.user_privileges WHERE grantee = CONCAT('''', \
 LEFT(CURRENT_USER(), CHAR_LENGTH(CURRENT_USER()) - CHAR_LENGTH(SUBSTRING_INDEX(CURRENT_USER(), '@', -1)) - 1), \
 '''@''', SUBSTRING_INDEX(CURRENT_USER(), '@', -1), '''')";

/// Gets a row's payload and its number of columns; `None` for one that makes no sense, or is too much.
type TakeRow<'a> = dyn FnMut(&[u8], u64) -> Option<()> + Send + 'a;

impl Backend {
    /// Runs one statement of ours and returns its rows as text.
    ///
    /// # Errors
    /// [`Fault::Refused`] with the server's error, [`Fault::Server`] when the connection broke.
    pub(crate) async fn query_all(&mut self, sql: &str) -> Result<Vec<Row>, Fault> {
        self.command(code::QUERY, sql.as_bytes()).await
    }

    /// The global privileges of this connection's user, by the server's names.
    ///
    /// # Errors
    /// As [`Self::query_all`].
    pub(crate) async fn privileges(&mut self) -> Result<Vec<String>, Fault> {
        let rows = self.query_all(PRIVILEGES).await?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect())
    }

    /// How many rows answer one statement of ours, whatever is in them.
    ///
    /// # Errors
    /// As [`Self::query_all`].
    pub(in crate::mysql) async fn count_rows(&mut self, sql: &str) -> Result<usize, Fault> {
        let mut count = 0;
        let mut take = |_: &[u8], _| {
            count += 1;
            Some(())
        };
        self.ask(code::QUERY, sql.as_bytes(), &mut take).await?;
        Ok(count)
    }

    /// Sends a command of ours and gathers its answer.
    pub(in crate::mysql) async fn command(&mut self, code: u8, argument: &[u8]) -> Result<Vec<Row>, Fault> {
        let mut rows = Vec::new();
        let mut take = |row: &[u8], columns| {
            rows.push(parse_row(row, columns)?);
            (rows.len() <= MOST_OWN_ROWS).then_some(())
        };
        self.ask(code, argument, &mut take).await?;
        Ok(rows)
    }

    /// Sends a command of ours and hands its rows, with their number of columns, to `take`.
    async fn ask(&mut self, code: u8, argument: &[u8], take: &mut TakeRow<'_>) -> Result<(), Fault> {
        let mut out = Vec::with_capacity(HEADER + 1 + argument.len());
        if code == code::QUERY && self.capabilities & can::QUERY_ATTRIBUTES != 0 {
            packet::put_command(&mut out, code, &[NO_ATTRIBUTES, argument].concat());
        } else {
            packet::put_command(&mut out, code, argument);
        }
        self.busy = true;
        self.stream.write_all(&out).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)?;
        self.collect(take).await?;
        self.busy = false;
        Ok(())
    }

    /// Reads the answers to one command of ours.
    pub(super) async fn collect(&mut self, take: &mut TakeRow<'_>) -> Result<(), Fault> {
        loop {
            let first = self.payload().await?;
            match first.first() {
                Some(&packet::ERR) => return Err(self.refused(&first)),
                Some(&packet::OK) => self.end_by_ok(&first)?,
                Some(&packet::EOF) => self.end_rows(&first)?,
                _ => {
                    let (columns, _) = lenenc(&first).ok_or_else(garbage)?;
                    self.read_rows(columns, take).await?;
                }
            }
            if self.status & status::MORE_RESULTS == 0 {
                return Ok(());
            }
        }
    }

    async fn read_rows(&mut self, columns: u64, take: &mut TakeRow<'_>) -> Result<(), Fault> {
        let definitions = columns + u64::from(!self.deprecates_eof());
        for _ in 0..definitions {
            self.skip_packet().await?;
        }
        loop {
            let row = self.payload().await?;
            match row.first() {
                Some(&packet::ERR) => return Err(self.refused(&row)),
                Some(&packet::EOF) => return self.end_rows(&row),
                _ => take(&row, columns).ok_or_else(garbage)?,
            }
        }
    }

    fn end_rows(&mut self, payload: &[u8]) -> Result<(), Fault> {
        if self.deprecates_eof() {
            return self.end_by_ok(payload);
        }
        self.status = packet::eof_status(payload).ok_or_else(garbage)?;
        Ok(())
    }

    fn end_by_ok(&mut self, payload: &[u8]) -> Result<(), Fault> {
        let ok = OkPacket::read(payload).ok_or_else(garbage)?;
        self.status = ok.status;
        self.warns |= ok.warnings > 0 && self.is_mariadb();
        Ok(())
    }

    pub(in crate::mysql) fn refused(&mut self, payload: &[u8]) -> Fault {
        self.busy = false;
        self.warns = self.is_mariadb();
        let Some(error) = ErrPacket::read(payload) else { return garbage() };
        let mut raw = Vec::with_capacity(HEADER + payload.len());
        packet::put(&mut raw, 1, |out| out.extend_from_slice(payload));
        Fault::Refused(Refused { raw, cause: RefusedCause::Setting, code: error.sqlstate })
    }

    /// Takes the next packet of an answer to us.
    pub(in crate::mysql) async fn payload(&mut self) -> Result<Vec<u8>, Fault> {
        let header = self.whole_packet().await?;
        let payload = self.inbox.data()[HEADER..header.total()].to_vec();
        self.inbox.consume(header.total());
        Ok(payload)
    }

    pub(in crate::mysql) async fn skip_packet(&mut self) -> Result<(), Fault> {
        let header = self.whole_packet().await?;
        self.inbox.consume(header.total());
        Ok(())
    }

    /// Waits until all of the next packet has come.
    pub(super) async fn whole_packet(&mut self) -> Result<packet::Header, Fault> {
        loop {
            if let Some((header, payload)) = packet::payload(self.inbox.data()) {
                if header.length == MAX_PAYLOAD {
                    return Err(garbage());
                }
                if self.capabilities & can::PROGRESS != 0 && packet::is_progress(payload) {
                    self.inbox.consume(header.total());
                    continue;
                }
                return Ok(header);
            }
            if self.inbox.fill(&mut self.stream).await.map_err(lost)? == 0 {
                return Err(lost(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

fn parse_row(mut data: &[u8], columns: u64) -> Option<Row> {
    let mut row = Vec::with_capacity(columns.min(64) as usize);
    for _ in 0..columns {
        if data.first() == Some(&0xFB) {
            row.push(None);
            data = &data[1..];
            continue;
        }
        let (value, rest) = lenenc_bytes(data)?;
        row.push(Some(String::from_utf8_lossy(value).into_owned()));
        data = rest;
    }
    Some(row)
}
