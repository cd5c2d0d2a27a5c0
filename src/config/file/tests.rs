use std::{fs, path::Path, time::Duration};

use super::*;
use crate::{
    config::{PoolMode, TransactionReads, keys::Shape},
    route::{Consistency, PrimaryReads},
};

/// Complete, and without a fault.
const MINIMAL: &str = r#"
[[cluster]]
name   = "shop"
engine = "postgres"
listen = ["0.0.0.0:6432"]
nodes  = ["10.0.0.1:5432", "10.0.0.2", { address = "10.0.0.3:5433", weight = 2.0, zone = "khi" }]
users  = [{ name = "app", password = "secret" }]

[cluster.monitor]
user = "pointsman"
password = "secret"
"#;

fn parse(text: &str) -> Result<Config, Faults> {
    let env = |name: &str| (name == "SET").then(|| "from the environment".to_owned());
    Config::parse(text, Path::new("p.toml"), &env)
}

/// The faults of [`MINIMAL`] with a line in place of another.
fn faults_with(line: &str, instead: &str) -> String {
    assert!(MINIMAL.contains(line), "{line}");
    parse(&MINIMAL.replacen(line, instead, 1)).expect_err(instead).to_string()
}

/// The faults of [`MINIMAL`] with lines at its end.
fn faults_after(lines: &str) -> String {
    parse(&format!("{MINIMAL}{lines}\n")).expect_err(lines).to_string()
}

#[test]
fn a_short_file_has_a_default_for_everything_else() {
    let config = parse(MINIMAL).expect("no fault");

    assert_eq!(config.shutdown_timeout, Duration::from_secs(30));
    assert_eq!(config.admin, Admin::default());
    assert_eq!(config.log.level, "info");
    let [cluster] = &config.clusters[..] else { panic!("one cluster") };
    let Members::Nodes(nodes) = &cluster.members else { panic!("nodes") };
    let nodes: Vec<_> =
        nodes.iter().map(|node| (&*node.address, node.weight, node.zone.as_deref())).collect();
    let expected =
        [("10.0.0.1:5432", 1.0, None), ("10.0.0.2:5432", 1.0, None), ("10.0.0.3:5433", 2.0, Some("khi"))];
    assert_eq!(nodes, expected);
    assert_eq!(
        (cluster.pool.mode, cluster.pool.size, cluster.pool.node_connections),
        (PoolMode::Transaction, 20, None)
    );
    assert_eq!(cluster.pool.idle_timeout, Some(Duration::from_secs(600)));
    assert_eq!(cluster.monitor.interval, Duration::from_millis(200));
    assert_eq!(cluster.routing.consistency, Consistency::Session);
    assert_eq!(cluster.routing.primary_reads, PrimaryReads::Fallback);
    assert_eq!(cluster.routing.transaction_reads, TransactionReads::Primary);
    assert_eq!(cluster.limits.clients_per_user, None);
    assert_eq!(cluster.limits.statement_timeout, None);
    assert_eq!((cluster.tls.client.mode, cluster.tls.server.mode), (TlsMode::Disable, TlsMode::Prefer));
    assert_eq!(cluster.policy().fresh_for, Duration::from_millis(600));
}

#[test]
fn the_file_of_the_repository_loads_and_says_the_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/pointsman.toml");

    let config = Config::load(&path).unwrap_or_else(|faults| panic!("{faults}"));

    let short = parse(MINIMAL).expect("no fault");
    let (full, short) = (&config.clusters[0], &short.clusters[0]);
    assert_eq!((&full.pool, &full.routing, &full.limits), (&short.pool, &short.routing, &short.limits));
    assert_eq!((&full.monitor, &full.failover, &full.tls), (&short.monitor, &short.failover, &short.tls));
}

#[test]
fn every_key_of_the_schema_is_read_and_every_preset_is_a_good_value() {
    let mut text = String::new();
    for table in keys::TABLES.iter().filter(|table| table.shape != Shape::Inline) {
        match table.shape {
            Shape::List => text += &format!("[[{}]]\n", table.path),
            _ if !table.path.is_empty() => text += &format!("[{}]\n", table.path),
            _ => {}
        }
        for key in table.keys.iter().filter(|key| !["nodes", "discovery"].contains(&key.name)) {
            let (keys::Preset::Required(value)
            | keys::Preset::Default(value)
            | keys::Preset::Unset { example: value, .. }) = key.preset;
            // Paths of files are checked by a test of their own.
            if !table.path.starts_with("cluster.tls") {
                text += &format!("{} = {value}\n", key.name);
            }
        }
        if table.path == "cluster" {
            text += "nodes = [{ address = \"a\", weight = 1.0, zone = \"z\" }]\n";
        }
    }
    text += "[[cluster]]\nname=\"b\"\nengine=\"postgres\"\nlisten=[\"[::]:1\"]\nmonitor={user=\"m\"}\nauth={query=\"select $1\"}\n";
    text += "discovery = { patroni = [\"http://10.0.0.1:8008\"] }\n";
    let env = |_: &str| Some("password".to_owned());
    let document = Document::new(&text, Path::new(""), &env);

    let config = read_document(&document);

    config.unwrap_or_else(|faults| panic!("{faults:#?}\n{text}"));
    let taken = document.taken.take();
    for table in keys::TABLES {
        for key in table.keys {
            assert!(taken.contains(&(table.path, key.name)), "{}.{} is never read", table.path, key.name);
        }
    }
}

#[test]
fn all_faults_are_told_at_once_each_with_its_place() {
    let text = r#"
worker = 2
[[cluster]]
name = "shop"
engine = "postgre"
listen = ["6432"]
nodes = ["a:1", "b:0", { address = "c", weight = -1.0, wight = 2 }, "a:1"]
users = [{ name = "app" }, { name = "app", password = { env = "UNSET" } }]
[cluster.pool]
size = 0
min_idle = "many"
consistency = "session"
[cluster.routing]
max_lag = 10
"#;

    let faults = parse(text).expect_err("many faults").to_string();

    let expected = "\
p.toml:2:1: worker: unknown key; did you mean `workers`?
p.toml:3:1: cluster.shop.monitor.user: is missing
p.toml:5:10: cluster.shop.engine: \"postgre\" is none of \"postgres\", \"mysql\"; did you mean \"postgres\"?
p.toml:6:11: cluster.shop.listen[0]: \"6432\": the port is missing, as in `127.0.0.1:6432`
p.toml:7:17: cluster.shop.nodes[1]: \"b:0\": port 0 is no server's
p.toml:7:50: cluster.shop.nodes[2].weight: -1.0 is no weight: must be from 0 to 1000000
p.toml:7:56: cluster.shop.nodes[2].wight: unknown key; did you mean `weight`?
p.toml:7:69: cluster.shop.nodes[3]: a:1 is listed twice
p.toml:8:28: cluster.shop.users[1]: \"app\" is listed twice
p.toml:8:55: cluster.shop.users[1].password: the environment variable UNSET is not set, or is not UTF-8
p.toml:10:8: cluster.shop.pool.size: must be at least 1
p.toml:11:12: cluster.shop.pool.min_idle: expected a whole number, found text
p.toml:12:1: cluster.shop.pool.consistency: unknown key here; `consistency` belongs to `cluster.routing`
p.toml:14:11: cluster.shop.routing.max_lag: needs a unit: expected a duration such as \"200ms\", \"10s\" or \"5m\"";
    assert_eq!(faults, expected, "\n{faults}");
}

#[test]
fn each_wrong_line_about_servers_is_told_in_words() {
    let listen = "listen = [\"0.0.0.0:6432\"]";
    let nodes = MINIMAL.lines().find(|line| line.starts_with("nodes")).expect("a line of nodes");
    let cases = [
        (
            "name   = \"shop\"",
            "name = \"my shop\"",
            "p.toml:3:8: cluster[0].name: \"my shop\" is no name: 1 to 63 letters, digits, `_`, `.` and `-`",
        ),
        ("name   = \"shop\"", "", "p.toml:2:1: cluster[0].name: is missing"),
        (
            listen,
            "listen = \"0.0.0.0:6432\"",
            "p.toml:5:10: cluster.shop.listen: expected a list, found text",
        ),
        (listen, "listen = []", "p.toml:5:10: cluster.shop.listen: names no address"),
        (
            listen,
            "listen = [\"0.0.0.0:6432\", \"127.0.0.1:6432\"]",
            "p.toml:5:27: cluster.shop.listen[1]: 127.0.0.1:6432 is taken: cluster.shop.listen[0] listens on 0.0.0.0:6432",
        ),
        (
            nodes,
            "",
            "p.toml:2:1: cluster.shop.nodes: is missing, and so is `discovery`: one of them says where the servers are",
        ),
        (nodes, "nodes = []", "p.toml:6:9: cluster.shop.nodes: names no server"),
        (nodes, "nodes = [\"a\", \"a:5432\"]", "p.toml:6:15: cluster.shop.nodes[1]: a:5432 is listed twice"),
        (
            nodes,
            "nodes = [\"a\", \"A:5432\"]",
            "p.toml:6:15: cluster.shop.nodes[1]: A:5432 is a:5432, listed twice",
        ),
        (
            nodes,
            "nodes = [{ address = \"a\", weight = nan }]",
            "p.toml:6:36: cluster.shop.nodes[0].weight: nan is no weight: must be from 0 to 1000000",
        ),
        (
            nodes,
            "nodes = [\"a\"]\ndiscovery = { patroni = [\"http://p:8008\"] }",
            "p.toml:7:13: cluster.shop.discovery: stands beside `nodes`: one of them has to go",
        ),
        (
            nodes,
            "nodes = [\"a\", \"a:x\"]\ndiscovery = { patroni = [\"http://p:8008\"] }",
            "p.toml:6:15: cluster.shop.nodes[1]: \"a:x\": `x` is no port (0 to 65535)\n\
             p.toml:7:13: cluster.shop.discovery: stands beside `nodes`: one of them has to go",
        ),
        (
            nodes,
            "discovery = { patroni = [\"p:8008\"] }",
            "p.toml:6:26: cluster.shop.discovery.patroni[0]: must begin with http:// or https://",
        ),
    ];
    for (line, instead, expected) in cases {
        assert_eq!(faults_with(line, instead), expected, "{instead}");
    }
}

#[test]
fn each_wrong_line_about_users_is_told_in_words() {
    let users = "users  = [{ name = \"app\", password = \"secret\" }]";
    let cases = [
        (
            users,
            "",
            "p.toml:2:1: cluster.shop.users: names nobody, and without `auth.query` nobody could log in",
        ),
        (
            users,
            "users = [{ name = \"app\" }]",
            "p.toml:7:10: cluster.shop.users[0]: \"app\" has no password, and no other way in is open: `auth.query`, `auth.trust_loopback` or client certificates (`tls.client.mode`)",
        ),
        (
            users,
            "users = [{}]",
            "p.toml:7:10: cluster.shop.users[0].name: is missing\n\
             p.toml:7:10: cluster.shop.users[0]: has no password, and no other way in is open: `auth.query`, `auth.trust_loopback` or client certificates (`tls.client.mode`)",
        ),
        (
            users,
            "users = [{ name = \"app\", password = \"\" }]",
            "p.toml:7:37: cluster.shop.users[0].password: is empty: leave it out where there is no password",
        ),
        (
            users,
            "users = [{ name = \"app\", password = 42 }]",
            "p.toml:7:37: cluster.shop.users[0].password: expected a secret: text, { env = \"NAME\" } or { file = \"PATH\" }, found a whole number",
        ),
        (
            users,
            "users = [{ name = \"app\", password = { vault = \"x\" } }]",
            "p.toml:7:37: cluster.shop.users[0].password: is not a secret: text, { env = \"NAME\" } or { file = \"PATH\" }",
        ),
    ];
    for (line, instead, expected) in cases {
        assert_eq!(faults_with(line, instead), expected, "{instead}");
    }
}

#[test]
fn each_other_wrong_line_is_told_in_words() {
    let user = "user = \"pointsman\"";
    let cases = [
        (
            user,
            "user = \"m\"\ninterval = \"10ms\"\nfast_interval = \"20ms\"",
            "p.toml:12:17: cluster.shop.monitor.fast_interval: is longer than `interval`",
        ),
        (
            user,
            "user = \"m\"\ninterval = \"0s\"",
            "p.toml:11:12: cluster.shop.monitor.interval: cannot be turned off: must be at least \"1ms\"",
        ),
        (
            user,
            "user = \"m\"\ntimeout = \"1 minuet\"",
            "p.toml:11:11: cluster.shop.monitor.timeout: \"1 minuet\" is not a duration such as \"200ms\", \"10s\" or \"5m\"",
        ),
        (
            user,
            "user = \"m\"\ntimeout = \"100years\"",
            "p.toml:11:11: cluster.shop.monitor.timeout: is longer than ten years",
        ),
        (
            "[[cluster]]",
            "[cluster]",
            "p.toml:2:1: cluster: is a list of clusters: write [[cluster]], in double brackets",
        ),
        (
            "[[cluster]]",
            "log = { level = \"loud=3=4\" }\n[[cluster]]",
            "p.toml:2:17: log.level: \"loud=3=4\" is not a filter such as \"info\" or \"info,pointsman::pool=debug\"",
        ),
        (
            "[[cluster]]",
            "log = { level = \"warning\" }\n[[cluster]]",
            "p.toml:2:17: log.level: \"warning\" is no level: off, error, warn, info, debug and trace are",
        ),
        (
            "[[cluster]]",
            "log = { level = \"info,pointsman\" }\n[[cluster]]",
            "p.toml:2:17: log.level: \"pointsman\" is no level: off, error, warn, info, debug and trace are",
        ),
        (
            "[[cluster]]",
            "admin = { http = \"127.0.0.1:6432\" }\n[[cluster]]",
            "p.toml:6:11: cluster.shop.listen[0]: 0.0.0.0:6432 is taken: admin.http listens on 127.0.0.1:6432",
        ),
        (
            "[[cluster]]",
            "admin = { recent_statements = -1 }\n[[cluster]]",
            "p.toml:2:31: admin.recent_statements: must be from 0 to 1000",
        ),
        (
            "[[cluster]]",
            "admin = { recent_statements = 1001 }\n[[cluster]]",
            "p.toml:2:31: admin.recent_statements: must be from 0 to 1000",
        ),
        (
            "[[cluster]]",
            "[admin]\nusers = [{ name = \"a\" }]\n[[cluster]]",
            "p.toml:3:10: admin.users[0].password: is missing",
        ),
    ];
    for (line, instead, expected) in cases {
        assert_eq!(faults_with(line, instead), expected, "{instead}");
    }
}

#[test]
fn each_wrong_table_is_told_in_words() {
    let cases = [
        (
            "[cluster.pool]\nmin_idle = 21",
            "p.toml:13:12: cluster.shop.pool.min_idle: is more than `size` (20)",
        ),
        ("[cluster.pool]\nsize = -1", "p.toml:13:8: cluster.shop.pool.size: must be from 0 to 4294967295"),
        ("[cluster.pools]\nsize = 1", "p.toml:12:10: cluster.shop.pools: unknown key; did you mean `pool`?"),
        (
            "[cluster.pool]\nsiez = 1",
            "p.toml:13:1: cluster.shop.pool.siez: unknown key; did you mean `size`?",
        ),
        (
            "[cluster.routing]\nread_functions = [\"a.b\"]",
            "p.toml:13:19: cluster.shop.routing.read_functions[0]: \"a.b\" is no bare name: no schema, no parentheses",
        ),
        (
            "[cluster.routing]\nread_functions = [\"f\"]\nwrite_functions = [\"F\"]",
            "p.toml:14:19: cluster.shop.routing.write_functions: \"f\" stands in `read_functions` too",
        ),
        (
            "[cluster.tls]\nclient = { mode = \"require\" }",
            "p.toml:13:19: cluster.shop.tls.client.mode: needs `certificate` and `key`: without them there is no encryption",
        ),
        (
            "[cluster.tls.server]\nca = \"/nowhere/ca\"",
            "p.toml:13:6: cluster.shop.tls.server.ca: cannot read /nowhere/ca: No such file or directory (os error 2)",
        ),
        (
            "[cluster.tls.server]\nkey = \"/dev/null\"",
            "p.toml:13:7: cluster.shop.tls.server.key: there is no private key without a passphrase in /dev/null\np.toml:13:7: cluster.shop.tls.server.key: needs `certificate` beside it",
        ),
        (
            "[cluster.auth]\nquery = \"SELECT usename, passwd FROM pg_shadow WHERE usename = '$1'\"",
            "p.toml:13:9: cluster.shop.auth.query: its one parameter is missing: `$1`, the user's name",
        ),
        (
            "[cluster.auth]\nquery = \"SELECT * FROM lookup($1, $2)\"",
            "p.toml:13:9: cluster.shop.auth.query: has one parameter, `$1`: `$2` has no value",
        ),
        ("[cluster.pool]\nsize = \n", "p.toml:13:8: string values must be quoted, expected literal string"),
    ];
    for (lines, expected) in cases {
        assert_eq!(faults_after(lines), expected, "{lines}");
    }
    let second = MINIMAL.replace("6432", "6433");
    assert_eq!(
        faults_after(&second),
        "p.toml:14:10: cluster.shop.name: another cluster is called \"shop\" too"
    );
}

#[test]
fn what_mysql_has_otherwise_is_told_in_words() {
    let query = |text: &str| format!("[cluster.auth]\nquery = \"{text}\"");
    let cases = [
        (
            query("SELECT a FROM u WHERE n = $1"),
            "13:9: cluster.shop.auth.query: its one parameter is missing: `?`, the user's name",
        ),
        (
            query("SELECT a FROM u WHERE n = '?'"),
            "13:9: cluster.shop.auth.query: its one parameter is missing: `?`, the user's name",
        ),
        (
            query("SELECT a FROM u WHERE n = ? OR m = ?"),
            "13:9: cluster.shop.auth.query: has one parameter, `?`: the second has no value",
        ),
        (
            "[cluster.failover]\ncommit_outcome = true".to_owned(),
            "13:18: cluster.shop.failover.commit_outcome: is for PostgreSQL only",
        ),
    ];
    let mysql = MINIMAL.replace("postgres", "mysql");
    for (lines, expected) in cases {
        let faults = parse(&format!("{mysql}{lines}\n")).expect_err(&lines).to_string();
        assert_eq!(faults, format!("p.toml:{expected}"), "{lines}");
    }
    let good = query("SELECT a, '?' FROM u WHERE n = ? -- ?");
    parse(&format!("{mysql}{good}\n")).unwrap_or_else(|faults| panic!("{faults}"));
}

#[test]
fn every_key_refuses_a_value_of_another_type_at_its_own_place() {
    let given = ["", "cluster", "cluster.monitor"];
    let free =
        keys::TABLES.iter().filter(|table| table.shape != Shape::Inline && !given.contains(&table.path));
    for (table, key) in free.flat_map(|table| table.keys.iter().map(move |key| (table, key))) {
        let path = format!("{}.{}", table.path, key.name).replace("cluster.", "cluster.shop.");
        for value in ["1979-05-27", "[[]]", "{ a = { b = 1 } }"] {
            let faults = faults_after(&format!("[{}]\n{} = {value}", table.path, key.name));
            let all_there = faults.lines().all(|fault| {
                // What goes together may be found wanting as well, beside it.
                fault.starts_with("p.toml:13:")
                    && fault.contains(path.trim_end_matches(char::is_alphanumeric))
            });
            assert!(all_there && faults.contains(&path), "{path} = {value}: {faults}");
        }
    }
}

#[test]
fn secrets_come_from_text_environment_and_files() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("secret"), "from a file\r\n").expect("it can be written to");
    let users = r#"[
        { name = "a", password = "text" },
        { name = "b", password = { env = "SET" } },
        { name = "c", password = { file = "secret" } },
    ]"#;
    let text = MINIMAL.replace("[{ name = \"app\", password = \"secret\" }]", users);
    let env = |_: &str| Some("from the environment".to_owned());

    let config = Config::parse(&text, &folder.path().join("p.toml"), &env).expect("no fault");

    let secrets = config.clusters[0].users.iter().map(|user| user.password.as_ref().map(Secret::expose));
    let secrets: Vec<_> = secrets.flatten().collect();
    assert_eq!(secrets, ["text", "from the environment", "from a file"]);
    assert!(!format!("{config:?}").contains("from a file"), "a secret shows");
}

#[test]
fn the_readme_s_first_file_is_complete() {
    let admin = r#"
[admin]
http     = "127.0.0.1:9187"
postgres = "127.0.0.1:6433"
mysql    = "127.0.0.1:6434"
users    = [{ name = "admin", password = { env = "SET" } }]
"#;
    let routing =
        "database = \"postgres\"\ninterval = \"200ms\"\n[cluster.routing]\nconsistency = \"global\"\n";

    let config = parse(&format!("{admin}{MINIMAL}{routing}")).unwrap_or_else(|faults| panic!("{faults}"));

    assert_eq!(config.admin.http, Some(HostPort::new("127.0.0.1", 9187)));
    assert_eq!(&*config.admin.users[0].name, "admin");
    assert_eq!(config.clusters[0].routing.consistency, Consistency::Global);
}

#[test]
fn tls_files_are_looked_into_when_the_file_is_read() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let made =
        || rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("random numbers are enough");
    let (server, other) = (made(), made());
    for (name, pem) in [
        ("server.crt", server.cert.pem()),
        ("server.key", server.signing_key.serialize_pem()),
        ("other.key", other.signing_key.serialize_pem()),
    ] {
        fs::write(folder.path().join(name), pem).expect("it can be written to");
    }
    let parse = |line: &str| {
        let text = format!("{MINIMAL}[cluster.tls.client]\n{line}\n");
        Config::parse(&text, &folder.path().join("p.toml"), &|_| None)
    };

    let config = parse("certificate = \"server.crt\"\nkey = \"server.key\"").expect("no fault");
    let others = parse("certificate = \"server.crt\"\nkey = \"other.key\"").expect_err("of two pairs");
    let swapped =
        parse("certificate = \"server.key\"\nkey = \"server.crt\"").expect_err("swapped").to_string();

    let client = &config.clusters[0].tls.client;
    assert_eq!(client.mode, TlsMode::Prefer);
    let others = others.to_string();
    assert!(others.contains("p.toml:14:7: cluster.shop.tls.client.key: does not fit"), "{others}");
    assert_eq!(
        client.identity.as_ref().map(|found| found.key.path().to_owned()),
        Some(folder.path().join("server.key"))
    );
    assert!(swapped.contains("certificate: there is no certificate in"), "{swapped}");
    assert!(swapped.contains("key: there is no private key without a passphrase in"), "{swapped}");
}

#[test]
fn zero_turns_off_what_can_be_off() {
    let text = format!(
        "{MINIMAL}catalog_refresh = \"0s\"\n[cluster.pool]\nidle_timeout = 0\nmax_lifetime = \"0ms\"\n\
         [cluster.routing]\nmax_lag = \"0\"\n[cluster.failover]\nhold = \"0s\"\n[cluster.limits]\nclients_per_user = 0\n"
    );

    let cluster = parse(&text).expect("no fault").clusters.remove(0);

    assert_eq!((cluster.pool.idle_timeout, cluster.pool.max_lifetime), (None, None));
    assert_eq!((cluster.routing.max_lag, cluster.monitor.catalog_refresh), (None, None));
    assert_eq!((cluster.failover.hold, cluster.limits.clients_per_user), (Duration::ZERO, None));
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault_too() {
    let faults = Config::load(Path::new("/nowhere/p.toml")).expect_err("there is no such file");
    assert_eq!(faults.to_string(), "/nowhere/p.toml: cannot be read: No such file or directory (os error 2)");
}

#[test]
fn every_fault_of_syntax_is_told() {
    let faults = parse("a = \nb = 1 2\n[x\n").expect_err("it is no TOML");
    assert!(faults.list.len() >= 3, "{faults}");
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[\\PC\n]{0,200}", at in 0..MINIMAL.len(), length in 0usize..40) {
        // Nonsense by itself, and nonsense in the middle of a good file.
        let (before, after) = (&MINIMAL[..at], &MINIMAL[(at + length).min(MINIMAL.len())..]);
        let _ = parse(&text);
        let _ = parse(&format!("{before}{after}"));
        let _ = parse(&format!("{before}{text}{after}"));
    }
}
