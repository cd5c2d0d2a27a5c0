//! mysql's door, over opensrv-mysql, which needs guarding.
//!
//! Its reader frees a buffer it still lends out when more bytes follow a packet in one read, it
//! says OK to what it cannot parse, has one salt for all, and lets in a client that names no user.
//! So it gets to see one packet at a time and none before the last one's answer was written, only
//! commands of a short list, a salt per connection, and answers nothing before a password was
//! right.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use async_trait::async_trait;
use opensrv_mysql::{
    AsyncMysqlIntermediary, AsyncMysqlShim, Column, ColumnFlags, ColumnType, ErrorKind, InitWriter,
    OkResponse, ParamParser, QueryResultWriter, StatementMetaWriter,
};
use parking_lot::Mutex;
use rand::Rng;
use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::{
    Answer, Refused, described, obey,
    table::{Cell, Kind, Table},
};
use crate::{
    admin::{console::LOGIN_TIMEOUT, control::Control},
    config::{Engine, Secret, SecretForm},
};

/// Longest packet that is taken; commands are far shorter.
const MAX_PACKET: usize = 64 * 1024;

/// Packets that a client may send before it is let in: its handshake, and an answer about the
/// authentication method.
const LOGIN_PACKETS: usize = 2;

/// COM_QUIT, COM_INIT_DB, COM_QUERY, COM_PING, COM_STMT_PREPARE, COM_STMT_EXECUTE and COM_STMT_CLOSE; and
/// COM_STMT_RESET and COM_RESET_CONNECTION, to which opensrv says OK: there is nothing to be reset.
const ALLOWED: [u8; 9] = [0x01, 0x02, 0x03, 0x0e, 0x16, 0x17, 0x19, 0x1a, 0x1f];

/// Statements that a connection may have prepared.
const MAX_PREPARED: usize = 64;

const HEADER: usize = 4;

/// The first byte of an error.
const ERROR: u8 = 0xff;

/// What opensrv says to a wrong password, and what servers say.
const NO_PASSWORD: u16 = 1698;
const ACCESS_DENIED: u16 = 1045;

/// Serves one connection to its end.
///
/// # Errors
/// When the connection breaks, or its client does not keep to the protocol.
pub async fn serve(socket: TcpStream, control: &Control) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let (reader, writer) = socket.into_split();
    let turn = Arc::new(Turn::default());
    let shim = Shim {
        control: control.clone(),
        salt: salt(),
        turn: turn.clone(),
        database: String::new(),
        prepared: HashMap::new(),
        prepared_so_far: 0,
    };
    let reader = Reader { inner: reader, turn: turn.clone(), packet: Vec::new(), given: 0, early: 0 };
    let writer = Writer { inner: writer, turn: turn.clone() };
    let served = AsyncMysqlIntermediary::run_on(shim, reader, writer);
    let mut served = std::pin::pin!(served);
    match timeout(LOGIN_TIMEOUT, async {
        tokio::select! {
            served = &mut served => Some(served),
            () = turn.entered.notified() => None,
        }
    })
    .await
    {
        Ok(Some(served)) => served,
        Ok(None) => served.await,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Twenty characters that may stand in a handshake.
fn salt() -> [u8; 20] {
    let mut rng = rand::rng();
    std::array::from_fn(|_| {
        loop {
            let byte = rng.random_range(1..128);
            if byte != b'$' {
                break byte;
            }
        }
    })
}

/// Whose turn it is to speak.
#[derive(Default)]
struct Turn {
    authenticated: AtomicBool,
    entered: tokio::sync::Notify,
    waits: Mutex<Waits>,
}

#[derive(Default)]
struct Waits {
    /// A packet was handed over and nothing has been written since.
    for_answer: bool,
    reader: Option<Waker>,
}

impl Turn {
    fn is_authenticated(&self) -> bool {
        self.authenticated.load(Ordering::Acquire)
    }
}

/// Hands over exactly one packet at a time.
struct Reader {
    inner: OwnedReadHalf,
    turn: Arc<Turn>,
    /// The packet that is being read or handed over, with its header.
    packet: Vec<u8>,
    /// How much of it was handed over.
    given: usize,
    /// Packets of a client that is not in yet.
    early: usize,
}

impl Reader {
    /// Reads until one packet is whole. `false`: the client has left between packets.
    fn poll_packet(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            let wanted = self.wanted()?;
            if self.packet.len() == wanted {
                return Poll::Ready(Ok(true));
            }
            let have = self.packet.len();
            self.packet.resize(wanted, 0);
            let mut buffer = ReadBuf::new(&mut self.packet[have..]);
            let polled = Pin::new(&mut self.inner).poll_read(context, &mut buffer);
            let count = buffer.filled().len();
            self.packet.truncate(have + count);
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) if count == 0 && have == 0 => return Poll::Ready(Ok(false)),
                Poll::Ready(Ok(())) if count == 0 => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Poll::Ready(Ok(())) => {}
            }
        }
    }

    /// Length of the packet, as far as it is known.
    fn wanted(&self) -> io::Result<usize> {
        let &[a, b, c, ..] = self.packet.as_slice() else { return Ok(HEADER) };
        if self.packet.len() < HEADER {
            return Ok(HEADER);
        }
        let length = usize::from(a) | usize::from(b) << 8 | usize::from(c) << 16;
        if length > MAX_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "packet too long for the console"));
        }
        Ok(HEADER + length)
    }

    /// Whether the packet may be seen by whoever answers it.
    fn check(&mut self) -> io::Result<()> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why.to_owned()));
        if !self.turn.is_authenticated() {
            self.early += 1;
            return if self.early <= LOGIN_PACKETS { Ok(()) } else { refused("a command before the login") };
        }
        match self.packet.get(HEADER) {
            Some(command) if ALLOWED.contains(command) => Ok(()),
            Some(command) => refused(&format!("command {command} is not for the console")),
            None => refused("an empty command"),
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.given == 0 {
            {
                let mut waits = this.turn.waits.lock();
                if waits.for_answer {
                    waits.reader = Some(context.waker().clone());
                    return Poll::Pending;
                }
            }
            match this.poll_packet(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(true)) => this.check()?,
            }
        }
        let count = (this.packet.len() - this.given).min(buffer.remaining());
        buffer.put_slice(&this.packet[this.given..this.given + count]);
        this.given += count;
        if this.given == this.packet.len() {
            this.packet.clear();
            this.given = 0;
            this.turn.waits.lock().for_answer = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// What servers say to a wrong password, in the place of what opensrv says, whose length is told already.
fn denied(said: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(said);
    let name = text.split('"').nth(1).unwrap_or_default();
    let mut words = format!("#28000Access denied for user '{name}' (using password: YES)").into_bytes();
    words.resize(said.len(), b' ');
    words
}

/// Notes that the client was answered.
struct Writer {
    inner: OwnedWriteHalf,
    turn: Arc<Turn>,
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let inner = Pin::new(&mut this.inner);
        match data {
            // What follows a packet's header: opensrv writes that first.
            [ERROR, low, high, rest @ ..]
                if !this.turn.is_authenticated() && [*low, *high] == NO_PASSWORD.to_le_bytes() =>
            {
                let [low, high] = ACCESS_DENIED.to_le_bytes();
                inner.poll_write(context, &[&[ERROR, low, high], &*denied(rest)].concat())
            }
            _ => inner.poll_write(context, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut waits = this.turn.waits.lock();
        waits.for_answer = false;
        if let Some(reader) = waits.reader.take() {
            reader.wake();
        }
        drop(waits);
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

struct Shim {
    control: Control,
    salt: [u8; 20],
    turn: Arc<Turn>,
    /// What the client named last.
    database: String,
    /// The texts of prepared commands, by their ids.
    prepared: HashMap<u32, String>,
    prepared_so_far: u32,
}

impl Shim {
    /// The proof of mysql_native_password: SHA1(password) XOR SHA1(salt, SHA1(SHA1(password))).
    fn is_proof(&self, stored: &[u8; 20], proof: &[u8]) -> bool {
        let Ok(proof) = <&[u8; 20]>::try_from(proof) else { return false };
        let mask = Sha1::new().chain_update(self.salt).chain_update(stored).finalize();
        let hash: [u8; 20] = std::array::from_fn(|at| proof[at] ^ mask[at]);
        bool::from(Sha1::digest(hash).as_slice().ct_eq(stored))
    }
}

/// SHA1(SHA1(password)).
fn stored(secret: &Secret) -> Option<[u8; 20]> {
    match secret.form(Engine::Mysql) {
        SecretForm::Plain => Some(Sha1::digest(Sha1::digest(secret.expose())).into()),
        SecretForm::MysqlNative => hex::decode(secret.expose().get(1..)?).ok()?.try_into().ok(),
        SecretForm::ScramSha256 | SecretForm::Md5 | SecretForm::MysqlSha2 => None,
    }
}

#[async_trait]
impl<W: AsyncWrite + Send + Unpin> AsyncMysqlShim<W> for Shim {
    type Error = io::Error;

    fn version(&self) -> String {
        // The number keeps clients from working around servers of long ago.
        format!("8.0.0-pointsman-{}", env!("CARGO_PKG_VERSION"))
    }

    fn salt(&self) -> [u8; 20] {
        self.salt
    }

    async fn authenticate(&self, _plugin: &str, name: &[u8], _salt: &[u8], proof: &[u8]) -> bool {
        let secret = std::str::from_utf8(name)
            .ok()
            .and_then(|name| super::user(&self.control, name)?.password)
            .unwrap_or_else(super::nobody);
        let right = stored(&secret).is_some_and(|stored| self.is_proof(&stored, proof));
        if right {
            self.turn.authenticated.store(true, Ordering::Release);
            self.turn.entered.notify_one();
        }
        right
    }

    async fn on_init<'a>(&'a mut self, database: &'a str, writer: InitWriter<'a, W>) -> io::Result<()> {
        // Any name will do: there is no data.
        database.clone_into(&mut self.database);
        writer.ok().await
    }

    async fn on_prepare<'a>(
        &'a mut self,
        text: &'a str,
        writer: StatementMetaWriter<'a, W>,
    ) -> io::Result<()> {
        if text.contains('?') {
            let message: &[u8] = b"the console's commands take no parameters";
            return writer.error(ErrorKind::ER_UNSUPPORTED_PS, message).await;
        }
        if self.prepared.len() >= MAX_PREPARED {
            let message: &[u8] = b"too many prepared commands";
            return writer.error(ErrorKind::ER_MAX_PREPARED_STMT_COUNT_REACHED, message).await;
        }
        match described(text) {
            Ok(table) => {
                self.prepared_so_far += 1;
                self.prepared.insert(self.prepared_so_far, text.to_owned());
                writer.reply(self.prepared_so_far, &[], &columns(&table)).await
            }
            Err(refused) => writer.error(kind(&refused), refused.message().as_bytes()).await,
        }
    }

    async fn on_execute<'a>(
        &'a mut self,
        id: u32,
        _: ParamParser<'a>,
        writer: QueryResultWriter<'a, W>,
    ) -> io::Result<()> {
        // opensrv knows no other ids than it was given.
        let text = self.prepared.get(&id).cloned().unwrap_or_default();
        self.answer(&text, writer).await
    }

    async fn on_close<'a>(&'a mut self, id: u32)
    where
        W: 'async_trait,
    {
        self.prepared.remove(&id);
    }

    async fn on_query<'a>(&'a mut self, text: &'a str, writer: QueryResultWriter<'a, W>) -> io::Result<()> {
        self.answer(text, writer).await
    }
}

impl Shim {
    async fn answer<W: AsyncWrite + Send + Unpin>(
        &self,
        text: &str,
        writer: QueryResultWriter<'_, W>,
    ) -> io::Result<()> {
        if !self.turn.is_authenticated() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        match obey(&self.control, &self.database, text).await {
            Ok(Answer::Table(table)) => write(&table, writer).await,
            Ok(Answer::Done(_) | Answer::Empty) => writer.completed(OkResponse::default()).await,
            Err(refused) => writer.error(kind(&refused), refused.message().as_bytes()).await,
        }
    }
}

const fn kind(refused: &Refused) -> ErrorKind {
    match refused {
        Refused::Syntax(_) => ErrorKind::ER_PARSE_ERROR,
        Refused::Failed(_) => ErrorKind::ER_UNKNOWN_ERROR,
    }
}

async fn write<W: AsyncWrite + Send + Unpin>(
    table: &Table,
    writer: QueryResultWriter<'_, W>,
) -> io::Result<()> {
    let columns = columns(table);
    let mut rows = writer.start(&columns).await?;
    for row in &table.rows {
        for (column, value) in table.columns.iter().zip(row) {
            write_cell(&mut rows, column.kind, value)?;
        }
        rows.end_row().await?;
    }
    rows.finish().await
}

fn columns(table: &Table) -> Vec<Column> {
    let column = |column: &super::table::Column| Column {
        table: String::new(),
        column: column.name.clone(),
        coltype: match column.kind {
            Kind::Text => ColumnType::MYSQL_TYPE_VAR_STRING,
            Kind::Integer => ColumnType::MYSQL_TYPE_LONGLONG,
            Kind::Float => ColumnType::MYSQL_TYPE_DOUBLE,
        },
        colflags: ColumnFlags::empty(),
    };
    table.columns.iter().map(column).collect()
}

fn write_cell<W: AsyncWrite + Unpin>(
    rows: &mut opensrv_mysql::RowWriter<'_, W>,
    kind: Kind,
    value: &Cell,
) -> io::Result<()> {
    match kind {
        Kind::Text => rows.write_col(value.as_deref()),
        Kind::Integer => rows.write_col(value.as_ref().and_then(|text| text.parse::<i64>().ok())),
        Kind::Float => rows.write_col(value.as_ref().and_then(|text| text.parse::<f64>().ok())),
    }
}
