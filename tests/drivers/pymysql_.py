"""PyMySQL: autocommit and transactions, several results, prepared procedures, LOAD DATA, KILL."""

import pymysql
from common import DATABASE, HOST, PASSWORD, PORT, USER, equal, eventually, on_primary, on_replicas

WHERE = "SELECT @@port"


def connect(**options):
    return pymysql.connect(host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, **options)


def ask(cursor, sql, arguments=None):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def autocommit():
    with connect(autocommit=True) as db, db.cursor() as cursor:
        on_replicas([ask(cursor, WHERE)[0][0] for _ in range(20)], "autocommit reads")
        cursor.execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(40), x INT)")
        for n in range(30):
            cursor.execute("INSERT INTO t (word, x) VALUES (%s, %s)", (f"wörd {n}", n))
            equal(cursor.lastrowid, n + 1)
            equal(ask(cursor, "SELECT COUNT(*) FROM t")[0][0], n + 1)
        equal(ask(cursor, "SELECT word FROM t WHERE x = %s", (7,)), (("wörd 7",),))
        cursor.executemany("INSERT INTO t (word) VALUES (%s)", [(str(n),) for n in range(100)])
        equal(ask(cursor, "SELECT COUNT(*) FROM t")[0][0], 130)
        equal(ask(cursor, "SELECT LAST_INSERT_ID() > 0")[0][0], 1)


def transactions():
    # autocommit is off: every statement begins a transaction.
    with connect() as db, db.cursor() as cursor:
        on_primary([ask(cursor, WHERE)[0][0] for _ in range(3)], "reads in a transaction")
        cursor.execute("INSERT INTO t (word) VALUES ('rolled back')")
        db.rollback()
        cursor.execute("INSERT INTO t (word) VALUES ('kept')")
        db.commit()
        equal(ask(cursor, "SELECT COUNT(*) FROM t WHERE word IN ('kept', 'rolled back')")[0][0], 1)


def several_results():
    with connect(autocommit=True, client_flag=pymysql.constants.CLIENT.MULTI_STATEMENTS) as db, db.cursor() as cursor:
        cursor.execute("CREATE PROCEDURE p(a INT) BEGIN SELECT a; SELECT a + 1, a + 2; END")
        cursor.callproc("p", (1,))
        equal(cursor.fetchall(), ((1,),))
        cursor.nextset()
        equal(cursor.fetchall(), ((2, 3),))
        cursor.execute("SELECT 1; SELECT 2")
        equal(cursor.fetchall(), ((1,),))
        cursor.nextset()
        equal(cursor.fetchall(), ((2,),))


def errors():
    with connect(autocommit=True) as db, db.cursor() as cursor:
        for sql, number in [("SELECT * FROM nope", 1146), ("SELEC 1", 1064), ("INSERT INTO t (id) VALUES (1)", 1062)]:
            try:
                cursor.execute(sql)
                raise AssertionError(f"{sql} did not fail")
            except pymysql.MySQLError as error:
                equal(error.args[0], number)
        equal(ask(cursor, "SELECT 1"), ((1,),))
        for password, database, number in [("wrong", DATABASE, 1045), (PASSWORD, "no_such_schema", 1049)]:
            try:
                pymysql.connect(host=HOST, port=PORT, user=USER, password=password, database=database)
                raise AssertionError("the login did not fail")
            except pymysql.MySQLError as error:
                equal(error.args[0], number)


def streams():
    with connect(autocommit=True, cursorclass=pymysql.cursors.SSCursor) as db, db.cursor() as cursor:
        cursor.execute("SELECT seq FROM seq_1_to_100000")
        equal(sum(row[0] for row in cursor), 5000050000)


def back_to_replicas():
    with connect(autocommit=True) as db, db.cursor() as cursor:
        primary = ask(cursor, "/* pointsman: primary */ SELECT @@port")[0][0]
        cursor.execute("INSERT INTO t (word) VALUES ('last')")
        eventually(lambda: ask(cursor, WHERE)[0][0] != primary, "reads after a write use replicas again")


autocommit()
transactions()
several_results()
errors()
streams()
back_to_replicas()
