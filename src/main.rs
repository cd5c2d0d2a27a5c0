//! Arguments → configuration → the command → exit code.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use pointsman::cli::{self, Cli, Command, Exit};

fn main() -> ExitCode {
    let exit = match Cli::read() {
        Ok(cli) => command(&cli.command),
        Err(exit) => exit,
    };
    exit.into()
}

fn command(command: &Command) -> Exit {
    match command {
        Command::Run(run) => self::run(run),
        Command::Check(check) => self::check(check),
        Command::Doctor(_) => not_available("doctor"),
        Command::Route(_) => not_available("route"),
        Command::Demo(_) => not_available("demo"),
    }
}

fn run(run: &cli::Run) -> Exit {
    match run.load() {
        Ok(_) => not_available("run"),
        Err(none) => {
            say(&none.to_string());
            none.exit()
        }
    }
}

fn check(check: &cli::Check) -> Exit {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let checked = cli::check::check(&check.config.path(), &mut out, &mut err).and_then(|found| match found {
        Ok(config) if check.connect => one_thread()?.block_on(cli::check::connect(&config, &mut err)),
        Ok(_) => Ok(Exit::Done),
        Err(exit) => Ok(exit),
    });
    checked.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Unavailable
    })
}

/// The runtime of commands that only ask.
fn one_thread() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn not_available(what: &str) -> Exit {
    say(&format!("pointsman: `{what}` is not available in this build"));
    Exit::Unavailable
}

/// Writes a line to standard error, or gives up when that is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
