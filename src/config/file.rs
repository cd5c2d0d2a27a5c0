//! TOML text → [`Config`], with every fault of the file at once.
//!
//! [`super::keys`] holds names and defaults, [`super::values`] the form of single values; here is
//! what belongs together.

use std::{
    collections::HashSet,
    fs,
    io::Read,
    num::{NonZeroU32, NonZeroUsize},
    path::Path,
    sync::Arc,
    thread,
};

use toml::de::DeTable;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};
use url::Url;

use super::{
    Admin, Auth, ClientTls, Cluster, Config, Endpoint, Engine, Failover, HostPort, Identity, Limits, Log,
    Members, Monitor, NodeConfig, PatroniSource, PemFile, Pool, Routing, Secret, SecretForm, ServerTls, Tls,
    TlsMode, User,
    document::{Cell, Document, Section, Value},
    fault::{Fault, Faults},
    keys,
    values::{Certificates, NewFile, Positive, PrivateKey, Weight, count_up_to, server_address},
};
use crate::{
    recent,
    sql::{self, catalog::FunctionRules},
    tls,
};

/// The longest file that is read: more is a wrong path.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

impl Config {
    /// Reads a file, the secrets it names in other files and in this process's environment.
    ///
    /// # Errors
    /// Every fault of the file, or the one that kept it from being read.
    pub fn load(path: &Path) -> Result<Self, Faults> {
        let text = read_file(path).map_err(|message| Faults {
            file: path.to_owned(),
            list: vec![Fault { place: None, key: String::new(), message }],
        })?;
        Self::parse(&text, path, &|name| std::env::var(name).ok())
    }

    /// Reads the text of a file; `path` names it in faults, and its folder is where relative paths
    /// start. `env` answers for the environment.
    ///
    /// # Errors
    /// Every fault of the text.
    pub fn parse(text: &str, path: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, Faults> {
        let folder = path.parent().unwrap_or(Path::new(""));
        read_document(&Document::new(text, folder, env))
            .map_err(|list| Faults { file: path.to_owned(), list })
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(FILE_LIMIT + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > FILE_LIMIT => Err("is too long for a configuration".to_owned()),
        Ok(_) => Ok(text),
        Err(wrong) => Err(format!("cannot be read: {wrong}")),
    }
}

/// Walks a document from top to bottom.
pub(super) fn read_document(document: &Document<'_>) -> Result<Config, Vec<Fault>> {
    let (table, errors) = DeTable::parse_recoverable(document.text);
    for error in &errors {
        document.fault("", error.span().map_or(0, |span| span.start), error.message());
    }
    let config = errors.is_empty().then(|| {
        let schema = keys::table("").expect("the schema begins with the top level");
        let root = Section::new(document, schema, Some(table.get_ref()), String::new(), 0);
        read_config(&root)
    });
    let mut faults = document.faults.take();
    faults.sort_by_key(|fault| fault.place);
    faults.dedup();
    match config {
        Some(config) if faults.is_empty() => Ok(config),
        _ => Err(faults),
    }
}

fn read_config(root: &Section<'_>) -> Config {
    let admin = root.table("admin");
    let clusters = cluster_sections(root);
    check_listeners(&admin, &clusters);
    check_names(&clusters);
    Config {
        workers: root.optional("workers").unwrap_or_else(cores),
        shutdown_timeout: root.take("shutdown_timeout"),
        log: read_log(&root.table("log")),
        admin: Admin {
            http: admin.optional("http"),
            postgres: admin.optional("postgres"),
            mysql: admin.optional("mysql"),
            users: admin.optional_by("users", |cell| read_users(cell, "admin.users")).unwrap_or_default(),
            recent_statements: admin.take_by("recent_statements", |cell| count_up_to(cell, recent::MAX)),
        },
        clusters: clusters.iter().map(read_cluster).collect(),
    }
}

fn cores() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn read_log(log: &Section<'_>) -> Log {
    Log {
        format: log.take("format"),
        level: log.take_by("level", |cell| {
            let level = cell.text("a filter such as \"info\"")?;
            if let Some(word) = level.split(',').find(|part| !is_directive(part)) {
                return cell
                    .fault(format!("{word:?} is no level: off, error, warn, info, debug and trace are"));
            }
            match EnvFilter::builder().parse(level) {
                Ok(_) => Some(level.to_owned()),
                Err(_) => cell.fault(format!(
                    "{level:?} is not a filter such as \"info\" or \"info,pointsman::pool=debug\""
                )),
            }
        }),
        statements_over: log.take("statements_over"),
    }
}

/// Whether a part of a filter is a level or says whose level it is. A bare word would be taken for
/// the name of a module that may log everything, and all others would be silent.
fn is_directive(part: &str) -> bool {
    part.contains(['=', '[']) || (!part.trim().is_empty() && part.trim().parse::<LevelFilter>().is_ok())
}

/// The `[[cluster]]` tables, their faults named by the cluster's name where it has one.
fn cluster_sections<'a>(root: &Section<'a>) -> Vec<Section<'a>> {
    let Some(list) = root.cell("cluster") else {
        root.fault("cluster", "is missing: there is nothing to serve without a [[cluster]]");
        return Vec::new();
    };
    if list.value.is_table() {
        list.fault::<()>("is a list of clusters: write [[cluster]], in double brackets");
        return Vec::new();
    }
    let named = |mut cell: Cell<'a>| {
        if let Some(name) = cell.value.get("name").and_then(|name| name.get_ref().as_str())
            && is_name(name)
        {
            cell.path = format!("cluster.{name}");
        }
        cell.section("cluster")
    };
    let sections: Vec<Section<'a>> =
        list.elements().unwrap_or_default().into_iter().filter_map(named).collect();
    if sections.is_empty() {
        list.fault::<()>("has no cluster in it");
    }
    sections
}

/// No two listeners may want the same address.
fn check_listeners(admin: &Section<'_>, clusters: &[Section<'_>]) {
    let doors = ["http", "postgres", "mysql"].into_iter().filter_map(|door| admin.cell(door));
    let lists = clusters.iter().filter_map(|cluster| cluster.cell("listen"));
    let listens = lists.filter(|list| list.value.is_array());
    let cells = doors.chain(listens.flat_map(|list| list.elements().unwrap_or_default()));
    let mut seen: Vec<(HostPort, String)> = Vec::new();
    for cell in cells {
        let Some(Ok(address)) = cell.value.as_str().map(|text| HostPort::parse(text, None)) else {
            continue; // Reported where it is read.
        };
        if let Some((other, path)) = seen.iter().find(|(other, _)| other.overlaps(&address)) {
            cell.fault::<()>(format!("{address} is taken: {path} listens on {other}"));
        }
        seen.push((address, cell.path));
    }
}

fn check_names(clusters: &[Section<'_>]) {
    let mut seen = HashSet::new();
    for cell in clusters.iter().filter_map(|cluster| cluster.cell("name")) {
        if let Some(name) = cell.value.as_str()
            && !seen.insert(name)
        {
            cell.fault::<()>(format!("another cluster is called {name:?} too"));
        }
    }
}

fn read_cluster(cluster: &Section<'_>) -> Cluster {
    let engine: Engine = cluster.take("engine");
    let tls = read_tls(&cluster.table("tls"));
    let (auth, failover) = (cluster.table("auth"), cluster.table("failover"));
    Cluster {
        name: cluster.take_by("name", read_name),
        engine,
        listen: cluster.take_by("listen", |cell| {
            let listen = cell.list(HostPort::read)?;
            if listen.is_empty() { cell.fault("names no address") } else { Some(listen) }
        }),
        peers: cluster.take_by("peers", |cell| cell.list(HostPort::read)),
        members: read_members(cluster, engine),
        users: read_cluster_users(cluster, &auth, &tls),
        monitor: read_monitor(&cluster.table("monitor"), engine),
        auth: Auth {
            query: auth.optional_by("query", |cell| read_auth_query(cell, engine)),
            trust_loopback: auth.take("trust_loopback"),
        },
        pool: read_pool(&cluster.table("pool")),
        routing: read_routing(&cluster.table("routing")),
        failover: read_failover(&failover, engine),
        limits: read_limits(&cluster.table("limits")),
        tls,
    }
}

fn read_failover(failover: &Section<'_>, engine: Engine) -> Failover {
    if engine == Engine::Mysql && failover.cell("commit_outcome").is_some() {
        failover.fault("commit_outcome", "is for PostgreSQL only");
    }
    Failover {
        hold: failover.take("hold"),
        hold_limit: failover.take("hold_limit"),
        commit_outcome: failover.take("commit_outcome"),
        state_file: failover.optional("state_file").map(|NewFile(path)| path),
    }
}

/// A query with the user's name as its one parameter. One that cannot be read is the server's to judge.
fn read_auth_query(cell: &Cell<'_>, engine: Engine) -> Option<Arc<str>> {
    let query = Arc::<str>::read(cell)?;
    let Some(places) = sql::placeholders(&query, engine.dialect()) else { return Some(query) };
    let mark = match engine {
        Engine::Postgres => "$1",
        Engine::Mysql => "?",
    };
    let other = places.iter().map(|place| &query[place.clone()]).find(|found| *found != mark);
    match (other, places.len()) {
        (_, 0) => cell.fault(format!("its one parameter is missing: `{mark}`, the user's name")),
        (Some(other), _) => cell.fault(format!("has one parameter, `{mark}`: `{other}` has no value")),
        (None, 2..) if engine == Engine::Mysql => {
            cell.fault(format!("has one parameter, `{mark}`: the second has no value"))
        }
        _ => Some(query),
    }
}

/// The longest name of a cluster.
const LONGEST_NAME: usize = 63;

/// A cluster's name is a metrics label and part of key paths.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(plain)
}

fn read_name(cell: &Cell<'_>) -> Option<Arc<str>> {
    match cell.text("a name")? {
        name if is_name(name) => Some(name.into()),
        name => {
            cell.fault(format!("{name:?} is no name: 1 to {LONGEST_NAME} letters, digits, `_`, `.` and `-`"))
        }
    }
}

fn read_members(cluster: &Section<'_>, engine: Engine) -> Members {
    match (cluster.cell("nodes"), cluster.cell("discovery")) {
        (Some(_), Some(_)) => cluster.fault("discovery", "stands beside `nodes`: one of them has to go"),
        (None, None) => cluster
            .fault("nodes", "is missing, and so is `discovery`: one of them says where the servers are"),
        (None, Some(cell)) if engine == Engine::Mysql => {
            cell.fault::<()>("is for PostgreSQL only: name the servers in `nodes`");
        }
        _ => {}
    }
    let discovered = cluster.optional_by("discovery", |cell| {
        let discovery = cell.section("cluster.discovery")?;
        let endpoints = discovery.take_by("patroni", read_endpoints);
        let ca = read_ca(&discovery).map(|ca| ca.path().to_owned());
        if ca.is_some() && endpoints.iter().all(|endpoint| endpoint.url().scheme() != "https") {
            discovery.fault("ca", "has no use: no endpoint is `https`");
        }
        Some(Members::Patroni(PatroniSource { endpoints, ca }))
    });
    // Read in any case: whoever has both is to hear of what is wrong in either.
    let named = cluster.cell("nodes").is_some() || discovered.is_none();
    let nodes = named.then(|| cluster.take_by("nodes", |cell| read_nodes(cell, engine)));
    discovered.unwrap_or_else(|| Members::Nodes(nodes.unwrap_or_default()))
}

fn read_endpoints(cell: &Cell<'_>) -> Option<Vec<Endpoint>> {
    let read = |cell: &Cell<'_>| Url::read(cell).map(Endpoint::new);
    let endpoints = cell.distinct(read, |one, other| {
        (one.url() == other.url()).then(|| "names the same endpoint twice".to_owned())
    })?;
    if endpoints.is_empty() { cell.fault("names no endpoint") } else { Some(endpoints) }
}

fn read_nodes(cell: &Cell<'_>, engine: Engine) -> Option<Vec<NodeConfig>> {
    let nodes = cell.distinct(|cell| read_node(cell, engine), NodeConfig::clash)?;
    if nodes.is_empty() { cell.fault("names no server") } else { Some(nodes) }
}

fn read_node(cell: &Cell<'_>, engine: Engine) -> Option<NodeConfig> {
    let address = |cell: &Cell<'_>| server_address(cell, engine.default_port());
    if cell.value.is_str() {
        return address(cell).map(NodeConfig::new);
    }
    let node = cell.section("cluster.nodes")?;
    Some(NodeConfig {
        weight: node.take::<Weight>("weight").0,
        zone: node.optional("zone"),
        ..NodeConfig::new(node.take_by("address", address))
    })
}

fn read_users(cell: &Cell<'_>, schema: &str) -> Option<Vec<User>> {
    cell.distinct(
        |cell| {
            let user = cell.section(schema)?;
            let password = match schema {
                "admin.users" => Some(user.take("password")),
                _ => user.optional("password"),
            };
            Some(User { name: user.take("name"), password })
        },
        |one, other| (one.name == other.name).then(|| format!("{:?} is listed twice", one.name)),
    )
}

/// The users of a cluster: somebody has to be able to log in, and everybody who is listed.
fn read_cluster_users(cluster: &Section<'_>, auth: &Section<'_>, tls: &Tls) -> Vec<User> {
    let read = cluster.optional_by("users", |cell| read_users(cell, "cluster.users"));
    let trusts = auth.cell("trust_loopback").is_some_and(|cell| cell.value.as_bool() != Some(false));
    if trusts || auth.cell("query").is_some() || tls.client.mode.verifies() {
        return read.unwrap_or_default();
    }
    let cells = cluster.cell("users").and_then(|cell| Some((cell.value.as_array()?.len(), cell)));
    match (&read, cells) {
        (None, Some(_)) => {} // Reported where they are read.
        (Some(users), Some((1.., cell))) => {
            let listed = users.iter().zip(cell.elements().unwrap_or_default());
            for (user, cell) in listed.filter(|(_, cell)| cell.value.get("password").is_none()) {
                // Where there is no name that can be read, another fault says so.
                let named =
                    cell.value.get("name").and_then(|name| name.get_ref().as_str()) == Some(&*user.name);
                let who = if named { format!("{:?} ", user.name) } else { String::new() };
                cell.fault::<()>(format!(
                    "{who}has no password, and no other way in is open: `auth.query`, `auth.trust_loopback` \
                     or client certificates (`tls.client.mode`)"
                ));
            }
        }
        _ => cluster.fault("users", "names nobody, and without `auth.query` nobody could log in"),
    }
    read.unwrap_or_default()
}

fn read_monitor(monitor: &Section<'_>, engine: Engine) -> Monitor {
    let interval = monitor.take::<Positive>("interval").0;
    let fast_interval = monitor.take::<Positive>("fast_interval").0;
    if fast_interval > interval && monitor.cell("fast_interval").is_some() {
        monitor.fault("fast_interval", "is longer than `interval`");
    }
    if engine == Engine::Mysql && monitor.cell("database").is_some() {
        monitor.fault("database", "is for PostgreSQL only");
    }
    Monitor {
        user: monitor.take("user"),
        password: monitor.optional_by("password", |cell| {
            let password = Secret::read(cell)?;
            match password.form(engine) {
                SecretForm::Plain => Some(password),
                _ => cell.fault("is a verifier: the monitor needs the password itself"),
            }
        }),
        database: monitor.take("database"),
        interval,
        fast_interval: fast_interval.min(interval),
        timeout: monitor.take::<Positive>("timeout").0,
        failures: monitor.take::<NonZeroU32>("failures").get(),
        catalog_refresh: monitor.take("catalog_refresh"),
    }
}

fn read_pool(pool: &Section<'_>) -> Pool {
    let size = pool.take::<NonZeroUsize>("size").get();
    let min_idle = pool.take("min_idle");
    if min_idle > size {
        pool.fault("min_idle", format!("is more than `size` ({size})"));
    }
    let node_connections = pool.optional("node_connections").map(NonZeroUsize::get);
    Pool {
        mode: pool.take("mode"),
        size,
        node_connections,
        min_idle,
        checkout_timeout: pool.take::<Positive>("checkout_timeout").0,
        idle_timeout: pool.take("idle_timeout"),
        max_lifetime: pool.take("max_lifetime"),
        prepared_statements: pool.take::<NonZeroUsize>("prepared_statements").get(),
    }
}

fn read_routing(routing: &Section<'_>) -> Routing {
    let functions = FunctionRules {
        read: routing.take_by("read_functions", read_functions),
        write: routing.take_by("write_functions", read_functions),
        clean: routing.take_by("clean_functions", read_functions),
    };
    let mut both: Vec<&str> = functions.read.intersection(&functions.write).map(|name| &**name).collect();
    both.sort_unstable();
    for name in both {
        routing.fault("write_functions", format!("{name:?} stands in `read_functions` too"));
    }
    Routing {
        consistency: routing.take("consistency"),
        max_lag: routing.take("max_lag"),
        lag_half_weight: routing.take("lag_half_weight"),
        slow_start: routing.take("slow_start"),
        primary_reads: routing.take("primary_reads"),
        transaction_reads: routing.take("transaction_reads"),
        zone: routing.optional("zone"),
        functions,
    }
}

/// Bare names, folded as the classifier folds them: lower case unless double-quoted.
fn read_functions(cell: &Cell<'_>) -> Option<HashSet<Box<str>>> {
    let names = cell.list(|cell| {
        let name = Arc::<str>::read(cell)?;
        let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
        match quoted {
            Some(exact) if !exact.is_empty() => Some(exact.replace("\"\"", "\"").into()),
            _ if name.contains(['.', '(', '"', ' ']) => {
                cell.fault(format!("{name:?} is no bare name: no schema, no parentheses"))
            }
            _ => Some(name.to_lowercase().into()),
        }
    })?;
    Some(names.into_iter().collect())
}

fn read_limits(limits: &Section<'_>) -> Limits {
    Limits {
        clients: limits.take::<NonZeroUsize>("clients").get(),
        clients_per_user: limits.take("clients_per_user"),
        login_timeout: limits.take::<Positive>("login_timeout").0,
        idle_client_timeout: limits.take("idle_client_timeout"),
        idle_transaction_timeout: limits.take("idle_transaction_timeout"),
        statement_timeout: limits.take("statement_timeout"),
    }
}

fn read_tls(tls: &Section<'_>) -> Tls {
    let (client, server) = (tls.table("client"), tls.table("server"));
    let tls = Tls {
        client: read_client_tls(&client),
        server: ServerTls {
            mode: server.take("mode"),
            ca: read_ca(&server),
            identity: read_identity(&server),
        },
    };
    if tls.server.mode == TlsMode::Disable && tls.server.identity.is_some() {
        server.fault("mode", "is \"disable\", so that `certificate` has no use");
    }
    tls
}

fn read_client_tls(client: &Section<'_>) -> ClientTls {
    let identity = read_identity(client);
    let fallback = if identity.is_some() { TlsMode::Prefer } else { TlsMode::Disable };
    let mode = client.optional("mode").unwrap_or(fallback);
    let ca = read_ca(client);
    if mode != TlsMode::Disable && client.cell("certificate").is_none() {
        client.fault("mode", "needs `certificate` and `key`: without them there is no encryption");
    }
    if mode == TlsMode::Disable && client.cell("mode").is_some() && identity.is_some() {
        client.fault("mode", "is \"disable\", so that `certificate` has no use");
    }
    if mode.verifies() && client.cell("ca").is_none() {
        client.fault("mode", "needs `ca`: who signs the clients' certificates");
    }
    ClientTls { mode, identity, ca }
}

fn read_ca(side: &Section<'_>) -> Option<PemFile> {
    side.optional("ca").map(|Certificates(file)| file)
}

/// Certificate and key, both or neither.
fn read_identity(side: &Section<'_>) -> Option<Identity> {
    let (certificate, key) = (side.optional("certificate"), side.optional("key"));
    match (side.cell("certificate"), side.cell("key")) {
        (Some(_), None) => side.fault("certificate", "needs `key` beside it"),
        (None, Some(_)) => side.fault("key", "needs `certificate` beside it"),
        _ => {}
    }
    let (Certificates(certificate), PrivateKey(key)) = (certificate?, key?);
    if let Err(unfit) = tls::check_pair(certificate.path(), key.path()) {
        side.fault("key", format!("does not fit: {unfit}"));
    }
    Some(Identity { certificate, key })
}

#[cfg(test)]
mod tests;
