//! Arguments → configuration → the command → exit code.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use pointsman::{
    cli::{self, Cli, Command, Exit},
    config::Config,
    demo, doctor,
    logging::{self, LogLevel},
    serve::Proxy,
    shutdown::{Ending, Shutdown, Signals},
    sockets::Sharing,
    takeover::{self, Legacy, Predecessor},
};
use tokio::sync::Notify;

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
        Command::Doctor(doctor) => self::doctor(doctor),
        Command::Route(route) => self::route(route),
        Command::Demo(demo) => self::demo(demo),
        Command::Completions { shell } => printed(cli::completions(*shell, &mut io::stdout())),
        Command::Manual { command } => printed(cli::manual(command.as_deref(), &mut io::stdout())),
    }
}

fn run(run: &cli::Run) -> Exit {
    let (config, source) = match run.load() {
        Ok(loaded) => loaded,
        Err(none) => {
            say(&none.to_string());
            return none.exit();
        }
    };
    let level = match logging::init(&config.log) {
        Ok(level) => level,
        Err(error) => {
            say(&format!("pointsman: {error}"));
            return Exit::Config;
        }
    };
    let file = match source {
        cli::Source::File(path) => Some(path),
        cli::Source::Url => None,
    };
    let served = one_thread()
        .map(|runtime| runtime.block_on(serve(config, file, Shutdown::new(), run.take_over, level)));
    served.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Unavailable
    })
}

/// Serves until a signal ends it. The control plane lives on this thread.
async fn serve(
    config: Config,
    file: Option<PathBuf>,
    shutdown: Shutdown,
    take_over: bool,
    level: LogLevel,
) -> Exit {
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("pointsman: cannot catch signals: {error}"));
            return Exit::Unavailable;
        }
    };
    let reload = Arc::new(Notify::new());
    let served = async {
        let result = serve_all(config, file, &shutdown, take_over, level, reload.clone()).await;
        shutdown.stop();
        result
    };
    // From the first moment: a process that takes over may wait long before it serves alone.
    let (result, ()) = tokio::join!(served, signals.serve(&shutdown, &reload));
    match result {
        Ok(ending) => {
            tracing::info!(?ending, "stopped");
            Exit::Done
        }
        Err(why) => {
            say(&format!("pointsman: {why}"));
            Exit::Unavailable
        }
    }
}

/// Listens, takes over where that is asked for, and serves until the end; or says why it cannot.
async fn serve_all(
    config: Config,
    file: Option<PathBuf>,
    shutdown: &Shutdown,
    take_over: bool,
    level: LogLevel,
    reload: Arc<Notify>,
) -> Result<Ending, String> {
    let predecessor = if take_over { takeover::predecessor(&config) } else { Ok(None) };
    let predecessor = predecessor.map_err(|error| format!("cannot take over: {error}"))?;
    let sharing = if predecessor.is_some() { Sharing::Beside } else { Sharing::Alone };
    let legacy = if predecessor.is_some() { takeover::recall(&config).await } else { Legacy::default() };
    let started = Proxy::start(config.clone(), shutdown.clone(), sharing, &legacy).await;
    let mut proxy = started.map_err(|error| error.to_string())?;
    tokio::spawn(takeover::offer(config.clone(), proxy.managed(), shutdown.clone()));
    if let Some(predecessor) = predecessor {
        relieve(predecessor, &mut proxy, &config, shutdown).await?;
    }
    Ok(proxy.run(file, reload, level).await)
}

/// Relieves the old process as soon as this one can serve. If this one is told to end before, the old
/// one stays: it has heard nothing.
async fn relieve(
    predecessor: Predecessor,
    proxy: &mut Proxy,
    config: &Config,
    shutdown: &Shutdown,
) -> Result<(), String> {
    let without = tokio::select! {
        biased;
        () = shutdown.draining() => return Ok(()),
        without = proxy.wait_until_ready() => without,
    };
    if !without.is_empty() {
        let legacy = takeover::recall(config).await;
        if let Some(name) = without.iter().find(|name| legacy.of_cluster(name).has_primary) {
            return Err(format!(
                "cluster {name}: the running process has a primary and this one finds none: it stays, \
                 nothing is taken over"
            ));
        }
        tracing::warn!("takes over without having found a primary");
    }
    // The old process has its own open still: for the moment until it yields either answers, and
    // both are ready. So nobody who asks is refused, or told that nothing is ready.
    proxy.open_doors().await.map_err(|error| error.to_string())?;
    tokio::select! {
        relieved = predecessor.relieve() => match relieved {
            Ok(()) => tracing::info!("has taken over"),
            Err(error) => tracing::warn!(%error, "the old process did not yield: it serves beside this one"),
        },
        () = shutdown.draining() => {}
    }
    Ok(())
}

fn demo(demo: &cli::Demo) -> Exit {
    let engine = match demo.engine {
        cli::DialectName::Postgres => demo::DemoEngine::Postgres,
        cli::DialectName::Mysql => demo::DemoEngine::Mysql,
    };
    let shutdown = Shutdown::new();
    let proxy = demo::Proxy {
        serve: |text: &str| {
            let config =
                Config::parse(text, Path::new("demo"), &|_| None).map_err(|faults| faults.to_string())?;
            let level = logging::init(&config.log).map_err(|error| error.to_string())?;
            match one_thread().map_err(|error| error.to_string())?.block_on(serve(
                config,
                None,
                shutdown.clone(),
                false,
                level,
            )) {
                Exit::Done => Ok(()),
                exit => Err(format!("exit code {exit:?}")),
            }
        },
        stop: || shutdown.stop(),
    };
    match demo::run(engine, demo.once, proxy, &mut io::stdout()) {
        Ok(()) => Exit::Done,
        Err(error) => {
            say(&format!("pointsman: {error}"));
            Exit::Unavailable
        }
    }
}

fn check(check: &cli::Check) -> Exit {
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let checked = cli::check::check(&check.config.path(), &mut out, &mut err).and_then(|found| match found {
        Ok(config) if check.connect => one_thread()?.block_on(doctor::try_logins(&config, &mut out)),
        Ok(_) => Ok(Exit::Done),
        Err(exit) => Ok(exit),
    });
    checked.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Unavailable
    })
}

fn route(route: &cli::Route) -> Exit {
    let told =
        one_thread().and_then(|runtime| runtime.block_on(route.tell(&mut io::stdout(), &mut io::stderr())));
    told.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Data
    })
}

fn doctor(command: &cli::Doctor) -> Exit {
    let config = match command.config.load() {
        Ok(config) => config,
        Err(faults) => {
            say(&faults.to_string());
            return Exit::Config;
        }
    };
    let examined = one_thread().and_then(|runtime| runtime.block_on(doctor::run(&config, &mut io::stdout())));
    examined.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Unavailable
    })
}

fn printed(result: io::Result<Exit>) -> Exit {
    result.unwrap_or_else(|error| {
        say(&format!("pointsman: {error}"));
        Exit::Unavailable
    })
}

/// The runtime of commands that only ask.
fn one_thread() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Writes a line to standard error, or gives up when that is closed.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}
