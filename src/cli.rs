//! The command line: what may be typed, and where the configuration comes from.

pub mod check;
pub mod route;

use std::{
    env,
    ffi::OsString,
    fmt,
    io::{self, Read},
    path::{Path, PathBuf},
    process,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};

use crate::{
    config::{Config, Engine, Faults, HostPort},
    sql::Dialect,
};

/// The file that is read when neither `-c` nor the environment names one.
pub const DEFAULT_FILE: &str = "config/pointsman.toml";
/// The environment variable that names the file.
pub const FILE_VARIABLE: &str = "POINTSMAN_CONFIG";
/// The most that `route` reads from standard input, in bytes.
pub const STATEMENTS_LIMIT: u64 = 16 * 1024 * 1024;

/// One endpoint for a replicated PostgreSQL, MySQL or MariaDB database
#[derive(Debug, Parser)]
#[command(name = "pointsman", version, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve
    Run(Run),
    /// Tell every fault of the configuration at once, with key and line
    Check(Check),
    /// Inspect the replication set-up and say what is wrong and how to mend it
    Doctor(Doctor),
    /// Say for each statement whether it reads or writes, why, and where it would go
    Route(Route),
    /// Start a primary, two replicas, the proxy and a small workload in a temporary folder
    Demo(Demo),
    /// Print a shell's completions, for packages
    #[command(hide = true)]
    Completions { shell: clap_complete::Shell },
    /// Print the manual page of the program, or of one command, for packages
    #[command(hide = true)]
    Manual { command: Option<String> },
}

/// `-c FILE`, of every command that reads the configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigFile {
    /// The configuration [default: $POINTSMAN_CONFIG, then config/pointsman.toml]
    #[arg(short = 'c', long = "config", value_name = "FILE")]
    file: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct Run {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Where clients connect, when the servers are named by a URL [default: 127.0.0.1:6432]
    #[arg(long, value_name = "HOST:PORT", requires = "url", value_parser = listen_address)]
    pub listen: Option<HostPort>,
    /// Relieves the process that listens there already: it drains when this one is ready
    #[arg(long)]
    pub take_over: bool,
    /// Instead of a file: postgres://user:password@h1,h2,h3/db or mysql://…; roles are found by asking
    #[arg(conflicts_with = "file")]
    pub url: Option<String>,
}

#[derive(Args, Debug)]
pub struct Check {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Ask each server too
    #[arg(long)]
    pub connect: bool,
}

#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    pub config: ConfigFile,
}

#[derive(Args, Debug)]
pub struct Route {
    #[command(flatten)]
    pub config: ConfigFile,
    /// Whose SQL it is [default: that of the configuration's first cluster, else postgres]
    #[arg(long, value_enum)]
    pub dialect: Option<DialectName>,
    /// Whose functions and tables to go by [default: `monitor.database`]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// One JSON object per statement
    #[arg(long)]
    pub json: bool,
    /// The statements, each judged as a whole; without any, a script is read from standard input
    #[arg(value_name = "SQL")]
    pub statements: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Demo {
    /// Which servers to start
    #[arg(long, value_enum, default_value_t = DialectName::Postgres)]
    pub engine: DialectName,
    /// Run for a few seconds, print one line per node and exit
    #[arg(long)]
    pub once: bool,
}

/// `postgres` or `mysql`, as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DialectName {
    #[value(alias = "postgresql")]
    Postgres,
    #[value(alias = "mariadb")]
    Mysql,
}

impl From<DialectName> for Dialect {
    fn from(name: DialectName) -> Self {
        Engine::from(name).dialect()
    }
}

impl From<DialectName> for Engine {
    fn from(name: DialectName) -> Self {
        match name {
            DialectName::Postgres => Self::Postgres,
            DialectName::Mysql => Self::Mysql,
        }
    }
}

/// How the process ends (sysexits.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// EX_USAGE: the command line makes no sense.
    Usage = 64,
    /// EX_DATAERR: the input does.
    Data = 65,
    /// EX_UNAVAILABLE: a server, an address or a part of this program is not there.
    Unavailable = 69,
    /// EX_SOFTWARE: a fault of the proxy.
    Software = 70,
    /// EX_CONFIG: the configuration is at fault.
    Config = 78,
}

impl From<Exit> for process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Cli {
    /// Reads the command line of this process. Help and version are printed, and so is what is
    /// wrong with it; then the process is to end as the error says.
    ///
    /// # Errors
    /// [`Exit::Done`] after help or version, else [`Exit::Usage`].
    pub fn read() -> Result<Self, Exit> {
        Self::try_parse_from(env::args_os().map(no_option_if_sql)).map_err(|error| {
            // Nobody is left to hear that standard error is closed.
            let _ = error.print();
            if error.use_stderr() { Exit::Usage } else { Exit::Done }
        })
    }
}

/// A statement that begins with a comment (`-- why⏎SELECT …`), so that it is not taken for an option: no option
/// has white space in its name.
fn no_option_if_sql(word: OsString) -> OsString {
    let is_sql = word.to_str().is_some_and(|word| {
        let name = word.split('=').next().unwrap_or_default();
        name.starts_with("--") && name.contains(char::is_whitespace)
    });
    if !is_sql {
        return word;
    }
    let mut behind_space = OsString::from(" ");
    behind_space.push(word);
    behind_space
}

impl ConfigFile {
    /// The file to read: `-c`, `$POINTSMAN_CONFIG`, `config/pointsman.toml`.
    pub fn path(&self) -> PathBuf {
        self.named().unwrap_or_else(|| DEFAULT_FILE.into())
    }

    /// The configuration that the file holds.
    ///
    /// # Errors
    /// Every fault of the file.
    pub fn load(&self) -> Result<Config, Faults> {
        load(&self.path())
    }

    /// The file, if somebody named one or the default one is there: for commands that can do
    /// without.
    pub fn path_if_any(&self) -> Option<PathBuf> {
        self.named().or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.exists()))
    }

    fn named(&self) -> Option<PathBuf> {
        self.file.clone().or_else(|| from_environment(env::var_os(FILE_VARIABLE)))
    }
}

/// An empty variable counts as none.
fn from_environment(value: Option<OsString>) -> Option<PathBuf> {
    value.filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Where a configuration came from: what a reload reads again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    /// There is nothing to read again.
    Url,
}

/// Why there is no configuration.
#[derive(Debug)]
pub enum NoConfig {
    /// The file is at fault: [`Exit::Config`].
    Faults(Faults),
    /// The URL is: [`Exit::Usage`].
    Url(String),
}

impl NoConfig {
    pub const fn exit(&self) -> Exit {
        match self {
            Self::Faults(_) => Exit::Config,
            Self::Url(_) => Exit::Usage,
        }
    }
}

impl fmt::Display for NoConfig {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faults(faults) => faults.fmt(out),
            Self::Url(wrong) => write!(out, "the URL: {wrong}"),
        }
    }
}

impl Run {
    /// The configuration to start with, and where it came from.
    ///
    /// # Errors
    /// Every fault of the file, or what is wrong with the URL.
    pub fn load(&self) -> Result<(Config, Source), NoConfig> {
        match &self.url {
            Some(url) => {
                let config = Config::from_url(url, self.listen.clone()).map_err(NoConfig::Url)?;
                Ok((config, Source::Url))
            }
            None => {
                let path = self.config.path();
                let config = load(&path).map_err(NoConfig::Faults)?;
                Ok((config, Source::File(path)))
            }
        }
    }
}

/// Reads a file; where it is the default one and missing, says how to name another.
fn load(path: &Path) -> Result<Config, Faults> {
    Config::load(path).map_err(|mut faults| {
        if path == Path::new(DEFAULT_FILE) && !path.exists() {
            let hint = format!(" (name one with -c FILE or ${FILE_VARIABLE})");
            faults.list.iter_mut().for_each(|fault| fault.message.push_str(&hint));
        }
        faults
    })
}

impl Route {
    /// The statements as typed, or all of standard input as one text.
    ///
    /// # Errors
    /// When standard input is not UTF-8, is longer than [`STATEMENTS_LIMIT`] or cannot be read.
    pub fn texts(&self) -> io::Result<Vec<String>> {
        if !self.statements.is_empty() {
            return Ok(self.statements.iter().map(|text| text.trim_start().to_owned()).collect());
        }
        let mut text = String::new();
        io::stdin().lock().take(STATEMENTS_LIMIT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > STATEMENTS_LIMIT {
            return Err(io::Error::other(format!("more than {STATEMENTS_LIMIT} bytes of statements")));
        }
        Ok(vec![text])
    }
}

/// `1 node`, `2 nodes`.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn listen_address(text: &str) -> Result<HostPort, String> {
    HostPort::parse(text, None)
}

/// Prints what completes commands in a shell.
///
/// # Errors
/// When `out` cannot be written to.
pub fn completions(shell: clap_complete::Shell, out: &mut impl io::Write) -> io::Result<Exit> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pointsman", &mut text);
    out.write_all(&text)?;
    Ok(Exit::Done)
}

/// Prints a manual page in roff, made from the definition above.
///
/// # Errors
/// When `out` cannot be written to.
pub fn manual(command: Option<&str>, out: &mut impl io::Write) -> io::Result<Exit> {
    // Or the page would name one of its own for `help`, which says no more than `--help`.
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let page = match command {
        None => program,
        Some(name) => match program.find_subcommand(name) {
            Some(found) => found.clone(),
            None => return Ok(Exit::Usage),
        },
    };
    clap_mangen::Man::new(page).render(out)?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn read(line: &str) -> Result<Command, ErrorKind> {
        let words = line.split_whitespace();
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.kind())
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_takes_a_file_or_a_url() {
        let Ok(Command::Run(run)) = read("pointsman run --listen [::]:7000 postgres://m:p@a,b/db") else {
            panic!("a good line")
        };
        let (config, source) = run.load().expect("a good URL");
        assert_eq!((source, &config.clusters[0].listen[..]), (Source::Url, &[HostPort::new("::", 7000)][..]));

        let Ok(Command::Run(run)) = read("pointsman run -c /nowhere/p.toml") else { panic!("a good line") };
        assert_eq!(run.config.path(), Path::new("/nowhere/p.toml"));
        assert_eq!(run.load().expect_err("no such file").exit(), Exit::Config);

        let Ok(Command::Run(run)) = read("pointsman run redis://m:p@a") else { panic!("a good line") };
        assert_eq!(run.load().expect_err("no such scheme").exit(), Exit::Usage);
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused() {
        let cases = [
            ("pointsman", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("pointsman serve", ErrorKind::InvalidSubcommand),
            ("pointsman run --listen 127.0.0.1:1", ErrorKind::MissingRequiredArgument),
            ("pointsman run --listen 127.0.0.1 postgres://m:p@a", ErrorKind::ValueValidation),
            ("pointsman run -c f postgres://m:p@a", ErrorKind::ArgumentConflict),
            ("pointsman route --dialect oracle x", ErrorKind::InvalidValue),
            ("pointsman route --jsno x", ErrorKind::UnknownArgument),
            ("pointsman demo --twice", ErrorKind::UnknownArgument),
        ];
        for (line, kind) in cases {
            assert_eq!(read(line).expect_err(line), kind, "{line}");
        }
    }

    #[test]
    fn a_statement_may_begin_with_a_comment() {
        let line = ["pointsman", "route", "-- why\nSELECT 1", "--json", "--a = b\nSELECT 2"];
        let line = line.map(|word| no_option_if_sql(word.into()));
        let Ok(Command::Route(route)) = Cli::try_parse_from(line).map(|cli| cli.command) else {
            panic!("a good line")
        };
        assert_eq!(route.statements, [" -- why\nSELECT 1", " --a = b\nSELECT 2"]);
        assert!(route.json, "options are told apart");
    }

    #[test]
    fn a_file_named_by_nobody_is_the_default_one() {
        let named = |value: &str| from_environment(Some(value.into()));
        assert_eq!(from_environment(None), None);
        assert_eq!(named(""), None);
        assert_eq!(named("/etc/pointsman.toml"), Some("/etc/pointsman.toml".into()));
    }
}
