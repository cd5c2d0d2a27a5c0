//! Looks at what the server answers: headers, and the few small messages that decide something.

use std::io;

use super::{Relay, Scan};
use crate::{
    postgres::{
        encode::{Expect, Whose},
        frame::{self, HEADER},
        parameters, prepared,
    },
    protocol::{Fault, Transaction},
};

/// A message that decides something is looked at whole; a longer one passes unseen. Errors quote
/// statements, descriptions have up to 1,664 columns.
const LOOKED_AT: usize = 256 * 1024;

impl Relay<'_> {
    /// Looks at everything received so far.
    pub(super) fn scan(&mut self) -> Result<Scan, Fault> {
        self.injections();
        loop {
            if !self.passage.pass_rest(&self.backend.inbox) {
                return Ok(Scan::More);
            }
            if self.backend.expect.is_empty() {
                return self.done();
            }
            self.pass_rows();
            let data = self.passage.unseen(&self.backend.inbox);
            let Some(header) = frame::header(data) else { return Ok(Scan::More) };
            if header.length < HEADER {
                return Err(
                    self.server_lost(io::Error::new(io::ErrorKind::InvalidData, "impossible message length"))
                );
            }
            if header.tag == b'E' && self.is_answered() {
                // It stays where it is, for whoever uses the connection next.
                self.backend.expect.clear();
                return self.done();
            }
            if self.looks_at(header.tag) && header.length <= LOOKED_AT && header.length > data.len() {
                return Ok(Scan::More);
            }
            if let Some(end) = self.message(header)? {
                return Ok(end);
            }
        }
    }

    /// Passes whole rows and COPY data: by far the most messages of a large answer, and nothing to
    /// do for any of them.
    fn pass_rows(&mut self) {
        let data = self.passage.unseen(&self.backend.inbox);
        let mut passed = 0;
        while let Some(header) = frame::header(&data[passed..])
            && matches!(header.tag, b'D' | b'd')
            && (HEADER..=data.len() - passed).contains(&header.length)
        {
            passed += header.length;
        }
        if passed > 0 && !self.is_ours() {
            self.decided = true;
            self.passage.pass(&self.backend.inbox, passed, true);
        }
    }

    /// Messages whose body decides something.
    fn looks_at(&self, tag: u8) -> bool {
        match tag {
            b'Z' | b'E' | b'S' | b'C' => true,
            b'T' | b't' => matches!(
                self.backend.expect.front(),
                Some(Expect::DescribeStatement { .. } | Expect::DescribePortal { named: Some(_) })
            ),
            _ => false,
        }
    }

    fn done(&mut self) -> Result<Scan, Fault> {
        if let Some(refused) = self.refused.take() {
            self.passage.settle(&mut self.backend.inbox);
            return Err(refused.into());
        }
        Ok(Scan::Done)
    }

    /// Passes a message whose end may not have arrived.
    pub(super) fn pass_message(&mut self, length: usize, forward: bool) {
        self.passage.pass_message(&self.backend.inbox, length, forward);
    }

    /// Acts on one message; its body is there when its kind is looked at.
    fn message(&mut self, header: frame::Header) -> Result<Option<Scan>, Fault> {
        let mut forward = true;
        match header.tag {
            // Those whose end has not arrived, and those of statements of ours.
            b'D' | b'd' => {
                forward = !self.is_ours();
                self.decided |= forward;
                if !forward {
                    self.note_id(header);
                }
            }
            b'Z' => {
                self.ready(header)?;
                return Ok(None);
            }
            b'E' => {
                self.error(header);
                return Ok(None);
            }
            b'S' => forward = self.parameter(header),
            b'N' => self.noticed = true,
            b'A' => forward = self.frontend_listens(),
            b'1' => forward = self.parsed(),
            b'2' => forward = self.bound(),
            b'3' => forward = self.closed(),
            b't' => self.typed(header),
            b'T' | b'n' => forward = self.described(header),
            b'C' | b'I' | b's' => {
                let body = self.body(header);
                self.rolled_back = header.tag == b'C' && body == b"ROLLBACK\0";
                forward = self.completed();
            }
            b'G' => {
                self.decided = true;
                self.eat_syncs();
                self.pass_message(header.length, true);
                return Ok(Some(Scan::CopyIn));
            }
            b'H' | b'c' | b'V' | b'W' => self.decided = true,
            other => {
                let error =
                    io::Error::new(io::ErrorKind::InvalidData, format!("unknown message type {other}"));
                return Err(self.server_lost(error));
            }
        }
        self.pass_message(header.length, forward);
        self.injections();
        Ok(None)
    }

    fn body(&self, header: frame::Header) -> &[u8] {
        let data = self.passage.unseen(&self.backend.inbox);
        &data[HEADER..header.length.min(data.len())]
    }

    /// Whether the answers at hand are those of statements sent ahead.
    fn is_ours(&self) -> bool {
        matches!(self.backend.expect.front(), Some(Expect::Execute(Whose::Ours | Whose::Id)))
    }

    /// The answer to our question for the transaction's id: one row of one column, in text.
    fn note_id(&mut self, header: frame::Header) {
        if matches!(self.backend.expect.front(), Some(Expect::Execute(Whose::Id))) {
            let digits = self.body(header).get(6..).and_then(|digits| std::str::from_utf8(digits).ok());
            self.backend.transaction_id = digits.and_then(|digits| digits.parse().ok());
        }
    }

    /// Hands on what is due from us before the next thing due from the server.
    fn injections(&mut self) {
        while let Some(Expect::Inject { .. } | Expect::Own(_)) = self.backend.expect.front() {
            if let Some(Expect::Inject { bytes, named }) = self.backend.expect.pop_front() {
                self.inject(&bytes);
                if named {
                    self.frontend.statements.confirm();
                }
            }
        }
    }

    fn parsed(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Parse { forward, named, .. }) => {
                let (forward, named) = (*forward, *named);
                if named {
                    self.frontend.statements.confirm();
                }
                self.backend.expect.pop_front();
                forward
            }
            _ => true,
        }
    }

    fn bound(&mut self) -> bool {
        self.acknowledged(|expect| match expect {
            Expect::Bind { forward } => Some(*forward),
            _ => None,
        })
    }

    fn closed(&mut self) -> bool {
        self.acknowledged(|expect| match expect {
            Expect::Close { forward } => Some(*forward),
            _ => None,
        })
    }

    /// Takes what is due off the list if it is what `due` knows; whether the client hears of it.
    fn acknowledged(&mut self, due: impl FnOnce(&Expect) -> Option<bool>) -> bool {
        let Some(forward) = self.backend.expect.front().and_then(due) else { return true };
        self.backend.expect.pop_front();
        forward
    }

    /// ParameterDescription: the client will send its values by it.
    fn typed(&mut self, header: frame::Header) {
        let types = &self.passage.unseen(&self.backend.inbox)[HEADER..];
        let Some(types) = types.get(..header.length.saturating_sub(HEADER)) else { return };
        let Some(Expect::DescribeStatement { named: Some((name, key)) }) = self.backend.expect.front() else {
            return;
        };
        let (plan_key, before) = (u128::from(self.frontend.carried.now().plan_key()), *key);
        let Some(typed) = self.frontend.statements.fix_types(name, before ^ plan_key, types) else { return };
        let typed = typed ^ plan_key;
        if self.backend.statements.is_outdated(typed) {
            // Of before a definition: what was just prepared takes its place.
            self.backend.retire(typed);
        }
        self.backend.statements.rename(before, typed);
        if let Some(Expect::DescribeStatement { named: Some((_, key)) }) = self.backend.expect.front_mut() {
            *key = typed;
        }
    }

    fn described(&mut self, header: frame::Header) -> bool {
        match self.backend.expect.front() {
            Some(Expect::DescribeStatement { .. } | Expect::DescribePortal { .. }) => {
                let whole = header.length <= self.passage.unseen(&self.backend.inbox).len();
                let named = match self.backend.expect.pop_front() {
                    Some(Expect::DescribeStatement { named } | Expect::DescribePortal { named }) => named,
                    _ => None,
                };
                let Some((name, key)) = named else { return true };
                let shape = match header.tag {
                    b'n' => Some(prepared::NO_RESULT),
                    _ if whole => prepared::shape(self.body(header)),
                    _ => None,
                };
                if let Some(shape) = shape {
                    self.backend.statements.set_shape(key, shape);
                    self.frontend.statements.tell(&name, shape);
                }
                true
            }
            Some(Expect::Execute(Whose::Ours | Whose::Id)) => false,
            _ => true,
        }
    }

    fn completed(&mut self) -> bool {
        match self.backend.expect.front() {
            Some(Expect::Execute(whose)) => {
                let forward = *whose == Whose::Client;
                self.decided |= forward;
                self.completed += u32::from(forward);
                self.backend.expect.pop_front();
                forward
            }
            // Of a simple query, which may have more statements.
            _ => {
                self.decided = true;
                self.completed += 1;
                true
            }
        }
    }

    /// Syncs that were sent before the server went into COPY mode are ignored by it.
    fn eat_syncs(&mut self) {
        self.backend.expect.retain(|expect| !matches!(expect, Expect::Sync { .. }));
    }

    fn frontend_listens(&self) -> bool {
        self.backend.listening
    }

    /// ParameterStatus: the client hears of it when it does not know it.
    fn parameter(&mut self, header: frame::Header) -> bool {
        let data = self.passage.unseen(&self.backend.inbox);
        let Some((name, value)) = parameters::read(&data[..header.length.min(data.len())]) else {
            return true;
        };
        self.backend.parameters.set(name, value);
        !self.may_lose_settings() && self.frontend.note_parameter(name, value)
    }

    /// Whether settings went ahead of the request that its error undoes: of what the server reports
    /// meanwhile, the client hears what holds when all has gone well.
    fn may_lose_settings(&self) -> bool {
        self.backend.carried.now().hash() != self.frontend.carried.now().hash()
    }

    /// A server reports what changes on its connection; what another one has otherwise than the
    /// client was told is for us to say.
    fn tell_parameters(&mut self) {
        if self.frontend.told.knows(&self.backend.parameters) {
            return;
        }
        let mut messages = Vec::new();
        for (name, value) in self.frontend.told.missing(&self.backend.parameters) {
            if self.frontend.note_parameter(&name, &value) {
                parameters::put(&mut messages, &name, &value);
            }
        }
        self.inject(&messages);
    }

    fn ready(&mut self, header: frame::Header) -> Result<(), Fault> {
        self.backend.transaction = match self.body(header) {
            b"I" => Transaction::Idle,
            b"T" => Transaction::Open,
            b"E" => Transaction::Failed,
            _ => {
                return Err(self
                    .server_lost(io::Error::new(io::ErrorKind::InvalidData, "unknown transaction status")));
            }
        };
        self.backend.in_unit = false;
        self.backend.skipping = false;
        let forward = match self.backend.expect.pop_front() {
            // The query in front of our own Sync was skipped: its ReadyForQuery is this one.
            Some(Expect::Sync { forward }) => forward || self.setting_failed,
            _ => true,
        };
        if forward && !(self.failed && self.may_lose_settings()) {
            self.tell_parameters();
        }
        self.pass_message(header.length, forward);
        self.injections();
        Ok(())
    }
}
