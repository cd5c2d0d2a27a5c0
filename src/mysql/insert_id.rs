//! Whose LAST_INSERT_ID() a server connection has.
//!
//! An INSERT that names its ids itself leaves the value as it was, and so does an UPDATE: behind either, the
//! connection may still have another session's. The answer tells an id in both cases: whether it is the
//! value can only be asked.

use smallvec::SmallVec;

/// Ids that are remembered until somebody asks; one more has to be settled first.
const MOST_TOLD: usize = 8;

/// Whose the value is.
#[derive(Debug, Default)]
pub(super) enum InsertId {
    /// There is none: 0.
    #[default]
    Nobodys,
    Of(u64),
    /// The session was told these ids: one of them is the value, or it is still another session's.
    Perhaps {
        session: u64,
        told: SmallVec<[u64; MOST_TOLD]>,
    },
}

/// What has to be done before a session may ask for the value, or leave one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settle {
    Nothing,
    /// It is another session's.
    Forget,
    /// It may be: the server has to be asked.
    Ask,
}

impl InsertId {
    /// A statement of `session` was answered with `id`.
    pub(super) fn told(&mut self, session: u64, id: u64) {
        match self {
            Self::Nobodys => *self = Self::Of(session),
            Self::Of(of) if *of == session => {}
            Self::Perhaps { session: of, told } if *of == session => {
                if !told.contains(&id) {
                    told.push(id);
                }
            }
            _ => *self = Self::Perhaps { session, told: SmallVec::from_slice(&[id]) },
        }
    }

    /// The value is `session`'s, whatever it is.
    pub(super) fn is_of(&mut self, session: u64) {
        *self = Self::Of(session);
    }

    /// Whether there is none.
    pub(super) fn is_nobodys(&self) -> bool {
        matches!(self, Self::Nobodys)
    }

    /// Whether that is known.
    pub(super) fn is_surely_of(&self, session: u64) -> bool {
        matches!(self, Self::Of(of) if *of == session)
    }

    /// What `session` needs before it asks.
    pub(super) fn before_question(&self, session: u64) -> Settle {
        match self {
            Self::Nobodys => Settle::Nothing,
            Self::Of(of) if *of == session => Settle::Nothing,
            Self::Perhaps { session: of, .. } if *of == session => Settle::Ask,
            _ => Settle::Forget,
        }
    }

    /// Whether no more ids can be remembered of `session`.
    pub(super) fn is_full_of(&self, session: u64) -> bool {
        matches!(self, Self::Perhaps { session: of, told } if *of == session && told.len() >= MOST_TOLD)
    }

    /// Whether the value is one that its session was told.
    pub(super) fn is_told(&self, value: u64) -> bool {
        matches!(self, Self::Perhaps { told, .. } if told.contains(&value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_its_sessions_until_another_one_is_told_an_id() {
        let mut id = InsertId::default();
        assert_eq!(id.before_question(1), Settle::Nothing);
        id.told(1, 5);
        id.told(1, 6);
        assert_eq!((id.before_question(1), id.before_question(2)), (Settle::Nothing, Settle::Forget));

        id.told(2, 7);

        assert_eq!((id.before_question(1), id.before_question(2)), (Settle::Forget, Settle::Ask));
        assert!(id.is_told(7) && !id.is_told(6));
    }

    #[test]
    fn not_more_ids_are_remembered_than_there_is_room_for() {
        let mut id = InsertId::Of(1);
        for told in 0..MOST_TOLD as u64 {
            assert!(!id.is_full_of(2));
            id.told(2, told);
            id.told(2, told);
        }
        assert!(id.is_full_of(2) && !id.is_full_of(1));
    }
}
