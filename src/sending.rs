//! A request on its way to its server, and whether the server may have got any of it.

use std::io;

use crate::{
    inbox::Inbox,
    standing::{Step, Watch},
    stream::{Outlet, Stream},
};

/// How much of one request has gone.
#[derive(Debug, Default)]
pub struct Sending {
    begun: bool,
    /// All of that was left to the worker, which tells later whether the kernel took it.
    entrusted: bool,
}

impl Sending {
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether the server may have got anything that was sent by `stream`.
    pub fn may_have_arrived(&self, stream: &Stream) -> bool {
        self.begun && !(self.entrusted && stream.was_refused())
    }

    /// Sends what nobody has to wait for; returns what is left, for [`Self::go_on`].
    #[inline]
    pub fn begin<'b>(&mut self, stream: &Stream, bytes: &'b [u8]) -> &'b [u8] {
        if !self.begun && stream.entrust(bytes) {
            (self.begun, self.entrusted) = (true, true);
            return &[];
        }
        // Whoever goes on meets an error again.
        let written = stream.write_now(bytes).unwrap_or_default();
        self.begun |= written > 0;
        &bytes[written..]
    }

    /// Waits until all that is `left` has gone, or the server has said something (`false`): neither is to wait
    /// for the other for ever.
    ///
    /// # Errors
    /// As [`Watch::write`], and where the server takes or says nothing more.
    pub async fn go_on(
        &mut self,
        watch: Watch<'_>,
        left: &mut &[u8],
        inbox: &mut Inbox,
        stream: &mut Stream,
    ) -> io::Result<bool> {
        loop {
            let flushes = left.is_empty();
            let step = if flushes {
                watch.flush(inbox, stream).await?
            } else {
                watch.write(left, inbox, stream).await?
            };
            match step {
                Step::Wrote(_) if flushes => return Ok(true),
                Step::Wrote(0) => return Err(io::ErrorKind::WriteZero.into()),
                Step::Wrote(count) => {
                    self.begun = true;
                    *left = &left[count..];
                    if left.is_empty() && !stream.is_buffered() {
                        return Ok(true);
                    }
                }
                Step::Read(0) => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the connection was closed while a request was on its way",
                    ));
                }
                Step::Read(_) => return Ok(false),
            }
        }
    }
}
