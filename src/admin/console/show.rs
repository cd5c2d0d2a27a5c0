//! The tables of SHOW.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    command::{OTHERS, Show},
    table::{Cell, Table, cell, seconds},
};
use crate::{
    admin::control::{Control, Managed, PoolView},
    config::{Choice, PoolMode, reload::is_live},
    metrics::Connections,
    operator::Recorded,
    session::cancel::{Activity, Entry},
    split::ADVICE,
    sql::{Access, Reason},
    topology::State,
};

impl Show {
    /// The answer's columns; the same however many rows there are.
    #[expect(clippy::too_many_lines, reason = "a list of names")]
    pub fn table(self) -> Table {
        Table::new(match self {
            Self::Nodes => &[
                "cluster",
                "node",
                "role",
                "state",
                "lag_seconds~",
                "lag_bytes#",
                "weight~",
                "timeline#",
                "in_use#",
                "idle#",
                "waiters#",
                "why",
            ],
            Self::Pools => &[
                "database",
                "user",
                "cl_active#",
                "cl_waiting#",
                "cl_active_cancel_req#",
                "cl_waiting_cancel_req#",
                "sv_active#",
                "sv_active_cancel#",
                "sv_being_canceled#",
                "sv_idle#",
                "sv_used#",
                "sv_tested#",
                "sv_login#",
                "maxwait#",
                "maxwait_us#",
                "pool_mode",
                "cluster",
            ],
            Self::Clients => &[
                "type",
                "user",
                "database",
                "state",
                "addr",
                "port#",
                "connect_time",
                "wait#",
                "wait_us#",
                "link",
                "id#",
                "cluster",
            ],
            Self::Servers => &[
                "type",
                "user",
                "database",
                "state",
                "addr",
                "port#",
                "link#",
                "remote_pid#",
                "role",
                "idle_seconds~",
                "cluster",
            ],
            Self::Stats => &[
                "database",
                "total_query_count#",
                "total_query_time#",
                "total_wait_time#",
                "reads#",
                "writes#",
                "clients#",
            ],
            Self::StatsTotals => &["database", "query_count#", "query_time#", "wait_time#"],
            Self::Routes => &["cluster", "node", "access", "reason", "statements#", "note"],
            Self::Statements => &[
                "time",
                "cluster",
                "node",
                "access",
                "reason",
                "choice",
                "wait_seconds~",
                "seconds~",
                "fingerprint",
                "statement",
            ],
            Self::Config => &["key", "value", "changeable"],
            Self::Databases => &[
                "name",
                "host",
                "port#",
                "database",
                "force_user",
                "pool_size#",
                "min_pool_size#",
                "reserve_pool#",
                "pool_mode",
                "max_connections#",
                "current_connections#",
                "paused#",
                "disabled#",
                "cluster",
            ],
            Self::Lists => &["list", "items#"],
            Self::Events => &["time", "cluster", "event"],
            Self::Version => &["version"],
            Self::Help => &["command", "meaning"],
        })
    }

    /// The whole answer about `clusters`.
    pub fn answer(self, control: &Control, clusters: &[Arc<dyn Managed>]) -> Table {
        let mut table = self.table();
        match self {
            Self::Nodes => each(clusters, |cluster| nodes(cluster, &mut table)),
            Self::Pools => each(clusters, |cluster| pools(cluster, &mut table)),
            Self::Clients => each(clusters, |cluster| clients(cluster, &mut table)),
            Self::Servers => each(clusters, |cluster| servers(cluster, &mut table)),
            Self::Stats => each(clusters, |cluster| stats(cluster, &mut table)),
            Self::StatsTotals => each(clusters, |cluster| stats_totals(cluster, &mut table)),
            Self::Routes => each(clusters, |cluster| routes(cluster, &mut table)),
            Self::Statements => each(clusters, |cluster| statements(cluster, &mut table)),
            Self::Databases => each(clusters, |cluster| databases(cluster, &mut table)),
            Self::Lists => lists(clusters, &mut table),
            Self::Events => events(clusters, &mut table),
            Self::Config => {
                for entry in control.config().entries() {
                    // As PgBouncer has it: without a restart.
                    let changeable = if is_live(&entry.key) { "yes" } else { "no" };
                    table.push(vec![cell(entry.key), cell(entry.value), cell(changeable)]);
                }
            }
            Self::Version => table.push(vec![cell(format!("pointsman {}", env!("CARGO_PKG_VERSION")))]),
            Self::Help => help(&mut table),
        }
        table
    }
}

fn each(clusters: &[Arc<dyn Managed>], mut show: impl FnMut(&dyn Managed)) {
    for cluster in clusters {
        show(&**cluster);
    }
}

fn nodes(cluster: &dyn Managed, table: &mut Table) {
    let connections = cluster.connections();
    let snapshot = cluster.snapshot();
    for node in snapshot.nodes.iter() {
        // Why it gets nothing, or why none of them gets writes.
        let why = match (&node.state, &node.trouble, &snapshot.nobody) {
            (State::Fenced(why), _, _) => why.to_string(),
            (_, Some(trouble), Some(why)) => format!("{trouble}; no primary: {why}"),
            (_, Some(trouble), None) => trouble.to_string(),
            (_, None, Some(why)) => format!("no primary: {why}"),
            (_, None, None) => String::new(),
        };
        let Connections { idle, in_use, waiters, .. } =
            connections.get(&node.address).copied().unwrap_or_default();
        table.push(vec![
            cell(cluster.name()),
            cell(&node.address),
            cell(node.role.label()),
            cell(node.state.label()),
            node.lag.and_then(seconds),
            node.lag_distance.and_then(cell),
            cell(format!("{:.3}", node.weight)),
            node.timeline.and_then(cell),
            cell(in_use),
            cell(idle),
            cell(waiters),
            cell(why),
        ]);
    }
}

/// What the pools of one database and user have together.
#[derive(Default)]
struct PoolSums {
    clients_active: usize,
    clients_waiting: usize,
    longest_wait: Duration,
    cancels: usize,
    in_use: usize,
    idle: usize,
}

fn pools(cluster: &dyn Managed, table: &mut Table) {
    let mut sums: BTreeMap<(Arc<str>, Arc<str>), PoolSums> = BTreeMap::new();
    for entry in cluster.clients() {
        let sum = sums.entry((entry.database.clone(), entry.user.clone())).or_default();
        match entry.waiting_seconds() {
            Some(waited) => {
                sum.clients_waiting += 1;
                sum.longest_wait = sum.longest_wait.max(Duration::from_secs_f64(waited));
            }
            None => sum.clients_active += 1,
        }
        sum.cancels += usize::from(entry.is_being_cancelled());
    }
    for pool in cluster.pools() {
        let sum = sums.entry((pool.database, pool.user)).or_default();
        sum.in_use += pool.in_use;
        sum.idle += pool.idle.len();
    }
    let mode = cluster.config().pool.mode.name();
    for ((database, user), sum) in sums {
        table.push(vec![
            cell(database),
            cell(user),
            cell(sum.clients_active),
            cell(sum.clients_waiting),
            cell(sum.cancels),
            cell(0),
            cell(sum.in_use),
            cell(sum.cancels),
            cell(sum.cancels),
            cell(sum.idle),
            cell(0),
            cell(0),
            cell(0),
            cell(sum.longest_wait.as_secs()),
            cell(sum.longest_wait.subsec_micros()),
            cell(mode),
            cell(cluster.name()),
        ]);
    }
}

/// `host:port` apart; the port of what has none is unknown.
fn apart(address: &str) -> (Cell, Cell) {
    match address.rsplit_once(':') {
        Some((host, port)) => (cell(host.trim_start_matches('[').trim_end_matches(']')), cell(port)),
        None => (cell(address), None),
    }
}

fn state(entry: &Entry) -> &'static str {
    match (entry.waiting_seconds(), entry.activity()) {
        (Some(_), _) => "waiting",
        (None, Activity::Idle) => "idle",
        (None, Activity::Active) => "active",
        (None, Activity::InTransaction) => "in_transaction",
    }
}

fn clients(cluster: &dyn Managed, table: &mut Table) {
    for entry in cluster.clients() {
        let (host, port) = apart(&entry.peer);
        let waited = Duration::from_secs_f64(entry.waiting_seconds().unwrap_or(0.0));
        table.push(vec![
            cell("C"),
            cell(&entry.user),
            cell(entry.shown_database()),
            cell(state(&entry)),
            host,
            port,
            cell(time(entry.since)),
            cell(waited.as_secs()),
            cell(waited.subsec_micros()),
            entry.target().map(|target| target.address.to_string()),
            cell(entry.process),
            cell(cluster.name()),
        ]);
    }
}

fn servers(cluster: &dyn Managed, table: &mut Table) {
    let running: Vec<_> =
        cluster.clients().into_iter().filter_map(|entry| Some((entry.target()?, entry))).collect();
    for pool in cluster.pools() {
        let here: Vec<_> = running
            .iter()
            .filter(|(target, entry)| {
                target.address == pool.node && entry.user == pool.user && entry.database == pool.database
            })
            .collect();
        // Connections between two statements of a transaction: nobody can tell which they are.
        let quiet = pool.in_use.saturating_sub(here.len());
        for (target, entry) in here {
            push_server(
                cluster,
                &pool,
                "active",
                (cell(entry.process), cell(target.key.process), None),
                table,
            );
        }
        for _ in 0..quiet {
            push_server(cluster, &pool, "used", (None, None, None), table);
        }
        for (process, idle) in &pool.idle {
            push_server(cluster, &pool, "idle", (None, cell(process), seconds(*idle)), table);
        }
    }
}

fn push_server(
    cluster: &dyn Managed,
    pool: &PoolView,
    state: &str,
    (link, process, idle): (Cell, Cell, Cell),
    table: &mut Table,
) {
    let (host, port) = apart(&pool.node);
    table.push(vec![
        cell("S"),
        cell(&pool.user),
        cell(&pool.database),
        cell(state),
        host,
        port,
        link,
        process,
        cell(pool.role.label()),
        idle,
        cell(cluster.name()),
    ]);
}

/// Without the columns of bytes and transactions: they are not counted, and a zero would say that
/// there were none.
fn stats_totals(cluster: &dyn Managed, table: &mut Table) {
    table.push(totals(cluster).0);
}

/// A cluster's name, statements, their time and the time that they waited; and how many of them were
/// reads and writes.
fn totals(cluster: &dyn Managed) -> (Vec<Cell>, [u64; 2]) {
    let metrics = cluster.metrics();
    let (reads, read_seconds) = metrics.seconds(Access::Read).totals();
    let (writes, write_seconds) = metrics.seconds(Access::Write).totals();
    let row = vec![
        cell(cluster.name()),
        cell(reads + writes),
        micros(read_seconds + write_seconds),
        micros(metrics.waited_seconds()),
    ];
    (row, [reads, writes])
}

fn micros(seconds: f64) -> Cell {
    cell((seconds * 1e6) as u64)
}

fn stats(cluster: &dyn Managed, table: &mut Table) {
    let (mut row, [reads, writes]) = totals(cluster);
    row.extend([cell(reads), cell(writes), cell(cluster.clients().len())]);
    table.push(row);
}

fn routes(cluster: &dyn Managed, table: &mut Table) {
    let users = cluster.unsplit_users();
    let note = |reason: Reason| match reason {
        Reason::Transaction if !users.is_empty() => format!("most reads of {}: {ADVICE}", users.join(", ")),
        _ => String::new(),
    };
    for node in cluster.snapshot().nodes.iter() {
        let counters = cluster.metrics().node(&node.address);
        for (access, reason, count) in counters.counts().filter(|(_, _, count)| *count > 0) {
            let row = vec![
                cell(cluster.name()),
                cell(&node.address),
                cell(access),
                cell(reason.label()),
                cell(count),
                cell(note(reason)),
            ];
            table.push(row);
        }
    }
}

fn statements(cluster: &dyn Managed, table: &mut Table) {
    for (routed, text) in cluster.recent() {
        table.push(vec![
            cell(humantime::format_rfc3339_millis(routed.at)),
            cell(cluster.name()),
            cell(&routed.node),
            cell(routed.access.label()),
            cell(routed.reason.label()),
            routed.why.map(|why| why.label().to_owned()),
            cell(format!("{:.6}", routed.waited.as_secs_f64())),
            cell(format!("{:.6}", routed.took.as_secs_f64())),
            cell(format!("{:016x}", routed.fingerprint)),
            text.map(|text| text.to_string()),
        ]);
    }
}

fn databases(cluster: &dyn Managed, table: &mut Table) {
    let mut sums: BTreeMap<Arc<str>, usize> = BTreeMap::new();
    for entry in cluster.clients() {
        sums.entry(entry.database.clone()).or_default();
    }
    for pool in cluster.pools() {
        *sums.entry(pool.database).or_default() += pool.in_use + pool.idle.len();
    }
    let snapshot = cluster.snapshot();
    let (host, port) = snapshot.primary().map_or((None, None), |primary| apart(&primary.address));
    let config = cluster.config();
    for (database, connections) in sums {
        table.push(vec![
            cell(&database),
            host.clone(),
            port.clone(),
            cell(&database),
            None,
            cell(config.pool.size),
            cell(config.pool.min_idle),
            // There is no reserve, and no bound of a database's own: PgBouncer's 0.
            cell(0),
            cell(PoolMode::name(config.pool.mode)),
            cell(0),
            cell(connections),
            cell(u8::from(cluster.is_paused())),
            cell(0),
            cell(cluster.name()),
        ]);
    }
}

fn lists(clusters: &[Arc<dyn Managed>], table: &mut Table) {
    let clients: Vec<_> = clusters.iter().flat_map(|cluster| cluster.clients()).collect();
    let pools: Vec<_> = clusters.iter().flat_map(|cluster| cluster.pools()).collect();
    let waiting = clients.iter().filter(|entry| entry.waiting_seconds().is_some()).count();
    let nodes: usize = clusters.iter().map(|cluster| cluster.snapshot().nodes.len()).sum();
    let users: usize = clusters.iter().map(|cluster| cluster.config().users.len()).sum();
    let rows = [
        ("databases", clusters.len()),
        ("users", users),
        ("nodes", nodes),
        ("pools", pools.len()),
        ("used_clients", clients.len()),
        ("waiting_clients", waiting),
        ("free_servers", pools.iter().map(|pool| pool.idle.len()).sum()),
        ("used_servers", pools.iter().map(|pool| pool.in_use).sum()),
    ];
    for (list, items) in rows {
        table.push(vec![cell(list), cell(items)]);
    }
}

fn events(clusters: &[Arc<dyn Managed>], table: &mut Table) {
    let of_each = clusters.iter().map(|cluster| (cluster.name().clone(), cluster.events()));
    for (name, recorded) in newest_last(of_each) {
        table.push(vec![cell(time(recorded.at)), cell(name), cell(recorded.event)]);
    }
}

/// What happened in all clusters.
fn newest_last(of_each: impl Iterator<Item = (Arc<str>, Vec<Recorded>)>) -> Vec<(Arc<str>, Recorded)> {
    let with_name = |(name, events): (Arc<str>, Vec<Recorded>)| {
        events.into_iter().map(move |recorded| (name.clone(), recorded))
    };
    let mut all: Vec<_> = of_each.flat_map(with_name).collect();
    all.sort_by_key(|(_, recorded)| recorded.at);
    all
}

fn help(table: &mut Table) {
    for (_, word, about) in Show::ALL {
        table.push(vec![cell(format!("SHOW {word}")), cell(about)]);
    }
    for (command, about) in OTHERS {
        table.push(vec![cell(command), cell(about)]);
    }
}

/// To the second, in UTC.
fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::board::Event;

    #[test]
    fn events_of_several_clusters_stand_in_the_order_of_time() {
        let at = |seconds| Recorded {
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(seconds),
            event: Event::Restarted { address: "a:1".into() },
        };
        let of_each = [("shop".into(), vec![at(1), at(4)]), ("stock".into(), vec![at(2), at(3)])];

        let order: Vec<_> =
            newest_last(of_each.into_iter()).iter().map(|(name, _)| name.to_string()).collect();

        assert_eq!(order, ["shop", "stock", "stock", "shop"]);
    }
}
