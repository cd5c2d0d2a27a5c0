//! COPY from the client.

use std::{io, task::Poll};

use super::Relay;
use crate::{
    inbox,
    postgres::{frame, frontend::eof},
    protocol::Fault,
    standing::{Step, given_up},
};

impl Relay<'_> {
    /// Passes the client's COPY data on until it ends, or the server has had enough.
    pub(super) async fn copy_in(&mut self) -> Result<(), Fault> {
        let mut inbox = self.frontend.take_inbox_behind_batch();
        let mut rest = 0;
        let result = self.pump_copy(&mut inbox, &mut rest).await;
        self.frontend.give_inbox(inbox, rest);
        result
    }

    async fn pump_copy(&mut self, inbox: &mut inbox::Inbox, rest: &mut usize) -> Result<(), Fault> {
        let mut last = false;
        let watch = self.terms.watch;
        loop {
            let (length, ended) = copy_part(inbox.data(), rest, &mut last, self.failed)?;
            if length > 0 {
                self.send(&inbox.data()[..length]).await?;
                inbox.consume(length);
            }
            if ended || (self.failed && *rest == 0) {
                return Ok(());
            }
            let step = std::future::poll_fn(|cx| {
                let backend = &mut *self.backend;
                if watch.poll_off(cx).is_ready() {
                    return Poll::Ready(Err(Side::Server(given_up())));
                }
                if let Poll::Ready(read) = backend.inbox.poll_fill(cx, &mut backend.stream) {
                    return Poll::Ready(read.map(Step::Read).map_err(Side::Server));
                }
                inbox
                    .poll_fill(cx, &mut self.frontend.stream)
                    .map(|read| read.map(Step::Wrote).map_err(Side::Client))
            })
            .await;
            match step {
                Ok(Step::Read(0)) => return Err(self.server_lost(eof())),
                Ok(Step::Read(_)) => {
                    self.scan()?;
                    self.flush().await?;
                }
                Ok(Step::Wrote(0)) => return Err(Fault::Client(eof())),
                Ok(Step::Wrote(_)) => {}
                Err(Side::Server(error)) => return Err(self.server_lost(error)),
                Err(Side::Client(error)) => return Err(Fault::Client(error)),
            }
        }
    }
}

enum Side {
    Server(io::Error),
    Client(io::Error),
}

/// How much of the client's bytes belongs to its COPY, and whether the COPY ends with them.
/// `rest`: bytes of a message that have not arrived; `last`: of CopyDone or CopyFail. `finish`:
/// the server has ended the COPY, only a message that has begun is passed on.
fn copy_part(data: &[u8], rest: &mut usize, last: &mut bool, finish: bool) -> Result<(usize, bool), Fault> {
    let mut at = 0;
    loop {
        let part = (*rest).min(data.len() - at);
        at += part;
        *rest -= part;
        if *rest > 0 {
            return Ok((at, false));
        }
        if *last || finish {
            return Ok((at, *last));
        }
        let Some(header) = frame::client_header(&data[at..]).map_err(Fault::Protocol)? else {
            return Ok((at, false));
        };
        if header.tag == b'X' {
            return Err(Fault::Client(eof()));
        }
        *rest = header.length;
        *last = matches!(header.tag, b'c' | b'f');
    }
}
