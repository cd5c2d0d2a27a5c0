//! `completion_type`: how COMMIT and ROLLBACK go on where they do not say it themselves.
//!
//! Source: MySQL's `sql/sql_parse.cc`, SQLCOM_COMMIT and SQLCOM_ROLLBACK; MariaDB's is the same.

use std::sync::Arc;

use crate::sql::{self, Effect, Intent, LexModes};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Completion {
    #[default]
    NoChain,
    /// The next transaction is open behind them, with the same isolation and access mode.
    Chain,
    /// The server ends the connection.
    Release,
    /// The value was computed: the server's status tells what is open.
    Unknown,
}

impl Completion {
    /// Reads the variable's value, in any of its forms.
    pub fn parse(value: &str) -> Self {
        match value.trim_matches(['\'', '"']).to_ascii_lowercase().as_str() {
            "0" | "no_chain" => Self::NoChain,
            "1" | "chain" => Self::Chain,
            "2" | "release" => Self::Release,
            _ => Self::Unknown,
        }
    }

    /// What a request does under it; `text`: the statement, where it is a single one.
    pub fn applied_to(self, intent: Arc<Intent>, text: Option<&str>, modes: LexModes) -> Arc<Intent> {
        let ends = |effect: &Effect| {
            matches!(effect, Effect::Commit { chain: false } | Effect::Rollback { chain: false })
        };
        if self == Self::NoChain || !intent.effects.iter().any(ends) {
            return intent;
        }
        let says = |word| text.is_some_and(|text| sql::says_word(text, modes, word));
        match self {
            Self::Release if says("release") => intent,
            Self::Release => released(intent),
            _ if says("chain") => intent,
            _ => chained(intent),
        }
    }
}

fn chained(intent: Arc<Intent>) -> Arc<Intent> {
    let mut intent = Arc::unwrap_or_clone(intent);
    for effect in &mut intent.effects {
        match effect {
            Effect::Commit { chain } | Effect::Rollback { chain } => *chain = true,
            _ => {}
        }
    }
    intent.outdoes = false;
    Arc::new(intent)
}

/// Of a string of several statements the connection ends before the last of them has run.
fn released(intent: Arc<Intent>) -> Arc<Intent> {
    let mut intent = Arc::unwrap_or_clone(intent);
    intent.effects.push(Effect::Leave);
    Arc::new(intent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{
        Dialect,
        catalog::{Catalog, FunctionRules},
        classify,
    };

    #[test]
    fn a_commit_goes_on_as_the_session_or_the_statement_says() {
        let chain = |chain| Effect::Commit { chain };
        for (completion, text, effects) in [
            (Completion::NoChain, "COMMIT", vec![chain(false)]),
            (Completion::Chain, "COMMIT", vec![chain(true)]),
            (Completion::Unknown, "COMMIT WORK", vec![chain(true)]),
            (Completion::Chain, "COMMIT AND NO CHAIN", vec![chain(false)]),
            (Completion::Chain, "COMMIT /* and no chain */", vec![chain(true)]),
            (Completion::Release, "COMMIT", vec![chain(false), Effect::Leave]),
            (Completion::Release, "COMMIT RELEASE", vec![chain(false), Effect::Leave]),
            (Completion::Release, "COMMIT NO RELEASE", vec![chain(false)]),
            (Completion::Release, "ROLLBACK", vec![Effect::Rollback { chain: false }, Effect::Leave]),
            (Completion::Chain, "SELECT 1", vec![]),
        ] {
            let modes = LexModes::default_of(Dialect::Mysql);
            let intent = classify(
                text.as_bytes(),
                Dialect::Mysql,
                modes,
                &Catalog::empty(),
                &FunctionRules::default(),
            );
            let applied = completion.applied_to(Arc::new(intent), Some(text), modes);
            assert_eq!(applied.effects, effects, "{completion:?} {text}");
        }
    }
}
