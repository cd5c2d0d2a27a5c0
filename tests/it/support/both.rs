//! One text of a scenario for PostgreSQL, MariaDB and MySQL.

use pointsman::demo::servers::{APP, Stop};

use super::{Database, Proxy, cluster, mysql, mysql::Make};

/// Which database a scenario runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    MariaDb,
    Mysql9,
}

impl Engine {
    /// Whose servers, unless it is PostgreSQL.
    fn make(self) -> Option<Make> {
        match self {
            Self::Postgres => None,
            Self::MariaDb => Some(Make::MariaDb),
            Self::Mysql9 => Some(Make::Mysql9),
        }
    }
}

/// A cluster that ends with its test, a table space of the test's own, and a proxy.
pub enum Stage {
    Postgres { cluster: &'static pointsman::demo::servers::PgCluster, database: String, proxy: Box<Proxy> },
    Mysql(mysql::Stage),
}

/// An app's session.
pub enum Session {
    Postgres(super::Session),
    Mysql(Box<mysql::Session>),
}

impl Stage {
    /// The shared servers of an engine, with `sql` run on them, and a proxy with `settings`.
    pub async fn set(engine: Engine, sql: &str, settings: &[&str]) -> Self {
        if let Some(make) = engine.make() {
            return Self::Mysql(mysql::Stage::on(make, sql, settings).await);
        }
        let cluster = cluster::shared();
        let database = Database::with(cluster, sql).name;
        Self::Postgres { cluster, database, proxy: Box::new(Proxy::start(cluster, settings).await) }
    }

    pub async fn session(&self) -> Session {
        match self {
            Self::Postgres { proxy, database, .. } => Session::Postgres(proxy.session(database).await),
            Self::Mysql(stage) => Session::Mysql(Box::new(stage.session().await)),
        }
    }

    pub fn is_replica(&self, port: u16) -> bool {
        match self {
            Self::Postgres { cluster, .. } => cluster.nodes()[1..].iter().any(|node| node.port() == port),
            Self::Mysql(stage) => stage.is_replica(port),
        }
    }
}

impl Session {
    /// The first value of the first row; `$port` in the text asks for the server's port. Errs with
    /// the database's code.
    pub async fn ask(&mut self, sql: &str) -> Result<String, String> {
        match self {
            Self::Postgres(session) => {
                let sql = sql.replace("$port", "inet_server_port()");
                let rows = session.try_run(&sql).await.map_err(|error| super::code(&error))?;
                Ok(super::client::text(&rows))
            }
            Self::Mysql(session) => {
                let sql = sql.replace("$port", "@@port");
                session
                    .query(&sql)
                    .await
                    .map(|answer| answer.value())
                    .map_err(|error| error.errno.to_string())
            }
        }
    }

    pub async fn value(&mut self, sql: &str) -> String {
        self.ask(sql).await.unwrap_or_else(|code| panic!("{sql}: {code}"))
    }

    pub async fn port(&mut self) -> u16 {
        self.value("SELECT $port").await.parse().expect("a port is a number")
    }
}

/// A cluster of its own whose servers can be stopped and promoted.
pub enum Servers {
    Postgres(pointsman::demo::servers::PgCluster),
    Mysql(pointsman::demo::mysql::MysqlCluster),
}

impl Servers {
    pub fn own(engine: Engine) -> Self {
        match engine.make() {
            None => Self::Postgres(cluster::own()),
            Some(make) => Self::Mysql(make.own()),
        }
    }

    /// A proxy, and the name of a database with the tables of `sql`.
    pub async fn proxy(&self, sql: &str, settings: &[&str]) -> (Proxy, String) {
        match self {
            Self::Postgres(cluster) => {
                let name = Database::with(cluster, sql).name;
                (Proxy::start(cluster, settings).await, name)
            }
            Self::Mysql(cluster) => {
                let name = mysql::create_schema(cluster, sql);
                (mysql::proxy(cluster, settings).await, name)
            }
        }
    }

    pub async fn session(&self, proxy: &Proxy, database: &str) -> Result<Session, String> {
        match self {
            Self::Postgres(_) => {
                let session = super::client::connect(&proxy.dsn(database)).await;
                session.map(Session::Postgres).map_err(|error| super::code(&error))
            }
            Self::Mysql(_) => {
                let session = mysql::Session::connect(proxy.port(), APP, database, mysql::BASIC).await;
                session
                    .map(|session| Session::Mysql(Box::new(session)))
                    .map_err(|error| error.errno.to_string())
            }
        }
    }

    pub fn port(&self, index: usize) -> u16 {
        match self {
            Self::Postgres(cluster) => cluster.node(index).port(),
            Self::Mysql(cluster) => cluster.node(index).port(),
        }
    }

    pub fn stop(&self, index: usize, how: Stop) {
        match self {
            Self::Postgres(cluster) => cluster.stop(index, how).expect("it stops"),
            Self::Mysql(cluster) => cluster.stop(index, how).expect("it stops"),
        }
    }

    pub fn start(&self, index: usize) {
        match self {
            Self::Postgres(cluster) => cluster.start_node(index).expect("it starts"),
            Self::Mysql(cluster) => cluster.start_node(index).expect("it starts"),
        }
    }

    pub fn promote(&self, index: usize, followers: &[usize]) {
        match self {
            Self::Postgres(cluster) => {
                cluster.promote(index).expect("it is promoted");
                followers.iter().for_each(|other| cluster.follow(*other, index).expect("it follows"));
            }
            Self::Mysql(cluster) => {
                cluster.promote(index).expect("it is promoted");
                followers.iter().for_each(|other| cluster.follow(*other, index).expect("it follows"));
            }
        }
    }

    pub fn pause_replay(&self, index: usize) {
        match self {
            Self::Postgres(cluster) => cluster.pause_replay(index).expect("it pauses"),
            Self::Mysql(cluster) => cluster.pause_replay(index).expect("it pauses"),
        }
    }

    pub fn resume_replay(&self, index: usize) {
        match self {
            Self::Postgres(cluster) => cluster.resume_replay(index).expect("it goes on"),
            Self::Mysql(cluster) => cluster.resume_replay(index).expect("it goes on"),
        }
    }
}

/// Runs each scenario, `async fn name(engine: Engine)`, on every database.
#[macro_export]
macro_rules! both_databases {
    ($($name:ident),* $(,)?) => {
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::both::Engine::Postgres).await;
            })*
        }
        mod on_mariadb {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::both::Engine::MariaDb).await;
            })*
        }
        mod on_mysql9 {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::both::Engine::Mysql9).await;
            })*
        }
    };
}
