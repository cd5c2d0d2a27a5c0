//! A client's session over tokio-postgres, and short questions to its answers.

use std::{
    ops::{Deref, DerefMut},
    time::{Duration, Instant},
};

use tokio_postgres::{Client, Error, NoTls, Row, SimpleQueryMessage};

use super::{PATIENCE, soon};

/// One connection of an app. Its queries are those of [`Client`].
pub struct Session {
    client: Client,
    connection: tokio::task::JoinHandle<()>,
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

pub async fn connect(dsn: &str) -> Result<Session, Error> {
    let (client, connection) = tokio::time::timeout(PATIENCE, tokio_postgres::connect(dsn, NoTls))
        .await
        .unwrap_or_else(|_| panic!("the login hangs: {dsn}"))?;
    let connection = tokio::spawn(async move {
        // Its error is also that of the query under way, if there is one.
        if let Err(error) = connection.await {
            eprintln!("a client's connection has ended: {error:?}");
        }
    });
    Ok(Session { client, connection })
}

impl Session {
    pub async fn open(dsn: &str) -> Self {
        connect(dsn).await.unwrap_or_else(|error| panic!("{dsn}: {error:?}"))
    }

    /// As [`Session::open`], but tries again while the proxy does not know its servers yet.
    pub async fn retry(dsn: &str) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match connect(dsn).await {
                Ok(session) => return session,
                Err(error) => assert!(Instant::now() < deadline, "{dsn}: {error:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Runs a string of statements in the simple protocol and returns the rows' values as text.
    pub async fn run(&self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.try_run(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    pub async fn try_run(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Error> {
        let messages = soon(sql, self.client.simple_query(sql)).await?;
        let row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        };
        Ok(messages.into_iter().filter_map(row).collect())
    }

    /// The first value of the first row.
    pub async fn value(&self, sql: &str) -> String {
        text(&self.run(sql).await)
    }

    /// The SQLSTATE that `sql` fails with.
    pub async fn error(&self, sql: &str) -> String {
        match self.try_run(sql).await {
            Ok(rows) => panic!("{sql} did not fail but answered {rows:?}"),
            Err(error) => code(&error),
        }
    }

    /// The port of the server that answers a read now.
    pub async fn port(&self) -> u16 {
        self.try_port().await.unwrap_or_else(|error| panic!("{error:?}"))
    }

    pub async fn try_port(&self) -> Result<u16, Error> {
        let rows = self.try_run("SELECT inet_server_port()").await?;
        Ok(text(&rows).parse().expect("a port is a number"))
    }

    /// The ports of the servers that answered `count` executions of `sql` in the simple protocol;
    /// its first column is `inet_server_port()`.
    pub async fn ports(&self, sql: &str, count: usize) -> Vec<u16> {
        let mut ports = Vec::with_capacity(count);
        for _ in 0..count {
            ports.push(self.value(sql).await.parse().expect("a port is a number"));
        }
        ports
    }

    /// Ends the connection without a word, as a client that crashes.
    pub fn vanish(self) {
        self.connection.abort();
    }
}

/// The first value of the first row as text.
pub fn text(rows: &[Vec<Option<String>>]) -> String {
    rows.first().and_then(|row| row.first().cloned().flatten()).unwrap_or_default()
}

/// The first columns of rows of the extended protocol, as ports.
pub fn ports(rows: &[Row]) -> Vec<u16> {
    rows.iter().map(|row| u16::try_from(row.get::<_, i32>(0)).expect("a port has 16 bits")).collect()
}

/// The SQLSTATE of a server's error; of a broken connection, what tokio-postgres says of it.
pub fn code(error: &Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}
