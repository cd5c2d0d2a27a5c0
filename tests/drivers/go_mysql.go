// go-sql-driver/mysql behind database/sql: prepared statements and interpolated ones, several statements, contexts
// that end, read-only transactions, LOCAL INFILE.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

const where = "SELECT @@port"

var ctx = context.Background()

func open(more string) *sql.DB {
	dsn := fmt.Sprintf("%s:%s@tcp(127.0.0.1:%s)/%s?parseTime=true%s", user, password, endpoint, database, more)
	db, err := sql.Open("mysql", dsn)
	must(err)
	return db
}

func said(err error) string {
	var ofServer *mysql.MySQLError
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &ofServer):
		return fmt.Sprint(ofServer.Number, " ", ofServer.Message)
	}
	return err.Error()
}

type querier interface {
	QueryRowContext(context.Context, string, ...interface{}) *sql.Row
}

func ask(db querier, sql string, args ...interface{}) (n int) {
	must(db.QueryRowContext(ctx, sql, args...).Scan(&n))
	return n
}

func statements(more string) {
	db := open(more)
	defer db.Close()
	db.SetMaxOpenConns(1)
	soonOnReplicas("reads behind writes", func() int { return ask(db, where) })
	for n := 0; n < 10; n++ {
		onReplicas("reads", ask(db, where))
		onReplicas("reads", ask(db, where+" + ? - ?", n, n))
	}
	_, err := db.Exec("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, w VARCHAR(60), n INT UNIQUE, b BLOB, at DATETIME(6)) CHARACTER SET utf8mb4")
	must(err)
	for n := 0; n < 10; n++ {
		at := time.Unix(1_700_000_000, 123_000).UTC()
		result, err := db.Exec("INSERT INTO t (w, n, b, at) VALUES (?, ?, ?, ?)", fmt.Sprintf("wörd's %d \\", n), n, []byte{0, 255}, at)
		must(err)
		id, _ := result.LastInsertId()
		count, _ := result.RowsAffected()
		told("inserted", id, count, ask(db, "SELECT COUNT(*) FROM t"), ask(db, "SELECT LAST_INSERT_ID()"))
	}
	rows, err := db.Query("SELECT id, w, b, at FROM t WHERE n < ? ORDER BY id", 3)
	must(err)
	for rows.Next() {
		var id int
		var word string
		var bytes []byte
		var at time.Time
		must(rows.Scan(&id, &word, &bytes, &at))
		told("row", id, word, bytes, at)
	}
	insert, err := db.Prepare("INSERT INTO t (w, n) VALUES (?, ?)")
	must(err)
	for n := 100; n < 110; n++ {
		_, err = insert.Exec("prepared", n)
		must(err)
	}
	_, err = insert.Exec("again", 100)
	told("error", said(err))
	for _, sql := range []string{"SELEC 1", "SELECT * FROM nope", "INSERT INTO t (n) VALUES (1)", "SELECT nope(1)"} {
		_, err := db.Exec(sql)
		told("error", said(err))
	}
	transactions(db)
	long := strings.Repeat("y", 300_000)
	told("long", ask(db, "SELECT LENGTH(?)", long), ask(db, "SELECT LENGTH('"+long+"')"))
	load(db)
	if strings.Contains(more, "multiStatements") {
		several(db)
	}
	var mode string
	must(db.QueryRow("SELECT CONCAT_WS(' ', @@sql_mode, @@time_zone)").Scan(&mode))
	told("set", mode)
	_, err = db.Exec("DROP TABLE t")
	must(err)
}

func transactions(db *sql.DB) {
	tx, err := db.Begin()
	must(err)
	onPrimary("a transaction", ask(tx, where))
	_, err = tx.Exec("INSERT INTO t (n) VALUES (?)", 200)
	must(err)
	must(tx.Commit())
	tx, err = db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelReadCommitted})
	must(err)
	told("read only", ask(tx, "SELECT COUNT(*) FROM t"))
	_, err = tx.Exec("DELETE FROM t")
	told("read only", said(err), said(tx.Rollback()))

	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(brief, "SELECT SLEEP(5)")
	told("ended", said(err), ask(db, "SELECT 1"))
	brief, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	tx, err = db.BeginTx(brief, nil)
	must(err)
	_, err = tx.Exec("INSERT INTO t (n) VALUES (300)")
	must(err)
	<-brief.Done()
	// The driver rolls it back by itself.
	told("expired", ask(db, "SELECT COUNT(*) FROM t WHERE n = 300"))
}

func load(db *sql.DB) {
	file, err := os.CreateTemp("", "load")
	must(err)
	defer os.Remove(file.Name())
	for n := 10_000; n < 15_000; n++ {
		fmt.Fprintf(file, "row\t%d\n", n)
	}
	must(file.Close())
	mysql.RegisterLocalFile(file.Name())
	result, err := db.Exec("LOAD DATA LOCAL INFILE '" + file.Name() + "' INTO TABLE t (w, n)")
	must(err)
	count, _ := result.RowsAffected()
	told("loaded", count, ask(db, "SELECT COUNT(*) FROM t"))
	_, err = db.Exec("LOAD DATA LOCAL INFILE '/nowhere' INTO TABLE t (w, n)")
	told("not loaded", err != nil, ask(db, "SELECT 1"))
}

func several(db *sql.DB) {
	rows, err := db.Query("SELECT 1; SELECT 2; INSERT INTO t (n) VALUES (400); SELECT COUNT(*) FROM t WHERE n = 400")
	must(err)
	for more := true; more; more = rows.NextResultSet() {
		for rows.Next() {
			var n int
			must(rows.Scan(&n))
			told("one of several", n)
		}
	}
	must(rows.Err())
	_, err = db.Exec("UPDATE t SET w = 'a' WHERE n = 1; SELEC")
	told("several", said(err))
}

func pool() {
	db := open("")
	defer db.Close()
	db.SetMaxOpenConns(8)
	_, err := db.Exec("CREATE TABLE t (n INT)")
	must(err)
	done := make(chan error)
	for n := 0; n < 40; n++ {
		go func(n int) {
			tx, err := db.Begin()
			must(err)
			_, err = tx.Exec("INSERT INTO t VALUES (?)", n)
			must(err)
			if n%4 == 0 {
				done <- tx.Rollback()
			} else {
				done <- tx.Commit()
			}
		}(n)
	}
	for n := 0; n < 40; n++ {
		must(<-done)
	}
	told("pool", ask(db, "SELECT COUNT(*) FROM t"))
	_, err = db.Exec("DROP TABLE t")
	must(err)
}

func main() {
	statements("")
	statements("&interpolateParams=true")
	statements("&multiStatements=true&clientFoundRows=true&collation=utf8mb4_unicode_ci")
	statements("&interpolateParams=true&sql_mode=%27ANSI_QUOTES%27&time_zone=%27%2B05:00%27")
	pool()
}
