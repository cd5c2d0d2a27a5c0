//! `pointsman route`: what each statement is taken for and, where servers can be asked, where it
//! would go.

use std::{
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use serde::Serialize;

use super::{Exit, Route, load};
use crate::{
    config::{Cluster, Engine},
    observe::Observed,
    route::{self, Consistency, Floor, Nowhere, Policy, Question},
    serve,
    sql::{
        Dialect, Effect, Hints, Intent, LexModes, Tables,
        catalog::{Catalog, FunctionRules},
        classify,
        hints::Target,
        split,
    },
    topology::{Role, Snapshot},
};

/// Characters of a statement that are shown to people; JSON has it whole.
const SHOWN: usize = 100;

impl Route {
    /// Answers for each statement: to `out`, with notes to `err`.
    ///
    /// # Errors
    /// When the statements cannot be read, or `out` or `err` cannot be written to.
    pub async fn tell(&self, out: &mut impl Write, err: &mut impl Write) -> io::Result<Exit> {
        let cluster = match self.cluster(err)? {
            Ok(cluster) => cluster,
            Err(exit) => return Ok(exit),
        };
        let dialect = match (self.dialect, &cluster) {
            (Some(name), _) => name.into(),
            (None, Some(cluster)) => cluster.engine.dialect(),
            (None, None) => Dialect::Postgres,
        };
        let scene = match &cluster {
            Some(cluster) => self.scene(cluster, err).await?,
            None => None,
        };
        let judge = Judge {
            dialect,
            catalog: scene.as_ref().map_or_else(ordinary, |scene| scene.seen.catalog.clone()),
            rules: cluster.map(|cluster| cluster.routing.functions).unwrap_or_default(),
            scene,
        };
        for statement in self.statements(dialect)? {
            let report = judge.report(&statement, &mut rand::random::<f64>);
            if self.json {
                writeln!(out, "{}", serde_json::to_string(&report)?)?;
            } else {
                report.print(out)?;
            }
        }
        Ok(Exit::Done)
    }

    /// The cluster to ask: the first of the wanted dialect. A default file that cannot be used is
    /// noted and done without; one that somebody named has to be right.
    fn cluster(&self, err: &mut impl Write) -> io::Result<Result<Option<Cluster>, Exit>> {
        let Some(path) = self.config.path_if_any() else { return Ok(Ok(None)) };
        let config = match load(&path) {
            Ok(config) => config,
            Err(faults) => {
                writeln!(err, "{faults}")?;
                let named = path != Path::new(super::DEFAULT_FILE);
                return Ok(if named { Err(Exit::Config) } else { Ok(None) });
            }
        };
        let wanted = self.dialect.map(Engine::from);
        let fits = |cluster: &Cluster| wanted.is_none_or(|engine| cluster.engine == engine);
        Ok(Ok(config.clusters.into_iter().find(fits)))
    }

    /// Asks the servers. What cannot be asked is noted, and the statements are only classified.
    async fn scene(&self, cluster: &Cluster, err: &mut impl Write) -> io::Result<Option<Scene>> {
        let database = self.database.as_deref().map_or_else(|| cluster.monitor.database.clone(), Arc::from);
        let seen = match serve::observe(cluster, &database).await {
            Ok(seen) => seen,
            Err(error) => {
                writeln!(err, "pointsman: {error}: the servers are not asked")?;
                return Ok(None);
            }
        };
        if !seen.catalog.loaded {
            writeln!(
                err,
                "pointsman: no server could tell the functions of database {database}: \
                 calls of any but built-in ones count as writes"
            )?;
        }
        let policy = cluster.policy();
        Ok(Some(Scene { cluster: cluster.name.clone(), policy, seen }))
    }

    /// Each statement of the command line as typed; those of standard input one by one.
    fn statements(&self, dialect: Dialect) -> io::Result<Vec<String>> {
        let texts = self.texts()?;
        if !self.statements.is_empty() {
            return Ok(texts);
        }
        let modes = LexModes::default_of(dialect);
        Ok(texts.iter().flat_map(|text| split(text, dialect, modes)).map(str::to_owned).collect())
    }
}

/// What a statement is judged by where no server is asked: tables are ordinary ones, and whatever
/// is not built in is not known.
fn ordinary() -> Arc<Catalog> {
    Arc::new(Catalog { loaded: true, ..Catalog::empty() })
}

/// Servers that were asked.
struct Scene {
    cluster: Arc<str>,
    policy: Policy,
    seen: Observed,
}

struct Judge {
    dialect: Dialect,
    catalog: Arc<Catalog>,
    rules: FunctionRules,
    scene: Option<Scene>,
}

/// What is said of one statement.
#[derive(Serialize)]
struct Report<'a> {
    statement: &'a str,
    access: &'static str,
    reason: &'static str,
    explanation: &'static str,
    effects: Vec<String>,
    /// `null`: any table.
    tables: Option<Vec<String>>,
    hints: Vec<String>,
    fingerprint: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<Routed>,
}

/// Where it would go now.
#[derive(Serialize)]
struct Routed {
    cluster: String,
    candidates: Vec<Candidate>,
    /// In a session that has not written.
    choice: Destination,
    /// In a session that has written just now.
    choice_after_write: Destination,
}

#[derive(Serialize)]
struct Candidate {
    node: String,
    role: &'static str,
    state: &'static str,
    lag_seconds: Option<f64>,
    lag_bytes: Option<u64>,
    weight: f64,
    /// Whether it has all that the primary is known to have written.
    meets_floor: bool,
}

#[derive(PartialEq, Eq, Serialize)]
struct Destination {
    /// `null`: it has to wait, or nobody is asked.
    node: Option<String>,
    why: &'static str,
}

impl Judge {
    fn report<'a>(&self, statement: &'a str, dice: &mut dyn FnMut() -> f64) -> Report<'a> {
        let modes = LexModes::default_of(self.dialect);
        let intent = classify(statement.as_bytes(), self.dialect, modes, &self.catalog, &self.rules);
        Report {
            statement,
            access: intent.access.label(),
            reason: intent.reason.label(),
            explanation: intent.reason.explanation(),
            effects: intent.effects.iter().map(Effect::describe).collect(),
            tables: match &intent.tables {
                Tables::All => None,
                Tables::Some(names) => Some(names.iter().map(ToString::to_string).collect()),
            },
            hints: describe(&intent.hints),
            fingerprint: format!("{:016x}", intent.fingerprint),
            route: self.scene.as_ref().map(|scene| scene.route(&intent, dice)),
        }
    }
}

fn describe(hints: &Hints) -> Vec<String> {
    let target = hints.target.as_ref().map(|target| match target {
        Target::Primary => "primary".to_owned(),
        Target::Replica => "replica".to_owned(),
        Target::Node(address) => format!("node={address}"),
    });
    let max_lag = hints.max_lag.map(|lag| format!("max_lag={}", humantime::format_duration(lag)));
    let consistency = hints.consistency.map(|asked| format!("consistency={}", asked.label()));
    let unknown = hints.unknown.iter().map(|item| format!("not understood: {item}"));
    [target, max_lag, consistency].into_iter().flatten().chain(unknown).collect()
}

impl Scene {
    fn route(&self, intent: &Intent, dice: &mut dyn FnMut() -> f64) -> Routed {
        let consistency = intent.hints.consistency.unwrap_or(self.policy.consistency);
        let written = match self.seen.snapshot.newest() {
            Some(newest) if consistency != Consistency::Eventual => Floor::At(newest.clone()),
            _ => Floor::None,
        };
        Routed {
            cluster: self.cluster.to_string(),
            candidates: candidates(&self.seen.snapshot),
            choice: self.choose(intent, consistency, &Floor::None, dice),
            choice_after_write: self.choose(intent, consistency, &written, dice),
        }
    }

    fn choose(
        &self,
        intent: &Intent,
        consistency: Consistency,
        floor: &Floor,
        dice: &mut dyn FnMut() -> f64,
    ) -> Destination {
        if let Some(why) = stays_here(intent) {
            return Destination { node: None, why };
        }
        let question = Question {
            access: intent.access,
            target: intent.hints.target.as_ref(),
            consistency,
            floor,
            max_lag: intent.hints.max_lag,
            exclude: &[],
        };
        let (snapshot, now): (_, Instant) = (&self.seen.snapshot, self.seen.at);
        match route::choose(&question, snapshot, &self.policy, now, dice) {
            Ok(choice) => Destination {
                node: Some(snapshot.node(choice.node).address.to_string()),
                why: choice.why.label(),
            },
            Err(Nowhere::NoPrimary) => Destination { node: None, why: "waits for a primary" },
            Err(Nowhere::NoReplica) => Destination { node: None, why: "waits for a replica" },
            Err(Nowhere::UnknownNode) => {
                Destination { node: None, why: "refused: the hint names no usable node" }
            }
        }
    }
}

/// Why no server is chosen for the statement alone.
fn stays_here(intent: &Intent) -> Option<&'static str> {
    match intent.effects.as_slice() {
        [Effect::Begin(_)] => Some("held until the first statement of the transaction decides"),
        [Effect::Proxy(_)] => Some("answered by the proxy"),
        [Effect::Kill { .. }] => Some("answered by the proxy"),
        [Effect::Execute { .. }] => Some("as the statement that was prepared"),
        _ => None,
    }
}

fn candidates(snapshot: &Snapshot) -> Vec<Candidate> {
    let newest = snapshot.newest();
    let meets = |position| newest.is_some_and(|newest| snapshot.covers(position, newest) == Some(true));
    snapshot
        .nodes
        .iter()
        .map(|node| Candidate {
            node: node.address.to_string(),
            role: node.role.label(),
            state: node.state.label(),
            lag_seconds: node.lag.map(|lag| lag.as_secs_f64()),
            lag_bytes: node.lag_distance,
            weight: node.weight,
            // The primary has what it wrote, whatever the last probe says.
            meets_floor: node.role == Role::Primary || node.position.as_ref().is_some_and(meets),
        })
        .collect()
}

impl Report<'_> {
    /// The lines for people.
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", shortened(self.statement))?;
        writeln!(out, "  {:<12} {}", self.access, self.explanation)?;
        writeln!(out, "  {:<12} {}", "reason", self.reason)?;
        let tables = self.tables.as_ref().map_or_else(|| "any".to_owned(), |names| names.join(", "));
        let lists =
            [("tables", tables), ("effects", self.effects.join("; ")), ("hints", self.hints.join(", "))];
        for (name, text) in lists.iter().filter(|(_, text)| !text.is_empty()) {
            writeln!(out, "  {name:<12} {text}")?;
        }
        writeln!(out, "  {:<12} {}", "fingerprint", self.fingerprint)?;
        if let Some(routed) = &self.route {
            routed.print(out)?;
        }
        Ok(())
    }
}

impl Routed {
    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let width = self.candidates.iter().map(|candidate| candidate.node.len()).max().unwrap_or(0);
        writeln!(out, "  {:<12} {}", "cluster", self.cluster)?;
        for candidate in &self.candidates {
            let lag = match (candidate.lag_seconds, candidate.lag_bytes) {
                (Some(seconds), Some(behind)) => format!("lag {seconds:.3} s ({behind})"),
                (Some(seconds), None) => format!("lag {seconds:.3} s"),
                (None, _) => "lag unknown".to_owned(),
            };
            let lag = if candidate.role == Role::Primary.label() { "" } else { &lag };
            let floor = match candidate.lag_seconds {
                _ if candidate.meets_floor => "has every write",
                Some(_) => "is behind",
                None => "may be behind",
            };
            writeln!(
                out,
                "    {:<width$}  {:<7}  {:<8}  {:<22}  weight {:.2}  {floor}",
                candidate.node, candidate.role, candidate.state, lag, candidate.weight
            )?;
        }
        writeln!(out, "  {:<12} {}", "goes to", self.choice.words())?;
        if self.choice_after_write.why != self.choice.why {
            writeln!(out, "  {:<12} {}", "after write", self.choice_after_write.words())?;
        }
        Ok(())
    }
}

impl Destination {
    fn words(&self) -> String {
        match &self.node {
            Some(node) => format!("{node} ({})", self.why),
            None => self.why.to_owned(),
        }
    }
}

/// One line of a statement.
fn shortened(statement: &str) -> String {
    let words: Vec<&str> = statement.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests;
