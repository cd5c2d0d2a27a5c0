"""One login by PyMySQL: port, user, password, schema and a statement; prints the first value."""

import sys

import pymysql

port, user, password, database, sql = sys.argv[1:]
try:
    db = pymysql.connect(host="127.0.0.1", port=int(port), user=user, password=password, database=database)
    with db, db.cursor() as cursor:
        cursor.execute(sql)
        print(cursor.fetchone()[0])
except pymysql.MySQLError as error:
    sys.exit(str(error))
