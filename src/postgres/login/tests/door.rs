//! A listener that logs clients in and, if asked to, logs them in to a server and relays.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    postgres::login::{
        Accepted, Connected, Door, Login, LoginContext, LoginFailure, MockSecret, Secret, SecretError,
        Startup, accept, connect,
    },
    tls::{ClientTls, ServerTls},
};

/// Users and their secrets, as a configuration would have them.
pub struct Users {
    door: Arc<Door>,
    secrets: HashMap<String, Secret>,
}

impl Users {
    pub fn new<const N: usize>(users: [(&str, &str); N]) -> Self {
        Self::behind(ClientTls::disabled(), false, users)
    }

    pub fn behind<const N: usize>(tls: ClientTls, trust_loopback: bool, users: [(&str, &str); N]) -> Self {
        let door = Arc::new(Door::new(Arc::new(tls), trust_loopback, Arc::new(MockSecret::random())));
        let secrets = users.map(|(name, secret)| (name.to_owned(), Secret::parse(secret)));
        Self { door, secrets: secrets.into() }
    }
}

impl LoginContext for Users {
    fn door(&self) -> Arc<Door> {
        self.door.clone()
    }

    async fn secret(&self, user: &str, _database: &str) -> Result<Secret, SecretError> {
        match user {
            "lookup_fails" => Err(SecretError("no server answers".into())),
            _ => Ok(self.secrets.get(user).cloned().unwrap_or(Secret::Unknown)),
        }
    }
}

/// Results that wait for a test to look at them.
const MAX_UNREAD: usize = 256;

/// Accepts one connection after the other; what became of each is in the channel.
pub async fn listen(users: Users) -> (SocketAddr, mpsc::Receiver<Result<Accepted, LoginFailure>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    let (results, received) = mpsc::channel(MAX_UNREAD);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let mut result = accept(socket, &users).await;
            if let Ok(Accepted::Login(login)) = &mut result {
                let _ = login.stream.write_all(&READY).await;
            }
            if results.send(result).await.is_err() {
                break;
            }
        }
    });
    (address, received)
}

const READY: [u8; 6] = [b'Z', 0, 0, 0, 5, b'I'];

/// Sends bytes and reads what comes until the other side closes.
pub async fn say(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.expect("somebody listens");
    socket.write_all(bytes).await.expect("it fits the socket's buffer");
    let _ = socket.shutdown().await;
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    answer
}

/// Logs every client in, then in to `server` with what the login revealed, then copies bytes.
pub async fn relay(users: Users, server: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let address = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Ok(Accepted::Login(login)) = accept(socket, &users).await {
                serve(*login, &server).await;
            }
        }
    });
    address
}

async fn serve(mut login: Login, server: &str) {
    let startup = Startup {
        user: login.user.clone(),
        database: login.database.clone(),
        parameters: login.parameters.clone(),
        minor: 0,
    };
    match connect(server, &ServerTls::disabled(), &startup, &login.credentials).await {
        Ok(Connected { mut stream, parameters, .. }) => {
            let mut greeting = BytesMut::new();
            for (name, value) in parameters {
                greeting.put_u8(b'S');
                greeting.put_u32((4 + name.len() + 1 + value.len() + 1) as u32);
                greeting.put_slice(format!("{name}\0{value}\0").as_bytes());
            }
            greeting.put_slice(&READY);
            login.stream.write_all(&greeting).await.expect("the client is still there");
            let _ = tokio::io::copy_bidirectional(&mut login.stream, &mut stream).await;
        }
        Err(super::super::ConnectError::Server(error)) => {
            login.stream.write_all(&error.raw).await.expect("the client is still there");
        }
        Err(error) => panic!("{error}"),
    }
}
