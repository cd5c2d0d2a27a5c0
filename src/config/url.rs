//! A configuration without a file: `postgres://user:password@h1,h2:5433,h3/database`.

use std::path::Path;

use percent_encoding::percent_decode_str;

use super::{Choice, Config, Engine, HostPort, Members, NodeConfig, Secret, SecretForm, TlsMode, User};

/// What the URL does not say comes from here; node and user are replaced.
const BASE: &str = r#"
[[cluster]]
name   = "main"
engine = "ENGINE"
listen = ["127.0.0.1:6432"]
nodes  = ["replaced"]
users  = [{ name = "replaced", password = "replaced" }]
monitor = { user = "replaced" }
"#;

impl Config {
    /// One cluster `main` of the hosts in a URL, every other value its default. The URL's user
    /// measures the servers and is the one who may log in; its database is where the monitor
    /// connects to. `?sslmode=` is about the servers. Without `listen`: 127.0.0.1:6432.
    ///
    /// # Errors
    /// Says what is wrong; never shows the password.
    pub fn from_url(url: &str, listen: Option<HostPort>) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("expected postgres://… or mysql://…")?;
        let engine = match scheme {
            "postgres" | "postgresql" => Engine::Postgres,
            "mysql" | "mariadb" => Engine::Mysql,
            _ => return Err(format!("unknown scheme {scheme:?}: expected postgres:// or mysql://")),
        };
        let (rest, query) = rest.split_once('?').map_or((rest, ""), |(rest, query)| (rest, query));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) =
            authority.rsplit_once('@').ok_or("the user is missing, as in postgres://user:password@host")?;

        let mut config = Self::parse(&BASE.replace("ENGINE", engine.name()), Path::new(""), &|_| None)
            .expect("a test reads the base of both engines");
        let [cluster] = &mut config.clusters[..] else { unreachable!("the base has one cluster") };
        cluster.members = Members::Nodes(read_hosts(hosts, engine)?);
        let user = read_user(user, engine)?;
        cluster.monitor.user = user.name.clone();
        cluster.monitor.password = user.password.clone();
        cluster.users = vec![user];
        if engine == Engine::Postgres && !database.is_empty() {
            cluster.monitor.database = decoded(database, "database")?.into();
        }
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            cluster.tls.server.mode = read_tls_mode(parameter)?;
        }
        cluster.listen.splice(.., listen.or(cluster.listen.first().cloned()));
        Ok(config)
    }
}

fn read_user(text: &str, engine: Engine) -> Result<User, String> {
    const MISSING: &str = "the password is missing, as in postgres://user:password@host";
    let (name, password) = text.split_once(':').ok_or(MISSING)?;
    let (name, password) = (decoded(name, "user")?, Secret::new(decoded(password, "password")?));
    if name.is_empty() {
        return Err("the user's name is empty".to_owned());
    }
    if password.is_empty() {
        return Err(MISSING.to_owned());
    }
    if password.form(engine) != SecretForm::Plain {
        return Err("the password is a verifier: the servers need the password itself".to_owned());
    }
    Ok(User { name: name.into(), password: Some(password) })
}

fn read_hosts(text: &str, engine: Engine) -> Result<Vec<NodeConfig>, String> {
    let mut nodes: Vec<NodeConfig> = Vec::new();
    for host in text.split(',') {
        let address = HostPort::parse(host, Some(engine.default_port()))
            .and_then(|address| match address.port() {
                0 => Err("port 0 is no server's".to_owned()),
                _ => Ok(address),
            })
            .map_err(|wrong| format!("{host:?}: {wrong}"))?;
        let node = NodeConfig::new(address);
        if let Some(twice) = nodes.iter().find_map(|other| other.clash(&node)) {
            return Err(twice);
        }
        nodes.push(node);
    }
    Ok(nodes)
}

fn read_tls_mode(parameter: &str) -> Result<TlsMode, String> {
    match parameter.split_once('=') {
        Some(("sslmode", mode)) => TlsMode::from_name(mode)
            .ok_or_else(|| format!("{mode:?} is no sslmode: try disable, prefer, require")),
        _ => {
            Err(format!("unknown parameter {parameter:?}: only sslmode can be set here, the rest in a file"))
        }
    }
}

fn decoded(text: &str, what: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(decoded) if decoded.contains('\0') => Err(format!("the {what} contains a zero byte")),
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(format!("the {what} is not UTF-8")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_servers_user_and_database() {
        let listen = HostPort::new("0.0.0.0", 7000);
        let url = "postgres://mon:p%40ss@h1,h2:5433,[::1]/app?sslmode=require";

        let config = Config::from_url(url, Some(listen.clone())).expect("a good URL");

        let cluster = &config.clusters[0];
        let Members::Nodes(nodes) = &cluster.members else { panic!("nodes") };
        let nodes: Vec<&str> = nodes.iter().map(|node| &*node.address).collect();
        assert_eq!(nodes, ["h1:5432", "h2:5433", "[::1]:5432"]);
        assert_eq!((&*cluster.monitor.user, &*cluster.monitor.database), ("mon", "app"));
        assert_eq!(cluster.users[0].password.as_ref().map(Secret::expose), Some("p@ss"));
        assert_eq!((cluster.tls.server.mode, &cluster.listen), (TlsMode::Require, &vec![listen]));
    }

    #[test]
    fn mysql_has_its_own_port_and_everything_else_its_default() {
        let config = Config::from_url("mysql://root:x@db", None).expect("a good URL");

        let cluster = &config.clusters[0];
        let Members::Nodes(nodes) = &cluster.members else { panic!("nodes") };
        assert_eq!((&*nodes[0].address, cluster.engine), ("db:3306", Engine::Mysql));
        assert_eq!(cluster.listen, [HostPort::new("127.0.0.1", 6432)]);
    }

    #[test]
    fn a_wrong_url_is_told_in_words_and_never_shows_the_password() {
        let cases = [
            ("h1,h2", "expected postgres://… or mysql://…"),
            ("redis://u:hush@h", "unknown scheme \"redis\": expected postgres:// or mysql://"),
            ("postgres://h1/db", "the user is missing, as in postgres://user:password@host"),
            ("postgres://u@h1", "the password is missing, as in postgres://user:password@host"),
            ("postgres://:hush@h1", "the user's name is empty"),
            ("postgres://u:hush@", "\"\": the host is missing"),
            ("postgres://u:hush@a,,b", "\"\": the host is missing"),
            ("postgres://u:hush@a,a:5432", "a:5432 is listed twice"),
            ("postgres://u:hush@a,A", "A:5432 is a:5432, listed twice"),
            ("postgres://u:%ff@a", "the password is not UTF-8"),
            (
                "postgres://u:hush@a/d?pool=1",
                "unknown parameter \"pool=1\": only sslmode can be set here, the rest in a file",
            ),
        ];
        for (url, expected) in cases {
            let told = Config::from_url(url, None).expect_err(url);
            assert_eq!(told, expected, "{url}");
            assert!(!told.contains("hush"), "{told}");
        }
    }
}
