//! Tables of statements and what they are taken for.

use super::*;
use crate::sql::{
    Tables,
    catalog::{Relation, UserFunction},
};

fn loaded() -> Catalog {
    Catalog { loaded: true, ..Catalog::empty() }
}

fn postgres(text: &str) -> Intent {
    postgres_in(text, &loaded())
}

fn postgres_in(text: &str, catalog: &Catalog) -> Intent {
    let modes = LexModes::default_of(Dialect::Postgres);
    classify(text.as_bytes(), Dialect::Postgres, modes, catalog, &FunctionRules::default())
}

fn mysql(text: &str) -> Intent {
    let modes = LexModes::default_of(Dialect::Mysql);
    classify(text.as_bytes(), Dialect::Mysql, modes, &loaded(), &FunctionRules::default())
}

#[test]
fn postgres_reads_go_to_a_replica() {
    for text in [
        "SELECT 1",
        "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;",
        "select count(*) from t where a between 1 and 2",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "VALUES (1), (2)",
        "TABLE t",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "EXPLAIN SELECT 1",
        "EXPLAIN (ANALYZE, BUFFERS) SELECT 1",
        "EXPLAIN ANALYZE VERBOSE SELECT 1",
        "COPY t TO STDOUT",
        "COPY public.t (a, b) TO STDOUT (FORMAT csv)",
        "COPY (SELECT 1) TO STDOUT",
        "SELECT random(), clock_timestamp(), pg_sleep(1), gen_random_uuid(), timeofday()",
        "SELECT version(), current_user, inet_server_port(), pg_backend_pid()",
        "SELECT current_setting('search_path')",
        "SELECT pg_catalog.lower('A')",
        "SELECT * FROM generate_series(1, 10) AS g(i)",
        "SELECT sum(a) OVER (PARTITION BY b ORDER BY c) FROM t",
        "SELECT coalesce(a, b), greatest(1, 2), extract(year from d), substring(a from 1 for 2) FROM t",
        "SELECT * FROM t WHERE d > now() - interval '1 day' AND x = ANY ('{1,2}')",
        "SELECT a::numeric(10,2), CAST(b AS varchar(3)) FROM t",
        "SELECT $1::int, E'it\\'s', $tag$ ; DELETE $tag$",
        "SELECT 'DELETE FROM t; COMMIT'",
        "SELECT \"update\" FROM t",
        "SELECT 1 AS update",
        "/* x */ SELECT 1 -- y",
        "SELECT 1; SELECT 2",
    ] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Read, Reason::Read), "{text}");
        assert_eq!(intent.effects, [], "{text}");
    }
}

#[test]
fn postgres_writes_go_to_the_primary() {
    for (text, reason) in [
        ("INSERT INTO t VALUES (1)", Reason::Dml),
        ("UPDATE t SET a = 1", Reason::Dml),
        ("DELETE FROM t", Reason::Dml),
        ("MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", Reason::Dml),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", Reason::Dml),
        ("WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", Reason::Dml),
        ("WITH x AS (SELECT 1) UPDATE t SET a = 1 FROM x", Reason::Dml),
        ("COPY t FROM STDIN", Reason::Dml),
        ("COPY (SELECT 1) TO '/tmp/x'", Reason::Command),
        ("COPY t TO PROGRAM 'cat'", Reason::Command),
        ("COPY (DELETE FROM t RETURNING 1) TO STDOUT", Reason::Dml),
        ("SELECT * FROM t FOR UPDATE", Reason::Lock),
        ("SELECT * FROM t FOR NO KEY UPDATE", Reason::Unparsed),
        ("SELECT * FROM t FOR SHARE", Reason::Lock),
        ("SELECT * FROM (SELECT * FROM t FOR UPDATE) x", Reason::Lock),
        ("SELECT * INTO u FROM t", Reason::Ddl),
        ("EXPLAIN ANALYZE DELETE FROM t", Reason::Dml),
        ("CREATE TABLE t (a int)", Reason::Ddl),
        ("ALTER TABLE t ADD b int", Reason::Ddl),
        ("DROP TABLE t", Reason::Ddl),
        ("TRUNCATE t", Reason::Ddl),
        ("GRANT SELECT ON t TO x", Reason::Ddl),
        ("VACUUM t", Reason::Ddl),
        ("REFRESH MATERIALIZED VIEW v", Reason::Ddl),
        ("LOCK TABLE t", Reason::Lock),
        ("DO $$ BEGIN END $$", Reason::Command),
        ("CALL p()", Reason::Command),
        ("NOTIFY c", Reason::Command),
        ("COMMIT PREPARED 'x'", Reason::Command),
        ("ROLLBACK PREPARED 'x'", Reason::Command),
        ("SELECT f(1)", Reason::Function),
        ("SELECT public.lower('A')", Reason::Function),
        ("SELECT * FROM f(1)", Reason::Function),
        ("SELECT pg_notify('a', 'b')", Reason::Function),
        ("SELECT lo_creat(1)", Reason::Function),
        ("SELECT a OPERATOR(s.+) b FROM t", Reason::Function),
        ("SELECT query_to_xml('DELETE FROM t', true, true, '')", Reason::Function),
        ("SELECT pg_is_in_recovery()", Reason::Server),
        ("SELECT pg_current_wal_lsn()", Reason::Server),
        ("SELECT current_setting('transaction_read_only')", Reason::Server),
        ("SELECT current_setting(a) FROM t", Reason::Server),
        ("SHOW transaction_read_only", Reason::Server),
        ("SHOW in_hot_standby", Reason::Server),
        ("SELECT * FROM pg_stat_activity", Reason::Server),
        ("SELECT * FROM pg_catalog.pg_locks", Reason::Server),
        ("SELECT nextval('s')", Reason::State),
        ("SELECT currval('s')", Reason::State),
        ("SELECT pg_advisory_lock(1)", Reason::State),
        ("SELECT pg_try_advisory_xact_lock(1)", Reason::State),
        ("SELECT * FROM pg_temp.t", Reason::State),
        ("SELECT 1; DELETE FROM t", Reason::Command),
        ("SELECT 'open", Reason::Unparsed),
        ("SELECT (a", Reason::Unparsed),
        ("SELECT U&\"d\\0061t\"(1)", Reason::Unparsed),
        ("FROBNICATE", Reason::Unparsed),
    ] {
        let intent = postgres(text);
        assert_eq!((intent.access, intent.reason), (Access::Write, reason), "{text}");
    }
}
