//! SQLSTATEs: of what the proxy refuses, and what a server's errors mean for another attempt.
//!
//! Source: PostgreSQL manual, appendix A.

use super::frame;
use crate::refusal::{Refusal, RefusalKind};

/// Appends an ErrorResponse.
pub fn put_error(out: &mut Vec<u8>, refusal: &Refusal) {
    let severity: &[u8] = if refusal.fatal { b"FATAL" } else { b"ERROR" };
    frame::put(out, b'E', |out| {
        let mut field = |kind: u8, value: &[u8]| {
            out.push(kind);
            out.extend(value.iter().map(|byte| if *byte == 0 { b'?' } else { *byte }));
            out.push(0);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', sqlstate(refusal.kind).as_bytes());
        field(b'M', refusal.message.as_bytes());
        if let Some(detail) = &refusal.detail {
            field(b'D', detail.as_bytes());
        }
        if let Some(hint) = &refusal.hint {
            field(b'H', hint.as_bytes());
        }
        out.push(0);
    });
}

/// Appends a NoticeResponse of severity WARNING.
pub fn put_warning(out: &mut Vec<u8>, code: &str, message: &str) {
    frame::put(out, b'N', |out| {
        for (kind, value) in [(b'S', "WARNING"), (b'V', "WARNING"), (b'C', code), (b'M', message)] {
            out.push(kind);
            frame::put_cstring(out, value.as_bytes());
        }
        out.push(0);
    });
}

pub const fn sqlstate(kind: RefusalKind) -> &'static str {
    match kind {
        RefusalKind::NoPrimary | RefusalKind::NoReplica => "57P03",
        RefusalKind::ShuttingDown => "57P01",
        RefusalKind::PoolTimeout | RefusalKind::TooManyClients => "53300",
        RefusalKind::ServerLost => "08006",
        RefusalKind::InDoubt => "08007",
        RefusalKind::Protocol | RefusalKind::Malformed | RefusalKind::Compression => "08P01",
        RefusalKind::Unsupported => "0A000",
        RefusalKind::FailedTransaction => "25P02",
        RefusalKind::Authentication => "28P01",
        RefusalKind::UnknownDatabase => "3D000",
        RefusalKind::InvalidSetting => "22023",
        RefusalKind::UnknownSetting | RefusalKind::UnknownNode | RefusalKind::UnknownSession => "42704",
        RefusalKind::UnknownStatement => "26000",
        RefusalKind::DuplicateStatement => "42P05",
        RefusalKind::IdleTimeout => "57P05",
        RefusalKind::IdleInTransaction => "25P03",
        RefusalKind::Cancelled => "57014",
        RefusalKind::Forbidden => "42501",
        RefusalKind::Internal => "XX000",
    }
}

/// What an error of a server says about asking another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// It is stopping, or was told to end this connection.
    Stopping,
    /// The statement writes.
    Writes,
    /// A standby cannot do it or had to cancel it.
    Standby,
    /// A copy that is further on might not say so.
    MaybeStale,
    /// Every server says so.
    Final,
}

/// Sorts a SQLSTATE by what hard case 14 says of it. Texts are translated, codes are not.
pub fn classify(code: &[u8; 5]) -> ErrorClass {
    match code {
        b"57P01" | b"57P02" | b"57P03" => ErrorClass::Stopping,
        b"25006" => ErrorClass::Writes,
        b"40001" | b"40P01" | b"57P04" | b"XX000" => ErrorClass::Standby,
        _ => match &code[..2] {
            b"25" | b"55" | b"58" | b"0A" => ErrorClass::Standby,
            b"22" | b"28" | b"3D" | b"3F" | b"42" => ErrorClass::MaybeStale,
            _ => ErrorClass::Final,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_another_server_might_say() {
        for (code, class) in [
            (b"25006", ErrorClass::Writes),
            (b"40001", ErrorClass::Standby),
            (b"0A000", ErrorClass::Standby),
            (b"55000", ErrorClass::Standby),
            (b"42P01", ErrorClass::MaybeStale),
            (b"22P02", ErrorClass::MaybeStale),
            (b"23505", ErrorClass::Final),
            (b"57014", ErrorClass::Final),
            (b"57P01", ErrorClass::Stopping),
        ] {
            assert_eq!(classify(code), class, "{}", String::from_utf8_lossy(code));
        }
    }

    #[test]
    fn a_nul_in_a_text_does_not_end_the_field() {
        let mut out = Vec::new();
        put_error(&mut out, &Refusal::new(RefusalKind::Internal, "a\0b"));
        let body = &out[frame::HEADER..];
        assert!(body.windows(5).any(|window| window == b"Ma?b\0"));
        assert_eq!(frame::error_fields(body).code, *b"XX000");
    }
}
