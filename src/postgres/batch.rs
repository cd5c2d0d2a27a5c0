//! Cuts what a client has sent into requests: a Query, a FunctionCall, or what stands between two
//! Syncs of the extended protocol (or the part of it that has arrived when the client flushes).

use std::sync::Arc;

use smallvec::SmallVec;

use super::{
    bind,
    frame::{self, HEADER},
    prepared::Statement,
};
use crate::{refusal::Refusal, sql::LexModes};

/// Bytes of one unit that are gathered before it is passed on in pieces. Statements up to this
/// length can be classified, repeated on another node and prepared by name.
pub const GATHERED: usize = 64 * 1024;

/// Longest Parse that is gathered: it has to be known whole to be prepared again elsewhere.
pub const LONGEST_PARSE: usize = 16 * 1024 * 1024;

/// Longest Query that is gathered: an INSERT of a thousand rows, or a list of ten thousand ids, has to be
/// read to its end to be told from what leaves something in its connection.
pub const LONGEST_QUERY: usize = 1024 * 1024;

/// One request as it lies at the front of the frontend's inbox.
#[derive(Debug)]
pub struct Batch {
    pub kind: Kind,
    /// Bytes of it in the inbox.
    pub length: usize,
    pub end: End,
    pub messages: SmallVec<[Message; 5]>,
    /// The text, when it is one statement with an effect on the session.
    pub text: Option<Box<str>>,
    /// Number of Execute messages.
    pub executes: u32,
    /// The unnamed statement that messages before a new definition of it mean.
    pub previous_unnamed: Option<(u128, Box<[u8]>)>,
    /// Names that its messages use as they are: the server must have under them what the client has, be
    /// it a statement of SQL PREPARE or none.
    pub own: SmallVec<[Box<[u8]>; 0]>,
    /// Executes whose statement has effects: so many had been executed then, and so many effects of the
    /// request's intent are theirs.
    pub effects_until: SmallVec<[(u32, u32); 0]>,
    /// By which its text was read.
    pub modes: LexModes,
}

impl Batch {
    /// Whether a client takes the Bind at `index` for a result of any shape: it has its portal described right
    /// behind it, and does not say a format for each column that it knows of. `data`: the batch's bytes.
    pub fn takes_any_shape(&self, index: usize, data: &[u8]) -> bool {
        let next = self.messages.get(index + 1);
        next.is_some_and(|next| next.tag == b'D' && data.get(next.at + HEADER) == Some(&b'P'))
            && self.messages.get(index).is_some_and(|message| {
                let names = bind::names(body(data, message.at, message.length));
                names.and_then(|(_, _, rest)| bind::result_formats(rest)).is_some_and(|formats| formats <= 1)
            })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Query,
    FunctionCall,
    Extended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A Query, a FunctionCall, or a Sync.
    Whole,
    /// The client waits for what it has asked so far.
    Flush,
    /// Data of a COPY follows without waiting for the server to ask for it: whether it does is to be
    /// found out first.
    Copy,
    /// More follows; in the extended protocol no answer is due before it has come. `tail`: bytes of the
    /// last message that have not arrived.
    More { tail: usize },
}

/// One message of an extended batch.
#[derive(Debug)]
pub struct Message {
    pub tag: u8,
    /// Where it starts, from the start of the batch, and its length in the inbox.
    pub at: usize,
    pub length: usize,
    pub subject: Subject,
}

/// What a message is about, as far as it has to be rewritten or accounted for.
#[derive(Debug)]
pub enum Subject {
    /// Goes to the server as it is.
    Plain,
    /// Parse, Bind, Describe or Close of the unnamed statement: its key, where the client has one.
    Unnamed(Option<u128>),
    /// Parse, Bind or Describe of a named statement that is known.
    Named(Arc<Statement>),
    /// Close of a named statement.
    CloseNamed,
    /// Parse of a name that is taken, by this statement.
    Duplicate(Arc<Statement>),
}

/// Where the first unit of `data` ends.
pub enum Cut {
    /// More bytes are needed.
    Short,
    /// A message that means nothing outside of COPY, of that many bytes (not all may be there).
    Skip(usize),
    Terminate,
    Unit {
        kind: Kind,
        length: usize,
        end: End,
    },
}

/// Finds the first unit of `data` by its headers alone.
///
/// # Errors
/// A header that no server would accept.
pub fn cut(data: &[u8]) -> Result<Cut, Refusal> {
    let mut at = 0;
    loop {
        let Some(header) = frame::client_header(&data[at..])? else {
            return Ok(pass_on_when_full(data, at));
        };
        match header.tag {
            b'Q' | b'F' | b'X' if at > 0 => return Ok(more(at, 0)),
            b'X' => return Ok(Cut::Terminate),
            b'c' | b'd' | b'f' | b'p' if at == 0 => return Ok(Cut::Skip(header.length)),
            b'c' | b'd' | b'f' => {
                return Ok(Cut::Unit { kind: Kind::Extended, length: at, end: End::Copy });
            }
            b'Q' | b'F' => return Ok(single(data, header)),
            _ => {}
        }
        if at + header.length > data.len() {
            return Ok(partial(data, at, header));
        }
        at += header.length;
        match header.tag {
            b'S' => return Ok(Cut::Unit { kind: Kind::Extended, length: at, end: End::Whole }),
            b'H' => return Ok(Cut::Unit { kind: Kind::Extended, length: at, end: End::Flush }),
            _ => {}
        }
    }
}

/// Where, in the part of a unit that goes on, the first statement of its own begins: what stands before
/// is about what earlier parts have bound, on the connection they went to.
pub fn behind_earlier_portals(part: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(header) = frame::header(&part[at..]) {
        if matches!(header.tag, b'P' | b'B') {
            return (at > 0).then_some(at);
        }
        if header.length < HEADER || at + header.length > part.len() {
            return None;
        }
        at += header.length;
    }
    None
}

/// The last message has begun to arrive.
fn partial(data: &[u8], at: usize, header: frame::Header) -> Cut {
    let limit = if header.tag == b'P' { LONGEST_PARSE } else { GATHERED };
    if data.len() - at >= limit {
        more(data.len(), at + header.length - data.len())
    } else {
        pass_on_when_full(data, at)
    }
}

fn pass_on_when_full(data: &[u8], whole_until: usize) -> Cut {
    if whole_until > 0 && data.len() >= GATHERED { more(whole_until, 0) } else { Cut::Short }
}

fn more(length: usize, tail: usize) -> Cut {
    Cut::Unit { kind: Kind::Extended, length, end: End::More { tail } }
}

fn single(data: &[u8], header: frame::Header) -> Cut {
    let (kind, limit) = match header.tag {
        b'Q' => (Kind::Query, LONGEST_QUERY),
        _ => (Kind::FunctionCall, GATHERED),
    };
    if header.length <= data.len() {
        Cut::Unit { kind, length: header.length, end: End::Whole }
    } else if data.len() >= limit {
        Cut::Unit { kind, length: data.len(), end: End::More { tail: header.length - data.len() } }
    } else {
        Cut::Short
    }
}

/// The body of the message at `at`, header excluded.
pub fn body(data: &[u8], at: usize, length: usize) -> &[u8] {
    &data[at + HEADER..at + length]
}
