//! What stands ahead of the values in COM_QUERY and COM_STMT_EXECUTE: which types they have, and
//! with `CLIENT_QUERY_ATTRIBUTES` their names; COM_STMT_BULK_EXECUTE has types, too; and how long the values of a query's attributes
//! are, since its text follows them.
//!
//! Source: `parse_query_bind_params` and `get_ps_param_len` in MySQL's `protocol_classic.cc`. What is
//! read here otherwise than there could pass a write off as a read: what is not sure is refused.

use smallvec::SmallVec;

use super::packet::{lenenc, lenenc_bytes, u16_le};

/// As many attributes as the server takes.
const MOST: u64 = 65_535;

/// COM_QUERY without attributes, on a connection that could have some: none, in one set.
pub const NO_ATTRIBUTES: &[u8] = &[0, 1];

/// Marks a type as unsigned.
const UNSIGNED: u16 = 1 << 15;

/// Where the text begins in the argument of a COM_QUERY with attributes; `None`: that cannot be
/// told.
pub fn text_at(argument: &[u8]) -> Option<usize> {
    if argument.starts_with(NO_ATTRIBUTES) {
        return Some(NO_ATTRIBUTES.len());
    }
    let (count, rest) = number(argument)?;
    let (1, rest) = number(rest)? else { return None };
    if count == 0 {
        return Some(argument.len() - rest.len());
    }
    let (nulls, rest) = rest.split_at_checked(count.div_ceil(8))?;
    let (&1, mut rest) = rest.split_first()? else { return None };
    let mut types = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        let (kind, behind) = u16_le(rest)?;
        types.push(kind & !UNSIGNED);
        rest = lenenc_bytes(behind)?.1;
    }
    for (at, kind) in types.into_iter().enumerate() {
        if nulls[at / 8] & (1 << (at % 8)) == 0 {
            rest = behind_value(kind, rest)?;
        }
    }
    Some(argument.len() - rest.len())
}

/// How many parameters there are.
fn number(data: &[u8]) -> Option<(usize, &[u8])> {
    let (number, rest) = lenenc(data)?;
    (number <= MOST).then_some((number as usize, rest))
}

fn behind_value(kind: u16, data: &[u8]) -> Option<&[u8]> {
    let width = match kind {
        1 => 1,
        2 => 2,
        3 | 4 => 4,
        5 | 8 => 8,
        // Decimals, dates and times, strings, JSON and all that is like them.
        0 | 7 | 10..=12 | 15 | 245..=255 => return Some(lenenc_bytes(data)?.1),
        _ => return None,
    };
    data.get(width..)
}

/// Where the argument of an execution says which types its parameters have.
#[derive(Debug, PartialEq, Eq)]
pub struct Binding {
    /// Of the byte that says whether the types are there.
    pub flag_at: usize,
    /// What says so in it.
    pub flag: u8,
    /// Where the types are, or would be.
    pub types_at: usize,
    /// Types of the statement's own parameters, two bytes each; `None`: those sent before.
    pub types: Option<Box<[u8]>>,
    /// More than the statement's parameters are bound.
    has_attributes: bool,
    named: bool,
}

impl Binding {
    /// Of a COM_STMT_EXECUTE for a statement with so many parameters. `named`: the connection has
    /// `CLIENT_QUERY_ATTRIBUTES`. `None`: nothing is bound, or it makes no sense.
    pub fn of_execute(argument: &[u8], parameters: u16, named: bool) -> Option<Self> {
        /// Bytes of id, flags and the number of iterations.
        const START: usize = 9;
        let parameters = usize::from(parameters);
        if parameters == 0 {
            return None;
        }
        let behind = argument.get(START..)?;
        let (count, rest) = if named { number(behind)? } else { (parameters, behind) };
        let flag_at = argument.len() - rest.len() + count.div_ceil(8);
        let types = match argument.get(flag_at)? {
            0 => None,
            _ => Some(read_types(&argument[flag_at + 1..], parameters, named)?),
        };
        let has_attributes = count != parameters;
        Some(Self { flag_at, flag: 1, types_at: flag_at + 1, types, has_attributes, named })
    }

    /// As [`Binding::of_execute`], of a COM_STMT_BULK_EXECUTE.
    pub fn of_bulk(argument: &[u8], parameters: u16) -> Option<Self> {
        /// Behind the statement's id.
        const FLAGS: usize = 4;
        const SEND_TYPES: u8 = 128;
        let types_at = FLAGS + 2;
        let types = match argument.get(FLAGS)? & SEND_TYPES {
            0 => None,
            _ => Some(read_types(argument.get(types_at..)?, usize::from(parameters), false)?),
        };
        Some(Self { flag_at: FLAGS, flag: SEND_TYPES, types_at, types, has_attributes: false, named: false })
    }

    /// The value of the only parameter, a text; the inner `None` is NULL. `types`: as sent now or before.
    pub fn only_text<'a>(&self, argument: &'a [u8], types: &[u8]) -> Option<Option<&'a [u8]>> {
        let kind = u16_le(types)?.0 & !UNSIGNED;
        let nulls = argument.get(self.flag_at.checked_sub(1)?)?;
        if types.len() != 2 || self.has_attributes {
            return None;
        }
        if nulls & 1 != 0 {
            return Some(None);
        }
        let behind = argument.get(self.types_at..)?;
        let value = match (&self.types, self.named) {
            (None, _) => behind,
            (Some(_), false) => behind.get(2..)?,
            (Some(_), true) => lenenc_bytes(behind.get(2..)?)?.1,
        };
        matches!(kind, 15 | 249..=254).then(|| lenenc_bytes(value).map(|(text, _)| Some(text)))?
    }

    /// What has to follow the flag, once it is set, so that the server takes the values for
    /// `types`. `None`: it knows them, or will not take them.
    pub fn missing(&self, types: &[u8]) -> Option<SmallVec<[u8; 32]>> {
        if self.types.is_some() || self.has_attributes || types.is_empty() {
            return None;
        }
        if !self.named {
            return Some(SmallVec::from_slice(types));
        }
        // Each without a name.
        Some(types.chunks(2).flat_map(|kind| kind.iter().copied().chain([0])).collect())
    }
}

fn read_types(mut data: &[u8], parameters: usize, named: bool) -> Option<Box<[u8]>> {
    if !named {
        return data.get(..2 * parameters).map(Into::into);
    }
    let mut types = Vec::with_capacity(2 * parameters);
    for _ in 0..parameters {
        let (kind, rest) = data.split_at_checked(2)?;
        types.extend_from_slice(kind);
        data = lenenc_bytes(rest)?.1;
    }
    Some(types.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attributes: a 64-bit number, a NULL and a string, then the text.
    const THREE: &[u8] = b"\x03\x01\x02\x01\x08\x80\x01n\xFE\x00\x01z\xFD\x00\x02ab\
        \x01\0\0\0\0\0\0\0\x05valueSELECT 1";

    #[test]
    fn the_text_of_a_query_is_found_behind_its_attributes() {
        assert_eq!(text_at(b"\x00\x01SELECT 1"), Some(2));
        assert_eq!(text_at(b"\xFC\x00\x00\x01SELECT 1"), Some(4));
        let at = text_at(THREE).expect("it is well-formed");
        assert_eq!(&THREE[at..], b"SELECT 1");
        for length in 0..at {
            assert_eq!(text_at(&THREE[..length]), None, "{length}");
        }
    }

    #[test]
    fn attributes_that_the_server_would_read_otherwise_are_not_read() {
        for (what, argument) in [
            ("two sets", &b"\x00\x02SELECT 1"[..]),
            ("no types", b"\x01\x01\x00\x00SELECT 1"),
            ("a type nobody knows", b"\x01\x01\x00\x01\x0E\x00\x00\x01SELECT 1"),
            ("more than there may be", b"\xFD\x00\x00\x01\x01SELECT 1"),
            ("a value that is longer than all", b"\x01\x01\x00\x01\xFE\x00\x00\xFASELECT 1"),
            ("NULL for a number", b"\xFB\x01SELECT 1"),
        ] {
            assert_eq!(text_at(argument), None, "{what}");
        }
    }

    #[test]
    fn the_types_of_parameters_are_found_behind_the_null_bitmap() {
        let mut argument = vec![1, 0, 0, 0, 0, 1, 0, 0, 0];
        argument.extend_from_slice(&[0, 0]); // nine parameters take two bytes
        argument.push(1);
        argument.extend(0..18);
        let binding = |argument: &[u8], count| Binding::of_execute(argument, count, false);
        let bound = binding(&argument, 9).expect("it is well-formed");
        assert_eq!((bound.flag_at, bound.types.as_deref()), (11, Some(&argument[12..30])));
        argument[11] = 0;
        assert_eq!(binding(&argument, 9).and_then(|bound| bound.types), None);
        assert_eq!(binding(&argument[..8], 9), None);
        assert_eq!(binding(&argument, 0), None);
    }

    #[test]
    fn types_that_were_left_out_are_added_with_or_without_names() {
        // One parameter and one attribute.
        let bound = b"\x01\0\0\0\x08\x01\0\0\0\x02\x00\x01\x03\x00\x00\xFE\x00\x01avv";
        let bound = Binding::of_execute(bound, 1, true).expect("it is well-formed");
        assert_eq!((bound.flag_at, bound.types.as_deref()), (11, Some(&[3, 0][..])));
        assert_eq!(bound.missing(&[3, 0]), None);

        let left_out = b"\x01\0\0\0\x08\x01\0\0\0\x02\x00\x00v";
        let named = Binding::of_execute(left_out, 2, true).expect("it is well-formed");
        assert_eq!(named.missing(&[3, 0, 8, 0]).as_deref(), Some(&[3, 0, 0, 8, 0, 0][..]));
        assert_eq!(named.missing(&[]), None);
        // The server does not take attributes whose types it is not told.
        let named = Binding::of_execute(left_out, 1, true).expect("it is well-formed");
        assert_eq!(named.missing(&[3, 0]), None);
        let plain = Binding::of_execute(&left_out[..11], 2, false).expect("it is well-formed");
        assert_eq!(plain.missing(&[3, 0, 8, 0]).as_deref(), Some(&[3, 0, 8, 0][..]));
    }

    #[test]
    fn the_types_of_many_executions_stand_ahead_of_their_rows() {
        let told = b"\x01\0\0\0\x80\x00\x03\x00\xFE\x00\x00row";
        let bound = Binding::of_bulk(told, 2).expect("it is well-formed");
        assert_eq!(bound.types.as_deref(), Some(&[3, 0, 0xFE, 0][..]));
        assert_eq!(bound.missing(&[3, 0, 0xFE, 0]), None);
        assert_eq!(Binding::of_bulk(&told[..9], 2), None);

        let left_out = b"\x01\0\0\0\x40\x00\x00row";
        let bound = Binding::of_bulk(left_out, 2).expect("it is well-formed");
        assert_eq!((bound.flag_at, bound.flag, bound.types_at), (4, 128, 6));
        assert_eq!(bound.missing(&[3, 0, 8, 0]).as_deref(), Some(&[3, 0, 8, 0][..]));
    }
}
