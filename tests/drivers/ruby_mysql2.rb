# mysql2 on MariaDB's C library: text, prepared statements, streams, several results, threads, LOCAL INFILE.

require_relative 'common'
require 'mysql2'
require 'tempfile'

WHERE = 'SELECT @@port'

def connect(**options)
  Mysql2::Client.new(host: HOST, port: PORT, username: USER, password: PASSWORD, database: DATABASE, **options)
end

def ask(db, sql)
  db.query(sql, as: :array).first.first
end

def statements
  db = connect
  20.times { on_replicas 'reads', ask(db, WHERE) }
  db.query 'CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, w VARCHAR(50), n INT UNIQUE, d DECIMAL(8, 2), at DATETIME(6)) CHARACTER SET utf8mb4'
  10.times do |n|
    db.query "INSERT INTO t (w, n) VALUES ('#{db.escape("wörd's #{n} \\")}', #{n})"
    told 'inserted', db.last_id, db.affected_rows, ask(db, 'SELECT COUNT(*) FROM t'), ask(db, "SELECT w FROM t WHERE n = #{n}"), ask(db, 'SELECT LAST_INSERT_ID()')
  end
  insert = db.prepare('INSERT INTO t (w, n, d, at) VALUES (?, ?, ?, ?)')
  3.times do |n|
    insert.execute "prepared #{n}", 100 + n, 1.25, Time.at(1_700_000_000, 123_456).utc
    told 'inserted', insert.last_id, insert.affected_rows, ask(db, 'SELECT COUNT(*) FROM t')
  end
  refused('prepared') { insert.execute 'again', 100, nil, nil }
  told 'rows', db.prepare('SELECT w, n, d, at FROM t WHERE n >= ? ORDER BY n').execute(100).to_a
  ['SELEC', 'SELECT * FROM nope', 'INSERT INTO t (n) VALUES (1)', 'SELECT 1; SELECT 2'].each { |sql| refused('error') { db.query sql } }
  db.query 'BEGIN'
  on_primary 'a transaction', ask(db, WHERE)
  db.query 'DELETE FROM t'
  db.query 'ROLLBACK'
  told 'kept', ask(db, 'SELECT COUNT(*) FROM t'), db.ping, db.thread_id == ask(db, 'SELECT CONNECTION_ID()')
  db.select_db 'information_schema'
  told 'schema', ask(db, 'SELECT DATABASE()')
end

def results
  db = connect
  many = 'SELECT a.n FROM t a, t b, t c'
  told 'streamed', db.query(many, stream: true, cache_rows: false).sum { |row| row['n'] }
  told 'streamed', db.prepare("#{many} WHERE a.n >= ?").execute(5, stream: true, cache_rows: false).sum { |row| row['n'] }
  db.query(many, stream: true, cache_rows: false).first
  refused('unread') { db.query 'SELECT 1' }

  db = connect(flags: Mysql2::Client::MULTI_STATEMENTS)
  told 'one of several', db.query('SELECT 1; UPDATE t SET w = "u" WHERE n = 1; SELECT w FROM t WHERE n = 1').to_a
  told 'one of several', db.store_result.to_a while db.next_result
  db.set_server_option Mysql2::Client::OPTION_MULTI_STATEMENTS_OFF
  refused('one only') { db.query 'SELECT 1; SELECT 2' }
  db = connect
  soon_on_replicas('reads behind writes') { ask(db, WHERE) }
  db.query 'SELECT SLEEP(0.05), @@port AS port', async: true
  on_replicas 'an asynchronous read', db.async_result.first['port']
  told 'threads', Array.new(5) { Thread.new { ask(connect, 'SELECT COUNT(*) FROM t') } }.map(&:value)
end

def sessions
  db = connect(init_command: "SET @@SESSION.sql_mode = 'ANSI_QUOTES', @a = 5", encoding: 'utf8mb4')
  3.times { told 'set', ask(db, 'SELECT CONCAT(@@sql_mode, " ", @a)'.tr('"', "'")), ask(db, 'SELECT "n" FROM t WHERE "n" = 2') }
  refused('too slow') { connect(read_timeout: 1).query('SELECT SLEEP(5)') }
  refused('password') { connect(password: 'wrong') }
  db = connect(local_infile: true)
  Tempfile.create do |file|
    file.write((1000...4000).map { |n| "row\t#{n}\n" }.join)
    file.flush
    db.query "LOAD DATA LOCAL INFILE '#{file.path}' INTO TABLE t (w, n)"
    told 'loaded', db.affected_rows, db.query_info, ask(db, 'SELECT COUNT(*) FROM t')
  end
end

statements
results
sessions
connect.query 'DROP TABLE t'
