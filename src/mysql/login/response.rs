//! What a client says of itself: in answer to the greeting, or to become another user.

use mysql_common::collations::{Collation, CollationId};

use super::NATIVE;
use crate::mysql::{
    packet::{capability as can, lenenc_bytes, split_nul, u32_le},
    refusal::Numbers,
};

/// Level of zstd that a client has if it names none.
const ZSTD_LEVEL: u8 = 3;

/// Length of a packet that asks for TLS: what a login has before the user's name.
pub const TLS_REQUEST: usize = 32;

/// What a client answers to the greeting.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    pub capabilities: u64,
    pub collation: u8,
    pub user: String,
    pub proof: Vec<u8>,
    pub schema: Option<String>,
    pub plugin: String,
    /// Of zstd, as the client names it: it may be none.
    pub compression_level: u8,
    /// Of errors, that it takes from a server.
    pub numbers: Numbers,
}

impl Response {
    /// Reads the answer to a greeting. `None`: it is none.
    pub fn read(payload: &[u8]) -> Option<Self> {
        let filler = payload.get(TLS_REQUEST - 4..).and_then(<[u8]>::first_chunk);
        let capabilities = can::with_extended(flags(payload), filler);
        if capabilities & can::PROTOCOL_41 == 0 {
            return None;
        }
        let collation = *payload.get(8)?;
        let (user, rest) = split_nul(payload.get(TLS_REQUEST..)?)?;
        let (proof, mut rest) = if capabilities & can::PLUGIN_AUTH_LENENC != 0 {
            lenenc_bytes(rest)?
        } else if capabilities & can::SECURE_CONNECTION != 0 {
            let (&length, rest) = rest.split_first()?;
            rest.split_at_checked(usize::from(length))?
        } else {
            split_nul(rest)?
        };
        let mut schema = None;
        if capabilities & can::CONNECT_WITH_DB != 0 && !rest.is_empty() {
            // Some clients leave out the last NUL.
            let (name, behind) = split_nul(rest).unwrap_or((rest, &[]));
            schema = Some(decode(name, collation)?).filter(|name| !name.is_empty());
            rest = behind;
        }
        let mut plugin = NATIVE.to_owned();
        if capabilities & can::PLUGIN_AUTH != 0 && !rest.is_empty() {
            let (name, behind) = split_nul(rest).unwrap_or((rest, &[]));
            plugin = String::from_utf8_lossy(name).into_owned();
            rest = behind;
        }
        let mut numbers = Numbers::default();
        if capabilities & can::CONNECT_ATTRS != 0 {
            let (attributes, behind) = lenenc_bytes(rest).unwrap_or_default();
            numbers = Numbers::taken_by(attribute(attributes, b"_client_name"));
            rest = behind;
        }
        let user = decode(user, collation)?;
        let compression_level = rest.first().copied().unwrap_or(ZSTD_LEVEL);
        Some(Self {
            capabilities,
            collation,
            user,
            proof: proof.to_vec(),
            schema,
            plugin,
            compression_level,
            numbers,
        })
    }

    /// Reads COM_CHANGE_USER without its first byte. `None`: it is none; to who can name a plugin, also one
    /// without.
    pub fn read_change(argument: &[u8], capabilities: u64) -> Option<Self> {
        let (user, rest) = split_nul(argument)?;
        let (&length, rest) = rest.split_first()?;
        let (proof, rest) = rest.split_at_checked(usize::from(length))?;
        let (schema, rest) = split_nul(rest).unwrap_or((rest, &[]));
        // Two bytes of character set, then the plugin; old clients leave out both.
        let behind = rest.get(2..).unwrap_or_default();
        if behind.is_empty() && capabilities & can::PLUGIN_AUTH != 0 {
            return None;
        }
        let (plugin, _) = split_nul(behind).unwrap_or((behind, &[]));
        let plugin = if plugin.is_empty() { NATIVE.into() } else { String::from_utf8_lossy(plugin) };
        let collation = rest.first().copied().unwrap_or_default();
        let schema = Some(decode(schema, collation)?).filter(|name| !name.is_empty());
        Some(Self {
            capabilities,
            collation,
            user: decode(user, collation)?,
            proof: proof.to_vec(),
            schema,
            plugin: plugin.into_owned(),
            compression_level: ZSTD_LEVEL,
            numbers: Numbers::default(),
        })
    }
}

/// The value that a client's attributes have for a name.
fn attribute<'a>(mut attributes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    loop {
        let (key, rest) = lenenc_bytes(attributes)?;
        let (value, rest) = lenenc_bytes(rest)?;
        if key == name {
            return Some(value);
        }
        attributes = rest;
    }
}

/// A name as the character set of a collation has it: of those with other characters than ASCII's latin1 (MySQL's:
/// Windows-1252) and UTF-8 are known. `None`: it cannot be read.
fn decode(name: &[u8], collation: u8) -> Option<String> {
    /// Those of 0x80 to 0x9F; what Windows-1252 leaves out stands for itself.
    const LATIN1: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž', '\u{8f}',
        '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}', 'ž', 'Ÿ',
    ];
    let id = CollationId::from(u16::from(collation));
    let is_latin1 = id != CollationId::UNKNOWN_COLLATION_ID && Collation::resolve(id).charset() == "latin1";
    if !is_latin1 {
        return String::from_utf8(name.to_vec()).ok();
    }
    let character = |byte: &u8| match byte {
        0x80..=0x9F => LATIN1[usize::from(byte - 0x80)],
        other => char::from(*other),
    };
    Some(name.iter().map(character).collect())
}

/// What the client can do, by the first bytes of its answer.
pub fn flags(payload: &[u8]) -> u32 {
    u32_le(payload).map_or(0, |(flags, _)| flags)
}

#[cfg(test)]
mod tests {
    use super::{super::CACHING_SHA2, *};

    #[test]
    fn names_are_read_by_the_character_set_of_the_login() {
        // latin1_swedish_ci, utf8mb4_general_ci and one that does not exist.
        for (name, collation, read) in [
            (&b"caf\xe9\x80"[..], 8, Some("café€")),
            ("café".as_bytes(), 45, Some("café")),
            ("café".as_bytes(), 8, Some("cafÃ©")),
            (b"caf\xe9", 45, None),
            (b"cafe", 0, Some("cafe")),
        ] {
            assert_eq!(decode(name, collation).as_deref(), read, "{name:?} {collation}");
        }
    }

    #[test]
    fn what_a_client_calls_itself_is_found_among_its_attributes() {
        for (attributes, client) in [
            (&b"\x03_os\x05Linux\x0c_client_name\x0alibmariadb"[..], Some(&b"libmariadb"[..])),
            (b"\x0c_client_name\x00\x03_os\x05Linux", Some(b"")),
            (b"\x03_os\x0c_client_name", None),
            (b"\x0c_client_name\x0alibmaria", None),
            (b"", None),
        ] {
            assert_eq!(attribute(attributes, b"_client_name"), client, "{attributes:?}");
        }
    }

    #[test]
    fn a_login_is_read_in_every_form_that_clients_use_and_never_panics() {
        let base = can::PROTOCOL_41 | can::SECURE_CONNECTION;
        for (extra, tail, schema, plugin) in [
            (0, &b"\x02ab"[..], None, NATIVE),
            (can::CONNECT_WITH_DB, b"\x02abshop\0", Some("shop"), NATIVE),
            (can::CONNECT_WITH_DB, b"\x02abshop", Some("shop"), NATIVE),
            (
                can::PLUGIN_AUTH | can::PLUGIN_AUTH_LENENC,
                b"\x02abcaching_sha2_password\0",
                None,
                CACHING_SHA2,
            ),
        ] {
            let mut payload = ((base | extra) as u32).to_le_bytes().to_vec();
            payload.extend_from_slice(&[0; 28]);
            payload[8] = 33;
            payload.extend_from_slice(b"app\0");
            payload.extend_from_slice(tail);
            let response = Response::read(&payload).expect("it is a login");
            assert_eq!(
                (response.user.as_str(), response.collation, response.proof.as_slice()),
                ("app", 33, &b"ab"[..])
            );
            assert_eq!((response.schema.as_deref(), response.plugin.as_str()), (schema, plugin));
            for length in 0..payload.len() {
                let _ = Response::read(&payload[..length]);
            }
        }
    }
}
