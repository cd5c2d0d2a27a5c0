//! What a server is asked for its catalog.

/// Functions of users and extensions. A trigger function is never called by name.
///
/// Written in SQL or PL/pgSQL, so that a body can be read: with the users' types that it takes and returns, as
/// values become theirs on the way. An aggregate does what its functions do: their
/// names are its body, but for those in C that compute, as `max(citext)` has some.
pub(super) const FUNCTIONS: &str = "\
SELECT p.proname, \
 CASE p.prokind WHEN 'a' THEN EXISTS (SELECT FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc f \
   ON f.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
   WHERE a.aggfnoid = p.oid AND f.provolatile = 'v') \
  ELSE p.provolatile = 'v' END, \
 p.prokind = 'a' OR l.lanname IN ('sql', 'plpgsql'), \
 CASE p.prokind WHEN 'a' THEN (SELECT string_agg(quote_ident(f.proname), ' ') \
   FROM pg_catalog.pg_aggregate a JOIN pg_catalog.pg_proc f \
   ON f.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn) \
   JOIN pg_catalog.pg_language fl ON fl.oid = f.prolang \
   WHERE a.aggfnoid = p.oid AND NOT (fl.lanname IN ('c', 'internal') AND f.provolatile = 'i')) \
  ELSE concat_ws(' ', p.prosrc, (SELECT string_agg(quote_ident(t.typname), ' ') FROM pg_catalog.pg_type t \
   WHERE t.oid >= 16384 AND t.oid = ANY (p.proargtypes::oid[] || p.prorettype))) END, \
 p.prorettype = 'pg_catalog.trigger'::pg_catalog.regtype OR p.prorettype = 'pg_catalog.event_trigger'::pg_catalog.regtype, \
 p.oid::text, p.provolatile = 'i' AND l.lanname IN ('c', 'internal') \
FROM pg_catalog.pg_proc p \
JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
WHERE p.oid >= 16384 \
ORDER BY p.oid";

/// Users' functions by the type that has them run where it is cast to or stored: checks and defaults of domains,
/// casts, and the types that hold one of these. `compiled`: of a cast in C, which computes.
macro_rules! held {
    () => {
        "WITH RECURSIVE held (type, function, compiled) AS ( \
 SELECT k.contypid, d.refobjid, false FROM pg_catalog.pg_constraint k \
   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid \
   WHERE k.contypid <> 0 AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
 UNION SELECT t.oid, d.refobjid, false FROM pg_catalog.pg_type t \
   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = t.oid \
   WHERE t.typtype = 'd' AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
 UNION SELECT t.oid, p.oid, l.lanname IN ('c', 'internal') FROM pg_catalog.pg_cast k \
   JOIN pg_catalog.pg_proc p ON p.oid = k.castfunc JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
   JOIN pg_catalog.pg_type t ON t.oid IN (k.castsource, k.casttarget) WHERE p.oid >= 16384 AND t.oid >= 16384 \
 UNION SELECT u.type, h.function, h.compiled FROM held h JOIN ( \
   SELECT t.typelem AS part, t.oid AS type FROM pg_catalog.pg_type t WHERE t.typelem <> 0 AND t.oid >= 16384 \
   UNION ALL SELECT t.typbasetype, t.oid FROM pg_catalog.pg_type t WHERE t.typtype = 'd' \
   UNION ALL SELECT a.atttypid, c.reltype FROM pg_catalog.pg_class c \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid WHERE c.relkind = 'c') u ON u.part = h.type) "
    };
}

/// Users' functions that run without being named: of types (`t`) and of operators (`o`).
pub(super) const UNNAMED: &str = concat!(
    held!(),
    "SELECT 't', t.typname, h.function::text, h.compiled FROM held h JOIN pg_catalog.pg_type t ON t.oid = h.type \
UNION SELECT 'o', o.oprname, p.oid::text, l.lanname IN ('c', 'internal') FROM pg_catalog.pg_operator o \
 JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
 WHERE p.oid >= 16384 ORDER BY 1, 2, 3"
);

/// Relations that are more than an ordinary table: kind, persistence, row security, user triggers,
/// rules, and the users' functions that their views, policies, triggers, defaults, rules, indexes, partition
/// keys and column types depend on.
pub(super) const RELATIONS: &str = concat!(
    held!(),
    "\
SELECT c.relname, c.relkind, c.relpersistence, c.relrowsecurity, \
 EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), \
 EXISTS (SELECT FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'), \
 (SELECT string_agg(DISTINCT d.refobjid::text, ',') FROM ( \
   SELECT d.refobjid FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
     WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_policy p \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid \
     WHERE p.polrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT o.oprcode FROM pg_catalog.pg_rewrite r \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
     JOIN pg_catalog.pg_operator o ON o.oid = d.refobjid \
     WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_operator'::regclass) d), \
 (SELECT string_agg(DISTINCT f.oid::text, ',') FROM ( \
   SELECT t.tgfoid AS oid FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal \
   UNION SELECT d.refobjid FROM pg_catalog.pg_trigger t \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_trigger'::regclass AND d.objid = t.oid \
     WHERE t.tgrelid = c.oid AND t.tgqual IS NOT NULL AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_index i \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid \
     WHERE i.indrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_depend d \
     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid \
     AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT h.function FROM held h JOIN pg_catalog.pg_attribute a ON a.atttypid = h.type \
     WHERE a.attrelid = c.oid AND NOT h.compiled \
   UNION SELECT d.refobjid FROM pg_catalog.pg_attrdef a \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = a.oid \
     WHERE a.adrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass \
   UNION SELECT d.refobjid FROM pg_catalog.pg_constraint k \
     JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid \
     WHERE k.conrelid = c.oid AND d.refclassid = 'pg_catalog.pg_proc'::regclass) f), \
 c.oid::text, \
 (SELECT string_agg(DISTINCT d.refobjid::text, ',') FROM pg_catalog.pg_rewrite r \
   JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid \
   WHERE r.ev_class = c.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> c.oid) \
FROM pg_catalog.pg_class c \
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't' \
 AND (c.relkind IN ('v', 'f', 'S') OR c.relpersistence = 'u' OR c.relrowsecurity OR c.relhastriggers OR c.relhasrules \
  OR c.relchecks > 0 OR EXISTS (SELECT FROM pg_catalog.pg_attrdef a WHERE a.adrelid = c.oid) \
  OR EXISTS (SELECT FROM pg_catalog.pg_index i \
    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid \
    WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL) \
    AND d.refclassid = 'pg_catalog.pg_proc'::regclass) \
  OR EXISTS (SELECT FROM pg_catalog.pg_partitioned_table k WHERE k.partrelid = c.oid AND k.partexprs IS NOT NULL) \
  OR EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.atttypid >= 16384 \
    AND a.atttypid IN (SELECT h.type FROM held h WHERE NOT h.compiled))) \
ORDER BY c.oid"
);

/// The server's own functions and views that expressions name: an owner, `r` where reading it evaluates the
/// expression and `w` where writing does, the name, and whether that is a function and a volatile one. The
/// immutable ones compute and are left out. Of functions whose body is written in the SQL standard's way
/// (from PostgreSQL 14 on; `b`), and of defaults of arguments, also what they name of the users', and `insert`
/// where they change rows.
///
/// `pg_depend` tells nothing of what initdb made; the expressions' trees do, and reading them takes no
/// lock on what they name, as writing them out again would. `current_setting` (2077 and 3294) is in it
/// only where it may ask for `transaction_read_only` or its default, whose letters stand there as numbers.
pub(super) const BUILTINS: &str = "\
WITH tree (owner, kind, tree) AS ( \
  SELECT r.ev_class, CASE r.rulename WHEN '_RETURN' THEN 'r' ELSE 'w' END, r.ev_action::text || r.ev_qual::text \
    FROM pg_catalog.pg_rewrite r WHERE r.ev_class >= 16384 \
  UNION ALL SELECT p.polrelid, 'r', concat(p.polqual::text, p.polwithcheck::text) FROM pg_catalog.pg_policy p \
  UNION ALL SELECT a.adrelid, 'w', a.adbin::text FROM pg_catalog.pg_attrdef a \
  UNION ALL SELECT k.conrelid, 'w', k.conbin::text FROM pg_catalog.pg_constraint k \
    WHERE k.conrelid >= 16384 AND k.conbin IS NOT NULL \
  UNION ALL SELECT t.tgrelid, 'w', t.tgqual::text FROM pg_catalog.pg_trigger t WHERE t.tgqual IS NOT NULL \
  UNION ALL SELECT p.oid, 'b', to_jsonb(p) ->> 'prosqlbody' FROM pg_catalog.pg_proc p \
    JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
    WHERE p.oid >= 16384 AND l.lanname = 'sql' AND p.prosrc = '' \
  UNION ALL SELECT p.oid, 'b', p.proargdefaults::text FROM pg_catalog.pg_proc p \
    WHERE p.oid >= 16384 AND p.proargdefaults IS NOT NULL), \
part (owner, kind, word, oid, asks) AS ( \
  SELECT DISTINCT t.owner, t.kind, w.word, split_part(p.part, ' ', 1), \
    left(p.part, 5) IN ('2077 ', '3294 ') AND (split_part(p.part, ':args (', 2) NOT LIKE '{CONST%' \
      OR strpos(p.part, '116 114 97 110 115 97 99 116 105 111 110 95 114 101 97 100 95 111 110 108 121') > 0 \
      OR strpos(p.part, '105 110 95 104 111 116 95 115 116 97 110 100 98 121') > 0) \
  FROM tree t, (VALUES ('funcid '), ('relid ')) w (word), unnest(string_to_array(t.tree, w.word)) p (part)) \
SELECT part.owner::text, part.kind, f.proname, true, f.provolatile = 'v' \
FROM part JOIN pg_catalog.pg_proc f ON part.word = 'funcid ' AND f.oid::text = part.oid \
WHERE f.oid < 16384 AND f.provolatile <> 'i' AND (f.proname <> 'current_setting' OR part.asks) \
UNION SELECT part.owner::text, part.kind, c.relname, false, true \
FROM part JOIN pg_catalog.pg_class c ON part.word = 'relid ' AND c.oid::text = part.oid \
WHERE c.oid < 16384 AND c.relkind = 'v' AND c.relnamespace = 'pg_catalog'::regnamespace \
UNION SELECT b.owner::text, b.kind, 'insert', true, false FROM tree b \
WHERE b.kind = 'b' AND b.tree ~ ':commandType [2-5]' \
UNION SELECT b.owner::text, b.kind, coalesce(f.proname, c.relname), f.oid IS NOT NULL, false \
FROM tree b JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = b.owner \
LEFT JOIN pg_catalog.pg_operator o ON d.refclassid = 'pg_catalog.pg_operator'::regclass AND o.oid = d.refobjid \
LEFT JOIN pg_catalog.pg_proc f ON f.oid = coalesce(o.oprcode::oid, \
  CASE d.refclassid WHEN 'pg_catalog.pg_proc'::regclass THEN d.refobjid END) \
LEFT JOIN pg_catalog.pg_class c ON d.refclassid = 'pg_catalog.pg_class'::regclass AND c.oid = d.refobjid \
WHERE b.kind = 'b' AND (f.oid IS NOT NULL OR c.oid IS NOT NULL) \
ORDER BY 1, 2, 3, 4";

/// Tables that a write of one also changes: partitions and inheritance both ways, and the
/// referencing side of foreign keys with an action.
pub(super) const RELATIVES: &str = "\
SELECT p.relname, c.relname, true FROM pg_catalog.pg_inherits i \
 JOIN pg_catalog.pg_class p ON p.oid = i.inhparent JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid \
 WHERE p.relkind IN ('r', 'p', 'f') \
UNION SELECT p.relname, c.relname, false FROM pg_catalog.pg_constraint k \
 JOIN pg_catalog.pg_class p ON p.oid = k.confrelid JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
 WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')) \
ORDER BY 1, 2";

/// What ALTER ROLE and ALTER DATABASE … SET have set, of all databases.
pub(super) const ROLE_SETTINGS: &str = "\
SELECT setdatabase::text, setrole::text, setconfig::text FROM pg_catalog.pg_db_role_setting ORDER BY 1, 2";

/// When the server read its configuration files last: sessions may begin otherwise since then.
pub(super) const CONFIGURED: &str = "SELECT extract(epoch FROM pg_catalog.pg_conf_load_time())";

/// The functions that changes of definitions set off.
pub(super) const DATABASE: &str = "\
SELECT (SELECT string_agg(e.evtfoid::text, ',' ORDER BY e.evtfoid) FROM pg_catalog.pg_event_trigger e \
  WHERE e.evtenabled <> 'D' AND e.evtevent <> 'login')";
