"""mysqlclient (MySQLdb), on MariaDB's C library: what Django and many others use."""

import MySQLdb
from MySQLdb.cursors import SSCursor
from common import DATABASE, HOST, PASSWORD, PORT, USER, equal, eventually, on_primary, on_replicas, REPLICAS

WHERE = "SELECT @@port"


def connect(**options):
    return MySQLdb.connect(host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, **options)


def ask(cursor, sql, arguments=None):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def autocommit():
    db = connect(autocommit=True, charset="utf8mb4")
    cursor = db.cursor()
    on_replicas([ask(cursor, WHERE)[0][0] for _ in range(20)], "autocommit reads")
    cursor.execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(40), x INT)")
    for n in range(30):
        cursor.execute("INSERT INTO t (word, x) VALUES (%s, %s)", (f"wörd {n}", n))
        equal(cursor.lastrowid, n + 1)
        equal(db.insert_id(), n + 1)
        equal(ask(cursor, "SELECT COUNT(*) FROM t")[0][0], n + 1)
    equal(ask(cursor, "SELECT word FROM t WHERE x = %s", (7,)), (("wörd 7",),))
    equal(ask(cursor, "SELECT CONNECTION_ID()")[0][0], db.thread_id())
    db.ping()
    db.select_db("information_schema")
    equal(ask(cursor, "SELECT DATABASE()")[0][0], "information_schema")
    db.select_db(DATABASE)
    cursor.execute("INSERT IGNORE INTO t (id) VALUES (1)")
    equal(db.warning_count(), 1)
    equal(db.show_warnings()[0][1], 1062)
    cursor.execute("SELECT 1 / 0, COUNT(*) FROM t")
    equal(db.show_warnings()[0][1], 1365)
    equal(db.stat().startswith("Uptime"), True)
    db.close()


def transactions():
    db = connect()
    cursor = db.cursor()
    on_primary([ask(cursor, WHERE)[0][0] for _ in range(3)], "reads in a transaction")
    cursor.execute("INSERT INTO t (word) VALUES ('rolled back')")
    db.rollback()
    cursor.execute("INSERT INTO t (word) VALUES ('kept')")
    db.commit()
    equal(ask(cursor, "SELECT COUNT(*) FROM t WHERE word IN ('kept', 'rolled back')")[0][0], 1)
    db.close()


def results():
    db = connect(autocommit=True, cursorclass=SSCursor)
    cursor = db.cursor()
    cursor.execute("SELECT seq FROM seq_1_to_100000")
    equal(sum(row[0] for row in cursor), 5000050000)
    cursor.close()
    cursor = db.cursor()
    cursor.execute("SELECT 1; SELECT 2")
    equal(cursor.fetchall(), ((1,),))
    equal(cursor.nextset(), 1)
    equal(cursor.fetchall(), ((2,),))
    equal(cursor.nextset(), None)
    db.close()


def errors():
    db = connect(autocommit=True)
    cursor = db.cursor()
    for sql, number in [("SELECT * FROM nope", 1146), ("SELEC 1", 1064), ("INSERT INTO t (id) VALUES (1)", 1062)]:
        try:
            cursor.execute(sql)
            raise AssertionError(f"{sql} did not fail")
        except MySQLdb.Error as error:
            equal(error.args[0], number)
    equal(ask(cursor, "SELECT 1"), ((1,),))
    db.change_user(USER, PASSWORD, DATABASE)
    equal(ask(db.cursor(), "SELECT CURRENT_USER(), DATABASE()"), ((f"{USER}@%", DATABASE),))
    eventually(lambda: ask(db.cursor(), WHERE)[0][0] in REPLICAS, "a user's reads use replicas")
    db.close()


autocommit()
transactions()
results()
errors()
