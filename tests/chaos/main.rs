//! `scripts/chaos`: clients write and read through the proxy while servers are killed, frozen, cut
//! off, promoted and delayed; then the history is checked. Loopback only, bounded in time.

mod client;
mod faults;
mod history;
#[path = "../it/support/link.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod link;
mod servers;
mod sessions;

use std::{
    env, fs,
    process::{Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use client::Door;
use faults::Stage;
use history::{Gap, History};
use link::Link;
use pointsman::demo::{
    Keeper, Port, Signal,
    servers::{APP, MONITOR},
    signal, wait_for_exit,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use servers::Engine;
use sessions::{Level, Primaries, Session, Shared, Work};
use tempfile::TempDir;

/// Runs clients and faults against real servers for a while and checks what the clients were told.
#[derive(Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value = "postgres")]
    engine: Engine,
    /// How long, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Of all random choices; the same seed makes the same choices.
    #[arg(long)]
    seed: Option<u64>,
    /// Clients at the same time.
    #[arg(long, default_value_t = 12)]
    sessions: usize,
    /// Asks the proxy for eventual reads only and checks as ever: stale reads have to be found.
    #[arg(long)]
    weaken: bool,
}

type Fault = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    history::self_test();
    sessions::self_test();
    let seed = arguments.seed.unwrap_or_else(rand::random);
    println!("seed: {seed}");
    match run(&arguments, seed) {
        Ok(violations) if violations.is_empty() => {
            println!("clean");
            ExitCode::SUCCESS
        }
        Ok(violations) => {
            for violation in violations.iter().take(50) {
                println!("VIOLATION: {violation}");
            }
            println!("{} violations, seed {seed}", violations.len());
            ExitCode::FAILURE
        }
        Err(fault) => {
            eprintln!("chaos could not go on: {fault}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, seed: u64) -> Result<Vec<String>, Fault> {
    let servers = arguments.engine.start()?;
    let links: Vec<Link> = servers.addresses().iter().map(|address| Link::to(address)).collect();
    let primaries = Arc::new(Primaries::new(servers.port(0)));
    let proxy = Proxy::start(arguments.engine, &links)?;
    let port = proxy.port.number();
    let mut stage = Stage {
        servers,
        links,
        proxy,
        primary: 0,
        primaries: primaries.clone(),
        done: Vec::new(),
        fenced: Vec::new(),
    };
    let shared = Arc::new(Shared {
        door: Door { engine: arguments.engine, port },
        stop: AtomicBool::new(false),
        weaken: arguments.weaken,
        acknowledged: (0..arguments.sessions).map(|_| AtomicU64::new(0)).collect(),
        primaries,
    });

    let clients = {
        let (shared, count) = (shared.clone(), arguments.sessions);
        std::thread::spawn(move || clients(shared, count, seed))
    };
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut random = StdRng::seed_from_u64(seed);
    let mut disturbed = Ok(());
    while Instant::now() < end && disturbed.is_ok() {
        std::thread::sleep(Duration::from_millis(random.random_range(200..1_000)));
        disturbed = stage.disturb(&mut random);
    }
    // What waits for a primary gets its answer before everything ends.
    std::thread::sleep(Duration::from_secs(1));
    shared.stop.store(true, Ordering::Relaxed);
    let history = clients.join().map_err(|_| "a client panicked")?;
    if disturbed.is_err() {
        stage.proxy.keep_log();
    }
    disturbed?;
    report(&stage, &history)
}

fn clients(shared: Arc<Shared>, count: usize, seed: u64) -> History {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be made").block_on(async {
        let levels = [Level::Session, Level::Global, Level::Monotonic];
        let tasks: Vec<_> = (0..count)
            .map(|number| {
                let work = if number % 4 == 3 { Work::Reads } else { Work::WritesAndReads };
                let session = Session::new(number, levels[number % 3], work, shared.clone(), seed);
                tokio::spawn(session.run())
            })
            .collect();
        let mut history = History::default();
        for task in tasks {
            history.merge(task.await.expect("clients do not panic"));
        }
        history
    })
}

fn report(stage: &Stage, history: &History) -> Result<Vec<String>, Fault> {
    let faults: Vec<String> = stage.count().iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("faults: {}", faults.join(", "));
    println!("{history}");
    let (writes, reads) = history.gaps();
    println!("longest gap: writes {}, reads {}", describe(writes, stage), describe(reads, stage));
    let mut violations = history.check(&stage.servers.rows(stage.primary)?);
    for (rows, fenced) in &stage.fenced {
        violations.extend(history.on_fenced(rows, *fenced));
    }
    if !violations.is_empty() {
        stage.proxy.keep_log();
    }
    Ok(violations)
}

/// How long a gap was, and what had been done to the servers last when it was over.
fn describe(gap: Gap, stage: &Stage) -> String {
    format!("{} ms ({})", gap.lasted.as_millis(), stage.last_before(gap.ended).unwrap_or("no fault"))
}

/// The real binary before the links.
pub struct Proxy {
    child: Child,
    port: Port,
    folder: TempDir,
    _keeper: Keeper,
}

impl Proxy {
    fn start(engine: Engine, links: &[Link]) -> Result<Self, Fault> {
        let folder = tempfile::tempdir()?;
        let port = Port::claim()?;
        let nodes: Vec<String> = links.iter().map(|link| format!("\"{}\"", link.address())).collect();
        let config = format!(
            r#"
            [log]
            level = "info"
            [[cluster]]
            name = "chaos"
            engine = "{engine}"
            listen = ["127.0.0.1:{port}"]
            nodes = [{nodes}]
            users = [{{ name = "{app}", password = "{app_password}" }}]
            [cluster.monitor]
            user = "{monitor}"
            password = "{monitor_password}"
            interval = "100ms"
            timeout = "300ms"
            [cluster.routing]
            slow_start = "1s"
            transaction_reads = "replica"
            "#,
            engine = engine.name(),
            port = port.number(),
            nodes = nodes.join(", "),
            app = APP.name,
            app_password = APP.password,
            monitor = MONITOR.name,
            monitor_password = MONITOR.password,
        );
        let file = folder.path().join("pointsman.toml");
        fs::write(&file, config)?;
        let log = fs::File::create(folder.path().join("log"))?;
        // Examples lie in a folder beside the binary.
        let example = env::current_exe()?;
        let binary =
            example.parent().and_then(|folder| folder.parent()).ok_or("no folder")?.join("pointsman");
        let mut command = Command::new(binary);
        command.arg("run").arg("-c").arg(file).stdout(Stdio::null()).stderr(log);
        let keeper = Keeper::start()?;
        let child = keeper.spawn(command, Signal::Kill)?;
        Ok(Self { child, port, folder, _keeper: keeper })
    }

    /// The node that has the primary's role by the proxy's own word.
    pub fn primary(&self) -> Option<String> {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let turns = |line: &&str| line.contains(" primary elected ") || line.contains(" no primary: ");
        let last = log.lines().rfind(turns).filter(|line| line.contains(" primary elected "))?;
        last.split_whitespace().find_map(|word| word.strip_prefix("node=")).map(str::to_owned)
    }

    /// Something went wrong: the log is worth a look.
    fn keep_log(&self) {
        let kept = env::temp_dir().join(format!("pointsman-chaos-{}.log", std::process::id()));
        if fs::copy(self.folder.path().join("log"), &kept).is_ok() {
            println!("the proxy's log: {}", kept.display());
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        signal(self.child.id(), Signal::Kill);
        wait_for_exit(&mut self.child, Duration::from_secs(5));
    }
}
