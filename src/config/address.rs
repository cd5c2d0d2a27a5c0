//! `host:port`, with names, IPv4 and bracketed IPv6 addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// A host (name or address) and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets: what a resolver takes.
    host: Box<str>,
    port: u16,
}

impl HostPort {
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.into(), port }
    }

    /// Reads `host:port`, `[v6]:port`, and, where `default_port` is given, `host` and `[v6]` alone.
    ///
    /// # Errors
    /// Says in words what is wrong.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, tail) = rest.split_once(']').ok_or("the bracket is not closed")?;
                host.parse::<Ipv6Addr>().map_err(|_| format!("`{host}` is no IPv6 address"))?;
                let port = match tail {
                    "" => None,
                    _ => Some(tail.strip_prefix(':').ok_or("after the bracket only `:port` may stand")?),
                };
                (host, port)
            }
            None => match text.split_once(':') {
                Some((_, port)) if port.contains(':') => {
                    return Err(format!("an IPv6 address needs brackets: `[{text}]` or `[::1]:port`"));
                }
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        check_host(host)?;
        let port = match (port, default_port) {
            (Some(port), _) => port.parse().map_err(|_| format!("`{port}` is no port (0 to 65535)"))?,
            (None, Some(port)) => port,
            (None, None) => return Err("the port is missing, as in `127.0.0.1:6432`".to_owned()),
        };
        Ok(Self::new(host, port))
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the host is an address of this machine alone, or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.address().is_some_and(|address| address.is_loopback())
    }

    /// Whether two listeners could not both be bound: the same port, and the same host or one that
    /// stands for every address. Port 0 is another port each time.
    pub fn overlaps(&self, other: &Self) -> bool {
        let wildcard = |this: &Self| this.address().is_some_and(|address| address.is_unspecified());
        self.port == other.port
            && self.port != 0
            && (self.names_the_same(other) || wildcard(self) || wildcard(other))
    }

    /// Whether both are the same port of the same host, however it is spelt: names are the same in
    /// upper and lower case (RFC 4343), an IPv6 address has many forms.
    pub fn names_the_same(&self, other: &Self) -> bool {
        let hosts = match (self.address(), other.address()) {
            (Some(one), Some(other)) => one == other,
            _ => self.host.eq_ignore_ascii_case(&other.host),
        };
        self.port == other.port && hosts
    }

    fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

fn check_host(host: &str) -> Result<(), String> {
    /// The longest name that DNS can carry (RFC 1035, section 2.3.4).
    const LONGEST_NAME: usize = 253;
    match host {
        "" => Err("the host is missing".to_owned()),
        "*" => Err("`*` is no host: `0.0.0.0` is every IPv4 address, `[::]` every address".to_owned()),
        _ if host.len() > LONGEST_NAME => Err(format!("a host name has at most {LONGEST_NAME} characters")),
        _ => match host.chars().find(|&c| c.is_whitespace() || c.is_control() || "/@\\\"'".contains(c)) {
            Some(odd) => Err(format!("{odd:?} cannot stand in a host name")),
            None => Ok(()),
        },
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(out, "[{}]:{}", self.host, self.port),
            false => write!(out, "{}:{}", self.host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        let cases = [
            ("10.0.0.1:5433", Ok("10.0.0.1:5433")),
            ("db1", Ok("db1:5432")),
            ("[::]:6432", Ok("[::]:6432")),
            ("[::1]", Ok("[::1]:5432")),
            ("::1", Err("an IPv6 address needs brackets: `[::1]` or `[::1]:port`")),
            ("[::1", Err("the bracket is not closed")),
            ("[db1]:1", Err("`db1` is no IPv6 address")),
            ("[::1]5432", Err("after the bracket only `:port` may stand")),
            ("db1:", Err("`` is no port (0 to 65535)")),
            ("db1:65536", Err("`65536` is no port (0 to 65535)")),
            (":5432", Err("the host is missing")),
            ("db 1:5432", Err("' ' cannot stand in a host name")),
            ("*:6432", Err("`*` is no host: `0.0.0.0` is every IPv4 address, `[::]` every address")),
        ];
        for (text, expected) in cases {
            let read = HostPort::parse(text, Some(5432)).map(|address| address.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), expected, "{text}");
        }
    }

    #[test]
    fn listeners_overlap_when_they_cannot_both_be_bound() {
        let cases = [
            ("127.0.0.1:1", "127.0.0.1:1", true),
            ("127.0.0.1:1", "0.0.0.0:1", true),
            ("[::]:1", "10.0.0.1:1", true),
            ("127.0.0.1:1", "127.0.0.2:1", false),
            ("127.0.0.1:1", "127.0.0.1:2", false),
            ("0.0.0.0:0", "0.0.0.0:0", false),
            ("LocalHost:1", "localhost:1", true),
            ("[::1]:1", "[0:0::1]:1", true),
        ];
        for (one, other, overlap) in cases {
            let [one, other] = [one, other].map(|text| HostPort::parse(text, None).expect("a case"));
            assert_eq!(one.overlaps(&other), overlap, "{one} {other}");
        }
    }
}
