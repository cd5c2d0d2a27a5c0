//! `docs/configuration.md` and `config/pointsman.toml`, made from the schema and held to it.
//!
//! After a change of [`super::keys`], write them anew with
//! `POINTSMAN_WRITE_REFERENCE=1 cargo test --lib config::reference`.

use std::{fmt::Write, fs, path::Path};

use super::keys::{Key, Preset, Shape, TABLES, Table};

/// Shown with their examples although nothing is their default: without them the file would not load.
const SHOWN: [(&str, &str); 3] =
    [("cluster", "nodes"), ("cluster", "users"), ("cluster.monitor", "password")];
/// Width of a comment in the sample file.
const WIDTH: usize = 100;

fn page() -> String {
    let mut page = String::from(include_str!("reference_head.md"));
    for table in TABLES.iter().filter(|table| !table.keys.is_empty() || !table.about.is_empty()) {
        let heading = match (table.shape, table.path) {
            (_, "") => "Top level".to_owned(),
            (Shape::Single, path) => format!("`[{path}]`"),
            (Shape::List, path) => format!("`[[{path}]]`"),
            (Shape::Inline, path) => format!("In `{path}`"),
        };
        write!(page, "\n## {heading}\n{}\n", table.about).expect("a String takes all");
        if !table.keys.is_empty() {
            page.push_str("\n| key | default | unit or form | what and why |\n|---|---|---|---|\n");
        }
        for key in table.keys {
            let default = match key.preset {
                Preset::Required(_) => "required".to_owned(),
                Preset::Default(value) => format!("`{value}`"),
                Preset::Unset { means, .. } => means.to_owned(),
            };
            writeln!(page, "| `{}` | {default} | {} | {} |", key.name, key.unit, key.why).expect("as above");
        }
    }
    page
}

fn sample() -> String {
    let mut sample = String::new();
    comment(
        &mut sample,
        "Every key with its default, unit and reason. A key behind a single # is off, or found out by asking, unless it is set. docs/configuration.md says the same as a page, and begins with the shortest file that is enough.",
    );
    comment(
        &mut sample,
        "Durations are \"200ms\", \"10s\", \"5m\"; zero turns off what can be off. Any secret is a string, { env = \"NAME\" } or { file = \"PATH\" }.",
    );
    for table in TABLES.iter().filter(|table| table.shape != Shape::Inline) {
        sample.push('\n');
        comment(&mut sample, table.about);
        match (table.shape, table.path, table.keys) {
            (_, "", _) | (_, _, []) => {}
            (Shape::List, path, _) => writeln!(sample, "[[{path}]]").expect("a String takes all"),
            (_, path, _) => writeln!(sample, "[{path}]").expect("as above"),
        }
        for (index, key) in table.keys.iter().enumerate() {
            if index > 0 {
                sample.push('\n');
            }
            sample_key(&mut sample, table, key);
        }
    }
    sample
}

fn sample_key(sample: &mut String, table: &Table, key: &Key) {
    comment(sample, &format!("{} ({})", key.why, key.unit));
    let parts = TABLES.iter().filter(|part| part.shape == Shape::Inline && part.parent() == Some(table.path));
    for part in parts.filter(|part| part.name() == key.name).flat_map(|part| part.keys) {
        let default = match part.preset {
            Preset::Required(_) => "required".to_owned(),
            Preset::Default(value) => format!("default {value}"),
            Preset::Unset { means, .. } => format!("default: {means}"),
        };
        comment(sample, &format!("- {}: {} ({}; {default})", part.name, part.why, part.unit));
    }
    match key.preset {
        Preset::Required(value) | Preset::Default(value) => writeln!(sample, "{} = {value}", key.name),
        Preset::Unset { example, .. } if SHOWN.contains(&(table.path, key.name)) => {
            writeln!(sample, "{} = {example}", key.name)
        }
        Preset::Unset { means, example } => {
            writeln!(sample, "#{} = {example} # unless set: {}", key.name, means.replace('`', ""))
        }
    }
    .expect("a String takes all");
}

/// Prose as comment lines, without the marks of Markdown.
fn comment(sample: &mut String, prose: &str) {
    let mut line = String::from("#");
    for word in prose.replace('`', "").split(' ') {
        if line.len() + 1 + word.len() > WIDTH {
            writeln!(sample, "{line}").expect("a String takes all");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(sample, "{line}").expect("a String takes all");
}

#[test]
fn the_reference_says_what_the_schema_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, made) in [("docs/configuration.md", page()), ("config/pointsman.toml", sample())] {
        if std::env::var_os("POINTSMAN_WRITE_REFERENCE").is_some() {
            fs::write(root.join(name), &made).expect("the repository can be written to");
        }
        let kept = fs::read_to_string(root.join(name)).unwrap_or_default();
        assert!(
            kept == made,
            "{name} is not current: run with POINTSMAN_WRITE_REFERENCE=1 and look at the difference"
        );
    }
}
