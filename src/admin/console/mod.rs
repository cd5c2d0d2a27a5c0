//! The console: one command set behind two doors, psql's and mysql's.

pub mod command;
mod mysql;
mod postgres;
pub mod show;
pub mod table;

use std::{sync::Arc, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use self::{
    command::Command,
    table::{Table, cell},
};
use crate::{
    admin::control::{Control, Managed},
    config::{Secret, User},
    listener,
    operator::Order,
};

/// People on one door at a time.
const MAX_CONNECTIONS: usize = 64;

/// How long a login may take.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How often PAUSE looks whether running transactions are done.
const PAUSE_POLL: Duration = Duration::from_millis(5);

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Table(Table),
    /// Done; the tag that psql shows.
    Done(&'static str),
    Empty,
}

/// Why a command was not obeyed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is none, or lacks something.
    Syntax(String),
    /// It names what is not there, or cannot be done now.
    Failed(String),
}

impl Refused {
    pub fn message(&self) -> &str {
        match self {
            Self::Syntax(message) | Self::Failed(message) => message,
        }
    }
}

/// The clusters that SHOW is about on a connection to `database`: the one of that name, or all. An
/// exporter made for PgBouncer needs one at a time: it knows pools by database and user alone.
fn shown<'a>(control: &'a Control, database: &str) -> &'a [Arc<dyn Managed>] {
    control.cluster(database).map_or(control.clusters(), std::slice::from_ref)
}

/// Obeys one command of somebody who is connected to `database`.
///
/// # Errors
/// Why it was not obeyed: nothing has changed then. Dropping the future of a PAUSE that still
/// waits leaves the cluster paused; RESUME lifts that.
pub async fn obey(control: &Control, database: &str, text: &str) -> Result<Answer, Refused> {
    let command = command::parse(text).map_err(Refused::Syntax)?;
    match command {
        Command::Show(show) => Ok(Answer::Table(show.answer(control, shown(control, database)))),
        Command::Pause(name) => pause(&named(control, name.as_deref())?).await,
        Command::Resume(name) => resume(&named(control, name.as_deref())?),
        Command::Reload => control.reload().await.map(|()| Answer::Done("RELOAD")).map_err(Refused::Failed),
        Command::Node(order, node) => send_order(control, order, &node),
        Command::Kill(id) => kill(control, id),
        Command::Shutdown { wait } => {
            tracing::warn!(wait, "SHUTDOWN in the console");
            if wait {
                control.shutdown().drain()
            } else {
                control.shutdown().stop()
            }
            Ok(Answer::Done("SHUTDOWN"))
        }
        Command::Ignored(tag) => Ok(Answer::Done(tag)),
        Command::Constants(columns) => {
            let mut table = constants(&columns);
            table.push(columns.into_iter().map(|(_, value)| cell(value)).collect());
            Ok(Answer::Table(table))
        }
        Command::Empty => Ok(Answer::Empty),
    }
}

/// The columns that a command would answer with, as an empty table; without any where it answers no rows.
///
/// # Errors
/// As [`obey`], of what is no command.
fn described(text: &str) -> Result<Table, Refused> {
    Ok(match command::parse(text).map_err(Refused::Syntax)? {
        Command::Show(show) => show.table(),
        Command::Constants(columns) => constants(&columns),
        _ => Table::default(),
    })
}

fn constants(columns: &[(String, String)]) -> Table {
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    Table::new(&names)
}

fn named(control: &Control, name: Option<&str>) -> Result<Vec<Arc<dyn Managed>>, Refused> {
    match name {
        None => Ok(control.clusters().to_vec()),
        Some(name) => match control.cluster(name) {
            Some(cluster) => Ok(vec![cluster.clone()]),
            None => Err(Refused::Failed(format!("there is no cluster {name:?}"))),
        },
    }
}

async fn pause(clusters: &[Arc<dyn Managed>]) -> Result<Answer, Refused> {
    if clusters.iter().all(|cluster| cluster.is_paused()) {
        return Err(Refused::Failed("already paused".to_owned()));
    }
    for cluster in clusters {
        tracing::warn!(cluster = %cluster.name(), "paused in the console");
        cluster.set_paused(true);
    }
    while Control::busy(clusters) > 0 {
        tokio::time::sleep(PAUSE_POLL).await;
        if !clusters.iter().all(|cluster| cluster.is_paused()) {
            return Err(Refused::Failed("resumed while transactions were still running".to_owned()));
        }
    }
    Ok(Answer::Done("PAUSE"))
}

fn resume(clusters: &[Arc<dyn Managed>]) -> Result<Answer, Refused> {
    let paused: Vec<_> = clusters.iter().filter(|cluster| cluster.is_paused()).collect();
    if paused.is_empty() {
        return Err(Refused::Failed("not paused".to_owned()));
    }
    for cluster in paused {
        tracing::warn!(cluster = %cluster.name(), "resumed in the console");
        cluster.set_paused(false);
    }
    Ok(Answer::Done("RESUME"))
}

fn send_order(control: &Control, order: Order, node: &str) -> Result<Answer, Refused> {
    let meant: Vec<_> = control
        .clusters()
        .iter()
        .filter_map(|cluster| Some((cluster, Arc::clone(&cluster.snapshot().meant(node)?.address))))
        .collect();
    if meant.is_empty() {
        return Err(Refused::Failed(format!("there is no node {node:?}; SHOW NODES has their names")));
    }
    for (cluster, address) in meant {
        if !cluster.order(address, order) {
            return Err(Refused::Failed("too many orders at once".to_owned()));
        }
    }
    Ok(Answer::Done(match order {
        Order::Drain => "DRAIN",
        Order::Undrain => "UNDRAIN",
        Order::Ban => "BAN",
        Order::Unban => "UNBAN",
    }))
}

fn kill(control: &Control, id: u32) -> Result<Answer, Refused> {
    let killed = control.clusters().iter().filter(|cluster| Arc::clone(cluster).kill(id)).count();
    if killed == 0 {
        return Err(Refused::Failed(format!("there is no client {id}; SHOW CLIENTS has their ids")));
    }
    tracing::warn!(client = id, "killed in the console");
    Ok(Answer::Done("KILL"))
}

/// Which protocol a door speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    Postgres,
    Mysql,
}

/// Opens a door and serves it until the proxy stops.
pub fn open(listeners: Vec<TcpListener>, door: Door, control: &Control) {
    for listener in listeners {
        tokio::spawn(accept(listener, door, control.clone()));
    }
}

async fn accept(listener: TcpListener, door: Door, control: Control) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = control.shutdown().doors_close() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((socket, peer)) = accepted else {
            tokio::time::sleep(listener::ACCEPT_PAUSE).await;
            continue;
        };
        // Beyond the bound, or while there is nobody who may come in, the connection is closed.
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        if control.config().admin.users.is_empty() {
            continue;
        }
        let control = control.clone();
        tokio::spawn(async move {
            let _place = place;
            serve(socket, door, &control).await;
            tracing::debug!(%peer, "left the console");
        });
    }
}

async fn serve(socket: TcpStream, door: Door, control: &Control) {
    let served = async {
        match door {
            Door::Postgres => postgres::serve(socket, control).await,
            Door::Mysql => mysql::serve(socket, control).await,
        }
    };
    tokio::select! {
        served = served => {
            if let Err(error) = served {
                tracing::info!(%error, "a connection to the console has ended");
            }
        }
        () = async {
            control.shutdown().stopping().await;
            tokio::time::sleep(LAST_WORDS).await;
        } => {}
    }
}

/// How long a door stays open for the answer to SHUTDOWN.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Somebody who may come in, by the configuration in force.
pub(super) fn user(control: &Control, name: &str) -> Option<User> {
    control.config().admin.users.iter().find(|user| &*user.name == name).cloned()
}

/// A secret that nobody has: unknown users fail as wrong passwords do, and take as long.
fn nobody() -> Secret {
    Secret::new(hex::encode(rand::random::<[u8; 32]>()))
}
