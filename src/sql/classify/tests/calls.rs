//! Calls and settings, wherever they may stand in a statement.

use super::{super::*, postgres};

/// Statements with a call of `w`, which nobody knows, in every place that may hold one.
const CALLS: &[&str] = &[
    "SELECT w()",
    "SELECT DISTINCT ON (w()) a FROM t",
    "SELECT a FROM t WHERE w()",
    "SELECT a FROM t GROUP BY w()",
    "SELECT a FROM t GROUP BY GROUPING SETS ((w()))",
    "SELECT a FROM t GROUP BY a HAVING w()",
    "SELECT a FROM t ORDER BY w()",
    "SELECT a FROM t LIMIT w()",
    "SELECT a FROM t OFFSET w()",
    "SELECT a FROM t FETCH FIRST (w()) ROWS ONLY",
    "SELECT a FROM t JOIN u ON w()",
    "SELECT a FROM t LEFT JOIN LATERAL (SELECT w()) x ON true",
    "SELECT a FROM t TABLESAMPLE bernoulli (w())",
    "SELECT a FROM w()",
    "SELECT a FROM w() WITH ORDINALITY",
    "SELECT a FROM t, w() AS x",
    "SELECT a FROM ROWS FROM (w())",
    "SELECT count(*) FILTER (WHERE w()) FROM t",
    "SELECT count(w()) FROM t",
    "SELECT array_agg(a ORDER BY w()) FROM t",
    "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY w()) FROM t",
    "SELECT sum(a) OVER (PARTITION BY w()) FROM t",
    "SELECT sum(a) OVER (ORDER BY w()) FROM t",
    "SELECT sum(a) OVER (ROWS w() PRECEDING) FROM t",
    "SELECT sum(a) OVER x FROM t WINDOW x AS (ORDER BY w())",
    "SELECT CASE WHEN a THEN w() END FROM t",
    "SELECT CASE w() WHEN 1 THEN 2 END",
    "SELECT ARRAY[w()]",
    "SELECT ARRAY(SELECT w())",
    "SELECT ROW(w())",
    "SELECT (1, w())",
    "SELECT a[w()] FROM t",
    "SELECT a[1:w()] FROM t",
    "SELECT w()::int",
    "SELECT CAST(w() AS int)",
    "SELECT a AT TIME ZONE w() FROM t",
    "SELECT a LIKE 'x' ESCAPE w() FROM t",
    "SELECT a IN (1, w()) FROM t",
    "SELECT a = ANY (w()) FROM t",
    "SELECT a BETWEEN 1 AND w() FROM t",
    "SELECT a IS DISTINCT FROM w() FROM t",
    "SELECT EXISTS (SELECT w())",
    "SELECT EXTRACT(year FROM w())",
    "SELECT POSITION('a' IN w())",
    "SELECT SUBSTRING(w() FROM 1 FOR 2)",
    "SELECT SUBSTRING('a' FROM w())",
    "SELECT TRIM(BOTH 'a' FROM w())",
    "SELECT OVERLAY('a' PLACING w() FROM 1)",
    "SELECT COALESCE(1, w())",
    "SELECT NULLIF(1, w())",
    "SELECT lower(a => w())",
    "SELECT lower(VARIADIC w())",
    "SELECT -w()",
    "SELECT 1 + w()",
    "SELECT w() COLLATE \"C\"",
    "SELECT (w()).a",
    "SELECT (w()).*",
    "SELECT w () FROM t",
    "SELECT w/**/() FROM t",
    "SELECT \"w\"()",
    "SELECT s.w()",
    "VALUES (w())",
    "SELECT * FROM (VALUES (w())) x",
    "WITH x AS (SELECT w()) SELECT 1",
    "WITH x AS MATERIALIZED (SELECT w()) SELECT 1",
    "SELECT 1 UNION ALL SELECT w()",
    "(SELECT 1) ORDER BY w()",
    "SELECT * FROM json_table(w(), '$' COLUMNS (a int PATH '$'))",
    "SELECT * FROM unnest(w())",
    "EXPLAIN ANALYZE SELECT w()",
    "COPY (SELECT w()) TO STDOUT",
    "DECLARE c CURSOR FOR SELECT w()",
    "INSERT INTO t VALUES (w())",
    "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = w()",
    "INSERT INTO t VALUES (1) RETURNING w()",
    "UPDATE t SET a = w()",
    "UPDATE t SET (a, b) = (SELECT w(), 1)",
    "UPDATE t SET a = 1 FROM w() x",
    "DELETE FROM t USING w() x",
    "DELETE FROM t WHERE w()",
    "MERGE INTO t USING u ON w() WHEN MATCHED THEN DO NOTHING",
    "MERGE INTO t USING u ON true WHEN NOT MATCHED THEN INSERT VALUES (w())",
    "EXECUTE a(w())",
];

#[test]
fn a_call_is_seen_wherever_an_expression_may_stand() {
    for text in CALLS {
        let intent = postgres(text);
        assert_eq!(intent.access, Access::Write, "{text}");
        assert!(intent.effects.contains(&Effect::Touches), "{text}: {:?}", intent.effects);
    }
}

#[test]
fn a_setting_inside_another_statement_is_not_taken_for_done() {
    for text in [
        "EXPLAIN SELECT set_config('a.b', 'c', false)",
        "DECLARE c CURSOR FOR SELECT set_config('a.b', 'c', false)",
        "COPY (SELECT set_config('a.b', 'c', false)) TO STDOUT",
    ] {
        let intent = postgres(text);
        assert_eq!(intent.access, Access::Write, "{text}");
        assert!(intent.effects.contains(&Effect::Pin(PinReason::Setting)), "{text}");
    }
    let intent = postgres("PREPARE a AS SELECT set_config('a.b', 'c', false)");
    let [Effect::Prepare { inner, .. }] = intent.effects.as_slice() else { panic!("{intent:?}") };
    assert!(matches!(inner.effects.as_slice(), [Effect::Set { .. }]));
}
