//! The arrows of the architecture point down or sideways, never up.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// What touches sockets, knows sessions, or speaks one database's protocol.
const IMPURE: &[&str] = &[
    "tokio",
    "tokio_util",
    "crate::admin",
    "crate::cli",
    "crate::cluster",
    "crate::inbox",
    "crate::listener",
    "crate::metrics",
    "crate::monitor",
    "crate::mysql",
    "crate::observe",
    "crate::passage",
    "crate::pool",
    "crate::postgres",
    "crate::protocol",
    "crate::runtime",
    "crate::serve",
    "crate::session",
    "crate::shutdown",
    "crate::stream",
    "crate::tls",
    "opensrv_mysql",
    "pgwire",
    "mysql_common",
    "postgres_protocol",
];

/// Modules, and the modules of this crate or packages that they must not name.
const FORBIDDEN: [(&str, &[&str]); 10] = [
    ("sql", IMPURE),
    ("topology", IMPURE),
    ("route", IMPURE),
    ("refusal", IMPURE),
    ("postgres", &["crate::mysql", "crate::session", "crate::pool", "crate::monitor"]),
    ("mysql", &["crate::postgres", "crate::session", "crate::pool", "crate::monitor"]),
    // The engine is one copy for all protocols: it knows of none.
    ("session", &["crate::postgres", "crate::mysql"]),
    ("pool", &["crate::postgres", "crate::mysql"]),
    ("monitor", &["crate::postgres", "crate::mysql"]),
    ("listener", &["crate::postgres", "crate::mysql"]),
];

fn files(path: &Path) -> Vec<PathBuf> {
    if path.is_file() {
        return vec![path.to_path_buf()];
    }
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| files(&entry.path()))
        .filter(|file| file.extension().is_some_and(|e| e == "rs"))
        .collect()
}

/// The text without its comments.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path that a file names from the crate's root or a package: those of its `use`
/// declarations, with the braces taken apart, and those written out.
fn paths(text: &str) -> Vec<String> {
    let code = code(text);
    let mut found = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let begins = code[..at].chars().next_back().is_none_or(|before| before.is_whitespace());
        let tree = code[at + 4..].split(';').next().unwrap_or_default();
        if begins {
            unfold("", tree, &mut found);
        }
    }
    let written_out = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    found.extend(written_out.filter(|word| word.contains("::")).map(str::to_owned));
    found
}

/// Takes a use tree apart: `a::{b, c::{d, e}}` names `a::b`, `a::c::d` and `a::c::e`.
fn unfold(prefix: &str, tree: &str, found: &mut Vec<String>) {
    let tree = tree.trim();
    let Some((head, rest)) = tree.split_once('{') else {
        found.push(format!("{prefix}{tree}"));
        return;
    };
    let inside = rest.strip_suffix('}').unwrap_or(rest);
    let prefix = format!("{prefix}{}", head.trim());
    let (mut depth, mut start) = (0, 0);
    for (at, byte) in inside.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            b',' if depth == 0 => {
                unfold(&prefix, &inside[start..at], found);
                start = at + 1;
            }
            _ => {}
        }
    }
    unfold(&prefix, &inside[start..], found);
}

/// Whether a path is that of a module or leads into it.
fn is_in(path: &str, module: &str) -> bool {
    let path = path.trim_start_matches("::");
    path.strip_prefix(module).is_some_and(|rest| {
        rest.is_empty() || rest.starts_with(|next: char| !next.is_alphanumeric() && next != '_')
    })
}

#[test]
fn no_module_reaches_above_itself() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for (module, forbidden) in FORBIDDEN {
        for file in files(&source.join(module)).into_iter().chain(files(&source.join(format!("{module}.rs"))))
        {
            let text = fs::read_to_string(&file).expect("the sources are there");
            for path in paths(&text) {
                if forbidden.iter().any(|module| is_in(&path, module)) {
                    broken.push(format!("{}: {path}", file.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn a_reach_is_seen_however_it_is_written() {
    for text in [
        "use crate::pool::Pool;",
        "use crate::{\n    sql::Intent,\n    pool::{Pool, Held},\n};",
        "pub use crate::{pool};",
        "fn f(pool: &crate::pool::Pool) {}",
    ] {
        assert!(paths(text).iter().any(|path| is_in(path, "crate::pool")), "{text}");
    }
    for text in ["use crate::pooling::Pool;", "use crate::sql::{pool};", "// use crate::pool::Pool;"] {
        assert!(!paths(text).iter().any(|path| is_in(path, "crate::pool")), "{text}");
    }
}
