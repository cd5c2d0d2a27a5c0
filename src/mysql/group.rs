//! MySQL's Group Replication: which member takes the writes, by the group's own word.
//!
//! Source: MySQL's manual, "The replication_group_members Table".

use std::sync::Arc;

use super::backend::{Backend, Row};
use crate::protocol::Fault;

const MEMBERS: &str = "\
SELECT member_id, member_state, member_role, @@GLOBAL.group_replication_group_name \
FROM performance_schema.replication_group_members";
const NAME: &str = "SELECT @@GLOBAL.group_replication_group_name";

/// What a server says of its group, and the group's name.
pub(super) type Group = (Membership, Option<Arc<str>>);

/// What a member says of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// The server is in no group: its other words count.
    None,
    /// The group's member for writes.
    Writer,
    /// Any other, or one that the majority has left: it may look writable, and commits hang.
    Other,
}

/// Asks a server whose Group Replication is active. Without SELECT on that table its role is told
/// by `read_only` alone.
pub(super) async fn ask(server: &mut Backend, uuid: &str) -> Result<Group, Fault> {
    match server.query_all(MEMBERS).await {
        Ok(members) => {
            let membership = read(&members, uuid);
            let name = members.first().filter(|_| membership != Membership::None);
            Ok((membership, name.and_then(|row| name_in(row, 3))))
        }
        // No privilege, or a version that has no roles.
        Err(Fault::Refused(_)) => {
            let named = server.query_all(NAME).await?;
            Ok((Membership::None, named.first().and_then(|row| name_in(row, 0))))
        }
        Err(fault) => Err(fault),
    }
}

fn name_in(row: &Row, column: usize) -> Option<Arc<str>> {
    row.get(column)?.as_deref().map(Into::into)
}

/// Where every member takes writes, the online one with the lowest id is to have them all: every
/// proxy and every member names the same.
fn read(members: &[Row], uuid: &str) -> Membership {
    let text = |row: &Row, column: usize| row.get(column).cloned().flatten().unwrap_or_default();
    let state = |row: &Row| text(row, 1);
    let Some(own) = members.iter().find(|row| text(row, 0) == uuid) else { return Membership::None };
    if state(own) == "OFFLINE" {
        return Membership::None;
    }
    let heard = members.iter().filter(|row| state(row) != "UNREACHABLE").count();
    let writers = members.iter().filter(|row| state(row) == "ONLINE" && text(row, 2) == "PRIMARY");
    let first = writers.map(|row| text(row, 0)).min();
    if heard * 2 > members.len() && first.as_deref() == Some(uuid) {
        Membership::Writer
    } else {
        Membership::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(members: &str) -> Vec<Row> {
        let row = |member: &str| member.split(' ').map(|text| Some(text.to_owned())).collect();
        members.split(", ").filter(|member| !member.is_empty()).map(row).collect()
    }

    #[test]
    fn one_member_of_a_group_with_a_majority_writes() {
        for (members, asked, role) in [
            ("", "b", Membership::None),
            ("b OFFLINE ", "b", Membership::None),
            ("a ONLINE PRIMARY", "b", Membership::None),
            ("a ONLINE SECONDARY, b ONLINE PRIMARY, c ONLINE SECONDARY", "b", Membership::Writer),
            ("a ONLINE SECONDARY, b ONLINE PRIMARY, c ONLINE SECONDARY", "a", Membership::Other),
            ("a RECOVERING SECONDARY, b ONLINE PRIMARY", "a", Membership::Other),
            ("b ERROR ", "b", Membership::Other),
            // All take writes.
            ("a ONLINE PRIMARY, b ONLINE PRIMARY", "a", Membership::Writer),
            ("a ONLINE PRIMARY, b ONLINE PRIMARY", "b", Membership::Other),
            ("a RECOVERING PRIMARY, b ONLINE PRIMARY", "b", Membership::Writer),
            // Cut off with its role.
            ("a UNREACHABLE SECONDARY, b ONLINE PRIMARY, c ONLINE SECONDARY", "b", Membership::Writer),
            ("a UNREACHABLE SECONDARY, b ONLINE PRIMARY, c UNREACHABLE SECONDARY", "b", Membership::Other),
            ("a UNREACHABLE SECONDARY, b ONLINE PRIMARY", "b", Membership::Other),
        ] {
            assert_eq!(read(&group(members), asked), role, "{members}: {asked}");
        }
    }
}
