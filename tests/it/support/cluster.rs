//! Clusters of real servers: one shared by all tests that leave servers alone, and own ones for
//! tests that stop, freeze or promote them.

use std::{
    fs,
    path::PathBuf,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use pointsman::demo::servers::{APP, PgCluster, PgOptions};

static SHARED: OnceLock<PgCluster> = OnceLock::new();
static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
static DATABASES: AtomicU32 = AtomicU32::new(1);

/// The cluster of all tests that do not disturb servers: node 0 is the primary, 1 and 2 are
/// replicas. Each test makes itself a [`Database`].
pub fn shared() -> &'static PgCluster {
    SHARED.get_or_init(|| {
        // Statics are never dropped, but the servers' files must go.
        on_exit(remove_shared);
        start(PgOptions { replicas: 2, ..PgOptions::default() })
    })
}

/// A cluster with two replicas that ends with its test.
pub fn own() -> PgCluster {
    own_with(PgOptions { replicas: 2, ..PgOptions::default() })
}

pub fn own_with(options: PgOptions) -> PgCluster {
    start(options)
}

fn start(options: PgOptions) -> PgCluster {
    let options = PgOptions { template: options.template.or_else(|| Some(template())), ..options };
    PgCluster::start(options).unwrap_or_else(|error| panic!("no servers, no tests: {error}"))
}

/// One `initdb` per run of the tests; every cluster starts from a copy.
fn template() -> PathBuf {
    TEMPLATE
        .get_or_init(|| {
            let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
                .join(format!("postgres-template-{}", std::process::id()));
            on_exit(remove_template);
            PgCluster::make_template(&folder).unwrap_or_else(|error| panic!("no servers, no tests: {error}"));
            folder
        })
        .clone()
}

extern "C" fn remove_shared() {
    if let Some(cluster) = SHARED.get() {
        cluster.stop_all();
        let _ = fs::remove_dir_all(cluster.folder());
    }
}

extern "C" fn remove_template() {
    if let Some(folder) = TEMPLATE.get() {
        let _ = fs::remove_dir_all(folder);
    }
}

#[expect(unsafe_code, reason = "atexit(3) has no wrapper in std")]
pub fn on_exit(action: extern "C" fn()) {
    // SAFETY: the functions handed over touch only statics that were set before, and do not panic.
    unsafe { libc::atexit(action) };
}

/// A database of one test, owned by the user `app`, present on every node.
pub struct Database<'a> {
    pub name: String,
    cluster: &'a PgCluster,
}

/// How often each node ran a statement, by the servers' own count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls(pub Vec<u64>);

impl<'a> Database<'a> {
    /// Creates the database on node 0, the primary, and waits until every replica has it.
    pub fn create(cluster: &'a PgCluster) -> Self {
        let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
        let database = Self { name, cluster };
        database.superuser("postgres", &format!("CREATE DATABASE {} OWNER {}", database.name, APP.name));
        database.wait_until_everywhere();
        database
    }

    /// Creates the database and runs `sql` in it as its owner.
    pub fn with(cluster: &'a PgCluster, sql: &str) -> Self {
        let database = Self::create(cluster);
        database.run(sql);
        database
    }

    /// Runs SQL on node 0 past the proxy, as the owner, and waits until every replica has replayed it.
    pub fn run(&self, sql: &str) -> String {
        let answer = self.superuser(&self.name, &format!("SET ROLE {}; {sql}", APP.name));
        self.wait_until_everywhere();
        answer
    }

    /// Asks one node past the proxy.
    pub fn ask(&self, node: usize, sql: &str) -> String {
        self.cluster.node(node).sql(&self.name, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// How often each node ran statements of this database that contain `text`
    /// (`pg_stat_statements`: constants stand there as `$1`).
    pub fn calls(&self, text: &str) -> Calls {
        let count = format!(
            "SELECT coalesce(sum(calls), 0) FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
             WHERE datname = '{}' AND strpos(query, '{}') > 0",
            self.name,
            text.replace('\'', "''")
        );
        let ask = |node: usize| {
            let answer = self.cluster.node(node).sql("postgres", &count);
            answer
                .ok()
                .and_then(|count| count.parse().ok())
                .unwrap_or_else(|| panic!("no count from node {node}"))
        };
        Calls((0..self.cluster.nodes().len()).map(ask).collect())
    }

    /// What the replicas refused or failed to do in this database, from their logs.
    pub fn errors_on_replicas(&self) -> Vec<String> {
        let ours = format!("@{} ", self.name);
        let failed = |line: &&str| line.contains(&ours) && line.contains("ERROR:");
        let logs = self.cluster.nodes()[1..].iter().map(|node| node.log());
        logs.flat_map(|log| log.lines().filter(failed).map(str::to_owned).collect::<Vec<_>>()).collect()
    }

    fn superuser(&self, database: &str, sql: &str) -> String {
        self.cluster.node(0).sql(database, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    fn wait_until_everywhere(&self) {
        self.cluster.wait_until_caught_up(0).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Calls {
    pub fn on_primary(&self) -> u64 {
        self.0[0]
    }
    pub fn on_replicas(&self) -> u64 {
        self.0[1..].iter().sum()
    }
}
