//! `pointsman check`: every fault of the file, or what it says.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{Exit, count, load};
use crate::config::{Choice, Cluster, Config, Engine, Members, SecretForm, User};

/// Reads a file and tells what it found: to `out` what is good, to `err` every fault, one per line.
/// The configuration is given back for those who go on to ask the servers.
///
/// # Errors
/// When `out` or `err` cannot be written to.
pub fn check(path: &Path, out: &mut impl Write, err: &mut impl Write) -> io::Result<Result<Config, Exit>> {
    let config = match load(path) {
        Ok(config) => config,
        Err(faults) => {
            writeln!(err, "{faults}")?;
            return Ok(Err(Exit::Config));
        }
    };
    writeln!(out, "{}: ok", path.display())?;
    for cluster in &config.clusters {
        writeln!(out, "cluster {}: ok, {}", cluster.name, summary(cluster))?;
        for note in half_known(cluster) {
            writeln!(out, "cluster {}: note: {note}", cluster.name)?;
        }
    }
    Ok(Ok(config))
}

/// Users of whom the file has what servers store of the password. PostgreSQL lets in by that; MySQL's
/// servers want more, such as one that has just started and remembers nobody.
fn half_known(cluster: &Cluster) -> Vec<String> {
    if cluster.engine == Engine::Postgres {
        return Vec::new();
    }
    let note = |user: &User| {
        let opens = match user.password.as_ref()?.form(cluster.engine) {
            SecretForm::MysqlSha2 => "no server before a client has sent the password itself",
            SecretForm::MysqlNative => "only servers that know the user by mysql_native_password",
            SecretForm::Plain | SecretForm::ScramSha256 | SecretForm::Md5 => return None,
        };
        Some(format!("user {}: what is stored of its password opens {opens}", user.name))
    };
    cluster.users.iter().filter_map(note).collect()
}

fn summary(cluster: &Cluster) -> String {
    let members = match &cluster.members {
        Members::Nodes(nodes) => count(nodes.len(), "node"),
        Members::Patroni(source) => {
            format!("nodes by Patroni at {}", count(source.endpoints.len(), "endpoint"))
        }
    };
    let listen: Vec<String> = cluster.listen.iter().map(ToString::to_string).collect();
    let users = count(cluster.users.len(), "user");
    format!("{}, {members}, {users}, listens on {}", cluster.engine.name(), listen.join(", "))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn checked(text: &str) -> (Option<Exit>, String, String) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("p.toml");
        fs::write(&path, text).expect("it can be written to");
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let found = check(&path, &mut out, &mut err).expect("a Vec takes all");
        let folder = format!("{}/", folder.path().display());
        let text = |bytes| String::from_utf8(bytes).expect("text").replace(&folder, "");
        (found.err(), text(out), text(err))
    }

    #[test]
    fn a_good_file_is_summed_up() {
        let (exit, out, err) = checked(
            "[[cluster]]\nname = \"shop\"\nengine = \"mysql\"\nlisten = [\"127.0.0.1:3307\"]\nnodes = [\"a\", \"b\"]\n\
             users = [{ name = \"app\", password = \"x\" }]\nmonitor = { user = \"m\" }\n",
        );

        assert_eq!((exit, err.as_str()), (None, ""));
        assert_eq!(out, "p.toml: ok\ncluster shop: ok, mysql, 2 nodes, 1 user, listens on 127.0.0.1:3307\n");
    }

    #[test]
    fn users_whose_password_is_half_known_are_named() {
        let hashed = format!("$A$005${}{}", "s".repeat(20), "h".repeat(43));
        let (exit, out, _) = checked(&format!(
            "[[cluster]]\nname = 'shop'\nengine = 'mysql'\nlisten = ['127.0.0.1:3307']\nnodes = ['a']\n\
             users = [{{ name = 'plain', password = 'x' }}, {{ name = 'sha2', password = '{hashed}' }}, \
             {{ name = 'native', password = '*{}' }}]\nmonitor = {{ user = 'm' }}\n",
            "A4".repeat(20)
        ));

        let notes: Vec<&str> = out.lines().skip(2).collect();
        assert_eq!(exit, None);
        assert_eq!(
            notes,
            [
                "cluster shop: note: user sha2: what is stored of its password opens no server before a client has \
                 sent the password itself",
                "cluster shop: note: user native: what is stored of its password opens only servers that know the \
                 user by mysql_native_password",
            ]
        );
    }

    #[test]
    fn a_bad_file_is_told_fault_by_fault_with_its_exit_code() {
        let (exit, out, err) = checked("workers = 0\nlisten = 1\n");

        assert_eq!((exit, out.as_str()), (Some(Exit::Config), ""));
        assert_eq!(
            err,
            "p.toml:1:1: cluster: is missing: there is nothing to serve without a [[cluster]]\n\
             p.toml:1:11: workers: must be at least 1\n\
             p.toml:2:1: listen: unknown key here; `listen` belongs to `cluster`\n"
        );
    }
}
