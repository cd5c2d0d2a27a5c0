"""mysql-connector-python: query attributes, of text and of prepared statements, on MySQL."""

import mysql.connector
from common import DATABASE, HOST, PASSWORD, PORT, USER, equal, on_primary, on_replicas

READ = "SELECT CAST(mysql_query_attribute_string('trace') AS CHAR), @@port"


def connect(**options):
    return mysql.connector.connect(
        host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, use_pure=True, autocommit=True, **options
    )


def ask(cursor, sql, arguments=()):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


for options in {}, {"compress": True}:
    db = connect(**options)
    for cursor in db.cursor(), db.cursor(prepared=True):
        for n in range(10):
            cursor.add_attribute("trace", f"UPDATE {n}")
            on_replicas([ask(cursor, "SELECT @@port")[0][0]], "a read with attributes")
            cursor.clear_attributes()
        cursor.close()
    db.close()

    db = connect(**options)
    for cursor in db.cursor(), db.cursor(prepared=True):
        for n in range(10):
            cursor.add_attribute("trace", f"span {n}")
            cursor.add_attribute("number", n)
            # What reads attributes is a component's function: the primary is asked.
            [(trace, port)] = ask(cursor, READ)
            equal(trace, f"span {n}")
            on_primary([port], "a read of attributes")
            cursor.clear_attributes()
            equal(ask(cursor, READ)[0][0], None)
        cursor.close()
    prepared = db.cursor(prepared=True)
    for n in range(10):
        prepared.add_attribute("trace", f"prepared {n}")
        equal(ask(prepared, READ + ", %s + 1", (n,))[0][::2], (f"prepared {n}", n + 1))
        prepared.clear_attributes()
        equal(ask(prepared, READ + ", %s + 1", (n,))[0][::2], (None, n + 1))
    db.close()
