//! Sends one command, or the client's file, and reads what the server says meanwhile.

use super::Relay;
use crate::{
    inbox::Inbox,
    mysql::{
        backend::Backend,
        command::{Command, Tail},
        encode,
        frontend::{eof, unread},
        packet::{self, HEADER, MAX_PAYLOAD},
    },
    protocol::{Fault, Request},
    standing::given_up,
    stream::Outlet,
};

impl Relay<'_> {
    pub(super) async fn send_request(&mut self, request: &Request<Command>) -> Result<(), Fault> {
        let command = &request.wire;
        let mut out = std::mem::take(&mut self.backend.out);
        out.clear();
        let data = &self.frontend.inbox.data()[..command.length];
        let encoded = encode::command(self.backend, self.frontend, command, data, &mut out);
        let inbox = std::mem::take(&mut self.frontend.inbox);
        let result = match encoded {
            Ok(()) => self.send(if out.is_empty() { &inbox.data()[..command.length] } else { &out }).await,
            Err(fault) => Err(fault),
        };
        self.frontend.inbox = inbox;
        self.backend.give_out(out);
        match (result, command.tail) {
            (Ok(()), Some(tail)) => Box::pin(self.stream_tail(tail)).await,
            // A long value that went ahead, most likely.
            (Err(Fault::Server { .. }), None) if self.sending.has_begun() && self.has_said_why().await => {
                Ok(())
            }
            (result, _) => result,
        }
    }

    /// Passes on the rest of a command that is longer than what is gathered.
    async fn stream_tail(&mut self, mut tail: Tail) -> Result<(), Fault> {
        self.decided = true;
        let mut inbox = self.frontend.take_inbox_behind_command();
        let result = self.pump_tail(&mut inbox, &mut tail).await;
        self.frontend.inbox = inbox;
        self.frontend.tail = if tail.rest == 0 && !tail.continues { None } else { Some(tail) };
        self.frontend.sequence = tail.next;
        match result {
            // Its number is that of the answer which the client waits for, who has sent all by then.
            Err(Fault::Server { .. }) if self.has_said_why().await => self.frontend.drop_tail().await,
            result => result,
        }
    }

    /// Whether a server that took no more has said why: one does, and closes the connection, where a statement
    /// is longer than its `max_allowed_packet`.
    async fn has_said_why(&mut self) -> bool {
        let watch = self.terms.watch;
        let Backend { inbox, stream, .. } = &mut *self.backend;
        if watch.is_off() || inbox.is_empty() && watch.read(inbox, stream, false).await.is_err() {
            return false;
        }
        let data = inbox.data();
        packet::header(data).is_some_and(|header| header.total() <= data.len())
            && data.get(HEADER) == Some(&packet::ERR)
    }

    async fn pump_tail(&mut self, inbox: &mut Inbox, tail: &mut Tail) -> Result<(), Fault> {
        loop {
            if tail.rest == 0 {
                if !tail.continues {
                    return Ok(());
                }
                let header = self.numbered(inbox, tail.next).await?;
                let continues = header.length == MAX_PAYLOAD;
                *tail = Tail { rest: header.total(), continues, next: tail.next.wrapping_add(1) };
            }
            if inbox.is_empty() {
                self.hear(inbox).await?;
            }
            let part = inbox.len().min(tail.rest);
            self.send(&inbox.data()[..part]).await?;
            inbox.consume(part);
            tail.rest -= part;
        }
    }

    /// The header of the client's next packet, with the number that the server expects.
    async fn numbered(&mut self, inbox: &mut Inbox, sequence: u8) -> Result<packet::Header, Fault> {
        let header = self.client_header(inbox).await?;
        if self.frontend.stream.is_compressed() {
            inbox.data_mut()[HEADER - 1] = sequence;
        }
        Ok(header)
    }

    async fn client_header(&mut self, inbox: &mut Inbox) -> Result<packet::Header, Fault> {
        loop {
            if let Some(header) = packet::header(inbox.data()) {
                return Ok(header);
            }
            self.hear(inbox).await?;
        }
    }

    /// Writes to the server; reads what it says meanwhile, so that neither waits for the other for ever.
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let watch = self.terms.watch;
        if watch.is_over(false) {
            return Err(self.server_lost(given_up()));
        }
        let mut left = self.sending.begin(&self.backend.stream, bytes);
        while !left.is_empty() || self.backend.stream.is_buffered() {
            let backend = &mut *self.backend;
            match self.sending.go_on(watch, &mut left, &mut backend.inbox, &mut backend.stream).await {
                Ok(true) => break,
                // An error for what is still being sent: it is read when all is.
                Ok(false) => {}
                Err(error) => return Err(self.server_lost(error)),
            }
        }
        Ok(())
    }

    /// Waits for what the client sends next of its request.
    async fn hear(&mut self, inbox: &mut Inbox) -> Result<(), Fault> {
        match self.terms.watch.attend(inbox.fill(&mut self.frontend.stream)).await {
            Some(Ok(1..)) => Ok(()),
            Some(Ok(0)) => Err(Fault::Client(eof())),
            Some(Err(error)) => Err(unread(error)),
            None => Err(self.server_lost(given_up())),
        }
    }

    /// Passes the client's file on, up to the empty packet that ends it.
    pub(super) async fn local_infile(&mut self) -> Result<(), Fault> {
        let mut inbox = self.frontend.take_inbox_behind_command();
        let result = self.pump_file(&mut inbox).await;
        self.frontend.inbox = inbox;
        result
    }

    async fn pump_file(&mut self, inbox: &mut Inbox) -> Result<(), Fault> {
        loop {
            self.asked = self.asked.wrapping_add(1);
            let header = self.numbered(inbox, self.asked).await?;
            let mut rest = header.total();
            while rest > 0 {
                if inbox.is_empty() {
                    self.hear(inbox).await?;
                }
                let part = inbox.len().min(rest);
                self.send(&inbox.data()[..part]).await?;
                inbox.consume(part);
                rest -= part;
            }
            if header.length == 0 {
                return Ok(());
            }
        }
    }
}
