"""mysql-connector-python: text and prepared statements, changes of user, resets, cursors."""

import mysql.connector
from common import DATABASE, HOST, PASSWORD, PORT, USER, equal, on_primary, on_replicas
from mysql.connector.network import NetworkBrokerCompressed

WHERE = "SELECT @@port"


def connect(**options):
    return mysql.connector.connect(
        host=HOST, port=PORT, user=USER, password=PASSWORD, database=DATABASE, use_pure=True, **options
    )


def ask(cursor, sql, arguments=()):
    cursor.execute(sql, arguments)
    return cursor.fetchall()


def prepared():
    db = connect(autocommit=True)
    cursor = db.cursor(prepared=True)
    on_replicas([ask(cursor, "SELECT @@port, ?", (n,))[0][0] for n in range(20)], "prepared reads")
    db.cursor().execute("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x INT, y TEXT)")
    for n in range(20):
        cursor.execute("INSERT INTO t (x, y) VALUES (?, ?)", (n, "y" * n))
        equal(cursor.lastrowid, n + 1)
        equal(ask(cursor, "SELECT y FROM t WHERE x = ?", (n,)), [("y" * n,)])
    db.close()


def many_statements_on_few_connections():
    sessions = [connect(autocommit=True) for _ in range(6)]
    cursors = [db.cursor(prepared=True) for db in sessions]
    for n in range(10):
        for number, cursor in enumerate(cursors):
            equal(ask(cursor, f"SELECT ? + {number}", (n,)), [(n + number,)])
    for db in sessions:
        db.close()


def transactions():
    db = connect()
    cursor = db.cursor()
    on_primary([ask(cursor, WHERE)[0][0] for _ in range(3)], "reads in a transaction")
    db.rollback()
    # Its own start_transaction(readonly=True) takes MariaDB for 5.5.5.
    cursor.execute("START TRANSACTION READ ONLY")
    ports = [ask(cursor, WHERE)[0][0] for _ in range(3)]
    equal(len(set(ports)), 1)
    db.rollback()
    db.close()


def changes_of_user():
    db = connect(autocommit=True)
    cursor = db.cursor()
    cursor.execute("SET @x = 5, SESSION wait_timeout = 77")
    db.cmd_reset_connection()
    equal(ask(db.cursor(), "SELECT @x"), [(None,)])
    db.cmd_change_user(USER, PASSWORD, DATABASE)
    equal(ask(db.cursor(), "SELECT DATABASE(), 1"), [(DATABASE, 1)])
    db.ping()
    try:
        db.cmd_change_user(USER, "wrong", DATABASE)
        raise AssertionError("a wrong password was taken")
    except mysql.connector.Error as error:
        equal(error.errno, 1045)


def compression():
    db = connect(autocommit=True, compress=True)
    assert isinstance(db._socket._netbroker, NetworkBrokerCompressed)
    cursor = db.cursor()
    on_replicas([ask(cursor, WHERE)[0][0] for _ in range(20)], "compressed reads")
    # Its reader puts a packet together from two frames, and not from more.
    long = " ".join(str(n * 7919) for n in range(20000))
    equal(ask(cursor, "SELECT %s", (long,)), [(long,)])
    equal(ask(db.cursor(prepared=True), "SELECT ?", (long,)), [(long,)])
    rows = ask(cursor, "SELECT seq FROM seq_1_to_20000")
    equal(sum(row[0] for row in rows), 200010000)
    db.close()


prepared()
many_statements_on_few_connections()
transactions()
changes_of_user()
compression()
