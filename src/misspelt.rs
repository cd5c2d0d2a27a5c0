//! Hints that mean nothing, such as `/* pointsman: primry */`: whoever wrote one should hear of it.

use std::collections::HashSet;

use parking_lot::Mutex;

/// Texts that are told apart; those beyond are not told of.
const MAX: usize = 256;

/// Bytes of a text that are kept and told.
const LENGTH: usize = 64;

/// What was told already.
#[derive(Debug, Default)]
pub struct Misspelt(Mutex<HashSet<Box<str>>>);

impl Misspelt {
    /// As much of `item` as is to be told; `None`: it was told before.
    pub fn first<'a>(&self, item: &'a str) -> Option<&'a str> {
        let ends = item.char_indices().map(|(at, letter)| at + letter.len_utf8());
        let item = &item[..ends.take_while(|end| *end <= LENGTH).last().unwrap_or(0)];
        let mut told = self.0.lock();
        (told.len() < MAX && told.insert(item.into())).then_some(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_text_is_told_once_and_no_more_than_a_bound_of_them() {
        let misspelt = Misspelt::default();
        assert_eq!(misspelt.first("primry"), Some("primry"));
        assert_eq!(misspelt.first("primry"), None);
        assert_eq!(misspelt.first("replca"), Some("replca"));

        let long = "ä".repeat(1000);
        assert_eq!(misspelt.first(&long).map(str::len), Some(LENGTH));

        let told = (0..10 * MAX).filter(|number| misspelt.first(&number.to_string()).is_some()).count();
        assert_eq!(told, MAX - 3);
    }
}
