//! The demo's servers, of either database: what differs between them, in one place.

use std::process::Command;

use super::{
    mysql::{self, MysqlCluster, MysqlOptions},
    servers::{APP, Binaries, PgCluster, PgOptions, ServerError},
};

/// Which database the demo shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoEngine {
    Postgres,
    Mysql,
}

/// A primary and its replicas.
pub(super) enum Servers {
    Postgres { cluster: PgCluster, binaries: Binaries },
    Mysql(MysqlCluster),
}

/// What the workload says to a database: a table, and statements that answer the port of the
/// server that ran them in their first column.
pub(super) struct Statements {
    table: &'static str,
    pub write: &'static str,
    pub read: &'static str,
    pub whereabouts: &'static str,
}

const POSTGRES: Statements = Statements {
    table: "CREATE TABLE visits (id bigserial PRIMARY KEY, at timestamptz DEFAULT now());",
    write: "INSERT INTO visits DEFAULT VALUES RETURNING inet_server_port();",
    read: "SELECT inet_server_port(), count(*) FROM visits;",
    whereabouts: "SELECT inet_server_port();",
};

const MYSQL: Statements = Statements {
    table: "CREATE TABLE visits (id BIGINT AUTO_INCREMENT PRIMARY KEY, at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);",
    write: "INSERT INTO visits () VALUES () RETURNING @@port;",
    read: "SELECT @@port, COUNT(*) FROM visits;",
    whereabouts: "SELECT @@port;",
};

impl Servers {
    pub(super) fn start(engine: DemoEngine, replicas: usize) -> Result<Self, ServerError> {
        let servers = match engine {
            DemoEngine::Postgres => Self::Postgres {
                cluster: PgCluster::start(PgOptions { replicas, ..PgOptions::default() })?,
                binaries: Binaries::find()?,
            },
            DemoEngine::Mysql => {
                Self::Mysql(MysqlCluster::start(MysqlOptions { replicas, ..MysqlOptions::default() })?)
            }
        };
        servers.make_table()?;
        Ok(servers)
    }

    fn make_table(&self) -> Result<(), ServerError> {
        let table = self.statements().table;
        match self {
            Self::Postgres { cluster, .. } => {
                cluster.node(0).sql(APP.name, &format!("SET ROLE {}; {table}", APP.name))?;
                cluster.wait_until_caught_up(0)
            }
            Self::Mysql(cluster) => {
                cluster.node(0).sql(APP.name, table)?;
                cluster.wait_until_caught_up(0)
            }
        }
    }

    pub(super) const fn statements(&self) -> &'static Statements {
        match self {
            Self::Postgres { .. } => &POSTGRES,
            Self::Mysql(_) => &MYSQL,
        }
    }

    /// The value of `engine` in the configuration.
    pub(super) const fn engine(&self) -> &'static str {
        match self {
            Self::Postgres { .. } => "postgres",
            Self::Mysql(_) => "mysql",
        }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        match self {
            Self::Postgres { cluster, .. } => cluster.addresses(),
            Self::Mysql(cluster) => cluster.addresses(),
        }
    }

    /// Address, port and role of every server, by its own word.
    /// Address, port and role of each server, by its own word; whoever tries the demo may have stopped
    /// one.
    pub(super) fn roles(&self) -> Vec<(String, u16, &'static str)> {
        let role = |is_replica: Result<bool, ServerError>| match is_replica {
            Ok(true) => "replica",
            Ok(false) => "primary",
            Err(_) => "down",
        };
        match self {
            Self::Postgres { cluster, .. } => {
                let ask = |node: &super::servers::PgNode| {
                    let in_recovery = node.sql("postgres", "SELECT pg_is_in_recovery()");
                    (node.address(), node.port(), role(in_recovery.map(|answer| answer == "t")))
                };
                cluster.nodes().iter().map(ask).collect()
            }
            Self::Mysql(cluster) => {
                let ask = |node: &mysql::MysqlNode| {
                    let read_only = node.sql("", "SELECT @@GLOBAL.read_only");
                    (node.address(), node.port(), role(read_only.map(|answer| answer != "0")))
                };
                cluster.nodes().iter().map(ask).collect()
            }
        }
    }

    pub(super) fn primary_port(&self) -> u16 {
        match self {
            Self::Postgres { cluster, .. } => cluster.node(0).port(),
            Self::Mysql(cluster) => cluster.node(0).port(),
        }
    }

    /// How a person gets in at a port of 127.0.0.1.
    pub(super) fn invitation(&self, port: u16) -> String {
        let (user, password) = (APP.name, APP.password);
        match self {
            Self::Postgres { .. } => {
                format!("psql 'host=127.0.0.1 port={port} user={user} password={password} dbname={user}'")
            }
            Self::Mysql(_) => format!("mariadb -h 127.0.0.1 -P {port} -u {user} -p{password} {user}"),
        }
    }

    /// A client program that reads statements and writes rows, a line each, as they come.
    pub(super) fn client(&self, port: u16) -> Result<Command, ServerError> {
        match self {
            Self::Postgres { binaries, .. } => {
                let mut command = binaries.command("psql");
                command
                    .args([
                        "-X",
                        "-q",
                        "-At",
                        "-v",
                        "ON_ERROR_STOP=1",
                        "-h",
                        "127.0.0.1",
                        "-p",
                        &port.to_string(),
                    ])
                    .args(["-U", APP.name, "-d", APP.name])
                    .env("PGPASSWORD", APP.password)
                    .env("PGAPPNAME", "pointsman demo");
                Ok(command)
            }
            Self::Mysql(_) => {
                let mut command = Command::new(mysql::installed("mariadb")?);
                command
                    .args([
                        "--no-defaults",
                        "-N",
                        "-B",
                        "--unbuffered",
                        "-h",
                        "127.0.0.1",
                        "-P",
                        &port.to_string(),
                    ])
                    .args(["-u", APP.name, APP.name])
                    .env("MYSQL_PWD", APP.password);
                Ok(command)
            }
        }
    }
}
