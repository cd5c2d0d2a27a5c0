//! One connection of a client, by either database's driver.

use mysql_async::prelude::Queryable;
use pointsman::demo::servers::APP;
use tokio_postgres::{NoTls, SimpleQueryMessage};

use crate::{history::Outcome, servers::Engine};

/// Where clients log in, and as whom.
#[derive(Clone, Debug)]
pub struct Door {
    pub engine: Engine,
    pub port: u16,
}

pub enum Client {
    Postgres(tokio_postgres::Client),
    Mysql(Box<mysql_async::Conn>),
}

/// Rows as text.
pub type Answer = Vec<Vec<String>>;

/// An error of the server or of the proxy, or a broken connection.
#[derive(Clone, Debug)]
pub struct Refused {
    /// SQLSTATE, or error number and SQLSTATE; `closed` for a broken connection.
    pub code: String,
    pub message: String,
}

impl Client {
    pub async fn connect(door: &Door) -> Result<Self, Refused> {
        let Door { engine, port } = *door;
        match engine {
            Engine::Postgres => {
                let dsn = format!(
                    "host=127.0.0.1 port={port} user={} password={} dbname=app",
                    APP.name, APP.password
                );
                let (client, connection) = tokio_postgres::connect(&dsn, NoTls).await?;
                tokio::spawn(async move {
                    let _ = connection.await;
                });
                Ok(Self::Postgres(client))
            }
            Engine::Mysql | Engine::Mysql9 => {
                let options = mysql_async::OptsBuilder::default()
                    .ip_or_hostname("127.0.0.1")
                    .tcp_port(port)
                    .user(Some(APP.name))
                    .pass(Some(APP.password))
                    .db_name(Some(APP.name))
                    .prefer_socket(false);
                Ok(Self::Mysql(Box::new(mysql_async::Conn::new(options).await?)))
            }
        }
    }

    pub fn is_closed(&self) -> bool {
        match self {
            Self::Postgres(client) => client.is_closed(),
            // It knows when it is used, and is dropped then.
            Self::Mysql(_) => false,
        }
    }

    pub async fn ask(&mut self, sql: &str) -> Result<Answer, Refused> {
        match self {
            Self::Postgres(client) => {
                Ok(client.simple_query(sql).await?.iter().filter_map(postgres_row).collect())
            }
            Self::Mysql(connection) => {
                Ok(connection.query::<mysql_async::Row, _>(sql).await?.iter().map(mysql_row).collect())
            }
        }
    }
}

/// How clients say to each database what they want.
impl Engine {
    /// Changes one of the proxy's own settings.
    pub fn set(self, name: &str, value: &str) -> String {
        match self {
            Self::Postgres => format!("SET pointsman.{name} = '{value}'"),
            Self::Mysql | Self::Mysql9 => format!("SET @pointsman_{name} = '{value}'"),
        }
    }

    /// Reads one of them.
    pub fn show(self, name: &str) -> String {
        match self {
            Self::Postgres => format!("SHOW pointsman.{name}"),
            Self::Mysql | Self::Mysql9 => format!("SELECT @pointsman_{name}"),
        }
    }

    /// An expression for the port of the server that answers.
    pub const fn port(self) -> &'static str {
        match self {
            Self::Postgres => "inet_server_port()",
            Self::Mysql | Self::Mysql9 => "@@port",
        }
    }
}

impl Refused {
    pub fn closed(message: impl ToString) -> Self {
        Self { code: "closed".to_owned(), message: message.to_string() }
    }

    /// What it says of a write.
    pub fn outcome(&self) -> Outcome {
        match self.code.as_str() {
            // 57P02: another process crashed, at whatever moment.
            "08007" | "2013/08007" | "closed" | "57P02" => Outcome::InDoubt,
            _ => Outcome::Failed,
        }
    }
}

impl From<tokio_postgres::Error> for Refused {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.code() {
            Some(code) => Self { code: code.code().to_owned(), message: error.to_string() },
            None => Self::closed(error),
        }
    }
}

impl From<mysql_async::Error> for Refused {
    fn from(error: mysql_async::Error) -> Self {
        match error {
            mysql_async::Error::Server(error) => {
                Self { code: format!("{}/{}", error.code, error.state), message: error.message }
            }
            error => Self::closed(error),
        }
    }
}

fn postgres_row(message: &SimpleQueryMessage) -> Option<Vec<String>> {
    match message {
        SimpleQueryMessage::Row(row) => {
            Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect())
        }
        _ => None,
    }
}

fn mysql_row(row: &mysql_async::Row) -> Vec<String> {
    (0..row.len()).map(|column| row.get::<Option<String>, _>(column).flatten().unwrap_or_default()).collect()
}
