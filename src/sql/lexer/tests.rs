//! What texts strip to, and what is not read at all.

use super::{
    strip::{strip, stripped},
    tokens::unquote,
    *,
};

const POSTGRES: LexModes = LexModes::default_of(Dialect::Postgres);
const MYSQL: LexModes = LexModes::default_of(Dialect::Mysql);

fn postgres(text: &str) -> Option<String> {
    read(text, Dialect::Postgres, POSTGRES)
}

fn mysql(text: &str) -> Option<String> {
    read(text, Dialect::Mysql, MYSQL)
}

/// The stripped text; `None` if it is not clean.
fn read(text: &str, dialect: Dialect, modes: LexModes) -> Option<String> {
    let clean = stripped(text.as_bytes(), dialect, modes).scan.clean;
    clean.then(|| String::from_utf8(strip(text.as_bytes(), dialect, modes)).expect("the tests are UTF-8"))
}

#[test]
fn postgres_text_is_stripped_of_its_literals() {
    for (text, expected) in [
        ("SELECT a  FROM\tt WHERE id = 12345;", "SELECT a FROM t WHERE id = 0;"),
        ("SELECT 'it''s', E'it\\'s', N'x'", "SELECT ''"),
        ("SELECT 'a\\', 1", "SELECT '', 0"),
        ("SELECT U&'\\0061', b'01', X'fF'", "SELECT ''"),
        ("SELECT $$ ' $$ || $a$ $$ $a$", "SELECT '' || ''"),
        ("SELECT 1 /* a /* b */ ' */ + 2 -- '\n + 3", "SELECT 0 + 0 + 0"),
        ("SELECT \"a'\"\"b\"", "SELECT \"a'\"\"b\""),
        ("SELECT a1, b$2, $1, $22", "SELECT a1, b$2, $1"),
        ("SELECT 1.5e-3, .5, 0x1F, 1_000", "SELECT 0, .0"),
        ("x IN (1, 2,3 , 4)", "x IN (0)"),
        ("x IN ($1, $2)", "x IN ($1)"),
        ("VALUES (1, 'a', NULL), (-2, 'b', true)", "VALUES (0, '', NULL)"),
        ("VALUES (1, a), (2, b)", "VALUES (0, a), (0, b)"),
        ("f(1), g(2)", "f(0), g(0)"),
        ("a - 1, -1", "a - 0"),
        ("SELECT 'a'\n'b'", "SELECT ''"),
        ("a#>>'{b}'", "a#>>''"),
    ] {
        assert_eq!(postgres(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn mysql_text_is_stripped_of_its_literals() {
    for (text, expected) in [
        ("SELECT `a`, \"it's\", 'it\\'s' # x\n FROM t", "SELECT `a`, '' FROM t"),
        ("SELECT 1--1", "SELECT 0--0"),
        ("SELECT 1 -- 1", "SELECT 0 "),
        ("SELECT 1 /* a /* b */", "SELECT 0 "),
        ("SELECT /*!50000 a */ + 1", "SELECT a + 0"),
        ("SELECT 1a, 2e, 1_000, 1e5", "SELECT 1a, 2e, 1_000, 0"),
        ("SELECT db.1", "SELECT db.1"),
        ("SELECT @v, @@session.x, @`a b`", "SELECT @v, @@session.x, @`a b`"),
        ("SELECT @@`a b`.c, f() -- `", "SELECT @@`a b`.c, f() "),
        ("SELECT @@session.`a``b`, 1", "SELECT @@session.`a``b`, 0"),
        ("VALUES (?, ?), (?, ?)", "VALUES (?)"),
        ("SELECT $a", "SELECT $a"),
    ] {
        assert_eq!(mysql(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn what_is_not_certain_is_not_read() {
    for text in [
        "SELECT 'open",
        "SELECT \"open",
        "SELECT E'open\\'",
        "SELECT $a$ open",
        "SELECT /* open",
        "SELECT /* a /* b */",
        "SELECT E'a'\n'b\\'",
        "SELECT U&\"a\"",
        "SELECT `a`",
        "SELECT $a",
        "SELECT $1a",
        "SELECT X'0g'",
        "SELECT \0",
        "SELECT 'a\0'",
        "SELECT {a}",
        "SELECT \\",
    ] {
        assert_eq!(postgres(text), None, "{text:?}");
    }
    for text in [
        "SELECT 'open\\'",
        "SELECT `open",
        "SELECT /*! open",
        "SELECT /*! -- */",
        "SELECT /*!999999 ' */ f() -- ' */",
        "SELECT /*M!999999 ` */ f() -- ` */",
        "SELECT /*!999999 /* a */ b */",
        "SELECT \\N",
        "SELECT \"x",
    ] {
        assert_eq!(mysql(text), None, "{text:?}");
    }
    let unreadable = LexModes { unreadable: true, ..MYSQL };
    assert_eq!(read("SELECT 'é'", Dialect::Mysql, unreadable), None);
    assert_eq!(read("SELECT 1", Dialect::Mysql, unreadable), mysql("SELECT 1"));
}

#[test]
fn modes_change_where_strings_end() {
    let backslashes = LexModes { standard_strings: false, ..POSTGRES };
    assert_eq!(read("'a\\', b'", Dialect::Postgres, POSTGRES), None);
    assert_eq!(read("'a\\', b'", Dialect::Postgres, backslashes).as_deref(), Some("''"));
    assert_eq!(read("U&'a'", Dialect::Postgres, backslashes), None);
    let ansi = LexModes { ansi_quotes: true, ..MYSQL };
    assert_eq!(read("\"a`b\"\"c\"", Dialect::Mysql, ansi).as_deref(), Some("`a``b\"\"c`"));
}

#[test]
fn statements_whose_meaning_may_lie_in_a_literal_are_exact() {
    let exact = |text: &str, dialect| stripped(text.as_bytes(), dialect, LexModes::default_of(dialect)).exact;
    for text in [
        "SET a = 'b'",
        "show a",
        "(SELECT 1); SET a = 1",
        "PREPARE a AS SELECT 1",
        "SELECT set_config('a', 'b', false)",
        "SELECT \"set_config\"('a', 'b', false)",
        "SELECT current_setting('a')",
        "/* pointsman: primary */ SELECT 1",
        "SELECT 'open",
    ] {
        assert!(exact(text, Dialect::Postgres), "{text}");
    }
    for text in [
        "SELECT 1",
        " (SELECT 1)",
        "with a as (select 1) select 2",
        "BEGIN; INSERT INTO t VALUES (1); COMMIT",
    ] {
        assert!(!exact(text, Dialect::Postgres), "{text}");
    }
    assert!(exact("KILL 5", Dialect::Mysql));
    assert!(exact("/*! SET a = 1 */", Dialect::Mysql));
}

#[test]
fn keys_of_long_texts_differ_wherever_the_texts_differ() {
    let text = |at: usize| {
        let columns: Vec<String> =
            (0..500).map(|column| format!("c{}", if column == at { 9999 } else { column })).collect();
        format!("SELECT {} FROM t", columns.join(", "))
    };
    let hash = |text: String| stripped(text.as_bytes(), Dialect::Postgres, POSTGRES).hash;
    let hashes: std::collections::HashSet<u128> = (0..=500).map(|at| hash(text(at))).collect();
    assert_eq!(hashes.len(), 501);
    let long_name = |last: char| format!("SELECT {}{last}", "a".repeat(5000));
    assert_ne!(hash(long_name('b')), hash(long_name('c')));
}

#[test]
fn executable_comments_are_told_from_plain_text() {
    let key = |text: &str| stripped(text.as_bytes(), Dialect::Mysql, MYSQL).hash;
    assert_ne!(key("SELECT  a "), key("SELECT /*!a*/"));
}

#[test]
fn string_literals_give_their_value() {
    for (literal, backslashes, value) in [
        ("'a'", false, Some("a")),
        ("'it''s'", false, Some("it's")),
        ("'a\\'", false, Some("a\\")),
        ("E'it\\'s\\n'", false, Some("it's\n")),
        ("E'\\x41'", false, None),
        ("$$a$$", false, Some("a")),
        ("$t$a$$b$t$", false, Some("a$$b")),
        ("\"it's\"", true, Some("it's")),
        ("'a\\\\b'", true, Some("a\\b")),
        ("X'41'", false, None),
        ("U&'a'", false, None),
    ] {
        assert_eq!(unquote(literal, backslashes).as_deref(), value, "{literal}");
    }
}
