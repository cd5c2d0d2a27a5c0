//! User variables that statements gave values to on a connection that their session gives up: from then
//! on they are carried, as if the session had set them to literals.

use super::{Frontend, backend::Backend};
use crate::protocol::Fault;

/// Most variables of one connection; with more it stays unknown what was left in it.
const MAX_ASSIGNED: usize = 64;

/// What is asked of each.
const QUESTIONS: [&str; 4] = ["", "HEX", "CHARSET", "COLLATION"];

impl Backend {
    /// A statement gave `name` a value that only the server knows.
    pub(super) fn note_assigned(&mut self, name: &str) {
        if self.assigned.iter().any(|known| **known == *name) {
            return;
        }
        if self.assigned.len() < MAX_ASSIGNED {
            self.assigned.push(name.into());
        } else {
            self.touched = true;
        }
    }

    /// Lets the session carry what its variables have here.
    pub(super) async fn carry_assigned(&mut self, frontend: &mut Frontend) -> Result<(), Fault> {
        let names = std::mem::take(&mut self.assigned);
        // Until it is known what they are.
        let touched = std::mem::replace(&mut self.touched, true);
        let columns: Vec<String> =
            names.iter().flat_map(|name| QUESTIONS.map(|function| format!("{function}({name})"))).collect();
        let rows = self.query_all(&format!("SELECT {}", columns.join(", "))).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        for (name, value) in names.iter().zip(row.chunks(QUESTIONS.len())) {
            let statement = format!("SET {name} = {}", literal(value));
            frontend.carried.set(frontend.carried.now().with(name, &statement));
            self.carried = self.carried.with(name, &statement).into();
        }
        self.touched = touched;
        Ok(())
    }
}

/// What stands for a variable's value in any character set and `sql_mode`; `value` answers [`QUESTIONS`].
fn literal(value: &[Option<String>]) -> String {
    let [Some(text), Some(hex), Some(charset), Some(collation)] = value else { return "NULL".into() };
    // HEX of a number is not that of its digits.
    let is_number = charset == "binary"
        && !hex.eq_ignore_ascii_case(&hex::encode(text))
        && text.parse::<f64>().is_ok_and(f64::is_finite);
    match hex.as_str() {
        _ if is_number => text.clone(),
        "" => format!("LEFT(_{charset} 0x20, 0) COLLATE {collation}"),
        hex => format!("_{charset} 0x{hex} COLLATE {collation}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mysql::backend::Row;

    #[test]
    fn a_value_is_written_as_what_it_was() {
        for (value, written) in [
            ([Some("5"), Some("5"), Some("binary"), Some("binary")], "5"),
            ([Some("-1"), Some("FFFFFFFFFFFFFFFF"), Some("binary"), Some("binary")], "-1"),
            ([Some("1.5"), Some("2"), Some("binary"), Some("binary")], "1.5"),
            ([Some("5"), Some("35"), Some("binary"), Some("binary")], "_binary 0x35 COLLATE binary"),
            (
                [Some("5"), Some("35"), Some("utf8mb3"), Some("utf8mb3_bin")],
                "_utf8mb3 0x35 COLLATE utf8mb3_bin",
            ),
            (
                [Some(""), Some(""), Some("latin1"), Some("latin1_bin")],
                "LEFT(_latin1 0x20, 0) COLLATE latin1_bin",
            ),
            ([None, None, Some("binary"), Some("binary")], "NULL"),
        ] {
            let value: Row = value.iter().map(|part| part.map(str::to_owned)).collect();
            assert_eq!(literal(&value), written, "{value:?}");
        }
    }
}
