# ruby-pg: parameters, prepared statements, pipelines, COPY, single rows, cancelling, LISTEN, large objects.

require_relative 'common'
require 'pg'

WHERE = 'SELECT inet_server_port()'

def connect(**options)
  login = { host: HOST, port: PORT, user: USER, password: PASSWORD, dbname: DATABASE }
  PG.connect(**login, **options)
end

def ask(db, sql, values = [])
  (values.empty? ? db.exec(sql) : db.exec_params(sql, values)).getvalue(0, 0)
end

def statements
  db = connect
  10.times do |n|
    on_replicas 'reads', ask(db, WHERE), ask(db, "#{WHERE} WHERE $1::int >= 0", [n])
  end
  db.exec 'CREATE TABLE t (id serial PRIMARY KEY, w text, n int UNIQUE)'
  10.times do |n|
    id = ask(db, 'INSERT INTO t (w, n) VALUES ($1, $2) RETURNING id', ["wörd's #{n} \\", n])
    told 'inserted', id, ask(db, 'SELECT count(*) FROM t'), ask(db, 'SELECT w FROM t WHERE n = $1', [n]), ask(db, 'SELECT lastval()')
  end
  db.prepare 'read', 'SELECT w FROM t WHERE n = $1'
  told 'prepared', db.exec_prepared('read', [3]).values, db.describe_prepared('read').fields
  ['SELEC', 'SELECT * FROM nope', 'INSERT INTO t (n) VALUES (1)', 'EXECUTE nobodys'].each do |sql|
    refused('error') { db.exec sql }
  end
  db.transaction do
    on_primary 'a transaction', ask(db, WHERE)
    db.exec 'DELETE FROM t WHERE n = 3'
  end
  refused('undone') { db.transaction { db.exec 'DELETE FROM t'; raise 'on purpose' } }
  told 'kept', ask(db, 'SELECT count(*) FROM t')
end

def copies
  db = connect
  db.copy_data('COPY t (w, n) FROM STDIN') { 3000.times { |n| db.put_copy_data "row\t#{1000 + n}\n" } }
  rows = 0
  db.copy_data('COPY t TO STDOUT') { rows += 1 while db.get_copy_data }
  told 'copied', rows
  refused('copy') { db.copy_data('COPY t (w, n) FROM STDIN') { db.put_copy_data "row\t1\n"; raise 'on purpose' } }
  told 'goes on', ask(db, 'SELECT count(*) FROM t')
end

def asynchronous
  db = connect
  soon_on_replicas('reads behind writes') { ask(db, WHERE) }
  db.send_query 'SELECT inet_server_port(), pg_sleep(0.05)'
  on_replicas 'an asynchronous read', db.get_last_result.getvalue(0, 0)
  db.send_query 'SELECT generate_series(1, 5000)'
  db.set_single_row_mode
  rows = 0
  while (result = db.get_result)
    result.stream_each { rows += 1 }
  end
  told 'single rows', rows
  db.send_query 'SELECT pg_sleep(20)'
  sleep 0.1
  db.cancel
  refused('cancelled') { db.get_last_result }

  db.enter_pipeline_mode
  ['INSERT INTO t (n) VALUES (7000) RETURNING n', 'SELECT count(*) FROM t WHERE n = 7000'].each { |sql| db.send_query_params sql, [] }
  db.pipeline_sync
  ['SELECT 1/0', 'SELECT 2'].each { |sql| db.send_query_params sql, [] }
  db.pipeline_sync
  syncs = 0
  until syncs == 2
    refused('pipeline') do
      result = db.get_result
      syncs += 1 if result&.result_status == PG::PGRES_PIPELINE_SYNC
      told 'pipeline', result&.result_status, (result&.values if result&.result_status == PG::PGRES_TUPLES_OK)
    end
  end
  db.exit_pipeline_mode
  told 'goes on', ask(db, 'SELECT 1')
end

def sessions
  listener, speaker = connect, connect
  listener.exec 'LISTEN news'
  speaker.exec "NOTIFY news, 'hear'"
  listener.wait_for_notify(10) { |channel, _, payload| told 'heard', channel, payload }
  db = connect(application_name: 'ruby', options: '-c search_path=pg_catalog')
  db.exec 'SET search_path = public'
  db.reset
  told 'reset', ask(db, 'SHOW search_path'), ask(db, 'SHOW application_name')
  db.transaction do
    object = db.lo_creat
    handle = db.lo_open(object, PG::INV_READ | PG::INV_WRITE)
    told 'large object', db.lo_write(handle, 'x' * 200_000), db.lo_lseek(handle, 0, PG::SEEK_SET), db.lo_read(handle, 300_000).size
    db.lo_close handle
    db.lo_unlink object
  end
end

statements
copies
asynchronous
sessions
connect.exec 'DROP TABLE t'
