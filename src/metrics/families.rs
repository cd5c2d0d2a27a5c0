//! Every metric's name, type, unit, labels and meaning: `/metrics`, `docs/metrics.md` and the
//! handles in [`super`] are made from these.
//!
//! Label values come from the configuration or from enumerations of the proxy's own, never from
//! what a client sends.

/// What Prometheus calls its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    pub name: &'static str,
    pub kind: Kind,
    pub unit: &'static str,
    pub labels: &'static [&'static str],
    /// One sentence, also Prometheus' HELP.
    pub meaning: &'static str,
    /// When it should worry a person.
    pub worry: &'static str,
}

macro_rules! families {
    ($($id:ident: $kind:ident $name:literal [$($label:literal),*] in $unit:literal: $meaning:literal $worry:literal;)+) => {
        $(pub const $id: Family = Family {
            name: $name, kind: Kind::$kind, unit: $unit, labels: &[$($label),*], meaning: $meaning, worry: $worry,
        };)+
        /// All of them, in the order of the page.
        pub const ALL: &[Family] = &[$($id),+];
    };
}

families! {
    STATEMENTS: Counter "pointsman_statements_total" ["cluster", "node", "access", "reason"] in "statements":
        "Statements by node, access and reason; a series appears with its first statement."
        "Reads with reason `transaction` or `function` that could use replicas: see \"nothing is split\" in the handbook.";
    STATEMENT_SECONDS: Histogram "pointsman_statement_seconds" ["cluster", "access"] in "seconds":
        "Time from a statement's arrival to the end of its answer."
        "When it grows while `pointsman_statement_server_seconds` does not, the wait is in the proxy: look at pools and holds.";
    STATEMENT_WAIT_SECONDS: Histogram "pointsman_statement_wait_seconds" ["cluster", "access"] in "seconds":
        "Part of that spent waiting for a node or a connection, of statements that waited."
        "Any steady rate: pools are too small, or there is no primary.";
    STATEMENT_SERVER_SECONDS: Histogram "pointsman_statement_server_seconds" ["cluster", "access"] in "seconds":
        "Part of that spent on the server's answer, its way to the client included."
        "As slow statements on the servers themselves.";
    ERRORS: Counter "pointsman_errors_total" ["cluster", "kind"] in "errors":
        "Errors that the proxy itself gave to clients."
        "`in_doubt`: a write whose fate nobody knows; `no_primary`: the hold ran out; `pool_timeout`: pools are too small.";
    REPLICA_LAG_SECONDS: Gauge "pointsman_replica_lag_seconds" ["cluster", "node"] in "seconds":
        "Age of the oldest primary position not replayed; absent when unknown."
        "Near `routing.max_lag`: the replica is about to serve no more reads. Absent for long: it cannot be measured.";
    REPLICA_LAG_BYTES: Gauge "pointsman_replica_lag_bytes" ["cluster", "node"] in "bytes":
        "WAL bytes not replayed (MySQL and MariaDB: transactions); absent when unknown."
        "Growing steadily: the replica cannot keep up, and its slot or `wal_keep_size` fills the primary's disk.";
    NODE_WEIGHT: Gauge "pointsman_node_weight" ["cluster", "node"] in "ratio":
        "Share of reads a node is drawn with, relative to the others; lag, zone and slow start are in it."
        "0 for a replica that is up: it is behind, or just came back.";
    NODE_ROLE: Gauge "pointsman_node_role" ["cluster", "node", "role"] in "boolean":
        "1 for the role a node has."
        "No `primary` in a cluster.";
    NODE_STATE: Gauge "pointsman_node_state" ["cluster", "node", "state"] in "boolean":
        "1 for the state a node is in."
        "`fenced`: it claims a role it lost, and somebody has to rebuild it; `down`; `suspect` again and again: the network.";
    NODE_TIMELINE: Gauge "pointsman_node_timeline" ["cluster", "node"] in "number":
        "PostgreSQL's timeline; absent when unknown and on MySQL."
        "Nodes of one cluster that stay on different ones.";
    NODE_IN_FLIGHT: Gauge "pointsman_node_in_flight_statements" ["cluster", "node"] in "statements":
        "Statements running on a node through this proxy."
        "One node far above its share: it is slow.";
    FAILOVERS: Counter "pointsman_failovers_total" ["cluster"] in "failovers":
        "Times another node became primary."
        "Any that nobody planned.";
    FAILOVER_SECONDS: Gauge "pointsman_failover_seconds" ["cluster"] in "seconds":
        "How long the last failover left the cluster without primary; 0 before the first."
        "Near `failover.hold`: statements are refused before it ends.";
    WITHOUT_PRIMARY_SECONDS: Gauge "pointsman_without_primary_seconds" ["cluster"] in "seconds":
        "Since when there is no primary; 0 while there is one."
        "Above a few seconds.";
    HELD: Gauge "pointsman_held_statements" ["cluster"] in "statements":
        "Statements waiting for a primary, for a replica, or for RESUME."
        "Near `failover.hold_limit`.";
    PAUSED: Gauge "pointsman_paused" ["cluster"] in "boolean":
        "1 while the console's PAUSE holds new statements."
        "1 when nobody is at work.";
    RETRIES: Counter "pointsman_retries_total" ["cluster", "reason"] in "statements":
        "Statements run again on another node because their server was lost or stopping."
        "Outside of a failover: connections break.";
    REROUTES: Counter "pointsman_reroutes_total" ["cluster", "reason"] in "statements":
        "Statements a replica refused that the primary then ran."
        "`standby`: conflicts with recovery, see `hot_standby_feedback`; `writes`: name the function in `write_functions`.";
    CAUSAL_FALLBACKS: Counter "pointsman_causal_fallbacks_total" ["cluster"] in "statements":
        "Reads the primary served because no replica had caught up with the session."
        "A large share of reads: replicas lag, or the app writes before every read.";
    COMMITS_SETTLED: Counter "pointsman_commits_settled_total" ["cluster", "outcome"] in "statements":
        "Commits whose answer a failover swallowed, by what the new primary said became of them."
        "`unknown` after failovers: the client has to look by itself.";
    LOST_POSITIONS: Counter "pointsman_lost_positions_total" ["cluster"] in "floors":
        "Floors that lay in history that a failover threw away: of a session, or of a table under `user` and `global`."
        "Any: acknowledged writes are gone.";
    POOL_CONNECTIONS: Gauge "pointsman_pool_connections" ["cluster", "node", "state"] in "connections":
        "Server connections by node and state (`idle`, `in_use`)."
        "`in_use` at the limit while there are waiters.";
    POOL_LIMIT: Gauge "pointsman_pool_limit_connections" ["cluster", "node"] in "connections":
        "Server connections that all pools of a node may have together (`pool.node_connections`)."
        "Below the sum of `pool.size` of all users and databases: pools take from each other.";
    POOL_WAITERS: Gauge "pointsman_pool_waiters" ["cluster", "node"] in "sessions":
        "Sessions waiting for a server connection."
        "Above 0 for long.";
    POOL_WAIT_SECONDS: Histogram "pointsman_pool_wait_seconds" ["cluster"] in "seconds":
        "Time sessions waited for a server connection when none was free."
        "Near `pool.checkout_timeout`.";
    CLIENTS: Gauge "pointsman_clients" ["cluster"] in "connections":
        "Client connections."
        "Near `limits.clients`.";
    PINS: Counter "pointsman_pins_total" ["cluster", "reason"] in "sessions":
        "Times a session had to keep its server connection."
        "A high rate: pooling does not help that app; the reason says what to change.";
    STATEMENT_CACHE: Counter "pointsman_statement_cache_total" ["cluster", "result"] in "look-ups":
        "Look-ups in the cache of classified statements (`hit`, `miss`)."
        "Many misses: texts differ in more than literals.";
    PARSE_FAILURES: Counter "pointsman_parse_failures_total" ["cluster"] in "statements":
        "Statements that were not understood and so went to the primary."
        "Many: reads are not split; `pointsman route` shows which.";
    PROBE_FAILURES: Counter "pointsman_probe_failures_total" ["cluster", "node"] in "probes":
        "Probes of a node that failed."
        "A steady rate on a node that is up: the network, or `monitor.timeout`.";
    LOGINS: Counter "pointsman_logins_total" ["cluster", "result"] in "logins":
        "Logins of clients by result."
        "`wrong_password` at a high rate; `too_many_clients`.";
    RELOADS: Counter "pointsman_config_reloads_total" ["result"] in "reloads":
        "Reloads of the configuration by result (`applied`, `refused`)."
        "`refused`: the log names the fault.";
    RELOAD_SUCCESS: Gauge "pointsman_config_last_reload_success" [] in "boolean":
        "1 if the last reload was applied."
        "0.";
    RELOAD_TIME: Gauge "pointsman_config_last_reload_success_timestamp_seconds" [] in "seconds":
        "When the configuration was last applied, in Unix time."
        "Older than the last change of the file.";
    BUILD_INFO: Gauge "pointsman_build_info" ["version"] in "info":
        "Always 1; the version is a label."
        "Several versions for long after an upgrade.";
}
