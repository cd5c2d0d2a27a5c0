//! The arrows of the architecture point down or sideways, never up.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Modules and the modules of this crate (or packages) that they must not name.
const FORBIDDEN: [(&str, &[&str]); 6] = [
    (
        "sql",
        &["tokio::", "crate::session", "crate::pool", "crate::monitor", "crate::postgres", "crate::mysql"],
    ),
    (
        "topology",
        &["tokio::", "crate::session", "crate::pool", "crate::monitor", "crate::postgres", "crate::mysql"],
    ),
    (
        "route",
        &["tokio::", "crate::session", "crate::pool", "crate::monitor", "crate::postgres", "crate::mysql"],
    ),
    (
        "refusal",
        &["tokio::", "crate::session", "crate::pool", "crate::monitor", "crate::postgres", "crate::mysql"],
    ),
    ("postgres", &["crate::mysql", "crate::session", "crate::pool", "crate::monitor"]),
    ("mysql", &["crate::postgres", "crate::session", "crate::pool", "crate::monitor"]),
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

#[test]
fn no_module_reaches_above_itself() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut broken = Vec::new();
    for (module, forbidden) in FORBIDDEN {
        for file in files(&source.join(module)).into_iter().chain(files(&source.join(format!("{module}.rs"))))
        {
            let text = fs::read_to_string(&file).expect("the sources are there");
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                if forbidden.iter().any(|name| code.contains(name)) {
                    broken.push(format!("{}:{}: {}", file.display(), number + 1, line.trim()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}
