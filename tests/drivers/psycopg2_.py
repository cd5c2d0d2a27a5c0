"""psycopg2: simple protocol with literals, transactions by default, named cursors, COPY."""

import io

import psycopg2
from common import DSN, WHERE, equal, on_primary, on_replicas


def one(cursor, sql, arguments=None):
    cursor.execute(sql, arguments)
    return cursor.fetchone()[0]


db = psycopg2.connect(DSN)
db.autocommit = True
with db.cursor() as cursor:
    on_replicas([one(cursor, WHERE) for _ in range(20)], "autocommit reads")
    on_replicas([one(cursor, "SELECT inet_server_port() WHERE %s <> ''", [str(n)]) for n in range(20)], "literals")
    cursor.execute("CREATE TABLE t (id serial PRIMARY KEY, word text)")
    for n in range(30):
        insert = "INSERT INTO t (word) VALUES (%s) RETURNING inet_server_port()"
        on_primary([one(cursor, insert, [f"it's {n} \\ %"])], "a write")
        equal(one(cursor, "SELECT count(*) FROM t"), n + 1)
        equal(one(cursor, "SELECT word FROM t ORDER BY id DESC LIMIT 1"), f"it's {n} \\ %")

db.autocommit = False
with db, db.cursor() as cursor:
    on_primary([one(cursor, WHERE) for _ in range(3)], "reads in a transaction")
    cursor.execute("INSERT INTO t (word) VALUES ('kept')")
with db, db.cursor("portions") as cursor:
    cursor.itersize = 50
    cursor.execute("SELECT generate_series(1, 500)")
    equal(sum(row[0] for row in cursor), 125250)
with db, db.cursor() as cursor:
    cursor.copy_expert("COPY t (word) FROM STDIN", io.StringIO("a\nb\nc\n"))
    target = io.StringIO()
    cursor.copy_expert("COPY (SELECT word FROM t ORDER BY id DESC LIMIT 3) TO STDOUT", target)
    equal(target.getvalue(), "c\nb\na\n")

db.close()
# Another session: this one has written and may have to use the primary for a moment.
db = psycopg2.connect(DSN)
db.set_session(readonly=True)
with db, db.cursor() as cursor:
    on_replicas([one(cursor, WHERE) for _ in range(3)], "reads in a read-only session")
db.close()

late = psycopg2.connect(DSN + " options='-c search_path=pg_catalog -c work_mem=5MB'")
late.autocommit = True
with late.cursor() as cursor:
    equal(one(cursor, "SHOW work_mem"), "5MB")
    equal(one(cursor, "SHOW search_path"), "pg_catalog")
late.close()
