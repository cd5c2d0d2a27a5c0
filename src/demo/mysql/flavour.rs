//! What differs between MariaDB's and MySQL's servers: programs, options and statements.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    demo::{
        process::RunAs,
        servers::{APP, Login, MONITOR, REPLICATION, ServerError},
    },
    topology::GtidSet,
};

/// Whose servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// The installed one.
    #[default]
    MariaDb,
    /// MySQL 9, unpacked together with all its libraries under this folder (`scripts/mysql9`).
    Mysql { root: PathBuf },
}

impl Flavour {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::MariaDb => "maria",
            Self::Mysql { .. } => "mysql",
        }
    }

    /// The server's program, without options that depend on the server.
    pub(super) fn server(&self) -> Result<Command, ServerError> {
        let (mut command, options) = match self {
            Self::MariaDb => (Command::new(installed("mariadbd")?), &MARIADB[..]),
            Self::Mysql { root } => (self.unpacked_server(root)?, &MYSQL[..]),
        };
        // `--no-defaults` has to come first.
        command.args(options).args(COMMON);
        Ok(command)
    }

    /// The client program, which is told nothing yet.
    pub fn client(&self) -> Result<Command, ServerError> {
        let mut command = match self {
            Self::MariaDb => Command::new(installed("mariadb")?),
            Self::Mysql { root } => unpacked(root, "usr/bin/mysql")?,
        };
        command.arg("--no-defaults");
        Ok(command)
    }

    /// What fills the empty folder `data`.
    pub(super) fn installer(&self, data: &Path) -> Result<Command, ServerError> {
        let mut command = match self {
            Self::MariaDb => {
                let mut command = Command::new(installed("mariadb-install-db")?);
                command.args([
                    "--no-defaults",
                    "--auth-root-authentication-method=normal",
                    "--skip-test-db",
                    "--skip-name-resolve",
                ]);
                command
            }
            Self::Mysql { root } => {
                let mut command = self.unpacked_server(root)?;
                command.args(["--initialize-insecure", "--innodb-redo-log-capacity=8M"]);
                command
            }
        };
        command.arg(format!("--datadir={}", data.display()));
        Ok(command)
    }

    /// The user that the servers run as. Root's own folders, where MySQL may have been unpacked, are
    /// closed to everybody else: root runs it itself.
    pub(super) fn run_as(&self) -> Result<RunAs, ServerError> {
        match self {
            Self::MariaDb => RunAs::choose().map_err(Into::into),
            Self::Mysql { .. } => Ok(RunAs::Myself),
        }
    }

    fn unpacked_server(&self, root: &Path) -> Result<Command, ServerError> {
        let mut command = unpacked(root, "usr/sbin/mysqld")?;
        command
            .arg("--no-defaults")
            .arg(format!("--basedir={}", root.join("usr").display()))
            .arg(format!("--plugin-dir={}", root.join("usr/lib/mysql/plugin").display()))
            .args(["--user=root", "--secure-file-priv="]);
        Ok(command)
    }

    /// Makes the users of all tests, the monitor's with what docs/getting-started-mysql.md says and no
    /// more, and leaves no trace of it in the binary log.
    pub(super) fn users(&self) -> String {
        let user =
            |login: Login| format!("CREATE USER {}@'%' IDENTIFIED BY '{}';", login.name, login.password);
        let users: String = [REPLICATION, MONITOR, APP].map(user).concat();
        let (monitor, app) = (MONITOR.name, APP.name);
        let rest = match self {
            Self::MariaDb => format!(
                "GRANT REPLICA MONITOR, PROCESS, SHOW VIEW, TRIGGER ON *.* TO {monitor}@'%';
                 GRANT SELECT ON mysql.* TO {monitor}@'%';
                 GRANT ALL ON *.* TO {app}@'%'; REVOKE SUPER, READ ONLY ADMIN ON *.* FROM {app}@'%';
                 RESET MASTER"
            ),
            Self::Mysql { .. } => format!(
                "GRANT REPLICATION CLIENT, PROCESS, SHOW_ROUTINE, SHOW VIEW, TRIGGER ON *.* TO {monitor}@'%';
                 GRANT SELECT ON performance_schema.replication_group_members TO {monitor}@'%';
                 GRANT ALL ON *.* TO {app}@'%'; REVOKE SUPER, CONNECTION_ADMIN ON *.* FROM {app}@'%';
                 RESET BINARY LOGS AND GTIDS"
            ),
        };
        format!("{users} GRANT REPLICATION SLAVE ON *.* TO {}@'%'; {rest}", REPLICATION.name)
    }

    pub(super) const fn promote(&self) -> &'static str {
        match self {
            Self::MariaDb => "STOP ALL SLAVES; RESET SLAVE ALL; SET GLOBAL read_only = 0",
            Self::Mysql { .. } => {
                "STOP REPLICA; RESET REPLICA ALL; SET GLOBAL super_read_only = 0; SET GLOBAL read_only = 0"
            }
        }
    }

    pub(super) fn follow(&self, port: u16) -> String {
        let (user, password) = (REPLICATION.name, REPLICATION.password);
        match self {
            Self::MariaDb => format!(
                "STOP SLAVE; SET GLOBAL read_only = 1; \
                 CHANGE MASTER TO master_host = '127.0.0.1', master_port = {port}, master_user = '{user}', \
                 master_password = '{password}', master_use_gtid = current_pos, master_connect_retry = 1; \
                 START SLAVE"
            ),
            // The replication user has no TLS of its own: its password goes by the source's RSA key.
            Self::Mysql { .. } => format!(
                "STOP REPLICA; SET GLOBAL super_read_only = 1; \
                 CHANGE REPLICATION SOURCE TO source_host = '127.0.0.1', source_port = {port}, \
                 source_user = '{user}', source_password = '{password}', source_auto_position = 1, \
                 get_source_public_key = 1, source_connect_retry = 1, source_retry_count = 86400; \
                 START REPLICA"
            ),
        }
    }

    pub(super) const fn pause_replay(&self) -> &'static str {
        match self {
            Self::MariaDb => "STOP SLAVE SQL_THREAD",
            Self::Mysql { .. } => "STOP REPLICA SQL_THREAD",
        }
    }

    pub(super) const fn resume_replay(&self) -> &'static str {
        match self {
            Self::MariaDb => "START SLAVE SQL_THREAD",
            Self::Mysql { .. } => "START REPLICA SQL_THREAD",
        }
    }

    /// `delay` counts in whole seconds.
    pub(super) fn delay_replay(&self, delay: Duration) -> String {
        let seconds = delay.as_secs();
        match self {
            // It changes nothing while either thread runs.
            Self::MariaDb => format!("STOP SLAVE; CHANGE MASTER TO master_delay = {seconds}; START SLAVE"),
            Self::Mysql { .. } => format!(
                "STOP REPLICA SQL_THREAD; CHANGE REPLICATION SOURCE TO source_delay = {seconds}; \
                 START REPLICA SQL_THREAD"
            ),
        }
    }

    pub(super) const fn stop_receiving(&self) -> &'static str {
        match self {
            Self::MariaDb => "STOP SLAVE IO_THREAD",
            Self::Mysql { .. } => "STOP REPLICA IO_THREAD",
        }
    }

    /// Answers one row, with the same columns for both.
    pub(super) const fn replication(&self) -> &'static str {
        match self {
            Self::MariaDb => "SHOW SLAVE STATUS",
            Self::Mysql { .. } => "SHOW REPLICA STATUS",
        }
    }

    /// Arguments for semi-synchronous replication that never falls back; [`Self::wait_for_replicas`]
    /// begins it.
    pub fn semi_synchronous(&self) -> &'static [&'static str] {
        match self {
            Self::MariaDb => &[
                "--rpl-semi-sync-slave-enabled=1",
                "--rpl-semi-sync-master-timeout=100000000",
                "--rpl-semi-sync-master-wait-point=AFTER_SYNC",
            ],
            Self::Mysql { .. } => &[
                "--plugin-load-add=semisync_source.so",
                "--plugin-load-add=semisync_replica.so",
                "--rpl-semi-sync-replica-enabled=1",
                "--rpl-semi-sync-source-timeout=100000000",
            ],
        }
    }

    /// Makes the commits of a primary wait until a replica has them. On a replica its replay would
    /// wait, for replicas of its own.
    pub(super) const fn wait_for_replicas(&self) -> &'static str {
        match self {
            Self::MariaDb => "SET GLOBAL rpl_semi_sync_master_enabled = 1",
            Self::Mysql { .. } => "SET GLOBAL rpl_semi_sync_source_enabled = 1",
        }
    }

    pub(super) const fn wait_for_nobody(&self) -> &'static str {
        match self {
            Self::MariaDb => "SET GLOBAL rpl_semi_sync_master_enabled = 0",
            Self::Mysql { .. } => "SET GLOBAL rpl_semi_sync_source_enabled = 0",
        }
    }

    /// All that a server has ever executed, for [`Self::covers`]. MariaDB's position would not tell:
    /// it names the last transaction of a domain only, whoever else wrote those before.
    pub(super) const fn history(&self) -> &'static str {
        match self {
            Self::MariaDb => "SELECT @@GLOBAL.gtid_binlog_state",
            Self::Mysql { .. } => self.written(),
        }
    }

    /// Whether one answer to [`Self::history`] contains another.
    pub(super) fn covers(&self, own: &str, other: &str) -> bool {
        if let Self::Mysql { .. } = self {
            let read = |text: &str| text.parse::<GtidSet>().unwrap_or_default();
            return read(own).covers(&read(other));
        }
        let reached = |text: &str, writer: &str| {
            let mut gtids = text.split(',').filter_map(|gtid| gtid.rsplit_once('-'));
            gtids.find(|(other, _)| *other == writer).and_then(|(_, last)| last.parse::<u64>().ok())
        };
        let mut writers = other.split(',').filter_map(|gtid| gtid.rsplit_once('-'));
        writers.all(|(writer, _)| reached(own, writer) >= reached(other, writer))
    }

    /// What a primary has written, as one line.
    pub const fn written(&self) -> &'static str {
        match self {
            Self::MariaDb => "SELECT @@GLOBAL.gtid_binlog_pos",
            Self::Mysql { .. } => "SELECT REPLACE(@@GLOBAL.gtid_executed, '\\n', '')",
        }
    }

    /// Waits a second for a replica to have replayed `written`; answers 0 if it has.
    pub(super) fn wait_for(&self, written: &str) -> String {
        match self {
            Self::MariaDb => format!("SELECT MASTER_GTID_WAIT('{written}', 1)"),
            Self::Mysql { .. } => format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{written}', 1)"),
        }
    }

    /// Takes out of a copied data folder what no two servers may have in common.
    pub(super) fn forget_identity(&self, data: &Path) -> Result<(), ServerError> {
        match self {
            Self::MariaDb => Ok(()),
            // server_uuid; the next start makes another.
            Self::Mysql { .. } => fs::remove_file(data.join("auto.cnf")).map_err(Into::into),
        }
    }
}

/// Quick to start, quick to fail over, and nothing that depends on the machine. The general log is
/// what tells tests where a statement ran.
const COMMON: [&str; 14] = [
    "--bind-address=127.0.0.1",
    "--skip-name-resolve",
    "--log-bin=binlog",
    "--binlog-format=ROW",
    "--sync-binlog=0",
    // Survives the death of the server, not that of the machine.
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-buffer-pool-size=32M",
    "--innodb-use-native-aio=0",
    "--performance-schema=0",
    "--max-connections=200",
    "--local-infile=1",
    "--general-log=1",
    "--event-scheduler=0",
    "--default-time-zone=+00:00",
];

const MARIADB: [&str; 6] = [
    "--no-defaults",
    "--log-slave-updates=1",
    "--gtid-strict-mode=1",
    "--innodb-log-file-size=8M",
    "--slave-net-timeout=5",
    "--character-set-server=utf8mb4",
];

const MYSQL: [&str; 7] = [
    "--gtid-mode=ON",
    "--enforce-gtid-consistency=ON",
    "--innodb-redo-log-capacity=8M",
    // As above: what the operating system has been given survives.
    "--innodb-flush-method=nosync",
    "--replica-net-timeout=5",
    "--mysqlx=0",
    "--log-error-verbosity=2",
];

/// Debian keeps servers out of an ordinary user's `PATH`.
pub(in crate::demo) fn installed(name: &str) -> Result<PathBuf, ServerError> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into(), "/usr/local/bin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .ok_or(ServerError::MariaNotInstalled)
}

/// A program of another release of the system than this one: by that one's own loader, with its own
/// C library.
fn unpacked(root: &Path, program: &str) -> Result<Command, ServerError> {
    let missing = || ServerError::MysqlNotUnpacked { root: root.display().to_string() };
    let (loader, libraries) = ARCHITECTURES
        .iter()
        .map(|(loader, libraries)| (root.join(loader), root.join(libraries)))
        .find(|(loader, _)| loader.is_file())
        .ok_or_else(missing)?;
    let program = root.join(program);
    if !program.is_file() {
        return Err(missing());
    }
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(libraries).arg(program);
    Ok(command)
}

/// Where Debian has the loader and the libraries of each architecture.
const ARCHITECTURES: [(&str, &str); 2] = [
    ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu"),
    ("usr/lib/ld-linux-aarch64.so.1", "usr/lib/aarch64-linux-gnu"),
];
