//! The handbook names what a person on call may meet.

use std::{collections::BTreeSet, fs, path::Path};

use pointsman::{
    admin::console::command::{OTHERS, Show},
    metrics::families,
    mysql::refusal::error_of,
    postgres::refusal::sqlstate,
    refusal::RefusalKind,
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect("it is there")
}

#[test]
fn every_error_of_the_proxys_own_has_its_row_with_its_codes() {
    let handbook = read("docs/operations.md");
    for kind in RefusalKind::ALL {
        let row = format!("| `{}` | `{}` | {} |", kind.label(), sqlstate(kind), error_of(kind).0);
        assert!(handbook.contains(&row), "no row {row}");
    }
}

#[test]
fn every_alert_and_every_command_is_explained() {
    let (handbook, rules) = (read("docs/operations.md"), read("grafana/prometheus/rules/pointsman.yml"));
    let alerts: BTreeSet<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    for alert in alerts {
        assert!(handbook.contains(&format!("`{alert}`")), "nothing on {alert}");
    }
    for (command, _) in OTHERS {
        let verb = command.split(' ').next().expect("a command has a first word");
        assert!(handbook.contains(&format!("`{verb}")), "nothing on {command}");
    }
    assert!(Show::ALL.iter().any(|(_, word, _)| handbook.contains(&format!("`SHOW {word}`"))));
}

/// Names and labels that others' dashboards and alerts are made with: they stay.
#[test]
fn the_metrics_of_the_contract_are_there_with_their_labels() {
    let contract: [(&str, &[&str]); 27] = [
        ("pointsman_statements_total", &["cluster", "node", "access", "reason"]),
        ("pointsman_statement_seconds", &["cluster"]),
        ("pointsman_statement_wait_seconds", &["cluster"]),
        ("pointsman_statement_server_seconds", &["cluster"]),
        ("pointsman_errors_total", &["cluster", "kind"]),
        ("pointsman_replica_lag_seconds", &["cluster", "node"]),
        ("pointsman_replica_lag_bytes", &["cluster", "node"]),
        ("pointsman_node_weight", &["cluster", "node"]),
        ("pointsman_node_role", &["cluster", "node", "role"]),
        ("pointsman_node_state", &["cluster", "node", "state"]),
        ("pointsman_failovers_total", &["cluster"]),
        ("pointsman_failover_seconds", &["cluster"]),
        ("pointsman_held_statements", &["cluster"]),
        ("pointsman_retries_total", &["cluster", "reason"]),
        ("pointsman_reroutes_total", &["cluster", "reason"]),
        ("pointsman_causal_fallbacks_total", &["cluster"]),
        ("pointsman_pool_connections", &["cluster", "node", "state"]),
        ("pointsman_pool_waiters", &["cluster", "node"]),
        ("pointsman_pool_wait_seconds", &["cluster"]),
        ("pointsman_clients", &["cluster"]),
        ("pointsman_pins_total", &["cluster", "reason"]),
        ("pointsman_statement_cache_total", &["cluster", "result"]),
        ("pointsman_parse_failures_total", &["cluster"]),
        ("pointsman_logins_total", &["cluster", "result"]),
        ("pointsman_config_reloads_total", &["result"]),
        ("pointsman_config_last_reload_success", &[]),
        ("pointsman_build_info", &["version"]),
    ];
    for (name, labels) in contract {
        let family = families::ALL.iter().find(|family| family.name == name);
        let family = family.unwrap_or_else(|| panic!("there is no {name}"));
        for label in labels {
            assert!(family.labels.contains(label), "{name} has no label {label}");
        }
    }
}

/// A metric of which nobody is told when to worry is noise, and one that the alerts ask for has to be.
#[test]
fn alerts_and_dashboards_ask_only_for_metrics_that_are_declared() {
    let known: BTreeSet<&str> = families::ALL.iter().map(|family| family.name).collect();
    let mut asked = read("grafana/prometheus/rules/pointsman.yml");
    for name in ["overview", "replication", "pools", "failover"] {
        asked.push_str(&read(&format!("grafana/dashboards/{name}.json")));
    }
    for (at, _) in asked.match_indices("pointsman_") {
        let name: String =
            asked[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        // The cases of the rules, a file beside them.
        if name == "pointsman_test" {
            continue;
        }
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix).filter(|family| known.contains(family)))
            .unwrap_or(&name);
        // Names of rule groups and of pages end where the declared names begin.
        assert!(known.contains(family), "{name} is not declared");
    }
}

/// `pool.size`, `routing.max_lag` and so on, as the example configuration has them.
fn keys() -> BTreeSet<String> {
    let (mut keys, mut table) = (BTreeSet::new(), String::new());
    for line in read("config/pointsman.toml").lines() {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_matches(['[', ']']);
            table = header.strip_prefix("cluster.").unwrap_or(header).to_owned();
        } else if let Some((key, _)) = line.trim_start_matches('#').split_once(" = ")
            && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        {
            keys.insert(format!("{table}.{key}"));
        }
    }
    keys
}

#[test]
fn pages_name_only_keys_that_there_are() {
    let keys = keys();
    assert!(keys.contains("pool.size") && keys.contains("routing.max_lag"), "{keys:?}");
    let tables = ["pool", "routing", "failover", "limits", "monitor", "auth", "log", "admin"];
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).expect("it is there");
    let pages =
        docs.flatten().map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "md"));
    let texts =
        pages.map(|path| (path.display().to_string(), fs::read_to_string(&path).expect("it is text")));
    for (page, text) in texts.chain([("README.md".to_owned(), read("README.md"))]) {
        for quoted in text.split('`').skip(1).step_by(2) {
            let name = quoted.split([' ', '=']).next().unwrap_or_default();
            let Some((table, key)) = name.split_once('.') else { continue };
            let plain = key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            if tables.contains(&table) && plain {
                assert!(keys.contains(name), "{page} names {name}, which there is not");
            }
        }
    }
}
