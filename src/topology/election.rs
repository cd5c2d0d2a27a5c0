//! Who is primary when the servers' own words disagree: at most one node, and nobody rather than
//! the wrong one (hard cases 5, 8, 9, 10).

use std::{fmt, sync::Arc, time::Instant};

use super::{Claim, Engine, Facts, Incarnation, NodeId, Position, Timelines};

/// One node, as the election sees it.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    pub id: NodeId,
    pub address: &'a Arc<str>,
    /// Answers probes, or has not yet missed `failures` of them.
    pub reachable: bool,
    /// Was probed at least once, with whatever outcome.
    pub probed: bool,
    /// Its last answer.
    pub facts: Option<&'a Facts>,
    /// Its timeline, also where only an earlier answer told it.
    pub timeline: Option<u32>,
    /// When it was first heard claiming to be primary, of an unbroken row of such answers.
    pub claimed: Option<Instant>,
    /// When the probe that it last answered was sent, and when its answer came.
    pub answered: Option<(Instant, Instant)>,
    /// Was seen as a replica since the incumbent was elected.
    pub followed: bool,
    /// Had the role before the incumbent or one ahead of it, and has not been a replica since.
    pub deposed: bool,
    /// The last position it reported as a replica.
    pub replayed: Option<&'a Position>,
}

/// The node elected last; kept while it is down and over restarts of the proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Incumbent {
    pub address: Arc<str>,
    pub timeline: Option<u32>,
    /// The newest position it reported as primary: all that was acknowledged before that probe.
    pub written: Option<Position>,
    /// MySQL's server_uuid, MariaDB's server_id. PostgreSQL's systems are told apart before.
    pub server: Option<Arc<str>>,
}

/// What an election goes by, besides the nodes.
#[derive(Clone, Copy, Debug)]
pub struct Ballot<'a> {
    pub engine: Engine,
    /// PostgreSQL's system identifier of this cluster, once it is established.
    pub system: Option<&'a str>,
    pub incumbent: Option<&'a Incumbent>,
    /// Patroni's word, where it is asked and answers: the leader's address or that there is none.
    pub leader: Option<Option<&'a str>>,
    pub timelines: &'a Timelines,
    /// Since when nobody has the role.
    pub without_since: Option<Instant>,
}

/// An election's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub primary: Result<NodeId, Nobody>,
    /// Nodes that get nothing, and why. Found anew in every election.
    pub fences: Vec<(NodeId, Fence)>,
}

/// Why there is no primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// Some node was not asked yet: it may be the newer primary.
    NotAllProbed,
    /// No reachable node says that it is one.
    NoClaimer,
    /// All that do were refused.
    AllFenced,
    /// Several do, and none can be told to be the older.
    Tie,
    /// A replica says that it was promoted; whether the primary still answers is being asked.
    Undecided { incumbent: Arc<str>, rival: Arc<str> },
    /// A replica was promoted beside a primary that still answers and has more.
    Contested { incumbent: Arc<str>, rival: Arc<str> },
    /// Patroni's leader does not say yet that it is primary, or there is none.
    Patroni,
    /// The nodes belong to different systems, and no majority tells which is meant.
    SystemsDiffer,
}

/// Why a node gets nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    OtherSystem {
        own: Arc<str>,
        cluster: Arc<str>,
    },
    SameServer {
        other: Arc<str>,
    },
    DuplicateServerId {
        id: u64,
        other: Arc<str>,
    },
    OlderTimeline {
        own: u32,
        newest: u32,
    },
    UnknownTimeline,
    /// Claims to be primary on the very timeline that belongs to another.
    SameTimeline {
        timeline: u32,
        primary: Arc<str>,
    },
    /// Another claimer has all of its history and more, or has the role and keeps it.
    Outvoted {
        primary: Arc<str>,
    },
    /// Not a replica of the last primary, and without all that was acknowledged there.
    LacksWrites {
        primary: Arc<str>,
    },
    Tie,
    Contested {
        other: Arc<str>,
    },
    Patroni {
        leader: Option<Arc<str>>,
    },
    /// A replica beyond the point where the primary's timeline left its own.
    Diverged {
        own: u32,
        primary: u32,
    },
    /// A MariaDB replica with transactions of a former primary that the primary's history went on
    /// without.
    Strayed {
        position: Arc<str>,
    },
}

/// Decides who is primary.
pub fn elect(nodes: &[Candidate<'_>], ballot: Ballot<'_>) -> Verdict {
    let mut fences = Vec::new();
    let strangers = match ballot.engine {
        Engine::Postgres => strangers(nodes, ballot.system, &mut fences),
        Engine::Mysql => {
            duplicates(nodes, ballot.incumbent, &mut fences);
            Ok(())
        }
    };
    if let Err(nobody) = strangers {
        return Verdict { primary: Err(nobody), fences };
    }
    let fenced = |fences: &[(NodeId, Fence)], id: NodeId| fences.iter().any(|(fenced, _)| *fenced == id);
    // Whoever answers at a node's address without being of this cluster speaks for nobody here.
    let kin: Vec<&Candidate<'_>> = nodes.iter().filter(|node| !fenced(&fences, node.id)).collect();
    let known: Vec<&Candidate<'_>> = kin.iter().copied().filter(|node| node.reachable).collect();
    let claimers: Vec<&Candidate<'_>> = known.iter().copied().filter(|node| node.claims_primary()).collect();

    // Also while somebody else answers at its address; but not once it is no node any more.
    let last = ballot.incumbent.filter(|last| nodes.iter().any(|node| *node.address == last.address));
    let primary = match ballot.leader {
        Some(leader) => by_patroni(&known, &claimers, leader, ballot.incumbent, &mut fences),
        None if nodes.iter().any(|node| node.must_be_asked_first(ballot.incumbent)) => {
            Err(Nobody::NotAllProbed)
        }
        None => match ballot.engine {
            Engine::Postgres => by_timeline(&kin, &known, &claimers, ballot, last, &mut fences),
            Engine::Mysql => by_gtid(&kin, &claimers, ballot, last, &mut fences),
        },
    };
    let primary = primary.map_err(|nobody| match nobody {
        Nobody::NoClaimer if !claimers.is_empty() => Nobody::AllFenced,
        nobody => nobody,
    });
    Verdict { primary, fences }
}

impl Candidate<'_> {
    fn claims_primary(&self) -> bool {
        self.reachable && self.facts.is_some_and(|facts| facts.claim == Claim::Primary)
    }

    /// Whether nobody can be elected before it was asked: the one remembered over a restart of the proxy
    /// may have the role still, and where nobody is remembered any may have it.
    fn must_be_asked_first(&self, incumbent: Option<&Incumbent>) -> bool {
        !self.probed && incumbent.is_none_or(|incumbent| incumbent.address == *self.address)
    }

    fn is_incumbent(&self, incumbent: Option<&Incumbent>) -> bool {
        incumbent.is_some_and(|incumbent| incumbent.address == *self.address && !self.supplants(incumbent))
    }

    /// Whether another server, one without its history, has taken the incumbent's address.
    fn supplants(&self, incumbent: &Incumbent) -> bool {
        let (Some(facts), Some(server)) = (self.facts, &incumbent.server) else { return false };
        facts.incarnation.system != *server
            && incumbent.written.as_ref().is_some_and(|written| !self.has(written))
    }

    /// Whether its last answer is to a question sent after `then`.
    fn was_asked_after(&self, then: Instant) -> bool {
        self.answered.is_some_and(|(sent, _)| sent > then)
    }

    /// Whether its history has all of `written`. MariaDB's positions tell how far somebody
    /// counted, not whose transactions these were.
    fn has(&self, written: &Position) -> bool {
        match (self.facts.and_then(|facts| facts.writers.as_ref()), self.executed(), written) {
            (Some(writers), _, Position::Mysql(written)) => writers.have(written),
            (None, Some(executed), written) => executed.covers(written) == Some(true),
            _ => false,
        }
    }

    /// Whether its history has all of another's, and more.
    fn has_more_than(&self, other: &Candidate<'_>) -> bool {
        match (self.executed(), other.executed()) {
            (Some(own), Some(theirs)) => self.has(theirs) && !other.has(own),
            _ => false,
        }
    }

    /// Whether the others took it for their primary: the incumbent has become a replica and has nothing
    /// that it lacks, or has what it wrote; or so have all the others, whoever is at the incumbent's
    /// address now.
    fn is_followed(&self, nodes: &[&Candidate<'_>], last: &Incumbent) -> bool {
        let mut others = nodes.iter().filter(|other| other.id != self.id).peekable();
        let incumbent = others.clone().find(|other| other.is_incumbent(Some(last)));
        incumbent.is_some_and(|incumbent| incumbent.yields_to(self) || incumbent.replicates(self, last))
            || others.peek().is_some() && others.all(|other| other.yields_to(self))
    }

    /// Whether it is a replica with nothing that `other` lacks.
    fn yields_to(&self, other: &Candidate<'_>) -> bool {
        let is_replica = self.reachable && self.facts.is_some_and(|facts| facts.claim == Claim::Replica);
        is_replica && self.executed().is_some_and(|executed| other.has(executed))
    }

    /// Whether it is a replica that has something `other` numbered, and that the incumbent had not.
    fn replicates(&self, other: &Candidate<'_>, last: &Incumbent) -> bool {
        let (Some(facts), Some(others), Some(written)) = (self.facts, other.facts, &last.written) else {
            return false;
        };
        let from_other = match &facts.replayed {
            Some(Position::Mysql(replayed)) => {
                replayed.numbered_by(&others.incarnation.system, others.server_id)
            }
            _ => return false,
        };
        self.reachable && written.covers(&Position::Mysql(Arc::new(from_other))) == Some(false)
    }

    /// All that it has executed, by its last answer.
    fn executed(&self) -> Option<&Position> {
        self.facts
            .and_then(|facts| facts.written.as_ref().or(facts.flushed.as_ref()).or(facts.replayed.as_ref()))
    }
}

/// Fences nodes of another PostgreSQL system, and the same server under a second name.
fn strangers(
    nodes: &[Candidate<'_>],
    established: Option<&str>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<(), Nobody> {
    let known: Vec<(&Candidate<'_>, &Incarnation)> =
        nodes.iter().filter_map(|node| Some((node, &node.facts?.incarnation))).collect();
    let Some(cluster) = established.or_else(|| majority(&known)) else {
        for (node, own) in &known {
            let own = Arc::clone(&own.system);
            fences.push((node.id, Fence::OtherSystem { own, cluster: "not known".into() }));
        }
        return if known.is_empty() { Ok(()) } else { Err(Nobody::SystemsDiffer) };
    };
    for (at, (node, own)) in known.iter().enumerate() {
        if &*own.system != cluster {
            let fence = Fence::OtherSystem { own: Arc::clone(&own.system), cluster: cluster.into() };
            fences.push((node.id, fence));
        } else if let Some((twin, _)) =
            known[..at].iter().find(|(twin, other)| other == own && twin.reachable && node.reachable)
        {
            fences.push((node.id, Fence::SameServer { other: Arc::clone(twin.address) }));
        }
    }
    Ok(())
}

/// The system that most nodes are of; in a tie, the one that has a primary if only one has.
fn majority<'a>(known: &[(&Candidate<'_>, &'a Incarnation)]) -> Option<&'a str> {
    let votes = |system: &str| {
        let members = || known.iter().filter(|(_, own)| &*own.system == system);
        (members().count(), members().any(|(node, _)| node.claims_primary()))
    };
    let best = known.iter().map(|(_, own)| &*own.system).max_by_key(|system| votes(system))?;
    let others = || known.iter().filter(|(_, own)| &*own.system != best);
    others().all(|(_, own)| votes(&own.system) < votes(best)).then_some(best)
}

/// Fences MySQL and MariaDB servers that share an identity with another: their GTIDs and
/// replication would mix. The incumbent is never the one to go.
fn duplicates(nodes: &[Candidate<'_>], incumbent: Option<&Incumbent>, fences: &mut Vec<(NodeId, Fence)>) {
    let mut seen: Vec<(&Candidate<'_>, &Facts)> = Vec::with_capacity(nodes.len());
    let reachable = || nodes.iter().filter(|node| node.reachable);
    let first = reachable().filter(|node| node.is_incumbent(incumbent));
    for node in first.chain(reachable().filter(|node| !node.is_incumbent(incumbent))) {
        let Some(facts) = node.facts else { continue };
        let same_server = seen.iter().find(|(_, other)| other.incarnation.system == facts.incarnation.system);
        let same_id =
            seen.iter().find(|(_, other)| facts.server_id.is_some() && other.server_id == facts.server_id);
        if let Some((other, _)) = same_server {
            fences.push((node.id, Fence::SameServer { other: Arc::clone(other.address) }));
        } else if let (Some((other, _)), Some(id)) = (same_id, facts.server_id) {
            fences.push((node.id, Fence::DuplicateServerId { id, other: Arc::clone(other.address) }));
        }
        seen.push((node, facts));
    }
}

/// Patroni decides; but a member that is cut off, or whose Patroni is paused, may name a leader of
/// the past: never back to an older timeline.
fn by_patroni(
    known: &[&Candidate<'_>],
    claimers: &[&Candidate<'_>],
    leader: Option<&str>,
    incumbent: Option<&Incumbent>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<NodeId, Nobody> {
    let newest = newest_timeline(known, incumbent);
    let mut elected = Err(Nobody::Patroni);
    for node in claimers {
        let own = node.facts.and_then(|facts| facts.timeline);
        match own.filter(|own| *own < newest) {
            _ if Some(&**node.address) != leader => {
                fences.push((node.id, Fence::Patroni { leader: leader.map(Arc::from) }));
            }
            Some(own) => fences.push((node.id, Fence::OlderTimeline { own, newest })),
            None => elected = Ok(node.id),
        }
    }
    elected
}

/// The newest timeline that is known of; 0 where there are none.
fn newest_timeline(known: &[&Candidate<'_>], incumbent: Option<&Incumbent>) -> u32 {
    let elected_on = incumbent.and_then(|incumbent| incumbent.timeline);
    known.iter().filter_map(|node| node.timeline).chain(elected_on).max().unwrap_or(0)
}

/// PostgreSQL: the highest timeline wins, with care for a promotion beside a living primary.
fn by_timeline(
    kin: &[&Candidate<'_>],
    known: &[&Candidate<'_>],
    claimers: &[&Candidate<'_>],
    ballot: Ballot<'_>,
    last: Option<&Incumbent>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<NodeId, Nobody> {
    let elected_on = ballot.incumbent.and_then(|incumbent| incumbent.timeline);
    let newest = newest_timeline(known, ballot.incumbent);
    let mut remaining: Vec<&Candidate<'_>> = Vec::new();
    for node in claimers {
        // A claimer's own answer, not an earlier one: promotion changes it.
        match node.facts.and_then(|facts| facts.timeline) {
            None => fences.push((node.id, Fence::UnknownTimeline)),
            Some(own) if own < newest => fences.push((node.id, Fence::OlderTimeline { own, newest })),
            Some(_) => remaining.push(node),
        }
    }
    if let Some(incumbent) = remaining.iter().find(|node| node.is_incumbent(ballot.incumbent)) {
        for node in remaining.iter().filter(|node| node.id != incumbent.id) {
            let primary = Arc::clone(incumbent.address);
            fences.push((node.id, Fence::SameTimeline { timeline: newest, primary }));
        }
        return Ok(incumbent.id);
    }
    let rival = match remaining[..] {
        [] => return Err(Nobody::NoClaimer),
        [rival] => rival,
        _ => {
            fences.extend(remaining.iter().map(|node| (node.id, Fence::Tie)));
            return Err(Nobody::Tie);
        }
    };
    if let Some(last) = last {
        let incumbent = kin.iter().find(|node| node.is_incumbent(Some(last)));
        if let Some(incumbent) = incumbent.filter(|node| node.claims_primary() && rival.followed) {
            let all = match (rival.replayed, &last.written) {
                (Some(replayed), Some(written)) => ballot.timelines.covers(replayed, written) == Some(true),
                _ => false,
            };
            beside_the_living(rival, incumbent, all, ballot.without_since, fences)?;
        }
        // A twin on the same timeline may be a copy of long ago: it is not the one that was yielded to
        // unless it has what the incumbent wrote.
        let has_all = last.written.as_ref().is_none_or(|written| rival.has(written));
        let yielded = has_all && incumbent.is_some_and(|node| node.reachable && !node.claims_primary());
        if elected_on == Some(newest) && !rival.followed && !yielded {
            let primary = Arc::clone(&last.address);
            fences.push((rival.id, Fence::SameTimeline { timeline: newest, primary }));
            return Err(Nobody::AllFenced);
        }
    }
    Ok(rival.id)
}

/// A rival that turned from replica to primary beside a living incumbent takes over only if the
/// incumbent, asked after the rival's claim was seen, has nothing that the rival lacks. Until the
/// incumbent has answered or is down nobody gets writes; that takes a few fast probes. A question from
/// before that tells nothing: the rival may have been away meanwhile, and the incumbent have had the
/// role once more.
fn beside_the_living(
    rival: &Candidate<'_>,
    incumbent: &Candidate<'_>,
    has_all: bool,
    without_since: Option<Instant>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<(), Nobody> {
    let names = (Arc::clone(incumbent.address), Arc::clone(rival.address));
    let asked_after = |then: Option<Instant>| then.is_some_and(|then| incumbent.was_asked_after(then));
    if !asked_after(rival.claimed) || !asked_after(without_since) {
        return Err(Nobody::Undecided { incumbent: names.0, rival: names.1 });
    }
    if has_all {
        return Ok(());
    }
    fences.retain(|(id, _)| *id != incumbent.id && *id != rival.id);
    fences.push((rival.id, Fence::Contested { other: Arc::clone(&names.0) }));
    fences.push((incumbent.id, Fence::Contested { other: Arc::clone(&names.1) }));
    Err(Nobody::Contested { incumbent: names.0, rival: names.1 })
}

/// MySQL and MariaDB: whose history contains the other's, with the incumbent keeping the role.
fn by_gtid(
    kin: &[&Candidate<'_>],
    claimers: &[&Candidate<'_>],
    ballot: Ballot<'_>,
    last: Option<&Incumbent>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<NodeId, Nobody> {
    let Some(last) = last else { return most_complete(claimers, fences) };
    let incumbent = kin.iter().find(|node| node.is_incumbent(Some(last)));
    if let Some(incumbent) = incumbent.filter(|incumbent| incumbent.claims_primary()) {
        return challenge(claimers, incumbent, last, ballot.without_since, fences);
    }
    let mut fit: Vec<&Candidate<'_>> = Vec::new();
    for node in claimers {
        let has_all = || last.written.as_ref().is_some_and(|written| node.has(written));
        // It claimed the role while the incumbent answered, and lost: having what the incumbent had by
        // its last answer does not tell that it has what was acknowledged since (hard case 8).
        let may_lack = incumbent.is_some_and(|incumbent| {
            node.claimed.is_some_and(|claimed| incumbent.was_asked_after(claimed))
                && !node.has_more_than(incumbent)
        });
        if node.followed || (has_all() && !may_lack) || node.is_followed(kin, last) {
            fit.push(node);
        } else {
            fences.push((node.id, Fence::LacksWrites { primary: Arc::clone(&last.address) }));
        }
    }
    most_complete(&fit, fences)
}

/// The incumbent answers and claims the role still: does anybody take it from it?
fn challenge(
    claimers: &[&Candidate<'_>],
    incumbent: &Candidate<'_>,
    last: &Incumbent,
    without_since: Option<Instant>,
    fences: &mut Vec<(NodeId, Fence)>,
) -> Result<NodeId, Nobody> {
    let mut winner = incumbent;
    for rival in claimers.iter().filter(|node| node.id != incumbent.id) {
        let has_all = last.written.as_ref().is_some_and(|written| rival.has(written));
        // An idle successor has less than the one it took the role from, by what nobody was told of: to
        // go back would undo somebody's promotion.
        let has_more = || !rival.deposed && has_all && rival.has_more_than(incumbent);
        if rival.followed {
            beside_the_living(rival, incumbent, has_all, without_since, fences)?;
            winner = rival;
        } else if has_more() {
            // What the incumbent acknowledged behind its last answer is not known: it gets nothing more,
            // and is asked again.
            let asked = |then: Instant| incumbent.was_asked_after(then);
            match without_since {
                Some(since) if asked(since) => winner = rival,
                None if !rival.answered.is_some_and(|(_, came)| asked(came)) => {}
                _ => {
                    let (incumbent, rival) = (Arc::clone(incumbent.address), Arc::clone(rival.address));
                    return Err(Nobody::Undecided { incumbent, rival });
                }
            }
        }
    }
    for node in claimers.iter().filter(|node| node.id != winner.id) {
        fences.push((node.id, Fence::Outvoted { primary: Arc::clone(winner.address) }));
    }
    Ok(winner.id)
}

/// The one claimer whose history strictly contains that of every other.
fn most_complete(claimers: &[&Candidate<'_>], fences: &mut Vec<(NodeId, Fence)>) -> Result<NodeId, Nobody> {
    let winner = claimers
        .iter()
        .find(|node| claimers.iter().all(|other| other.id == node.id || node.has_more_than(other)));
    let Some(winner) = winner else {
        fences.extend(claimers.iter().map(|node| (node.id, Fence::Tie)));
        return Err(if claimers.is_empty() { Nobody::NoClaimer } else { Nobody::Tie });
    };
    for node in claimers.iter().filter(|node| node.id != winner.id) {
        fences.push((node.id, Fence::Outvoted { primary: Arc::clone(winner.address) }));
    }
    Ok(winner.id)
}

impl fmt::Display for Nobody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAllProbed => f.write_str("not every node was asked yet"),
            Self::NoClaimer => f.write_str("no reachable node says that it is primary"),
            Self::AllFenced => f.write_str("every node that says it is primary was refused"),
            Self::Tie => f.write_str("several nodes say they are primary and none is known to be the older"),
            Self::Undecided { incumbent, rival } => {
                write!(f, "{rival} was promoted, asking whether {incumbent} still answers")
            }
            Self::Contested { incumbent, rival } => write!(
                f,
                "{rival} was promoted while {incumbent} still answers as primary and lacks writes acknowledged \
                 there: stop one of them"
            ),
            Self::Patroni => f.write_str("patroni names no leader that says it is primary"),
            Self::SystemsDiffer => f.write_str("the nodes belong to different systems"),
        }
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherSystem { own, cluster } => {
                write!(f, "its system identifier is {own}, the cluster's is {cluster}")
            }
            Self::SameServer { other } => write!(f, "it is the same server as {other}"),
            Self::DuplicateServerId { id, other } => write!(f, "it has server_id {id}, as {other} has"),
            Self::OlderTimeline { own, newest } => {
                write!(f, "it says it is primary on timeline {own}, the newest is {newest}")
            }
            Self::UnknownTimeline => f.write_str("it says it is primary, on a timeline it does not tell"),
            Self::SameTimeline { timeline, primary } => {
                write!(f, "it says it is primary on timeline {timeline}, which belongs to {primary}")
            }
            Self::Outvoted { primary } => write!(f, "it says it is primary, but {primary} is"),
            Self::LacksWrites { primary } => {
                write!(f, "it says it is primary but lacks writes acknowledged by {primary}")
            }
            Self::Tie => f.write_str("it is one of several primaries, none of them known to be the older"),
            Self::Contested { other } => write!(f, "it and {other} both answer as primary"),
            Self::Patroni { leader: Some(leader) } => {
                write!(f, "it says it is primary, patroni's leader is {leader}")
            }
            Self::Patroni { leader: None } => f.write_str("it says it is primary, patroni has no leader"),
            Self::Strayed { position } => {
                write!(f, "it has transactions that the primary lacks: it is at {position}")
            }
            Self::Diverged { own, primary } => {
                write!(
                    f,
                    "its history on timeline {own} went on past the fork to the primary's timeline {primary}"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
