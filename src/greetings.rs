//! What servers say to new sessions, remembered for those that follow.

use std::{collections::HashMap, hash::Hash, sync::Arc};

use parking_lot::Mutex;

/// Greetings that are remembered of one cluster: one for each kind of session.
const MAX_GREETINGS: usize = 1024;

/// The greetings that hold just now.
pub struct Greetings<K, G>(Mutex<Known<K, G>>);

struct Known<K, G> {
    by_kind: HashMap<K, Arc<G>>,
    /// How often they were forgotten because servers may greet otherwise.
    forgotten: u64,
}

/// When a greeting was looked for that nobody knew: before anybody was asked for it.
#[derive(Clone, Copy, Debug)]
pub struct Since(u64);

impl<K, G> Default for Greetings<K, G> {
    fn default() -> Self {
        Self(Mutex::new(Known { by_kind: HashMap::new(), forgotten: 0 }))
    }
}

impl<K: Eq + Hash, G> Greetings<K, G> {
    /// # Errors
    /// With what to remember it by, where nobody knows it.
    pub fn find(&self, kind: &K) -> Result<Arc<G>, Since> {
        let known = self.0.lock();
        known.by_kind.get(kind).cloned().ok_or(Since(known.forgotten))
    }

    /// Remembers what was asked `since`; not if all was forgotten meanwhile: it may have been asked on a
    /// connection of before that.
    pub fn remember(&self, kind: K, greeting: &Arc<G>, since: Since) {
        let mut known = self.0.lock();
        if known.forgotten != since.0 {
            return;
        }
        if known.by_kind.len() >= MAX_GREETINGS {
            known.by_kind.clear();
        }
        known.by_kind.insert(kind, greeting.clone());
    }

    pub fn forget(&self) {
        let mut known = self.0.lock();
        known.by_kind.clear();
        known.forgotten += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_before_a_change_is_not_remembered_behind_it() {
        let greetings: Greetings<&str, &str> = Greetings::default();
        let Err(before) = greetings.find(&"app") else { panic!("nobody knows it") };

        greetings.forget();
        greetings.remember("app", &Arc::new("as before"), before);

        let Err(behind) = greetings.find(&"app") else { panic!("it is out of date") };
        greetings.remember("app", &Arc::new("as now"), behind);
        assert_eq!(greetings.find(&"app").ok().as_deref(), Some(&"as now"));
    }
}
