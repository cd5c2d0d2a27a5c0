//! `docs/metrics.md`, made from the families and held to them.
//!
//! After a change of [`super::families`], write it anew with
//! `POINTSMAN_WRITE_REFERENCE=1 cargo test --lib metrics::reference`.

use std::{collections::HashSet, fmt::Write, fs, path::Path, sync::Arc, time::Duration};

use super::{
    Connections, Metrics,
    families::{ALL, Kind},
};
use crate::{
    sql::{Access, PinReason, Reason},
    topology::{
        Claim, Engine,
        board::fixture::{World, pg},
    },
};

fn page() -> String {
    let mut page = String::from(include_str!("reference_head.md"));
    page.push_str("| metric | type | unit | labels | meaning | when to worry |\n|---|---|---|---|---|---|\n");
    for family in ALL {
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = family.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        let (name, unit, meaning, worry) = (family.name, family.unit, family.meaning, family.worry);
        writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {meaning} | {worry} |")
            .expect("a String takes all");
    }
    page
}

#[test]
fn the_page_says_what_the_families_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    if std::env::var_os("POINTSMAN_WRITE_REFERENCE").is_some() {
        fs::write(&path, page()).expect("docs can be written");
    }
    assert!(fs::read_to_string(&path).is_ok_and(|text| text == page()), "docs/metrics.md is not up to date");
}

#[test]
fn every_family_shows_with_its_labels_and_nothing_else_does() {
    let metrics = Metrics::new();
    let (name, node) = (Arc::from("shop"), Arc::from("a:5432"));
    let cluster = metrics.cluster(&name);
    cluster.node(&node).statement(Access::Read, Reason::Read);
    cluster.answered(Access::Read, Duration::from_millis(1), Duration::from_millis(2));
    cluster.error("no_primary");
    cluster.retry("stopping");
    cluster.reroute("writes");
    cluster.pin(PinReason::Function);
    cluster.login("ok");
    cluster.failover_took(1.0);
    cluster.probe_failed(&node);
    cluster.pool(&node, Connections::default());
    let mut world = World::new(Engine::Postgres, 2);
    world.answers(0, pg(Claim::Primary, 1, 1, 4096));
    world.pass(1);
    world.answers(1, pg(Claim::Replica, 1, 1, 4096));
    cluster.show(&world.snapshot());
    metrics.reloaded(true);

    let text = metrics.text();

    let shown: HashSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("pointsman_"))
        .collect();
    let declared: HashSet<&str> = ALL.iter().map(|family| family.name).collect();
    assert_eq!(shown, declared);
    assert_eq!(text.matches("pointsman_statements_total{").count(), 1, "only what was used shows:\n{text}");
}
