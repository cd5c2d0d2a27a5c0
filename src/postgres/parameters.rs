//! The parameters that servers report (ParameterStatus), and what of them a client was told.
//!
//! A server reports a value when it changes on its connection. A client uses many connections, so
//! what it was told is compared with what the connection that answers has reported: one hash each.

use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::frame::{self, HEADER};

/// What a server connection has reported so far.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    values: Vec<(Box<str>, Box<str>)>,
    hash: u64,
}

/// These tell servers apart, not sessions: a client keeps what its login said.
const OF_THE_SERVER: [&str; 4] = ["in_hot_standby", "server_version", "server_encoding", "integer_datetimes"];

/// The share of one parameter in a hash; shares are added by XOR, so that order does not matter.
fn share(name: &str, value: &str) -> u64 {
    if OF_THE_SERVER.contains(&name) {
        return 0;
    }
    let mut hasher = Xxh3::new();
    hasher.update(name.as_bytes());
    hasher.update(&[0]);
    hasher.update(value.as_bytes());
    hasher.digest()
}

/// Name and value of a ParameterStatus message.
pub fn read(message: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = frame::split_cstring(message.get(HEADER..)?)?;
    let (value, _) = frame::split_cstring(rest)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

impl Parameters {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.values.iter().map(|(name, value)| (&**name, &**value))
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    pub fn set(&mut self, name: &str, value: &str) {
        match self.values.iter_mut().find(|(other, _)| &**other == name) {
            Some((_, old)) => {
                self.hash ^= share(name, old);
                *old = value.into();
            }
            None => self.values.push((name.into(), value.into())),
        }
        self.hash ^= share(name, value);
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Parameters {
    fn from_iter<T: IntoIterator<Item = (N, V)>>(all: T) -> Self {
        let mut parameters = Self::default();
        for (name, value) in all {
            parameters.set(name.as_ref(), value.as_ref());
        }
        parameters
    }
}

/// Parameters the client was told, by difference to what its login told everybody.
#[derive(Debug, Default)]
pub struct Told {
    base: Arc<Parameters>,
    changed: Parameters,
    hash: u64,
}

impl Told {
    pub fn new(base: Arc<Parameters>) -> Self {
        let hash = base.hash;
        Self { base, changed: Parameters::default(), hash }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.changed.get(name).or_else(|| self.base.get(name))
    }

    /// Takes note of a value; `false` when the client knows it already.
    pub fn update(&mut self, name: &str, value: &str) -> bool {
        let old = self.get(name);
        if old == Some(value) {
            return false;
        }
        self.hash ^= old.map_or(0, |old| share(name, old)) ^ share(name, value);
        self.changed.set(name, value);
        true
    }

    /// Whether the client knows the values of the connection that answers it.
    pub fn knows(&self, connection: &Parameters) -> bool {
        self.hash == connection.hash
    }

    /// What the client has to be told of the connection that answers it.
    pub fn missing(&self, connection: &Parameters) -> Vec<(Box<str>, Box<str>)> {
        connection
            .iter()
            .filter(|(name, value)| !OF_THE_SERVER.contains(name) && self.get(name) != Some(value))
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }
}

/// Appends a ParameterStatus message.
pub fn put(out: &mut Vec<u8>, name: &str, value: &str) {
    frame::put(out, b'S', |out| {
        frame::put_cstring(out, name.as_bytes());
        frame::put_cstring(out, value.as_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_what_another_connection_has_otherwise() {
        let told =
            Told::new(Arc::new([("TimeZone", "UTC"), ("server_version", "15.1")].into_iter().collect()));
        let same: Parameters = [("server_version", "15.2"), ("TimeZone", "UTC")].into_iter().collect();
        let other: Parameters = [("TimeZone", "Asia/Karachi")].into_iter().collect();

        assert!(told.knows(&same));
        assert!(!told.knows(&other));
        assert_eq!(told.missing(&other), [("TimeZone".into(), "Asia/Karachi".into())]);
    }

    #[test]
    fn a_value_that_comes_back_is_known_again() {
        let base: Parameters = [("DateStyle", "ISO, MDY")].into_iter().collect();
        let mut told = Told::new(Arc::new(base.clone()));

        assert!(told.update("DateStyle", "ISO, YMD"));
        assert!(!told.update("DateStyle", "ISO, YMD"));
        assert!(!told.knows(&base));
        assert!(told.update("DateStyle", "ISO, MDY"));
        assert!(told.knows(&base));
    }
}
