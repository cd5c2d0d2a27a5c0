//! The yardstick: a proxy that does nothing but copy bytes, in the best shape known for that.
//!
//! One current-thread runtime per worker; an acceptor hands the sockets out in turn; each direction
//! is a task of its own that reads into a buffer kept for the connection and writes all of it.
//!
//! Usage: `copy_proxy LISTEN TARGET [WORKERS]`

use std::{
    env, io,
    net::{SocketAddr, TcpListener, TcpStream},
    num::NonZeroUsize,
    thread,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
};

/// As large as a client's or server's usual flight; a larger one takes more system calls.
const BUFFER: usize = 32 * 1024;
/// Sockets that a worker has not picked up yet.
const QUEUE: usize = 1024;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let ([listen, target] | [listen, target, _]) = &arguments[..] else {
        return Err(io::Error::other("usage: copy_proxy LISTEN TARGET [WORKERS]"));
    };
    let target: SocketAddr = target.parse().map_err(io::Error::other)?;
    let workers = match arguments.get(2) {
        Some(workers) => workers.parse().map_err(io::Error::other)?,
        None => thread::available_parallelism().map_or(1, NonZeroUsize::get),
    };
    let queues: Vec<_> = (0..workers).map(|_| worker(target)).collect();
    let listener = TcpListener::bind(listen)?;
    for queue in queues.iter().cycle() {
        let (client, _) = listener.accept()?;
        queue.blocking_send(client).map_err(io::Error::other)?;
    }
    Ok(())
}

fn worker(target: SocketAddr) -> mpsc::Sender<TcpStream> {
    let (queue, mut clients) = mpsc::channel::<TcpStream>(QUEUE);
    thread::spawn(move || -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        runtime.block_on(async {
            while let Some(client) = clients.recv().await {
                tokio::spawn(connect(client, target));
            }
        });
        Ok(())
    });
    queue
}

async fn connect(client: TcpStream, target: SocketAddr) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let client = tokio::net::TcpStream::from_std(client)?;
    let server = tokio::net::TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::spawn(copy(from_client, to_server));
    copy(from_server, to_client).await
}

/// Dropping the write half at the end shuts that direction down.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(BUFFER);
    while from.read_buf(&mut buffer).await? > 0 {
        to.write_all(&buffer).await?;
        buffer.clear();
    }
    Ok(())
}
