//! What the catalog and the configuration say of names.

use super::{super::*, loaded, mysql, postgres_in};
use crate::sql::{
    Tables,
    catalog::{EventTriggers, Relation, UserFunction},
    functions::Builtin,
};

fn catalog() -> Catalog {
    let mut catalog = loaded();
    let function = |writes, touches| UserFunction { writes, touches };
    for (name, user) in [
        ("reads", function(false, false)),
        ("writes", function(true, false)),
        ("set_tenant", function(true, true)),
        ("sneaks", function(false, true)),
        ("lower", function(true, false)),
    ] {
        catalog.functions.insert(name.into(), user);
    }
    let plain = Relation::default();
    for (name, relation) in [
        ("unlogged", Relation { primary_only: true, ..plain.clone() }),
        ("v", Relation { writes_on_read: true, reads_all: true, ..plain.clone() }),
        ("simple_view", Relation { reads_all: true, writes_all: true, ..plain.clone() }),
        ("triggered", Relation { writes_all: true, touches: true, ..plain.clone() }),
        ("asks_server", Relation { calls: vec![Builtin::Server], reads_all: true, ..plain.clone() }),
        ("shows_last", Relation { calls: vec![Builtin::Previous], reads_all: true, ..plain.clone() }),
        ("sets", Relation { calls: vec![Builtin::SetConfig], reads_all: true, ..plain.clone() }),
        ("parent", Relation { relatives: vec!["child".into()], ..plain }),
    ] {
        catalog.relations.insert(name.into(), relation);
    }
    catalog
}

fn tables(names: &[&str]) -> Tables {
    Tables::Some(names.iter().map(|&name| name.into()).collect())
}

#[test]
fn words_before_a_tables_name_are_not_its_name() {
    for (text, names) in [
        ("UPDATE IGNORE t SET a = 1", vec!["t"]),
        ("UPDATE LOW_PRIORITY IGNORE t SET a = 1", vec!["t"]),
        ("WITH x AS (SELECT 1 FROM u) UPDATE low_priority t SET a = 1", vec!["t", "u"]),
        ("DELETE LOW_PRIORITY QUICK IGNORE FROM t", vec!["t"]),
        ("DELETE IGNORE t FROM t JOIN u", vec!["t", "u"]),
        ("UPDATE quick SET a = 1", vec!["quick"]),
        ("UPDATE `ignore` SET a = 1", vec!["ignore"]),
        ("EXPLAIN UPDATE IGNORE t SET a = 1", vec!["t"]),
        ("INSERT LOW_PRIORITY IGNORE INTO t VALUES (1)", vec!["t"]),
    ] {
        assert_eq!(mysql(text).tables, tables(&names), "{text}");
    }
}

#[test]
fn a_do_leaves_what_its_body_leaves() {
    let touches = |text: &str| {
        let intent = postgres_in(text, &catalog());
        assert_eq!(
            (intent.access, intent.reason, &intent.tables),
            (Access::Write, Reason::Command, &Tables::All)
        );
        assert!(!intent.joins && intent.effects.contains(&Effect::DrawsSequence), "{text}");
        intent.effects.contains(&Effect::Touches)
    };
    for text in [
        "DO $$ BEGIN INSERT INTO t (x, y) VALUES (1, lower('A')); UPDATE s.t SET x = 2; COMMIT; END $$",
        "DO LANGUAGE plpgsql $x$ DECLARE r record; BEGIN FOR r IN SELECT * FROM t LOOP PERFORM reads(r.x); END LOOP; END $x$",
        "DO 'BEGIN NULL; END' LANGUAGE \"plpgsql\"",
        "DO 'BEGIN RAISE NOTICE ''set %'', 1; END' LANGUAGE 'plpgsql'",
        "DO E'BEGIN\\n PERFORM 1;\\n END'",
        "DO $$ BEGIN IF (SELECT count(*) FROM t) > 0 AND NOT EXISTS (SELECT) THEN RETURN; END IF; END $$",
        "DO $$ BEGIN CREATE TABLE IF NOT EXISTS s.t (x varchar(20) PRIMARY KEY, CHECK (x > '')); END $$",
        "DO $$ BEGIN CREATE TYPE mood AS ENUM ('sad'); EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "DO $$ BEGIN PERFORM count(*) FROM triggerless AS x(y); INSERT INTO s.t(x) SELECT nextval('q'); END $$",
    ] {
        assert!(!touches(text), "{text}");
    }
    for text in [
        "DO $$ BEGIN PERFORM set_config('a.b', '1', false); END $$",
        "DO $$ BEGIN PERFORM set_tenant(1); END $$",
        "DO $$ DECLARE r t; BEGIN PERFORM r.sneaks; END $$",
        "DO $$ BEGIN PERFORM unheard_of(1); END $$",
        "DO $$ BEGIN PERFORM s.if(1); END $$",
        "DO $$ BEGIN CALL unheard_of(); END $$",
        "DO $$ BEGIN EXECUTE 'SET a.b = 1'; END $$",
        "DO $$ BEGIN SET a.b = 1; END $$",
        "DO $$ BEGIN INSERT INTO triggered VALUES (1); END $$",
        "DO $$ BEGIN PERFORM * FROM shows_last; END $$",
        "DO $$ BEGIN PERFORM * FROM sets; END $$",
        "DO $$ BEGIN UPDATE pg_settings SET setting = 1; END $$",
        "DO $$ BEGIN CREATE FUNCTION lower() RETURNS int LANGUAGE sql AS ''; END $$",
        "DO $$ BEGIN PERFORM 'an open quote; END $$",
        "DO LANGUAGE plpython3u $$ plpy.execute('SET a.b = 1') $$",
        "DO LANGUAGE plperl 'BEGIN END'",
        "DO LANGUAGE plpgsql LANGUAGE plpgsql 'BEGIN END'",
        "DO U&'BEGIN END'",
        "DO",
        &format!("DO $$ BEGIN {} PERFORM set_config('a.b', '1', false); END $$", "NULL; ".repeat(8000)),
    ] {
        assert!(touches(text), "{text}");
    }

    let none = |text: &str| {
        classify(
            text.as_bytes(),
            Dialect::Postgres,
            LexModes::default_of(Dialect::Postgres),
            &Catalog::empty(),
            &FunctionRules::default(),
        )
    };
    assert!(none("DO $$ BEGIN NULL; END $$").effects.contains(&Effect::Touches), "no catalog was read");
    let defines = postgres_in("DO $$ BEGIN CREATE VIEW w AS SELECT 1; END $$", &catalog());
    assert!(defines.effects.contains(&Effect::Redefines) && defines.effects.contains(&Effect::Ddl));
    let quiet = postgres_in("DO $$ BEGIN DELETE FROM t; END $$", &catalog());
    assert_eq!(quiet.effects, [Effect::DrawsSequence]);
    let touching = Catalog { event_triggers: EventTriggers::Touching, ..catalog() };
    let defines = postgres_in("DO $$ BEGIN DROP TABLE t; END $$", &touching);
    assert!(defines.effects.contains(&Effect::Touches));
}

#[test]
fn a_do_is_read_as_the_session_may_write_it() {
    let modes = LexModes::default_of(Dialect::Postgres);
    let backslashes = LexModes { standard_strings: false, ..modes };
    let sure = |text: &str, modes| {
        let text = text.as_bytes();
        let intent = classify(text, Dialect::Postgres, modes, &catalog(), &FunctionRules::default());
        !intent.effects.contains(&Effect::Touches)
    };
    // Without standard strings the quote goes on, and what follows is no text. By when it runs the session may
    // have set them either way.
    let hides = r"DO $$ DECLARE a text := 'x\'; BEGIN a := '; PERFORM sneaks(); --'; END $$";
    let string = format!("SET standard_conforming_strings = off; {hides}");
    for modes in [modes, backslashes] {
        assert!(!sure(hides, modes));
        assert!(!sure(&string, modes));
        assert!(sure(r"DO $$ BEGIN DELETE FROM t WHERE x ~ '^\d+$'; END $$", modes));
    }

    let text = "DO $$ BEGIN PERFORM \"gr\u{fc}n\"(); END $$";
    let rules = FunctionRules { clean: ["gr\u{fc}n".into()].into(), ..FunctionRules::default() };
    let sure = |modes| {
        let intent = classify(text.as_bytes(), Dialect::Postgres, modes, &catalog(), &rules);
        !intent.effects.contains(&Effect::Touches)
    };
    assert!(sure(modes));
    assert!(!sure(LexModes { foreign_letters: true, ..modes }));
}

#[test]
fn a_call_of_mysqls_leaves_what_its_procedure_and_its_arguments_leave() {
    let mut catalog = catalog();
    for (name, touches) in [("works", false), ("sets", true)] {
        catalog.procedures.insert(name.into(), UserFunction { writes: true, touches });
    }
    for (text, touches) in [
        ("CALL works()", false),
        ("CALL Works", false),
        ("CALL `s`.works(1, 'x')", false),
        ("CALL works(reads(1))", false),
        ("CALL sets()", true),
        ("CALL unknown()", true),
        ("CALL reads()", true),
        ("CALL works(sneaks())", true),
        ("CALL works((SELECT unheard_of()))", true),
        ("CALL", true),
    ] {
        let modes = LexModes::default_of(Dialect::Mysql);
        let intent = classify(text.as_bytes(), Dialect::Mysql, modes, &catalog, &FunctionRules::default());
        assert_eq!(intent.effects.contains(&Effect::Touches), touches, "{text}");
    }
}

#[test]
fn user_functions_are_judged_by_the_catalog() {
    for (text, access, effects) in [
        ("SELECT reads(1)", Access::Read, vec![]),
        ("SELECT public.reads(1)", Access::Read, vec![]),
        ("SELECT * FROM reads(1) AS r(a)", Access::Read, vec![]),
        ("SELECT writes(1)", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT \"writes\"(1)", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT a FROM t WHERE writes(b)", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT a FROM t ORDER BY writes(b)", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT a FROM t, LATERAL writes(b) x", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT (SELECT max(writes(b)) FROM u) FROM t", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT t.writes FROM t", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT (t).writes FROM t", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT t.reads FROM t", Access::Read, vec![]),
        ("SELECT lower(a) FROM t", Access::Write, vec![Effect::DrawsSequence]),
        ("SELECT set_tenant(1)", Access::Write, vec![Effect::DrawsSequence, Effect::Touches]),
        ("SELECT sneaks(1)", Access::Read, vec![Effect::Touches]),
        ("SELECT \"Reads\"(1)", Access::Write, vec![Effect::DrawsSequence, Effect::Touches]),
    ] {
        let intent = postgres_in(text, &catalog());
        assert_eq!((intent.access, intent.effects), (access, effects), "{text}");
    }
}

#[test]
fn relations_that_need_the_primary_are_known() {
    for (text, access) in [
        ("SELECT * FROM unlogged", Access::Write),
        ("SELECT * FROM public.unlogged u", Access::Write),
        ("SELECT * FROM t JOIN v ON true", Access::Write),
        ("TABLE v", Access::Write),
        ("TABLE ONLY v", Access::Write),
        ("SELECT * FROM ONLY unlogged", Access::Write),
        ("SELECT * FROM t, ONLY unlogged u", Access::Write),
        ("SELECT * FROM ONLY (unlogged)", Access::Write),
        ("SELECT 1 UNION TABLE v", Access::Write),
        ("SELECT * FROM (TABLE v) x", Access::Write),
        ("COPY v TO STDOUT", Access::Write),
        ("SELECT * FROM simple_view", Access::Read),
        ("WITH unlogged AS (SELECT 1) SELECT * FROM unlogged", Access::Read),
        ("WITH unlogged AS (SELECT * FROM unlogged) SELECT * FROM unlogged", Access::Write),
        ("WITH unlogged AS (SELECT 1) SELECT * FROM public.unlogged", Access::Write),
        ("SELECT * FROM (WITH unlogged AS (SELECT 1) SELECT * FROM unlogged) x, unlogged", Access::Write),
        (
            "WITH RECURSIVE unlogged AS (SELECT 1 UNION SELECT * FROM unlogged) SELECT * FROM unlogged",
            Access::Read,
        ),
    ] {
        assert_eq!(postgres_in(text, &catalog()).access, access, "{text}");
    }
}

#[test]
fn a_view_does_what_it_calls() {
    for (text, reason, effects) in [
        ("SELECT * FROM asks_server", Reason::Server, vec![]),
        ("SELECT * FROM shows_last", Reason::State, vec![Effect::NeedsPrevious]),
        ("SELECT * FROM t JOIN sets ON true", Reason::State, vec![Effect::Pin(PinReason::Setting)]),
        (
            "INSERT INTO t SELECT 1 FROM sets",
            Reason::Dml,
            vec![Effect::DrawsSequence, Effect::Pin(PinReason::Setting)],
        ),
    ] {
        let intent = postgres_in(text, &catalog());
        assert_eq!((intent.access, intent.reason), (Access::Write, reason), "{text}");
        assert_eq!(intent.effects, effects, "{text}");
    }
}

#[test]
fn tables_are_named_bare_and_folded() {
    for (text, expected) in [
        ("SELECT * FROM Shop.Orders o JOIN \"Users\" u ON true", tables(&["Users", "orders"])),
        ("SELECT 1", tables(&[])),
        ("SELECT a FROM ONLY t FETCH FIRST 5 ROWS ONLY", tables(&["t"])),
        ("DELETE FROM ONLY t", tables(&["t"])),
        ("UPDATE ONLY s.t SET a = 1", tables(&["t"])),
        ("INSERT INTO t SELECT * FROM u", tables(&["t", "u"])),
        ("WITH x AS (SELECT * FROM a) SELECT * FROM x", tables(&["a"])),
        ("UPDATE parent SET a = 1", tables(&["child", "parent"])),
        ("SELECT * FROM parent", tables(&["parent"])),
        ("SELECT * FROM simple_view", Tables::All),
        ("UPDATE triggered SET a = 1", Tables::All),
        ("SELECT reads(1)", Tables::All),
        ("TRUNCATE t", Tables::All),
        ("COPY s.t TO STDOUT", tables(&["t"])),
        ("SELECT 1 FROM a; SELECT 1 FROM b", tables(&["a", "b"])),
        ("COMMIT PREPARED 'x'", Tables::All),
    ] {
        assert_eq!(postgres_in(text, &catalog()).tables, expected, "{text}");
    }
    assert_eq!(postgres_in("SELECT 1 FROM t", &Catalog::empty()).tables, Tables::All);
}

#[test]
fn writes_to_tables_with_triggers_touch_the_session() {
    let touches =
        |text: &str, catalog: &Catalog| postgres_in(text, catalog).effects.contains(&Effect::Touches);
    assert!(touches("DELETE FROM triggered", &catalog()));
    assert!(touches("WITH x AS (DELETE FROM triggered RETURNING 1) SELECT * FROM x", &catalog()));
    assert!(touches("COPY triggered FROM STDIN", &catalog()));
    assert!(!touches("SELECT * FROM triggered", &catalog()));
    assert!(!touches("DELETE FROM t", &catalog()));
    assert!(touches("DELETE FROM t", &Catalog::empty()));
    assert!(!postgres_in("DELETE FROM triggered", &catalog()).plain);
}

#[test]
fn definitions_and_truncate_leave_what_their_triggers_do() {
    let touches = |text: &str, catalog: &Catalog| {
        let effects = postgres_in(text, catalog).effects;
        (effects.contains(&Effect::Touches), effects.contains(&Effect::DrawsSequence))
    };
    for (text, expected) in [
        ("TRUNCATE t, triggered", (true, true)),
        ("TRUNCATE TABLE ONLY public.triggered RESTART IDENTITY", (true, true)),
        ("TRUNCATE t CASCADE", (true, true)),
        ("TRUNCATE simple_view", (false, true)),
        ("TRUNCATE t", (false, false)),
    ] {
        assert_eq!(touches(text, &catalog()), expected, "{text}");
    }
    assert_eq!(touches("TRUNCATE t CASCADE", &loaded()), (false, true));
    assert_eq!(touches("TRUNCATE t", &Catalog::empty()), (true, true));

    let with = |event_triggers| Catalog { event_triggers, ..loaded() };
    let (none, clean, touching) = (loaded(), with(EventTriggers::Clean), with(EventTriggers::Touching));
    for text in [
        "CREATE TABLE x (a int)",
        "CREATE TEMP TABLE x (a int)",
        "DROP VIEW x",
        "GRANT SELECT ON t TO a",
        "COMMENT ON TABLE t IS 'x'",
        "SELECT 1 AS a INTO x",
        "CREATE TABLE x AS SELECT 1",
    ] {
        assert_eq!(touches(text, &none), (false, false), "{text}");
        assert_eq!(touches(text, &clean), (false, true), "{text}");
        assert_eq!(touches(text, &touching), (true, true), "{text}");
    }
    for text in ["CREATE DATABASE x", "ALTER ROLE x SUPERUSER", "CHECKPOINT", "SELECT 1"] {
        assert_eq!(touches(text, &touching), (false, text.starts_with("ALTER")), "{text}");
    }
}

#[test]
fn an_unloaded_catalog_makes_unknown_functions_writes_and_nothing_plain() {
    let intent = postgres_in("SELECT reads(1)", &Catalog::empty());
    assert_eq!((intent.access, intent.reason), (Access::Write, Reason::Function));
    assert_eq!(postgres_in("SELECT lower('A')", &Catalog::empty()).access, Access::Read);
    assert!(!postgres_in("DELETE FROM t", &Catalog::empty()).plain);
}

#[test]
fn the_configuration_overrides_the_catalog() {
    let set = |name: &str| [Box::<str>::from(name)].into();
    let modes = LexModes::default_of(Dialect::Postgres);
    let judge = |text: &str, rules: &FunctionRules| {
        let intent = classify(text.as_bytes(), Dialect::Postgres, modes, &catalog(), rules);
        (intent.access, intent.effects)
    };
    let read = FunctionRules { read: set("writes"), ..FunctionRules::default() };
    assert_eq!(judge("SELECT writes(1)", &read), (Access::Read, vec![]));
    let write = FunctionRules { write: set("reads"), ..FunctionRules::default() };
    assert_eq!(judge("SELECT reads(1)", &write).0, Access::Write);
    let clean = FunctionRules { clean: set("set_tenant"), ..FunctionRules::default() };
    assert_eq!(judge("SELECT set_tenant(1)", &clean), (Access::Write, vec![Effect::DrawsSequence]));
}
