//! Group Replication: what a member says of its group, and what is wrong with that.
//!
//! Source: MySQL's manual, "The replication_group_members Table".

use super::{Facts, Finding, Severity};
use crate::{mysql::Backend, protocol::Fault};

/// What the monitor's user needs besides, where there is a group.
pub const GRANT: &str = "GRANT SELECT ON performance_schema.replication_group_members TO the monitor's user; -- on the group's primary";

const ACTIVE: &str = "SELECT 1 FROM information_schema.plugins WHERE plugin_name = 'group_replication' \
 AND plugin_status = 'ACTIVE'";

const MEMBERS: &str = "SELECT member_id = @@server_uuid, member_state, member_role FROM performance_schema.replication_group_members";

/// What a server says of the group that it is in.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Group {
    /// It is in none.
    #[default]
    None,
    /// It may be in one: the monitor's user may not ask.
    Hidden,
    Member(View),
}

/// The group as one member sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Its own state and role, as the table has them.
    pub state: String,
    pub role: String,
    pub members: usize,
    pub unreachable: usize,
    /// Members that are online and take writes.
    pub primaries: usize,
}

/// Asks a server for its group.
pub(super) async fn read(server: &mut Backend) -> Result<Group, Fault> {
    if server.query_all(ACTIVE).await?.is_empty() {
        return Ok(Group::None);
    }
    let rows = match server.query_all(MEMBERS).await {
        Ok(rows) => rows,
        Err(Fault::Refused(_)) => return Ok(Group::Hidden),
        Err(fault) => return Err(fault),
    };
    let text = |row: &[Option<String>], at: usize| row.get(at).cloned().flatten().unwrap_or_default();
    let Some(own) = rows.iter().find(|row| text(row, 0) == "1" && text(row, 1) != "OFFLINE") else {
        return Ok(Group::None);
    };
    let count = |is: &dyn Fn(&[Option<String>]) -> bool| rows.iter().filter(|row| is(row)).count();
    Ok(Group::Member(View {
        state: text(own, 1),
        role: text(own, 2),
        members: rows.len(),
        unreachable: count(&|row| text(row, 1) == "UNREACHABLE"),
        primaries: count(&|row| text(row, 1) == "ONLINE" && text(row, 2) == "PRIMARY"),
    }))
}

/// What is wrong with a server's membership.
pub(super) fn examine(facts: &Facts, add: &mut impl FnMut(Severity, String, &str)) {
    let view = match &facts.group {
        Group::None => return,
        Group::Hidden => {
            let what = "the monitor may not see the group (Group Replication) that it may be in: its role is told by \
                        read_only alone, and a member that the majority has left looks writable"
                .to_owned();
            return add(Severity::Problem, what, GRANT);
        }
        Group::Member(view) => view,
    };
    let View { state, members, unreachable, primaries, .. } = view;
    if state != "ONLINE" {
        let what = format!("its group says that it is {state}: it serves nothing");
        add(Severity::Problem, what, "see its error log; once that is mended: START GROUP_REPLICATION");
    }
    if unreachable * 2 >= *members {
        let what =
            format!("it reaches {} of its group's {members} members: commits hang", members - unreachable);
        let mend = "bring the others back, or stop it: without a majority nobody may write";
        add(Severity::Problem, what, mend);
    }
    if *primaries > 1 && view.role == "PRIMARY" {
        let what = format!(
            "all {primaries} primaries of its group take writes: statements go to the one with the lowest \
                            id only, reads too"
        );
        let mend = "SELECT group_replication_switch_to_single_primary_mode() lets the others serve reads";
        add(Severity::Note, what, mend);
    }
}

impl Facts {
    pub(super) fn is_member(&self) -> bool {
        matches!(self.group, Group::Member(_))
    }
}

/// A group that nobody of those asked takes writes for.
pub(super) fn without_primary(seen: &[&Facts]) -> Option<Finding> {
    let mut views = seen.iter().filter_map(|facts| match &facts.group {
        Group::Member(view) => Some(view),
        _ => None,
    });
    let first = views.next()?;
    let has_one = |view: &View| view.primaries > 0 && view.unreachable * 2 < view.members;
    (!has_one(first) && !views.any(has_one)).then(|| Finding {
        severity: Severity::Problem,
        node: None,
        what: "the group has no primary: nobody takes writes".to_owned(),
        mend:
            "bring a majority of its members back, or begin it again with group_replication_bootstrap_group"
                .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(change: impl FnOnce(&mut View)) -> Facts {
        let mut view = View {
            state: "ONLINE".into(),
            role: "SECONDARY".into(),
            members: 3,
            unreachable: 0,
            primaries: 1,
        };
        change(&mut view);
        Facts { group: Group::Member(view), ..Facts::default() }
    }

    fn said(facts: &Facts) -> Vec<(Severity, String)> {
        let mut said = Vec::new();
        examine(facts, &mut |severity, what, _| said.push((severity, what)));
        said
    }

    #[test]
    fn each_fault_of_a_member_is_found_and_nothing_else() {
        assert_eq!(said(&Facts::default()), []);
        assert_eq!(said(&member(|_| ())), []);
        for (facts, severity, words) in [
            (Facts { group: Group::Hidden, ..Facts::default() }, Severity::Problem, "may not see the group"),
            (member(|view| view.state = "ERROR".into()), Severity::Problem, "it is ERROR"),
            (member(|view| view.unreachable = 2), Severity::Problem, "it reaches 1 of its group's 3"),
            (
                member(|view| (view.role, view.primaries) = ("PRIMARY".into(), 3)),
                Severity::Note,
                "all 3 primaries",
            ),
        ] {
            let said = said(&facts);
            assert!(
                matches!(&said[..], [(found, what)] if *found == severity && what.contains(words)),
                "{said:?}"
            );
        }
    }

    #[test]
    fn a_group_has_a_primary_if_a_majority_says_so() {
        let (cut_off, whole) = (member(|view| view.unreachable = 2), member(|_| ()));
        let none = member(|view| view.primaries = 0);
        assert!(without_primary(&[&Facts::default()]).is_none());
        assert!(without_primary(&[&cut_off, &whole]).is_none());
        assert!(without_primary(&[&cut_off]).is_some());
        assert!(without_primary(&[&none, &none]).is_some());
    }
}
