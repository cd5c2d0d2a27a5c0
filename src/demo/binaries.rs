//! Where PostgreSQL's programs are, and running them to their end.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{process::RunAs, servers::ServerError};

/// A folder with `initdb`, `postgres`, `pg_basebackup` and `psql` of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries {
    folder: PathBuf,
}

/// Settings of the caller's shell that would lead a client program astray.
const PG_ENVIRONMENT: [&str; 9] = [
    "PGHOST",
    "PGPORT",
    "PGUSER",
    "PGPASSWORD",
    "PGDATABASE",
    "PGOPTIONS",
    "PGSERVICE",
    "PGSSLMODE",
    "PGDATA",
];

impl Binaries {
    /// Looks in `PATH`, then for the newest version under `/usr/lib/postgresql` (Debian keeps the
    /// server's programs out of `PATH`).
    pub fn find() -> Result<Self, ServerError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path).filter_map(|folder| {
            // A link leads to the folder where the other programs are.
            Some(fs::canonicalize(folder.join("initdb")).ok()?.parent()?.to_path_buf())
        });
        in_path
            .chain(debian_folders())
            .find(|folder| {
                ["initdb", "postgres", "pg_basebackup", "psql"].iter().all(|p| folder.join(p).is_file())
            })
            .map(|folder| Self { folder })
            .ok_or(ServerError::NotInstalled)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command that is not misled by the caller's `PG…` variables and leaves no prompt open.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        for variable in PG_ENVIRONMENT {
            command.env_remove(variable);
        }
        command.stdin(std::process::Stdio::null());
        command
    }

    /// Whether a server of this installation can load a library such as `pg_stat_statements`.
    pub fn has_library(&self, name: &str) -> bool {
        let file = format!("{name}.so");
        let Some(home) = self.folder.parent() else { return false };
        [home.join("lib"), home.join("lib/postgresql")].iter().any(|folder| folder.join(&file).is_file())
    }
}

/// `/usr/lib/postgresql/*/bin`, newest version first.
fn debian_folders() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/usr/lib/postgresql") else { return Vec::new() };
    let mut versions: Vec<u32> =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions
        .iter()
        .map(|version| Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin"))
        .collect()
}

/// Runs a program to its end and returns what it wrote to stdout; errs with what it wrote to stderr.
pub fn run(mut command: Command, as_user: RunAs) -> Result<String, ServerError> {
    as_user.apply(&mut command);
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| ServerError::Program { program: program.clone(), said: error.to_string() })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
    }
    Err(ServerError::Program { program, said: String::from_utf8_lossy(&output.stderr).trim_end().to_owned() })
}
