//! Values that are one of a few words, in the file, in `SET pointsman.…` and in the console.

use super::{Engine, LogFormat, PoolMode, TlsMode, TransactionReads};
use crate::{
    route::{Consistency, PrimaryReads},
    sql::Dialect,
};

/// A closed set of words.
pub trait Choice: Copy + PartialEq + 'static {
    /// Every word and what it means, in the order in which documentation lists them.
    const ALL: &'static [(&'static str, Self)];

    /// The value of a word; case matters, as everywhere in the file.
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(word, _)| *word == name).map(|&(_, value)| value)
    }

    /// The word for a value.
    fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|&&(_, value)| value == self)
            .map(|(word, _)| *word)
            .expect("ALL names every variant, or `choices!` does not compile")
    }
}

macro_rules! choices {
    ($($type:ident { $($variant:ident = $word:literal),+ $(,)? })+) => {
        $(impl Choice for $type {
            const ALL: &'static [(&'static str, Self)] = {
                // No arm may be missing, or this does not compile.
                const fn _every_variant(value: $type) { match value { $($type::$variant => ()),+ } }
                &[$(($word, $type::$variant)),+]
            };
        })+
    };
}

choices! {
    Engine { Postgres = "postgres", Mysql = "mysql" }
    Dialect { Postgres = "postgres", Mysql = "mysql" }
    LogFormat { Text = "text", Json = "json" }
    PoolMode { Transaction = "transaction", Session = "session" }
    Consistency {
        Eventual = "eventual",
        Session = "session",
        Monotonic = "monotonic",
        User = "user",
        Global = "global",
    }
    PrimaryReads { Fallback = "fallback", Never = "never", Always = "always" }
    TransactionReads { Primary = "primary", Replica = "replica", ReplicaRepeatableRead = "replica-repeatable-read" }
    TlsMode {
        Disable = "disable",
        Allow = "allow",
        Prefer = "prefer",
        Require = "require",
        VerifyCa = "verify-ca",
        VerifyFull = "verify-full",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_leads_to_its_value_and_back() {
        fn round_trip<T: Choice>() {
            for &(word, value) in T::ALL {
                assert!(T::from_name(word) == Some(value), "{word}");
                assert_eq!(value.name(), word);
            }
        }
        round_trip::<Consistency>();
        round_trip::<TlsMode>();
        round_trip::<PrimaryReads>();
        assert!(Consistency::from_name("Session").is_none());
    }
}
