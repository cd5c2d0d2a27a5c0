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
    let found = cli::check::check(&check.config.path(), &mut io::stdout(), &mut io::stderr());
    match found {
        Ok(Ok(_)) if check.connect => not_available("check --connect"),
        Ok(Ok(_)) => Exit::Done,
        Ok(Err(exit)) => exit,
        Err(_) => Exit::Unavailable, // Nobody listens to what it could say.
    }
}

fn not_available(what: &str) -> Exit {
    say(&format!("pointsman: `{what}` is not available in this build"));
    Exit::Unavailable
}

/// Writes a line to standard error, or gives up when that is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
