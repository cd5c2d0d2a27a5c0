//! `SET pointsman.…` and `SHOW pointsman.…`: what a session tells the proxy and asks of it.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use super::{
    Session,
    cancel::{Call, Entry},
    consistency::check_token,
};
use crate::{
    protocol::{Answer, Column, Fault, Frontend, Protocol, Request},
    refusal::{Refusal, RefusalKind},
    route::{Consistency, Floor, Why},
    sql::{
        Reason,
        effects::{Ending, Ends, ProxyCommand, Scope, Shown, Whom},
    },
};

/// What the client has set for its session; what is not set is the cluster's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnSettings {
    pub consistency: Option<Consistency>,
    pub max_lag: Option<Duration>,
}

/// A session's settings of the proxy's own, and what the end of its transaction makes of them: as the
/// server's, they go back with a ROLLBACK, and SET LOCAL ends with its transaction.
#[derive(Debug, Default)]
pub struct Overrides {
    pub now: OwnSettings,
    /// What RESET goes back to.
    startup: OwnSettings,
    /// The values after COMMIT and after ROLLBACK, once the open transaction has changed something.
    after: Option<(OwnSettings, OwnSettings)>,
    /// Oldest first.
    savepoints: Vec<Savepoint>,
}

/// What ROLLBACK TO brings back.
#[derive(Debug)]
struct Savepoint {
    name: Box<str>,
    now: OwnSettings,
    after: Option<(OwnSettings, OwnSettings)>,
}

/// How many savepoints are followed; ROLLBACK TO a deeper one undoes nothing here.
const MAX_SAVEPOINTS: usize = 1024;

impl Overrides {
    pub fn at_startup(startup: OwnSettings) -> Self {
        Self { now: startup, startup, ..Self::default() }
    }

    /// Changes one setting; `in_transaction`: the end of one is to come.
    ///
    /// # Errors
    /// What it cannot be set to, or is no setting at all.
    pub fn set(
        &mut self,
        name: &str,
        value: &str,
        scope: Scope,
        in_transaction: bool,
    ) -> Result<(), Refusal> {
        let mut settings = self.now;
        settings.set(name, value, self.startup)?;
        match (scope, in_transaction) {
            // As on the server: there is nothing it could last for.
            (Scope::Local, false) => return Ok(()),
            (_, false) => {}
            (Scope::Local, true) => {
                self.after.get_or_insert((self.now, self.now));
            }
            (_, true) => {
                let (commit, _) = self.after.get_or_insert((self.now, self.now));
                commit.set(name, value, self.startup)?;
            }
        }
        self.now = settings;
        Ok(())
    }

    /// RESET ALL.
    pub fn reset_all(&mut self, in_transaction: bool) {
        if in_transaction {
            self.after.get_or_insert((self.now, self.now)).0 = self.startup;
        }
        self.now = self.startup;
    }

    /// The open transaction has got a savepoint.
    pub fn save(&mut self, name: &str) {
        if self.savepoints.len() < MAX_SAVEPOINTS {
            self.savepoints.push(Savepoint { name: name.into(), now: self.now, after: self.after });
        }
    }

    /// RELEASE: what was set since stays.
    pub fn release(&mut self, name: &str) {
        if let Some(at) = self.savepoint(name) {
            self.savepoints.truncate(at);
        }
    }

    pub fn roll_back_to(&mut self, name: &str) {
        if let Some(at) = self.savepoint(name) {
            let savepoint = &self.savepoints[at];
            (self.now, self.after) = (savepoint.now, savepoint.after);
            self.savepoints.truncate(at + 1);
        }
    }

    /// Where the latest savepoint of this name is.
    fn savepoint(&self, name: &str) -> Option<usize> {
        self.savepoints.iter().rposition(|savepoint| *savepoint.name == *name)
    }

    /// The open transaction has ended.
    pub fn end(&mut self, committed: bool) {
        self.savepoints.clear();
        if let Some((commit, rollback)) = self.after.take() {
            self.now = if committed { commit } else { rollback };
        }
    }
}

impl OwnSettings {
    /// Reads what a startup packet asked for; a position is the session's to adopt.
    ///
    /// # Errors
    /// What it cannot be set to, or is no setting at all.
    pub fn at_startup(commands: &[ProxyCommand]) -> Result<Self, Refusal> {
        let mut own = Self::default();
        for command in commands {
            if let ProxyCommand::Set { name, value, .. } = command
                && &**name != "position"
            {
                own.set(name, value, Self::default())?;
            }
        }
        Ok(own)
    }

    /// Changes one setting; `default` stands for what it was at `startup`.
    fn set(&mut self, name: &str, value: &str, startup: Self) -> Result<(), Refusal> {
        let value = value.trim().trim_matches('\'');
        match (name, value) {
            ("consistency", value) if value.eq_ignore_ascii_case("default") => {
                self.consistency = startup.consistency
            }
            ("consistency", _) => {
                let consistency = parse_consistency(&value.to_ascii_lowercase());
                self.consistency = Some(consistency.ok_or_else(|| invalid(name, value))?);
            }
            ("max_lag", value) if value.eq_ignore_ascii_case("default") => self.max_lag = startup.max_lag,
            ("max_lag", "0" | "") => self.max_lag = None,
            ("max_lag", _) => {
                let lag = humantime::parse_duration(value).map_err(|_| invalid(name, value))?;
                // In any unit no time at all turns it off.
                self.max_lag = Some(lag).filter(|lag| !lag.is_zero());
            }
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

/// Where the last statement went, and why. What only the proxy is told or asked goes nowhere.
#[derive(Debug, Default)]
pub struct LastRoute {
    node: Option<Arc<str>>,
    why: Option<Why>,
    reason: Option<Reason>,
    waited: Duration,
    /// What its hints said that means nothing.
    misspelt: Vec<Box<str>>,
    /// Why it was refused, if it was: it went nowhere, or nobody knows what became of it.
    refused: Option<Box<str>>,
    /// How the statement of this fingerprint was routed that was prepared in a pipeline which may run it.
    ahead: Option<(u64, Way)>,
}

/// How a request got its connection.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// `None`: it was kept.
    pub why: Option<Why>,
    pub reason: Reason,
    pub waited: Duration,
}

impl LastRoute {
    pub fn note(&mut self, node: &Arc<str>, fingerprint: u64, routed: Way) {
        // Kept by its own pipeline, where it was prepared: that chose the connection.
        let own = |(prepared, _): &(u64, Way)| routed.why.is_none() && *prepared == fingerprint;
        let Way { why, reason, waited } =
            self.ahead.take().filter(own).map_or(routed, |(_, prepared)| prepared);
        if !self.node.as_ref().is_some_and(|known| Arc::ptr_eq(known, node)) {
            self.node = Some(node.clone());
        }
        self.why = why;
        self.reason = Some(reason);
        self.waited = waited;
        self.refused = None;
    }

    /// The proxy has answered with an error of its own.
    pub fn note_refused(&mut self, refusal: &Refusal) {
        self.refused = Some(format!("refused={}: {}", refusal.kind.label(), refusal.message).into());
        self.ahead = None;
    }

    /// A statement was prepared, and nothing run. `goes_on`: what follows belongs to the same pipeline.
    pub fn note_prepared(&mut self, fingerprint: u64, routed: Way, goes_on: bool) {
        // What is only described behind that was routed when it was prepared.
        let again = self.ahead.is_some_and(|(prepared, _)| prepared == fingerprint) && routed.why.is_none();
        if !(again && goes_on) {
            self.ahead = goes_on.then_some((fingerprint, routed));
        }
    }

    pub fn note_misspelt(&mut self, items: &[Box<str>]) {
        if self.misspelt != items {
            self.misspelt = items.to_vec();
        }
    }

    fn describe(&self) -> String {
        if let Some(refused) = &self.refused {
            return refused.to_string();
        }
        let Some(node) = &self.node else { return String::new() };
        let mut text = node.to_string();
        if let Some(reason) = self.reason {
            let _ = write!(text, " reason={}", reason.label());
        }
        match self.why {
            Some(why) => {
                let _ = write!(text, " choice={}", why.label());
            }
            None => text.push_str(" choice=kept"),
        }
        let _ = write!(text, " waited={}us", self.waited.as_micros());
        for item in &self.misspelt {
            let _ = write!(text, " not_understood={item}");
        }
        text
    }
}

impl<P: Protocol> Session<P> {
    pub(super) async fn obey(
        &mut self,
        request: &Request<P::Wire>,
        command: ProxyCommand,
    ) -> Result<(), Fault> {
        let transaction = self.state.transaction;
        let passes = matches!(command, ProxyCommand::Set { scope: Scope::Local, .. })
            && !self.state.undoes_own_settings();
        let outcome = match &command {
            ProxyCommand::Set { name, value, scope, column } => {
                let set = match &**name {
                    "position" if passes => check_token(&self.cluster, value).await.map(drop),
                    "position" => self.adopt_token(value).await,
                    _ => self.set_own(name, value, *scope),
                };
                set.map(|()| column.as_deref().map(|column| vec![(column, Some(value.to_string()))]))
            }
            ProxyCommand::SetComputed { name } => Err(computed(name)),
            ProxyCommand::Misplaced { name } => Err(misplaced(name)),
            ProxyCommand::Reset { name } => self.reset_own(name).map(|()| None),
            ProxyCommand::Show { shown } => self.show_all(shown).await.map(Some),
        };
        match outcome {
            Ok(None) if passes => self.frontend.answer(request, Answer::WithoutEffect, transaction).await,
            Ok(None) => self.frontend.answer(request, Answer::Done, transaction).await,
            Ok(Some(row)) => {
                let row: Vec<_> =
                    row.iter().map(|(name, value)| Column { name, value: value.as_deref() }).collect();
                self.frontend.answer(request, Answer::Row(&row), transaction).await
            }
            Err(refusal) => self.refuse(request, refusal).await,
        }
    }

    /// `KILL`: session numbers are the proxy's own, so it is the proxy that ends sessions.
    pub(super) async fn kill(
        &mut self,
        request: &Request<P::Wire>,
        whom: Whom,
        ending: Ending,
    ) -> Result<(), Fault> {
        let entry = match self.named(whom) {
            Ok(entry) => entry,
            Err(refusal) => return self.refuse(request, refusal).await,
        };
        if ending.ends == Ends::Session {
            entry.call(Call::Kill);
        }
        if Arc::ptr_eq(&entry, &self.registered.entry) {
            // What it runs is the KILL.
            let refusal = Refusal::new(RefusalKind::Cancelled, "Query execution was interrupted");
            return self.refuse(request, refusal).await;
        }
        // As the session's own user, who may end what is the user's on every server.
        let identity = self.pools.identity.load_full();
        self.cluster.interrupt(&entry, &identity, ending).await;
        self.frontend.answer(request, Answer::Done, self.state.transaction).await
    }

    /// The session that a KILL is for.
    fn named(&self, whom: Whom) -> Result<Arc<Entry>, Refusal> {
        let own = &self.registered.entry;
        let id = match whom {
            Whom::Number(id) => id,
            Whom::Itself => return Ok(own.clone()),
            Whom::Computed => {
                let text = "KILL takes a number that is written out: servers have other numbers for sessions than their clients know";
                return Err(Refusal::new(RefusalKind::Unsupported, text));
            }
        };
        let entry = u32::try_from(id).ok().and_then(|number| self.cluster.sessions.by_process(number));
        let unknown = || Refusal::new(RefusalKind::UnknownSession, format!("Unknown thread id: {id}"));
        let entry = entry.ok_or_else(unknown)?;
        if entry.user != own.user {
            return Err(Refusal::new(RefusalKind::Forbidden, format!("You are not owner of thread {id}")));
        }
        Ok(entry)
    }

    fn set_own(&mut self, name: &str, value: &str, scope: Scope) -> Result<(), Refusal> {
        let in_transaction = self.state.undoes_own_settings();
        self.state.own.set(name, value, scope, in_transaction)
    }

    fn reset_own(&mut self, name: &str) -> Result<(), Refusal> {
        if name == "position" {
            self.adopted = Floor::None;
            return Ok(());
        }
        self.set_own(name, "default", Scope::Session)
    }

    /// Names and values of the columns.
    async fn show_all<'a>(&mut self, shown: &'a [Shown]) -> Result<Vec<(&'a str, Option<String>)>, Refusal> {
        let mut row = Vec::with_capacity(shown.len());
        for shown in shown {
            let value = match self.show_own(&shown.name).await {
                Err(refusal) if refusal.kind == RefusalKind::UnknownSetting && shown.missing_ok => None,
                value => Some(value?),
            };
            row.push((&*shown.column, value));
        }
        Ok(row)
    }

    async fn show_own(&mut self, name: &str) -> Result<String, Refusal> {
        match name {
            "route" => Ok(self.route.describe()),
            "position" => self.token().await,
            "consistency" => {
                let consistency = self.state.own.now.consistency;
                let consistency = consistency.unwrap_or(self.config.load().routing.consistency);
                Ok(consistency.label().to_owned())
            }
            "max_lag" => Ok(self
                .state
                .own
                .now
                .max_lag
                .map_or_else(String::new, |lag| humantime::format_duration(lag).to_string())),
            _ => Err(unknown(name)),
        }
    }
}

fn parse_consistency(value: &str) -> Option<Consistency> {
    [
        Consistency::Eventual,
        Consistency::Session,
        Consistency::Monotonic,
        Consistency::User,
        Consistency::Global,
    ]
    .into_iter()
    .find(|consistency| consistency.label() == value)
}

fn invalid(name: &str, value: &str) -> Refusal {
    let takes = match name {
        "consistency" => "Available values: eventual, session, monotonic, user, global.",
        _ => "It takes a duration such as \"500ms\" or \"2s\".",
    };
    Refusal::new(
        RefusalKind::InvalidSetting,
        format!("invalid value for parameter \"pointsman.{name}\": \"{value}\""),
    )
    .with_hint(takes)
}

fn computed(name: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Unsupported,
        format!(
            "the value for \"pointsman.{name}\" has to be written out, or bound as text: only a server could compute it"
        ),
    )
}

/// Only MySQL's can be: to PostgreSQL's servers they are errors.
fn misplaced(name: &str) -> Refusal {
    Refusal::new(
        RefusalKind::Unsupported,
        format!(
            "@pointsman_{name} is the proxy's own, which no server could answer for: it is asked for by itself, as in SELECT @pointsman_{name}"
        ),
    )
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(
        RefusalKind::UnknownSetting,
        format!("unrecognized configuration parameter \"pointsman.{name}\""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_transaction_undoes_what_it_set() {
        let level = |own: &Overrides| own.now.consistency.map(Consistency::label);
        // What was set, for how long, and in a transaction or not; then how that ended.
        for (steps, committed, left) in [
            (&[("global", Scope::Session, false)][..], false, Some("global")),
            (&[("global", Scope::Session, true)], true, Some("global")),
            (&[("global", Scope::Session, true)], false, None),
            (&[("global", Scope::Local, true)], true, None),
            (&[("global", Scope::Local, false)], true, None),
            (&[("user", Scope::Session, true), ("global", Scope::Local, true)], true, Some("user")),
            (&[("user", Scope::Session, false), ("global", Scope::Local, true)], false, Some("user")),
            (&[("user", Scope::Session, false), ("default", Scope::Session, true)], true, None),
        ] {
            let mut own = Overrides::default();
            for (value, scope, in_transaction) in steps {
                own.set("consistency", value, *scope, *in_transaction).expect("they are legal");
            }
            own.end(committed);
            assert_eq!(level(&own), left, "{steps:?} {committed}");
        }
        let mut own = Overrides::default();
        own.set("consistency", "global", Scope::Session, false).expect("it is legal");
        own.reset_all(true);
        assert_eq!(level(&own), None);
        own.end(false);
        assert_eq!(level(&own), Some("global"));
    }

    #[test]
    fn a_rollback_to_a_savepoint_undoes_what_was_set_since() {
        let set = |own: &mut Overrides, value| {
            own.set("consistency", value, Scope::Session, true).expect("it is legal");
        };
        let level = |own: &Overrides| own.now.consistency.map(Consistency::label);
        let mut own = Overrides::default();
        own.save("a");
        set(&mut own, "user");
        own.save("b");
        set(&mut own, "global");
        own.release("b");
        assert_eq!(level(&own), Some("global"));
        own.save("c");
        own.set("consistency", "eventual", Scope::Local, true).expect("it is legal");
        own.roll_back_to("c");
        assert_eq!(level(&own), Some("global"));
        own.roll_back_to("a");
        assert_eq!(level(&own), None);
        own.roll_back_to("c");
        set(&mut own, "monotonic");
        own.end(true);
        own.roll_back_to("a");
        assert_eq!(level(&own), Some("monotonic"));
    }
}
