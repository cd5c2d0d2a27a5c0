//! One request → what is sent to this server connection for it.

use std::sync::Arc;

use tokio::io::AsyncWriteExt;

use super::{
    backend::{Backend, garbage, lost},
    command::{Command, code},
    done::NOBODYS,
    frontend::Frontend,
    packet::{self, HEADER, MAX_PAYLOAD, u16_le, u32_le},
    parameters::Binding,
    prepared::Statement,
    settings::Settings,
};
use crate::{
    protocol::Fault,
    refusal::{Refusal, RefusalKind},
};

/// Where the statement's id stands in the packets of COM_STMT_….
const ID: std::ops::Range<usize> = HEADER + 1..HEADER + 5;

/// Writes a command where it has to be changed; nothing written means that it goes out as it lies
/// in `data`.
pub(super) fn command(
    backend: &mut Backend,
    frontend: &Frontend,
    command: &Command,
    data: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let Some((id, statement)) = command.statement.as_ref().filter(|_| command.code != code::STMT_PREPARE)
    else {
        if let Some(text) = &command.rewritten {
            backend.put_closing(out);
            let start = out.len();
            packet::put_command(out, command.code, text);
            let rest = command.tail.map_or(0, |tail| tail.rest);
            if rest > 0 {
                // The packet goes on with what has not arrived.
                let length = (1 + text.len() + rest) as u32;
                out[start..start + 3].copy_from_slice(&length.to_le_bytes()[..3]);
            }
        } else if !backend.closing.is_empty() {
            backend.put_closing(out);
            out.extend_from_slice(data);
        }
        return Ok(());
    };
    backend.put_closing(out);
    let Some(server_id) = backend.statements.get(statement.key) else { return Err(unknown(*id)) };
    let handle = frontend.statements.get(*id).ok_or_else(|| unknown(*id))?;
    if !matches!(command.code, code::STMT_EXECUTE | code::STMT_BULK_EXECUTE) {
        let start = out.len();
        out.extend_from_slice(data);
        let Some(place) = out.get_mut(start + ID.start..start + ID.end) else { return Err(malformed()) };
        place.copy_from_slice(&server_id.to_le_bytes());
        return Ok(());
    }
    put_long_data(&handle.long_data, server_id, out);
    let argument = data.get(HEADER + 1..).unwrap_or_default();
    let binding = match command.code {
        code::STMT_BULK_EXECUTE => Binding::of_bulk(argument, statement.parameters),
        _ => Binding::of_execute(argument, statement.parameters, frontend.sends_attributes()),
    };
    put_execute(data, server_id, binding, &handle.types, out)
}

fn unknown(id: u32) -> Fault {
    Fault::Protocol(Refusal::fatal(
        RefusalKind::UnknownStatement,
        format!("Unknown prepared statement handler ({id}) given to the proxy"),
    ))
}

/// Kept COM_STMT_SEND_LONG_DATA packets, under the server's id.
fn put_long_data(packets: &[u8], id: u32, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(packets);
    let mut at = start;
    let mut continued = false;
    while let Some(header) = packet::header(&out[at..]) {
        if !continued && header.length >= 5 {
            out[at + ID.start..at + ID.end].copy_from_slice(&id.to_le_bytes());
        }
        continued = header.length == MAX_PAYLOAD;
        at = (at + header.total()).min(out.len());
    }
}

/// COM_STMT_EXECUTE or COM_STMT_BULK_EXECUTE with the server's id and, where the client has left them out because it sent
/// them before, with the types of the parameters: another session's may be the last that this
/// connection has seen.
fn put_execute(
    data: &[u8],
    id: u32,
    binding: Option<Binding>,
    types: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), Fault> {
    let start = out.len();
    out.extend_from_slice(data);
    let Some(id_bytes) = out.get_mut(start + ID.start..start + ID.end) else { return Err(malformed()) };
    id_bytes.copy_from_slice(&id.to_le_bytes());
    let Some((binding, missing)) = binding.and_then(|binding| {
        let missing = binding.missing(types)?;
        Some((binding, missing))
    }) else {
        return Ok(());
    };
    let Some(header) = packet::header(data).filter(|header| header.length + missing.len() < MAX_PAYLOAD)
    else {
        return Err(Fault::Protocol(Refusal::fatal(
            RefusalKind::Unsupported,
            "an execution of 16 MB has to name the types of its parameters",
        )));
    };
    let argument = start + HEADER + 1;
    out[argument + binding.flag_at] |= binding.flag;
    let length = (header.length + missing.len()) as u32;
    let types_at = argument + binding.types_at;
    out.splice(types_at..types_at, missing);
    out[start..start + 3].copy_from_slice(&length.to_le_bytes()[..3]);
    Ok(())
}

fn malformed() -> Fault {
    Fault::Protocol(Refusal::fatal(RefusalKind::Protocol, "Malformed communication packet"))
}

/// Prepares a statement on this connection, by the settings by which the client prepared it.
pub(super) async fn prepare(backend: &mut Backend, statement: &Statement) -> Result<(), Fault> {
    if backend.statements.get(statement.key).is_some() {
        return Ok(());
    }
    let now = read_as(backend, &statement.settings).await?;
    let id = backend.prepare(&statement.text).await?;
    entered(backend, statement.key, id);
    backend.bring(&now).await
}

/// Lets the connection read text as it was when `then` held; returns what it has to be brought back to.
async fn read_as(backend: &mut Backend, then: &Settings) -> Result<Arc<Settings>, Fault> {
    let now = backend.carried.clone();
    if now.reading() != then.reading() {
        // Where there was no schema, there is one now: DATABASE() is not what others would be told.
        backend.touched |= then.schema.is_none() && now.schema.is_some();
        backend.bring(&Arc::new(now.reading_as(then))).await?;
    }
    Ok(now)
}

/// Enters a server's id; the statement it takes the place of is closed with the next command.
pub(super) fn entered(backend: &mut Backend, key: u128, id: u32) {
    if let Some(old) = backend.statements.enter(key, id) {
        backend.closing.push(old);
    }
}

/// Makes a statement of SQL PREPARE known under the client's name for it.
pub(super) async fn prepare_own(backend: &mut Backend, frontend: &Frontend, name: &str) -> Result<(), Fault> {
    match frontend.own.get(name) {
        Some(own) if backend.own.get(name) == Some(&own.key) => {}
        Some(own) => {
            let now = read_as(backend, &own.settings).await?;
            backend.query_all(&own.statement).await?;
            backend.own.insert(name.into(), own.key);
            backend.bring(&now).await?;
        }
        None if backend.own.remove(name).is_some() => {
            backend.query_all(&format!("DEALLOCATE PREPARE `{}`", name.replace('`', "``"))).await?;
        }
        None => {}
    }
    Ok(())
}

/// Makes a name known that is only to be deallocated, or unknown. What stands under it does not
/// matter then: the client's own statement may be one that can no longer be prepared.
pub(super) async fn name_own(backend: &mut Backend, frontend: &Frontend, name: &str) -> Result<(), Fault> {
    if !frontend.own.contains_key(name) {
        return prepare_own(backend, frontend, name).await;
    }
    if !backend.own.contains_key(name) {
        let statement = format!("PREPARE `{}` FROM 'DO 0'", name.replace('`', "``"));
        backend.query_all(&statement).await?;
        backend.own.insert(name.into(), NOBODYS);
    }
    Ok(())
}

impl Backend {
    /// Prepares a statement and returns the server's id for it.
    async fn prepare(&mut self, text: &[u8]) -> Result<u32, Fault> {
        let mut out = Vec::new();
        self.put_closing(&mut out);
        packet::put_command(&mut out, code::STMT_PREPARE, text);
        self.busy = true;
        self.stream.write_all(&out).await.map_err(lost)?;
        self.stream.flush().await.map_err(lost)?;
        let answer = self.payload().await?;
        if answer.first() == Some(&packet::ERR) {
            return Err(self.refused(&answer));
        }
        let numbers = || {
            let (id, rest) = u32_le(answer.get(1..)?)?;
            let (columns, rest) = u16_le(rest)?;
            Some((id, columns, u16_le(rest)?.0))
        };
        let (id, columns, parameters) = numbers().ok_or_else(garbage)?;
        let ends = u32::from(!self.deprecates_eof());
        for count in [columns, parameters].into_iter().filter(|count| *count > 0) {
            for _ in 0..u32::from(count) + ends {
                self.skip_packet().await?;
            }
        }
        self.busy = false;
        Ok(id)
    }

    /// Closes statements that others have taken the place of; that has no answer.
    pub(super) fn put_closing(&mut self, out: &mut Vec<u8>) {
        for id in self.closing.drain(..) {
            packet::put_command(out, code::STMT_CLOSE, &id.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_execution_gets_the_servers_id_and_the_types_it_left_out() {
        let mut data = Vec::new();
        packet::put_command(&mut data, code::STMT_EXECUTE, &[9, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, b'v']);

        let mut out = Vec::new();
        let binding = Binding::of_execute(&data[HEADER + 1..], 1, false);
        put_execute(&data, 77, binding, &[3, 0], &mut out).expect("it is short");

        let mut expected = Vec::new();
        packet::put_command(
            &mut expected,
            code::STMT_EXECUTE,
            &[77, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 0, b'v'],
        );
        assert_eq!(out, expected);
    }

    #[test]
    fn many_executions_in_one_get_the_servers_id_and_the_types_they_left_out() {
        let mut data = Vec::new();
        packet::put_command(&mut data, code::STMT_BULK_EXECUTE, &[9, 0, 0, 0, 64, 0, 0, b'v']);

        let mut out = Vec::new();
        let binding = Binding::of_bulk(&data[HEADER + 1..], 1);
        put_execute(&data, 77, binding, &[3, 0], &mut out).expect("it is short");

        let mut expected = Vec::new();
        packet::put_command(&mut expected, code::STMT_BULK_EXECUTE, &[77, 0, 0, 0, 192, 0, 3, 0, 0, b'v']);
        assert_eq!(out, expected);
    }

    #[test]
    fn long_data_gets_the_servers_id_in_every_command_of_it() {
        let mut packets = Vec::new();
        for value in [&b"aaa"[..], b"b"] {
            let argument = [&[1, 0, 0, 0, 0, 0], value].concat();
            packet::put_command(&mut packets, code::STMT_SEND_LONG_DATA, &argument);
        }
        let mut out = vec![];
        put_long_data(&packets, 5, &mut out);
        assert_eq!(out.len(), packets.len());
        assert_eq!((out[5], out[4 + 10 + 5]), (5, 5));
    }
}
