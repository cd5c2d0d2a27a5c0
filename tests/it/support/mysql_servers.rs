//! MariaDB and MySQL servers of the tests, and the proxy before them.

use std::{
    fs,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use pointsman::demo::{
    mysql::{Flavour, MysqlCluster, MysqlNode, MysqlOptions},
    servers::APP,
};

use super::{
    PATIENCE, Proxy,
    mysql::{BASIC, Session, WHERE},
};

pub const ENGINE: &str = "cluster.engine = 'mysql'";

/// Whose servers a test runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    MariaDb,
    Mysql9,
}

/// What a make's clusters have in common.
struct Kept {
    shared: OnceLock<MysqlCluster>,
    template: OnceLock<PathBuf>,
}

impl Kept {
    const fn new() -> Self {
        Self { shared: OnceLock::new(), template: OnceLock::new() }
    }
}

static MARIADB: Kept = Kept::new();
static MYSQL9: Kept = Kept::new();
static SCHEMAS: AtomicU32 = AtomicU32::new(1);

impl Make {
    pub fn flavour(self) -> Flavour {
        match self {
            Self::MariaDb => Flavour::MariaDb,
            // Where scripts/mysql9 puts it.
            Self::Mysql9 => {
                Flavour::Mysql { root: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/mysql9/root") }
            }
        }
    }

    const fn kept(self) -> &'static Kept {
        match self {
            Self::MariaDb => &MARIADB,
            Self::Mysql9 => &MYSQL9,
        }
    }

    /// The cluster of all tests that do not disturb servers.
    pub fn shared(self) -> &'static MysqlCluster {
        self.kept().shared.get_or_init(|| {
            super::cluster::on_exit(remove_shared);
            self.own()
        })
    }

    /// A cluster with two replicas that ends with its test.
    pub fn own(self) -> MysqlCluster {
        self.own_with(&[])
    }

    /// As [`Make::own`]; all servers are started with these arguments too.
    pub fn own_with(self, arguments: &[&str]) -> MysqlCluster {
        let options = MysqlOptions {
            flavour: self.flavour(),
            replicas: 2,
            template: Some(self.template()),
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
        };
        MysqlCluster::start(options).unwrap_or_else(|error| panic!("no servers, no tests: {error}"))
    }

    /// As [`Make::own`], with semi-synchronous replication that never falls back.
    pub fn own_semi_synchronous(self) -> MysqlCluster {
        let cluster = self.own_with(self.flavour().semi_synchronous());
        cluster.wait_for_replicas(0).expect("it obeys");
        cluster
    }

    fn template(self) -> PathBuf {
        let make = || {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("{self:?}-template-{}", std::process::id()));
            super::cluster::on_exit(remove_templates);
            MysqlCluster::make_template(self.flavour(), &folder)
                .unwrap_or_else(|error| panic!("no servers, no tests: {error}"));
            folder
        };
        self.kept().template.get_or_init(make).clone()
    }
}

extern "C" fn remove_shared() {
    for cluster in [&MARIADB, &MYSQL9].into_iter().filter_map(|kept| kept.shared.get()) {
        cluster.stop_all();
        let _ = fs::remove_dir_all(cluster.folder());
    }
}

extern "C" fn remove_templates() {
    for folder in [&MARIADB, &MYSQL9].into_iter().filter_map(|kept| kept.template.get()) {
        let _ = fs::remove_dir_all(folder);
    }
}

/// The shared servers, a schema of the test's own, a proxy.
pub struct Stage {
    pub cluster: &'static MysqlCluster,
    pub schema: String,
    pub proxy: Proxy,
}

impl Stage {
    /// On MariaDB: a schema in which `sql` was run, and a proxy with `settings`.
    pub async fn set(sql: &str, settings: &[&str]) -> Self {
        Self::on(Make::MariaDb, sql, settings).await
    }

    /// As [`Stage::set`], on servers of `make`.
    pub async fn on(make: Make, sql: &str, settings: &[&str]) -> Self {
        let cluster = make.shared();
        let schema = create_schema(cluster, sql);
        let proxy = proxy(cluster, settings).await;
        Self { cluster, schema, proxy }
    }

    pub async fn session(&self) -> Session {
        Session::open(self.proxy.port(), APP, &self.schema).await
    }

    /// MySQL's function that reads query attributes is a component of the server it is installed
    /// in.
    pub fn install_attribute_function(&self) {
        let node = self.cluster.node(0);
        if let Err(error) = node.sql("", "INSTALL COMPONENT 'file://component_query_attributes'") {
            let known =
                node.sql("", "SELECT COUNT(*) FROM mysql.component WHERE component_urn LIKE '%query_attr%'");
            assert!(known.is_ok_and(|known| known.trim() == "1"), "{error}");
        }
    }

    pub fn primary_port(&self) -> u16 {
        self.cluster.node(0).port()
    }

    pub fn is_replica(&self, port: u16) -> bool {
        self.cluster.nodes()[1..].iter().any(|node| node.port() == port)
    }
}

/// Makes a schema on node 0 and waits until every replica has it.
pub fn create_schema(cluster: &MysqlCluster, sql: &str) -> String {
    let name = format!("test_{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
    let run = |schema: &str, sql: &str| {
        cluster.node(0).sql(schema, sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    run("", &format!("CREATE DATABASE {name}"));
    if !sql.is_empty() {
        run(&name, sql);
    }
    cluster.wait_until_caught_up(0).unwrap_or_else(|error| panic!("{error}"));
    name
}

/// A proxy before all nodes of a cluster, when every running replica takes reads.
pub async fn proxy(cluster: &MysqlCluster, settings: &[&str]) -> Proxy {
    let settings: Vec<&str> = [ENGINE].into_iter().chain(settings.iter().copied()).collect();
    let proxy = Proxy::start_unready(&cluster.addresses(), &settings);
    let mut missing: Vec<u16> =
        cluster.nodes()[1..].iter().filter(|node| node.pid().is_some()).map(MysqlNode::port).collect();
    let deadline = Instant::now() + PATIENCE;
    while !missing.is_empty() {
        assert!(Instant::now() < deadline, "no reads on {missing:?}; the proxy's log:\n{}", proxy.log());
        let Ok(mut session) = Session::connect(proxy.port(), APP, "", BASIC).await else { continue };
        while let Ok(answer) = session.query(WHERE).await {
            let port: u16 = answer.value().parse().expect("a port is a number");
            missing.retain(|other| *other != port);
            if missing.is_empty() || Instant::now() > deadline {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    proxy
}

/// Runs each scenario, `async fn name(make: Make)`, on MariaDB and on MySQL 9.
#[macro_export]
macro_rules! both_makes {
    ($($name:ident),* $(,)?) => {
        mod on_mariadb {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::mysql_servers::Make::MariaDb).await;
            })*
        }
        mod on_mysql9 {
            $(#[tokio::test]
            async fn $name() {
                super::$name($crate::support::mysql_servers::Make::Mysql9).await;
            })*
        }
    };
}
