"""psycopg 3: autocommit and transactions, pipeline mode, server-side cursors, prepared statements, COPY."""

import psycopg
from common import DSN, WHERE, equal, eventually, on_primary, on_replicas


def autocommit():
    with psycopg.connect(DSN, autocommit=True) as db:
        on_replicas([db.execute(WHERE).fetchone()[0] for _ in range(20)], "autocommit reads")
        on_replicas(
            [db.execute("SELECT inet_server_port() WHERE %s > 0", [n]).fetchone()[0] for n in range(1, 21)],
            "parameterised reads, prepared by themselves after the fifth",
        )
        on_replicas([db.execute(WHERE, prepare=True).fetchone()[0] for _ in range(10)], "prepared reads")
        db.execute("CREATE TABLE t (id serial PRIMARY KEY, word text, payload jsonb, at timestamptz DEFAULT now())")
        for n in range(30):
            insert = "INSERT INTO t (word, payload) VALUES (%s, %s) RETURNING inet_server_port()"
            ports = db.execute(insert, [f"word {n}", psycopg.types.json.Jsonb({"n": n})])
            on_primary([ports.fetchone()[0]], "a write")
            equal(db.execute("SELECT count(*) FROM t").fetchone()[0], n + 1)
        with db.cursor() as cursor:
            cursor.executemany("INSERT INTO t (word) VALUES (%s)", [[str(n)] for n in range(100)])
        equal(db.execute("SELECT count(*) FROM t").fetchone()[0], 130)


def transactions():
    with psycopg.connect(DSN) as db:
        on_primary([db.execute(WHERE).fetchone()[0] for _ in range(3)], "reads in a transaction")
        db.execute("INSERT INTO t (word) VALUES ('rolled back')")
        db.rollback()
        with db.transaction(), db.transaction(savepoint_name="inner"):
            db.execute("INSERT INTO t (word) VALUES ('kept')")
        equal(db.execute("SELECT count(*) FROM t WHERE word IN ('kept', 'rolled back')").fetchone()[0], 1)
    # Another session: this one has written and may have to use the primary for a moment.
    with psycopg.connect(DSN) as db:
        db.read_only = True
        ports = [db.execute(WHERE).fetchone()[0] for _ in range(3)]
        on_replicas(ports, "reads in a read-only transaction")
        equal(len(set(ports)), 1)


def pipeline():
    with psycopg.connect(DSN, autocommit=True) as db:
        with db.pipeline() as pipeline:
            reads = [db.execute("SELECT %s::int, inet_server_port()", [n]) for n in range(100)]
            pipeline.sync()
            equal([read.fetchone()[0] for read in reads], list(range(100)))
            writes = [db.execute("INSERT INTO t (word) VALUES ('piped') RETURNING inet_server_port()") for _ in range(50)]
            count = db.execute("SELECT count(*) FROM t WHERE word = 'piped'")
            pipeline.sync()
            on_primary([write.fetchone()[0] for write in writes], "piped writes")
            equal(count.fetchone()[0], 50)
        try:
            with db.pipeline():
                db.execute("SELECT 1")
                db.execute("SELECT no_such_column")
                db.execute("SELECT 2")
            raise AssertionError("the error was lost")
        except psycopg.errors.UndefinedColumn:
            pass
        equal(db.execute("SELECT 3").fetchone()[0], 3)


def server_side_cursors():
    with psycopg.connect(DSN) as db:
        with db.cursor(name="portion") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT generate_series(1, 1000)")
            equal(sum(row[0] for row in cursor), 500500)
        with db.cursor(name="hold", withhold=True, scrollable=True) as cursor:
            cursor.execute("SELECT generate_series(1, 10)")
            db.commit()
            equal(cursor.fetchone()[0], 1)
            cursor.scroll(5)
            equal(cursor.fetchone()[0], 7)


def copy():
    with psycopg.connect(DSN, autocommit=True) as db:
        db.execute("CREATE TABLE c (id int, word text)")
        with db.cursor() as cursor:
            with cursor.copy("COPY c FROM STDIN") as copy:
                for n in range(5000):
                    copy.write_row((n, f"word\t{n}"))
            with cursor.copy("COPY (SELECT * FROM c ORDER BY id) TO STDOUT") as copy:
                copy.set_types(["int4", "text"])
                equal(list(copy.rows()), [(n, f"word\t{n}") for n in range(5000)])


def notifications_and_cancel():
    with psycopg.connect(DSN, autocommit=True) as listener, psycopg.connect(DSN, autocommit=True) as db:
        listener.execute("LISTEN news")
        db.execute("NOTIFY news, 'hear'")
        equal([note.payload for note in listener.notifies(timeout=10, stop_after=1)], ["hear"])
        db.execute("SET statement_timeout = '200ms'")
        try:
            db.execute("SELECT pg_sleep(10)")
            raise AssertionError("the timeout was lost")
        except psycopg.errors.QueryCanceled:
            pass


def back_to_replicas():
    with psycopg.connect(DSN, autocommit=True) as db:
        db.execute("INSERT INTO t (word) VALUES ('last')")
        eventually(lambda: _is_on_replica(db), "reads after a write use replicas again")


def _is_on_replica(db):
    try:
        on_replicas([db.execute(WHERE).fetchone()[0]], "a read")
        return True
    except AssertionError:
        return False


autocommit()
transactions()
pipeline()
server_side_cursors()
copy()
notifications_and_cancel()
back_to_replicas()
