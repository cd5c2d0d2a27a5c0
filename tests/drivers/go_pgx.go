// pgx in its modes, its pool, and lib/pq behind database/sql: statement caches, batches, COPY, contexts that end,
// large objects, LISTEN.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgconn"
	"github.com/jackc/pgx/v4"
	"github.com/jackc/pgx/v4/pgxpool"
	_ "github.com/jackc/pgx/v4/stdlib"
	"github.com/lib/pq"
)

const where = "SELECT inet_server_port()"

var ctx = context.Background()

func dsn(more string) string {
	return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%s/%s?sslmode=disable%s", user, password, endpoint, database, more)
}

// What an error says, whichever driver it is of.
func said(err error) string {
	var ofPgx *pgconn.PgError
	var ofPq *pq.Error
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &ofPgx):
		return ofPgx.Code + " " + ofPgx.Message
	case errors.As(err, &ofPq):
		return string(ofPq.Code) + " " + ofPq.Message
	}
	return err.Error()
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...interface{}) pgx.Row
}

func ask(db querier, sql string, args ...interface{}) (n int) {
	must(db.QueryRow(ctx, sql, args...).Scan(&n))
	return n
}

func connect(more string, simple bool) *pgx.Conn {
	config, err := pgx.ParseConfig(dsn(more))
	must(err)
	config.PreferSimpleProtocol = simple
	db, err := pgx.ConnectConfig(ctx, config)
	must(err)
	return db
}

func execute(db *pgx.Conn, sql string, args ...interface{}) {
	_, err := db.Exec(ctx, sql, args...)
	must(err)
}

func ofPgx(more string, simple bool) {
	db := connect(more, simple)
	soonOnReplicas("reads behind writes", func() int { return ask(db, where) })
	for n := 0; n < 10; n++ {
		onReplicas("reads", ask(db, where))
		onReplicas("reads", ask(db, where+" WHERE $1::int >= 0", n))
	}
	execute(db, "CREATE TABLE t (id serial PRIMARY KEY, w text, n int UNIQUE, b bytea)")
	for n := 0; n < 10; n++ {
		var id, port int
		var word string
		insert := "INSERT INTO t (w, n, b) VALUES ($1, $2, $3) RETURNING id, inet_server_port()"
		row := db.QueryRow(ctx, insert, fmt.Sprintf("wörd's %d \\", n), n, []byte{0, 255})
		must(row.Scan(&id, &port))
		onPrimary("a write", port)
		must(db.QueryRow(ctx, "SELECT w FROM t WHERE n = $1", n).Scan(&word))
		told("inserted", id, ask(db, "SELECT count(*) FROM t"), word, ask(db, "SELECT lastval()"))
	}
	rows, err := db.Query(ctx, "SELECT id, w, b FROM t WHERE n < $1 ORDER BY id", 3)
	must(err)
	for rows.Next() {
		values, err := rows.Values()
		must(err)
		told("row", values...)
	}
	for _, sql := range []string{"SELEC", "SELECT * FROM nope", "INSERT INTO t (n) VALUES (1)", "SELECT 1/0"} {
		_, err := db.Exec(ctx, sql)
		told("error", said(err))
	}
	batches(db)
	copies(db)
	transactions(db)
	// What is described anew has other columns.
	for n := 0; n < 2; n++ {
		rows, err := db.Query(ctx, "SELECT * FROM t WHERE n = 5")
		must(err)
		for rows.Next() {
			values, err := rows.Values()
			told("columns", len(values), said(err))
		}
		told("described", said(rows.Err()))
		execute(db, "ALTER TABLE t ADD COLUMN IF NOT EXISTS late int")
	}
	long := strings.Repeat("y", 300_000)
	told("long", ask(db, "SELECT length($1::text)", long), ask(db, "SELECT length('"+long+"')"))
	execute(db, "DROP TABLE t")

	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err = db.Exec(brief, "SELECT pg_sleep(20)")
	told("ended", pgconn.Timeout(err), db.IsClosed())
}

func batches(db *pgx.Conn) {
	batch := &pgx.Batch{}
	for n := 100; n < 120; n++ {
		batch.Queue("INSERT INTO t (n) VALUES ($1)", n)
		batch.Queue("SELECT count(*) FROM t")
	}
	results := db.SendBatch(ctx, batch)
	for n := 0; n < 20; n++ {
		var count int
		tag, err := results.Exec()
		must(err)
		must(results.QueryRow().Scan(&count))
		told("batch", tag, count)
	}
	must(results.Close())
	batch = &pgx.Batch{}
	batch.Queue("INSERT INTO t (n) VALUES ($1)", 500)
	batch.Queue("SELECT 1/0")
	batch.Queue("INSERT INTO t (n) VALUES ($1)", 501)
	results = db.SendBatch(ctx, batch)
	for n := 0; n < 3; n++ {
		_, err := results.Exec()
		told("failing batch", said(err))
	}
	told("undone", said(results.Close()), ask(db, "SELECT count(*) FROM t WHERE n >= 500"))
}

func copies(db *pgx.Conn) {
	var rows [][]interface{}
	for n := 1000; n < 6000; n++ {
		rows = append(rows, []interface{}{"copied", n})
	}
	for _, table := range []string{"t", "t", "nope"} {
		count, err := db.CopyFrom(ctx, pgx.Identifier{table}, []string{"w", "n"}, pgx.CopyFromRows(rows))
		told("copy", count, said(err), ask(db, "SELECT count(*) FROM t"))
	}
}

func transactions(db *pgx.Conn) {
	tx, err := db.Begin(ctx)
	must(err)
	onPrimary("a transaction", ask(tx, where))
	_, err = tx.Exec(ctx, "DELETE FROM t WHERE n = $1", 3)
	must(err)
	savepoint, err := tx.Begin(ctx)
	must(err)
	_, err = savepoint.Exec(ctx, "SELECT 1/0")
	told("in a savepoint", said(err), said(savepoint.Rollback(ctx)))
	objects := tx.LargeObjects()
	number, err := objects.Create(ctx, 0)
	must(err)
	object, err := objects.Open(ctx, number, pgx.LargeObjectModeRead|pgx.LargeObjectModeWrite)
	must(err)
	count, err := object.Write([]byte(strings.Repeat("x", 200_000)))
	told("large object", count, said(err), said(objects.Unlink(ctx, number)))
	must(tx.Commit(ctx))
	for _, options := range []pgx.TxOptions{
		{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		{IsoLevel: pgx.Serializable, AccessMode: pgx.ReadOnly, DeferrableMode: pgx.Deferrable},
	} {
		tx, err = db.BeginTx(ctx, options)
		must(err)
		told("read only", ask(tx, "SELECT count(*) FROM t WHERE n < 10"))
		_, err = tx.Exec(ctx, "DELETE FROM t")
		told("read only", said(err), said(tx.Commit(ctx)))
	}
}

func ofPool() {
	pool, err := pgxpool.Connect(ctx, dsn("&pool_max_conns=8"))
	must(err)
	defer pool.Close()
	_, err = pool.Exec(ctx, "CREATE TABLE t (n int)")
	must(err)
	undo := errors.New("undo")
	done := make(chan error)
	for n := 0; n < 40; n++ {
		go func(n int) {
			done <- pool.BeginFunc(ctx, func(tx pgx.Tx) error {
				_, err := tx.Exec(ctx, "INSERT INTO t VALUES ($1)", n)
				if err == nil && n%4 == 0 {
					return undo
				}
				return err
			})
		}(n)
	}
	for n := 0; n < 40; n++ {
		if err := <-done; err != undo {
			must(err)
		}
	}
	told("pool", ask(pool, "SELECT count(*) FROM t"))
	_, err = pool.Exec(ctx, "DROP TABLE t")
	must(err)
}

func ofDatabase(driver, more string) {
	db, err := sql.Open(driver, dsn(more))
	must(err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	one := func(sql string, args ...interface{}) (n int) {
		must(db.QueryRow(sql, args...).Scan(&n))
		return n
	}
	soonOnReplicas("reads behind writes", func() int { return one(where) })
	for n := 0; n < 10; n++ {
		onReplicas("reads", one(where))
		onReplicas("reads", one(where+" WHERE $1::int >= 0", n))
	}
	_, err = db.Exec("CREATE TABLE t (id serial PRIMARY KEY, w text, n int UNIQUE)")
	must(err)
	insert, err := db.Prepare("INSERT INTO t (w, n) VALUES ($1, $2) RETURNING id")
	must(err)
	for n := 0; n < 5; n++ {
		var id int
		must(insert.QueryRow(fmt.Sprint("wörd ", n), n).Scan(&id))
		told("inserted", id, one("SELECT count(*) FROM t"), one("SELECT id FROM t WHERE n = $1", n))
	}
	_, err = insert.Exec("again", 1)
	told("error", said(err))
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	must(err)
	_, err = tx.Exec("DELETE FROM t")
	told("read only", said(err), said(tx.Rollback()))

	brief, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	_, err = db.ExecContext(brief, "SELECT pg_sleep(20)")
	told("ended", err != nil, one("SELECT 1"))
	brief, cancel = context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	tx, err = db.BeginTx(brief, nil)
	must(err)
	_, err = tx.Exec("INSERT INTO t (n) VALUES (60)")
	must(err)
	<-brief.Done()
	// The driver rolls it back by itself.
	told("expired", one("SELECT count(*) FROM t WHERE n = 60"))
	if driver == "postgres" {
		copyIn(db)
		told("copied", one("SELECT count(*) FROM t"))
	}
	_, err = db.Exec("DROP TABLE t")
	must(err)
}

func copyIn(db *sql.DB) {
	tx, err := db.Begin()
	must(err)
	rows, err := tx.Prepare(pq.CopyIn("t", "w", "n"))
	must(err)
	for n := 1000; n < 4000; n++ {
		_, err = rows.Exec("copied", n)
		must(err)
	}
	_, err = rows.Exec()
	must(err)
	must(rows.Close())
	must(tx.Commit())
}

func listeners() {
	listener := pq.NewListener(dsn(""), 10*time.Millisecond, time.Second, nil)
	must(listener.Listen("news"))
	speaker := connect("", false)
	execute(speaker, "SELECT pg_notify('news', $1)", "hear")
	select {
	case news := <-listener.Notify:
		told("heard", news.Channel, news.Extra)
	case <-time.After(10 * time.Second):
		panic("nothing was heard")
	}
	must(listener.Close())
}

func main() {
	ofPgx("", false)
	ofPgx("&statement_cache_mode=describe", false)
	ofPgx("&statement_cache_capacity=0", false)
	ofPgx("", true)
	ofPool()
	ofDatabase("pgx", "")
	ofDatabase("postgres", "")
	ofDatabase("postgres", "&binary_parameters=yes")
	listeners()
}
