//! Statements and what is said of them.

use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    route::PrimaryReads,
    topology::{
        Claim, Engine as History, NodeId, Probe, ProbeNumber,
        board::{
            Board,
            fixture::{config, ms, pg, settings},
        },
    },
};

fn judge(dialect: Dialect, scene: Option<Scene>) -> Judge {
    Judge { dialect, catalog: ordinary(), rules: FunctionRules::default(), scene }
}

fn printed(report: &Report<'_>) -> String {
    let mut out = Vec::new();
    report.print(&mut out).expect("a Vec takes all");
    // The hash is the lexer's business.
    let text = String::from_utf8(out).expect("text");
    text.replace(&report.fingerprint, "F")
}

/// A primary at 1000 and two replicas: one there too, one at 900.
fn scene() -> Scene {
    let start = Instant::now();
    let nodes = vec![config("a:1"), config("b:1"), config("c:1")];
    let mut board = Board::new(nodes, settings(History::Postgres), start, SystemTime::now());
    let mut number = 0;
    let mut now = start;
    for lsn in [900, 1000, 1000] {
        now += ms(200);
        let answers =
            [pg(Claim::Primary, 0, 1, lsn), pg(Claim::Replica, 1, 1, lsn), pg(Claim::Replica, 2, 1, 900)];
        for (id, facts) in answers.into_iter().enumerate() {
            number += 1;
            let probe = Probe {
                number: ProbeNumber(number),
                sent: now,
                answered: now + ms(1),
                outcome: Ok(facts),
                detail: None,
            };
            board.observe(NodeId(id), probe);
        }
    }
    let policy = Policy {
        consistency: Consistency::Session,
        max_lag: Duration::from_secs(10),
        primary_reads: PrimaryReads::Fallback,
        fresh_for: ms(600),
    };
    let snapshot = Arc::new(board.snapshot(now));
    Scene { cluster: "shop".into(), policy, seen: Observed { snapshot, at: now, catalog: Arc::default() } }
}

#[test]
fn statements_are_told_with_reason_effects_and_tables() {
    let cases = [
        (
            Dialect::Postgres,
            "SELECT *\n  FROM orders WHERE id = 7",
            "SELECT * FROM orders WHERE id = 7\n  read         reads only\n  reason       read\n  tables       orders\n  fingerprint  F\n",
        ),
        (
            Dialect::Postgres,
            "SELECT a FROM t FOR UPDATE",
            "SELECT a FROM t FOR UPDATE\n  write        locks rows or tables\n  reason       lock\n  tables       t\n  fingerprint  F\n",
        ),
        (
            Dialect::Postgres,
            "SET search_path = app",
            "SET search_path = app\n  read         concerns the session alone\n  reason       session\n  effects      set search_path\n  fingerprint  F\n",
        ),
        (
            Dialect::Postgres,
            "/* pointsman: primary, soon */ SELECT 1",
            "/* pointsman: primary, soon */ SELECT 1\n  read         reads only\n  reason       read\n  hints        primary, not understood: soon\n  fingerprint  F\n",
        ),
        (
            Dialect::Postgres,
            "SELEC 1",
            "SELEC 1\n  write        was not understood\n  reason       unparsed\n  tables       any\n  fingerprint  F\n",
        ),
        (
            Dialect::Mysql,
            "SELECT GET_LOCK('a', 1)",
            "SELECT GET_LOCK('a', 1)\n  write        reads or keeps state of the server session\n  reason       state\n  effects      pin named_lock\n  fingerprint  F\n",
        ),
    ];
    for (dialect, statement, expected) in cases {
        let judge = judge(dialect, None);
        assert_eq!(printed(&judge.report(statement, &mut || 0.0)), expected);
    }
}

#[test]
fn candidates_come_with_lag_weight_floor_and_the_choice() {
    let judge = judge(Dialect::Postgres, Some(scene()));

    let read = judge.report("SELECT a FROM t", &mut || 0.99);

    let routed = read.route.expect("servers were asked");
    let seen: Vec<_> = routed.candidates.iter().map(|c| (&*c.node, c.role, c.state, c.meets_floor)).collect();
    assert_eq!(
        seen,
        [("a:1", "primary", "up", true), ("b:1", "replica", "up", true), ("c:1", "replica", "up", false)]
    );
    assert_eq!(routed.candidates[2].lag_bytes, Some(100));
    assert!(routed.candidates[2].weight < routed.candidates[1].weight);
    assert_eq!((routed.choice.node.as_deref(), routed.choice.why), (Some("c:1"), "replica"));
    let after = routed.choice_after_write;
    assert_eq!((after.node.as_deref(), after.why), (Some("b:1"), "replica"));
}

#[test]
fn where_a_statement_goes_is_said_in_words() {
    let judge = judge(Dialect::Postgres, Some(scene()));
    for (statement, expected) in [
        ("INSERT INTO t VALUES (1)", "a:1 (write)"),
        ("SELECT nobody_knows(1)", "a:1 (write)"),
        ("/* pointsman: node=b:1 */ SELECT 1", "b:1 (hint)"),
        ("/* pointsman: node=x:1 */ SELECT 1", "refused: the hint names no usable node"),
        ("BEGIN", "held until the first statement of the transaction decides"),
        ("SHOW pointsman.route", "answered by the proxy"),
        ("EXECUTE q", "as the statement that was prepared"),
    ] {
        let text = printed(&judge.report(statement, &mut || 0.0));
        let line = text.lines().find_map(|line| line.strip_prefix("  goes to      "));
        assert_eq!(line, Some(expected), "{text}");
    }
}

#[test]
fn json_has_one_object_with_every_field() {
    let judge = judge(Dialect::Postgres, Some(scene()));

    let report = judge.report("UPDATE t SET a = 1", &mut || 0.0);
    let json = serde_json::to_value(&report).expect("plain data");

    assert_eq!(json["access"], "write");
    assert_eq!(json["reason"], "dml");
    assert_eq!(json["tables"], serde_json::json!(["t"]));
    assert_eq!(json["fingerprint"].as_str().map(str::len), Some(16));
    assert_eq!(json["route"]["cluster"], "shop");
    assert_eq!(json["route"]["choice"], serde_json::json!({ "node": "a:1", "why": "write" }));
    assert_eq!(json["route"]["candidates"][0]["lag_seconds"], serde_json::Value::Null);
}

#[test]
fn a_script_is_split_where_statements_end_and_nowhere_else() {
    let modes = LexModes::default_of(Dialect::Postgres);
    for (script, expected) in [
        ("", vec![]),
        (" ;; -- nothing\n", vec![]),
        ("SELECT 1", vec!["SELECT 1"]),
        ("SELECT ';' ; ;\nSELECT $$;$$ /* ; */;", vec!["SELECT ';'", "SELECT $$;$$ /* ; */"]),
        (
            "/* pointsman: primary */ SELECT 1; -- ;\nSELECT 2",
            vec!["/* pointsman: primary */ SELECT 1", "-- ;\nSELECT 2"],
        ),
        ("SELECT 'é'; SELECT 'ü'", vec!["SELECT 'é'", "SELECT 'ü'"]),
        ("SELECT 1; SELECT 'open", vec!["SELECT 1; SELECT 'open"]),
        (
            "SELECT 1; CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 2",
            vec!["SELECT 1", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; SELECT 2"],
        ),
    ] {
        assert_eq!(split(script, Dialect::Postgres, modes), expected, "{script}");
    }
}
