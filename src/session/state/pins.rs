//! Why a session keeps its server connection, and which statements may run elsewhere all the same.

use super::{State, temporary::Temporaries};
use crate::sql::{Effect, Intent, PinReason, Reason, Tables};

impl State {
    pub fn pin(&mut self, reason: PinReason) {
        self.pins |= bit(reason);
    }

    pub fn unpin(&mut self, reason: PinReason) {
        self.pins &= !bit(reason);
        match reason {
            PinReason::TempTable => self.temporary = Temporaries::default(),
            PinReason::HoldCursor => self.held_cursors.clear(),
            _ => {}
        }
    }

    pub fn is_pinned(&self) -> bool {
        self.pins != 0
    }

    pub fn is_pinned_by(&self, reason: PinReason) -> bool {
        self.pins & bit(reason) != 0
    }

    /// Whether a read may use another connection than the pinned one: what is pinned does not show
    /// in it.
    pub fn roams(&self, intent: &Intent) -> bool {
        const HARMLESS: [PinReason; 7] = [
            PinReason::Listen,
            PinReason::AdvisoryLock,
            PinReason::HoldCursor,
            PinReason::Sequence,
            PinReason::NamedLock,
            PinReason::BackupLock,
            PinReason::SessionMode,
        ];
        let asks_for_state = intent.effects.iter().any(|effect| {
            matches!(
                effect,
                Effect::Cursor
                    | Effect::NeedsPrevious
                    | Effect::NeedsLast(_)
                    | Effect::ShowsPrepared
                    | Effect::Pin(_)
                    | Effect::Assigns { .. }
                    // What it ends is there.
                    | Effect::Discard(_)
            )
        });
        let harmless = HARMLESS.iter().fold(bit(PinReason::TempTable), |all, reason| all | bit(*reason));
        !asks_for_state && self.pins & !harmless == 0 && !self.may_be_temporary(intent)
    }

    /// Whether it may read a temporary table of this session's.
    fn may_be_temporary(&self, intent: &Intent) -> bool {
        if !self.is_pinned_by(PinReason::TempTable) {
            return false;
        }
        match (&self.temporary.names, &intent.tables) {
            _ if intent.by_text || intent.reason == Reason::Session => true,
            (Tables::Some(temporary), Tables::Some(read)) => {
                read.iter().any(|name| temporary.contains(name) || may_be_catalog(name))
            }
            _ => true,
        }
    }
}

pub(super) fn bit(reason: PinReason) -> u16 {
    1 << PinReason::ALL.iter().position(|other| *other == reason).expect("ALL lists every reason")
}

/// Whether a relation of this name may be one that lists relations: only the server connection that has the
/// temporary ones shows them.
fn may_be_catalog(name: &str) -> bool {
    const INFORMATION_SCHEMA: [&str; 10] = [
        "check_constraints",
        "columns",
        "element_types",
        "key_column_usage",
        "role_table_grants",
        "sequences",
        "table_constraints",
        "table_privileges",
        "tables",
        "views",
    ];
    name.starts_with("pg_") || INFORMATION_SCHEMA.contains(&name)
}
