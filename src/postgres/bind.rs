//! The body of a Bind, as far as the proxy reads it.
//!
//! Source: PostgreSQL manual, "Message Formats". `rest` is what stands behind the names: formats and values of
//! the parameters, then formats of the result's columns.

use super::frame;

/// Names of the portal and of the statement, and what stands behind them.
pub fn names(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (portal, behind) = frame::split_cstring(body)?;
    let (statement, rest) = frame::split_cstring(behind)?;
    Some((portal, statement, rest))
}

pub fn has_values(rest: &[u8]) -> bool {
    values_of(rest).is_some_and(|(count, _)| count > 0)
}

/// `None` among them is NULL.
pub fn values(rest: &[u8]) -> Option<Vec<Option<&[u8]>>> {
    let (count, mut rest) = values_of(rest)?;
    let mut values = Vec::new();
    for _ in 0..count {
        let (value, behind) = split_value(rest)?;
        values.push(value);
        rest = behind;
    }
    Some(values)
}

/// How many formats are named for the columns of the result; one is for all.
pub fn result_formats(rest: &[u8]) -> Option<u16> {
    let (count, mut rest) = values_of(rest)?;
    for _ in 0..count {
        (_, rest) = split_value(rest)?;
    }
    rest.first_chunk().map(|formats| u16::from_be_bytes(*formats))
}

/// How many values there are, and what follows that number.
fn values_of(rest: &[u8]) -> Option<(u16, &[u8])> {
    let formats = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
    let (count, values) = rest.get(2 + 2 * formats..)?.split_first_chunk()?;
    Some((u16::from_be_bytes(*count), values))
}

/// The first value, and what follows it.
fn split_value(values: &[u8]) -> Option<(Option<&[u8]>, &[u8])> {
    let (length, behind) = values.split_first_chunk()?;
    let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { return Some((None, behind)) };
    let (value, behind) = behind.split_at_checked(length)?;
    Some((Some(value), behind))
}
