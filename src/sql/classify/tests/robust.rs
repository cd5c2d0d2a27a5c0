//! Bad, long, deep and odd input.

use proptest::prelude::*;

use super::{super::*, loaded, postgres};

fn both(text: &[u8]) {
    for dialect in [Dialect::Postgres, Dialect::Mysql] {
        let default = LexModes::default_of(dialect);
        let other = LexModes { standard_strings: !default.standard_strings, ansi_quotes: true, ..default };
        for modes in [default, other] {
            classify(text, dialect, modes, &loaded(), &FunctionRules::default());
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
        both(&text);
    }

    #[test]
    fn no_words_make_it_panic(words in proptest::collection::vec(fragment(), 0..16)) {
        both(words.concat().as_bytes());
    }

    #[test]
    fn whatever_shares_a_key_shares_its_intent(
        words in proptest::collection::vec(fragment(), 0..12),
        number in 2..99_u32,
    ) {
        let first = words.concat();
        let second = first.replace('1', &number.to_string()).replace("'x'", "'yy, zz'");
        let modes = LexModes::default_of(Dialect::Postgres);
        let keys = [&first, &second].map(|text| stripped(text.as_bytes(), Dialect::Postgres, modes));
        if keys[0] == keys[1] && !keys[0].exact {
            prop_assert_eq!(postgres(&first), postgres(&second));
        }
    }
}

fn fragment() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "SELECT ",
        "SET ",
        "RESET ",
        "SHOW ",
        "a",
        "@v",
        "@@x",
        ".",
        ",",
        "(",
        ")",
        "1",
        "'x'",
        "'",
        "\"",
        "`",
        "E'",
        "U&'",
        "$1",
        "$$",
        "$t$",
        "--",
        "#",
        "/*",
        "*/",
        "/*!",
        "/*M!",
        "/* pointsman: ",
        ";",
        " ",
        "\n",
        "=",
        ":=",
        "\\",
        "FROM ",
        "WHERE ",
        "INSERT INTO ",
        "VALUES ",
        "BEGIN ",
        "COMMIT ",
        "PREPARE ",
        "EXECUTE ",
        "COPY ",
        "TO STDOUT",
        "EXPLAIN ",
        "WITH ",
        "AS ",
        "DECLARE ",
        "CURSOR ",
        "FOR ",
        "UPDATE ",
        "DELETE ",
        "INTO ",
        "set_config(",
        "TRANSACTION ",
        "SESSION ",
        "LOCAL ",
        "NAMES ",
        "TIME ZONE ",
        "DEFAULT",
        "TABLE ",
        "CALL ",
        "XA ",
        "KILL ",
        "USE ",
        "LOCK ",
        "IN ",
        "NULL",
        "-1",
        "é",
        "\u{a0}",
        "CREATE ",
        "TEMP ",
        "f(",
        "AND ",
    ])
}

#[test]
fn long_chains_do_not_overflow_the_stack() {
    for (head, link) in [
        ("SELECT a", "+a"),
        ("SELECT a", "::int"),
        ("SELECT a", "||a"),
        ("SELECT 1 WHERE a", " OR a"),
        ("SELECT a", " UNION ALL SELECT a"),
        ("SELECT ", "("),
        ("SELECT ", "- "),
        ("SELECT ", "NOT "),
        ("SELECT a", "[1]"),
        ("SELECT a", ".b"),
        ("SELECT ", "CASE WHEN a THEN "),
        ("", "("),
        ("EXPLAIN ", "EXPLAIN "),
        ("", "PREPARE a AS "),
        ("", "DECLARE a CURSOR FOR "),
        ("", "COPY ("),
        ("SET ", "STATEMENT a=1 FOR SET "),
    ] {
        for links in [1300, 100_000] {
            let text = format!("{head}{}", link.repeat(links));
            both(text.as_bytes());
        }
    }
}

#[test]
fn long_text_goes_by_its_leading_keyword() {
    let filler = (0..20_000).map(|number| format!("a{number}")).collect::<Vec<_>>().join(", ");
    let intent = postgres(&format!("INSERT INTO t ({filler}) SELECT 1"));
    assert_eq!((intent.access, intent.reason), (Access::Write, Reason::Dml));
    let intent = postgres(&format!("SELECT {filler} FROM t"));
    assert_eq!((intent.access, intent.reason), (Access::Write, Reason::TooLong));
}

#[test]
fn long_lists_of_literals_are_not_long() {
    let rows = vec!["(1, 'a', NULL, -5)"; 20_000].join(", ");
    let intent = postgres(&format!("INSERT INTO t VALUES {rows}"));
    assert_eq!((intent.reason, intent.plain), (Reason::Dml, true));
    let list = (0..20_000).map(|number| number.to_string()).collect::<Vec<_>>().join(",");
    assert_eq!(postgres(&format!("SELECT * FROM t WHERE a IN ({list})")).access, Access::Read);
    let value = "x".repeat(100_000);
    assert_eq!(postgres(&format!("SELECT * FROM t WHERE a = '{value}'")).access, Access::Read);
    let carried = postgres(&format!("SET a.b = '{value}'"));
    assert_eq!(carried.effects, [Effect::Pin(PinReason::Setting)]);
}

#[test]
fn bytes_that_are_not_utf8_are_understood_inside_literals_and_comments() {
    let judge = |text: &[u8], dialect| {
        classify(text, dialect, LexModes::default_of(dialect), &loaded(), &FunctionRules::default()).access
    };
    for dialect in [Dialect::Postgres, Dialect::Mysql] {
        assert_eq!(judge(b"SELECT 'caf\xe9' /* \xe9 */", dialect), Access::Read);
    }
    assert_eq!(judge(b"SELECT a FROM caf\xe9", Dialect::Postgres), Access::Read);
    // White space to a MySQL session in latin1.
    assert_eq!(judge(b"SELECT a FROM t\xa0FOR\xa0UPDATE", Dialect::Mysql), Access::Write);
}

#[test]
fn only_ascii_is_read_in_encodings_where_a_byte_may_be_half_of_a_character() {
    for dialect in [Dialect::Postgres, Dialect::Mysql] {
        let modes = LexModes { unreadable: true, ..LexModes::default_of(dialect) };
        let judge = |text: &[u8]| classify(text, dialect, modes, &loaded(), &FunctionRules::default()).reason;
        assert_eq!(judge(b"SELECT 1"), Reason::Read);
        assert_eq!(judge(b"SELECT '\x95\x5c'"), Reason::Unreadable);
    }
}
