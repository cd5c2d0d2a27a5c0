//! A server's answer on its way from the receive buffer to the client.
//!
//! Bytes go out as they came. Where some are left out or others put between, what lies before them is
//! gathered in a buffer of its own; otherwise nothing is copied.

use crate::{inbox::Inbox, protocol::Forwarded};

/// A buffer that has grown beyond this is not kept, in bytes: idle connections are many.
const KEPT: usize = 1024;

/// What an answer's bytes in an [`Inbox`] have come to. The inbox stays with its connection, whose other
/// readers know nothing of a passage: every method that needs it is given it.
#[derive(Debug, Default)]
pub struct Passage {
    /// End of what has been looked at in the inbox.
    at: usize,
    /// Start of what has been looked at and is still to be handed on.
    from: usize,
    /// Goes to the client ahead of that.
    gathered: Vec<u8>,
    rest: Rest,
    /// Something was handed on.
    begun: bool,
}

/// Bytes of a message that have not arrived, and whether the client gets them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    count: usize,
    goes: bool,
}

impl Passage {
    /// `spare`: a buffer to use again, from [`Self::take_spare`].
    pub fn new(mut spare: Vec<u8>) -> Self {
        spare.clear();
        Self { gathered: spare, ..Self::default() }
    }

    /// Goes on behind what was handed on of a message: see [`Self::rest`].
    pub fn resumed(self, rest: Rest) -> Self {
        Self { rest, ..self }
    }

    /// What is still to come of the current message, for the passage that goes on with it.
    pub fn rest(&self) -> Rest {
        self.rest
    }

    /// The buffer, for the next answer.
    pub fn take_spare(&mut self) -> Vec<u8> {
        worth_keeping(std::mem::take(&mut self.gathered))
    }

    /// What has arrived and was not looked at.
    pub fn unseen<'i>(&self, inbox: &'i Inbox) -> &'i [u8] {
        &inbox.data()[self.at..]
    }

    /// Passes bytes that have arrived; `goes`: the client gets them.
    pub fn pass(&mut self, inbox: &Inbox, count: usize, goes: bool) {
        if goes {
            self.at += count;
        } else {
            self.gather(inbox);
            self.at += count;
            self.from = self.at;
        }
    }

    /// Passes a message of `length` bytes, whose end may not have arrived.
    pub fn pass_message(&mut self, inbox: &Inbox, length: usize, goes: bool) {
        let here = length.min(inbox.len() - self.at);
        self.pass(inbox, here, goes);
        self.rest = Rest { count: length - here, goes };
    }

    /// Passes what has arrived since of a message whose end had not; `false`: that is not all of it.
    pub fn pass_rest(&mut self, inbox: &Inbox) -> bool {
        if self.rest.count > 0 {
            let here = self.rest.count.min(inbox.len() - self.at);
            self.pass(inbox, here, self.rest.goes);
            self.rest.count -= here;
        }
        self.rest.count == 0
    }

    /// Puts bytes of ours behind what was passed.
    pub fn put(&mut self, inbox: &Inbox, bytes: &[u8]) {
        self.gather(inbox);
        self.gathered.extend_from_slice(bytes);
    }

    fn gather(&mut self, inbox: &Inbox) {
        if self.at > self.from {
            self.gathered.extend_from_slice(&inbox.data()[self.from..self.at]);
            self.from = self.at;
        }
    }

    /// How many bytes are still to be handed on.
    pub fn waiting(&self) -> usize {
        self.gathered.len() + self.at - self.from
    }

    /// What is to be handed on, in one piece, to be followed by [`Self::settle`].
    pub fn ready<'p>(&'p mut self, inbox: &'p Inbox) -> &'p [u8] {
        self.begun |= self.waiting() > 0;
        if self.gathered.is_empty() {
            return &inbox.data()[self.from..self.at];
        }
        self.gather(inbox);
        &self.gathered
    }

    /// Drops what was looked at, handed on or not.
    pub fn settle(&mut self, inbox: &mut Inbox) {
        inbox.consume(self.at);
        (self.at, self.from) = (0, 0);
        self.gathered = worth_keeping(std::mem::take(&mut self.gathered));
    }

    /// What is still to be handed on, and a message behind it that was not passed.
    pub fn with_next(&self, inbox: &Inbox, length: usize) -> Vec<u8> {
        let data = inbox.data();
        [&self.gathered, &data[self.from..self.at + length.min(data.len() - self.at)]].concat()
    }

    /// Whether the client has got anything.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the end of the current message has not arrived.
    pub fn is_amid(&self) -> bool {
        self.rest.count > 0
    }

    /// What the client has of the answer. `continued`: the next message belongs to the one before.
    pub fn forwarded(&self, continued: bool) -> Forwarded {
        match (self.begun, continued || (self.is_amid() && self.rest.goes)) {
            (false, _) => Forwarded::Nothing,
            (true, false) => Forwarded::Some,
            (true, true) => Forwarded::Torn,
        }
    }
}

/// An emptied buffer, or none where it has grown too large to be kept.
pub fn worth_keeping(mut buffer: Vec<u8>) -> Vec<u8> {
    if buffer.capacity() > KEPT {
        return Vec::new();
    }
    buffer.clear();
    buffer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("the tests' bytes are text")
    }

    #[test]
    fn what_is_passed_goes_out_as_it_came() {
        let mut inbox = Inbox::with(b"abcdef");
        let mut passage = Passage::default();
        passage.pass(&inbox, 4, true);

        assert_eq!(text(passage.unseen(&inbox)), "ef");
        assert_eq!(text(passage.ready(&inbox)), "abcd");
        passage.settle(&mut inbox);
        assert_eq!((text(inbox.data()), passage.waiting()), ("ef", 0));
    }

    #[test]
    fn bytes_are_left_out_and_put_between_where_they_belong() {
        let mut inbox = Inbox::with(b"abcdef");
        let mut passage = Passage::default();
        passage.pass(&inbox, 1, true);
        passage.pass(&inbox, 2, false);
        passage.pass(&inbox, 1, true);
        passage.put(&inbox, b"XY");
        passage.pass(&inbox, 1, true);

        assert_eq!(passage.waiting(), 5);
        assert_eq!(text(&passage.with_next(&inbox, 1)), "adXYef");
        assert_eq!(text(passage.ready(&inbox)), "adXYe");
        passage.settle(&mut inbox);
        assert_eq!(text(passage.ready(&inbox)), "");
    }

    #[test]
    fn a_message_whose_end_is_missing_is_torn_only_for_a_client_that_gets_it() {
        for (goes, handed_on, torn) in [(true, "ab", Forwarded::Torn), (false, "a", Forwarded::Some)] {
            let inbox = Inbox::with(b"ab");
            let mut passage = Passage::default();
            passage.pass(&inbox, 1, true);
            passage.pass_message(&inbox, 3, goes);
            assert_eq!(passage.forwarded(false), Forwarded::Nothing);

            assert!(!passage.pass_rest(&inbox));
            assert_eq!(text(passage.ready(&inbox)), handed_on);
            assert_eq!((passage.is_amid(), passage.forwarded(false)), (true, torn));
        }
    }

    #[test]
    fn a_message_whose_end_comes_later_goes_on_in_the_next_passage() {
        let mut inbox = Inbox::with(b"ab");
        let mut passage = Passage::default();
        passage.pass_message(&inbox, 3, false);
        passage.settle(&mut inbox);

        let inbox = Inbox::with(b"cd");
        let mut next = Passage::new(passage.take_spare()).resumed(passage.rest());
        assert!(next.pass_rest(&inbox));
        assert_eq!((text(next.unseen(&inbox)), text(next.ready(&inbox))), ("d", ""));
    }

    #[test]
    fn what_was_not_handed_on_is_gone_with_its_passage() {
        let mut inbox = Inbox::with(b"abc");
        let mut passage = Passage::default();
        passage.put(&inbox, b"X");
        passage.pass(&inbox, 2, true);
        passage.settle(&mut inbox);

        let mut next = Passage::new(passage.take_spare());
        assert_eq!(text(next.ready(&inbox)), "");
        assert!(!next.has_begun());
    }
}
