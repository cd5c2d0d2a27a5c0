//! One text of a scenario for PostgreSQL, MariaDB and MySQL.

use std::{fs, time::Duration};

use pointsman::demo::servers::{APP, Login, MONITOR, PgNode, Stop};

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

    /// Whether `code` is how this database says `meaning`.
    pub fn says(self, meaning: Meaning, code: &str) -> bool {
        let (postgres, mysql): (&[&str], &[&str]) = match meaning {
            Meaning::NoPrimary => (&["57P03"], &["1290"]),
            // Whether it was done or not is told by the SQLSTATE, which MySQL's drivers do not look at.
            Meaning::Lost => (&["08006", "08007"], &["2013"]),
            Meaning::TooMany => (&["53300"], &["1040"]),
            Meaning::Cancelled => (&["57014"], &["1317", "3024", "1969"]),
            // PostgreSQL says first what became of the statement; MySQL's servers say nothing.
            Meaning::Ended => (&["57014"], &["2013"]),
            Meaning::NoTable => (&["42P01"], &["1146"]),
        };
        if self == Self::Postgres { postgres } else { mysql }.contains(&code)
    }
}

/// What an error says, whatever its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// No server takes writes now.
    NoPrimary,
    /// The server was lost.
    Lost,
    TooMany,
    Cancelled,
    /// Somebody ended the session.
    Ended,
    NoTable,
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

    /// A login; errs with the database's code.
    pub async fn log_in(&self) -> Result<Session, String> {
        self.log_in_as(APP).await
    }

    /// The same for another user, or by another password.
    pub async fn log_in_as(&self, login: Login) -> Result<Session, String> {
        match self {
            Self::Postgres { proxy, database, .. } => log_in_to_postgres(proxy, login, database).await,
            Self::Mysql(stage) => log_in_to_mysql(&stage.proxy, login, &stage.schema).await,
        }
    }

    pub fn proxy(&self) -> &Proxy {
        match self {
            Self::Postgres { proxy, .. } => proxy,
            Self::Mysql(stage) => &stage.proxy,
        }
    }

    pub fn proxy_mut(&mut self) -> &mut Proxy {
        match self {
            Self::Postgres { proxy, .. } => proxy,
            Self::Mysql(stage) => &mut stage.proxy,
        }
    }

    /// What the primary itself answers.
    pub fn ask_primary(&self, sql: &str) -> String {
        let answer = match self {
            Self::Postgres { cluster, database, .. } => cluster.node(0).sql(database, sql),
            Self::Mysql(stage) => stage.cluster.node(0).sql(&stage.schema, sql),
        };
        answer.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Whether a statement that begins so runs on the primary.
    pub fn runs(&self, beginning: &str) -> bool {
        let running = match self {
            Self::Postgres { .. } => {
                "SELECT count(*) FROM pg_stat_activity
                 WHERE datname = current_database() AND state = 'active' AND query LIKE"
            }
            Self::Mysql(_) => {
                "SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info LIKE"
            }
        };
        self.ask_primary(&format!("{running} '{beginning}%'")) != "0"
    }

    /// `host:port` of every server, the primary first.
    pub fn addresses(&self) -> Vec<String> {
        match self {
            Self::Postgres { cluster, .. } => cluster.addresses(),
            Self::Mysql(stage) => stage.cluster.addresses(),
        }
    }

    pub fn is_replica(&self, port: u16) -> bool {
        match self {
            Self::Postgres { cluster, .. } => cluster.nodes()[1..].iter().any(|node| node.port() == port),
            Self::Mysql(stage) => stage.is_replica(port),
        }
    }
}

async fn log_in_to_postgres(proxy: &Proxy, login: Login, database: &str) -> Result<Session, String> {
    let session = super::client::connect(&proxy.dsn_of(login, database)).await;
    session.map(Session::Postgres).map_err(|error| super::code(&error))
}

async fn log_in_to_mysql(proxy: &Proxy, login: Login, schema: &str) -> Result<Session, String> {
    let session = mysql::Session::connect(proxy.port(), login, schema, mysql::BASIC).await;
    session.map(|session| Session::Mysql(Box::new(session))).map_err(|error| error.errno.to_string())
}

impl Session {
    /// The first value of the first row; `$port` in the text asks for the server's port, `$sleep`
    /// is a condition that takes a minute. Errs with the database's code.
    pub async fn ask(&mut self, sql: &str) -> Result<String, String> {
        match self {
            Self::Postgres(session) => {
                let sql =
                    sql.replace("$port", "inet_server_port()").replace("$sleep", "pg_sleep(60) IS NULL");
                let rows = session.try_run(&sql).await.map_err(|error| super::code(&error))?;
                Ok(super::client::text(&rows))
            }
            Self::Mysql(session) => {
                let sql = sql.replace("$port", "@@port").replace("$sleep", "SLEEP(60) = 7");
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

    /// The text that changes one of the proxy's own settings.
    pub fn setting(&self, name: &str, value: &str) -> String {
        match self {
            Self::Postgres(_) => format!("SET pointsman.{name} = '{value}'"),
            Self::Mysql(_) => format!("SET @pointsman_{name} = '{value}'"),
        }
    }

    /// The text that asks for one.
    pub fn question(&self, name: &str) -> String {
        match self {
            Self::Postgres(_) => format!("SHOW pointsman.{name}"),
            Self::Mysql(_) => format!("SELECT @pointsman_{name}"),
        }
    }

    /// Changes one of the proxy's own settings.
    pub async fn set(&mut self, name: &str, value: &str) {
        self.value(&self.setting(name, value)).await;
    }

    /// Reads one of the proxy's own settings.
    pub async fn get(&mut self, name: &str) -> String {
        self.value(&self.question(name)).await
    }

    pub async fn port(&mut self) -> u16 {
        self.value("SELECT $port").await.parse().expect("a port is a number")
    }
}

/// Changes who may log in to a server.
fn rewrite_hba(node: &PgNode, change: impl FnOnce(&str) -> String) {
    let path = node.data().join("pg_hba.conf");
    let hba = fs::read_to_string(&path).expect("it is readable");
    fs::write(&path, change(&hba)).expect("it is ours");
    node.reload();
}

/// A statement that replicas do not hear of.
fn local(sql: &str) -> String {
    format!("SET sql_log_bin = 0; {sql}")
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

    /// One more proxy before the same servers.
    pub async fn another_proxy(&self, settings: &[&str]) -> Proxy {
        match self {
            Self::Postgres(cluster) => Proxy::start(cluster, settings).await,
            Self::Mysql(cluster) => mysql::proxy(cluster, settings).await,
        }
    }

    /// Errs with the database's code.
    pub async fn session(&self, proxy: &Proxy, database: &str) -> Result<Session, String> {
        match self {
            Self::Postgres(_) => log_in_to_postgres(proxy, APP, database).await,
            Self::Mysql(_) => log_in_to_mysql(proxy, APP, database).await,
        }
    }

    /// Runs SQL on a server itself, as its superuser.
    pub fn on(&self, index: usize, database: &str, sql: &str) -> String {
        let answer = match self {
            Self::Postgres(cluster) => cluster.node(index).sql(database, sql),
            Self::Mysql(cluster) => cluster.node(index).sql(database, sql),
        };
        answer.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn address(&self, index: usize) -> String {
        match self {
            Self::Postgres(cluster) => cluster.node(index).address(),
            Self::Mysql(cluster) => cluster.node(index).address(),
        }
    }

    /// The server answers no probe any more, and everybody else as before.
    pub fn lock_monitor_out(&self, index: usize) {
        match self {
            Self::Postgres(cluster) => {
                let node = cluster.node(index);
                rewrite_hba(node, |hba| format!("host all {} all reject\n{hba}", MONITOR.name));
                let ends = format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
                    MONITOR.name
                );
                node.sql("postgres", &ends).expect("it obeys");
            }
            Self::Mysql(cluster) => {
                let node = cluster.node(index);
                node.sql("", &local(&format!("ALTER USER '{}'@'%' ACCOUNT LOCK", MONITOR.name)))
                    .expect("it obeys");
                let theirs =
                    format!("SELECT id FROM information_schema.processlist WHERE user = '{}'", MONITOR.name);
                for id in node.sql("", &theirs).expect("it answers").lines() {
                    // One that has left by itself is no error here.
                    let _ = node.sql("", &format!("KILL {id}"));
                }
            }
        }
    }

    /// Ends [`Self::lock_monitor_out`].
    pub fn let_monitor_in(&self, index: usize) {
        match self {
            Self::Postgres(cluster) => {
                let without = |hba: &str| hba.split_once('\n').expect("the first line is ours").1.to_owned();
                rewrite_hba(cluster.node(index), without);
            }
            Self::Mysql(cluster) => {
                let unlock = local(&format!("ALTER USER '{}'@'%' ACCOUNT UNLOCK", MONITOR.name));
                cluster.node(index).sql("", &unlock).expect("it obeys");
            }
        }
    }

    /// Whether an INSERT waits for another's lock.
    pub fn has_waiter(&self, index: usize) -> bool {
        let ask = match self {
            Self::Postgres(_) => "SELECT count(*) FROM pg_locks WHERE NOT granted",
            // Nothing else keeps it running. (InnoDB's own tables show the past to whoever asks often.)
            Self::Mysql(_) => {
                "SELECT count(*) FROM information_schema.processlist WHERE info LIKE 'INSERT INTO%' AND command = 'Query'"
            }
        };
        self.on(index, self.default_database(), ask) != "0"
    }

    fn default_database(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "",
        }
    }

    pub fn wait_until_caught_up(&self, primary: usize) {
        match self {
            Self::Postgres(cluster) => cluster.wait_until_caught_up(primary).expect("replicas follow"),
            Self::Mysql(cluster) => cluster.wait_until_caught_up(primary).expect("replicas follow"),
        }
    }

    /// Whole seconds, as MySQL counts.
    pub fn delay_replay(&self, index: usize, delay: Duration) {
        match self {
            Self::Postgres(cluster) => cluster.delay_replay(index, delay).expect("it obeys"),
            Self::Mysql(cluster) => cluster.delay_replay(index, delay).expect("it obeys"),
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
