<?php
// The pg_ functions over libpq: parameters, prepared statements, asynchronous queries, COPY, LISTEN, large
// objects, cursors, persistent connections.

require __DIR__ . '/common.php';

const WHERE = 'SELECT inet_server_port()';

function connect(string $more = '', string $how = 'pg_connect'): PgSql\Connection
{
    $login = 'host=' . HOST . ' port=' . PORT . ' user=' . USER . ' password=' . PASSWORD . ' dbname=' . DATABASE;
    return $how("$login $more", $how === 'pg_connect' ? PGSQL_CONNECT_FORCE_NEW : 0);
}

function ask(PgSql\Connection $db, string $sql, array $values = []): mixed
{
    return pg_fetch_result($values ? pg_query_params($db, $sql, $values) : pg_query($db, $sql), 0, 0);
}

/** Tells of everything that a query sent is answered with. */
function answers(PgSql\Connection $db): void
{
    while ($result = pg_get_result($db)) {
        $error = [PGSQL_DIAG_SQLSTATE, PGSQL_DIAG_MESSAGE_PRIMARY, PGSQL_DIAG_STATEMENT_POSITION];
        $error = array_map(fn ($field) => pg_result_error_field($result, $field), $error);
        told('answer', pg_result_status($result, PGSQL_STATUS_STRING), pg_fetch_all($result), $error);
    }
}

function queries(): void
{
    $db = connect();
    for ($n = 0; $n < 10; $n++) {
        on_replicas('reads', ask($db, WHERE), ask($db, WHERE . ' WHERE $1::int >= 0', [$n]));
    }
    told('server', pg_parameter_status($db, 'server_version'), pg_parameter_status($db, 'TimeZone'), pg_client_encoding($db));
    pg_query($db, 'CREATE TABLE t (id serial PRIMARY KEY, w text, n int UNIQUE, b bytea)');
    for ($n = 0; $n < 10; $n++) {
        $insert = 'INSERT INTO t (w, n, b) VALUES ($1, $2, $3) RETURNING inet_server_port(), id';
        $row = pg_fetch_row(pg_query_params($db, $insert, ["wörd's $n \\", $n, pg_escape_bytea($db, "a\0b\\'")]));
        on_primary('a write', $row[0]);
        told('inserted', $row[1], ask($db, 'SELECT count(*) FROM t'), ask($db, 'SELECT lastval()'));
        told('read back', ask($db, 'SELECT w FROM t WHERE n = $1', [$n]));
    }
    told('meta', array_keys(pg_meta_data($db, 't')), pg_select($db, 't', ['n' => 1]), pg_update($db, 't', ['w' => 'u'], ['n' => 1]));
    foreach (['SELEC 1', 'SELECT * FROM nope', 'INSERT INTO t (n) VALUES (1)', "INSERT INTO t (n) VALUES (50); SELECT count(*) FROM t; SELECT 'c'"] as $sql) {
        pg_send_query($db, $sql);
        answers($db);
    }
    pg_query($db, "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$");
    told('notices', pg_last_notice($db, PGSQL_NOTICE_ALL));
    // More than is gathered before it is passed on.
    $rows = implode(', ', array_map(fn ($n) => "('row $n', $n)", range(10_000, 30_000)));
    told('long', pg_affected_rows(pg_query($db, "INSERT INTO t (w, n) VALUES $rows")), strlen($rows) > 300_000);
    told('long', ask($db, "SELECT length('" . str_repeat('x', 2_000_000) . "')"), pg_query($db, 'DELETE FROM t WHERE n >= 10000') !== false);
}

function prepared(): void
{
    $db = connect();
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    pg_prepare($db, 'where', WHERE);
    for ($n = 0; $n < 10; $n++) {
        on_replicas('prepared reads', pg_fetch_result(pg_execute($db, 'where', []), 0, 0));
    }
    pg_prepare($db, 'insert', 'INSERT INTO t (w, n) VALUES ($1, $2) RETURNING n');
    pg_prepare($db, 'read', 'SELECT w FROM t WHERE n = $1');
    for ($n = 100; $n < 105; $n++) {
        told('inserted', pg_fetch_result(pg_execute($db, 'insert', ["prepared $n", $n]), 0, 0));
        told('read back', pg_fetch_result(pg_execute($db, 'read', [$n]), 0, 0));
    }
    told('taken', pg_prepare($db, 'read', 'SELECT 1'), pg_execute($db, 'nobodys', []), pg_execute($db, 'insert', ['a', 'b']));
    pg_query($db, 'DEALLOCATE read; PREPARE of_sql AS SELECT 5');
    told('of SQL', pg_execute($db, 'read', [1]), pg_fetch_result(pg_execute($db, 'of_sql', []), 0, 0), ask($db, 'EXECUTE of_sql'));
}

function asynchronous(): void
{
    $db = connect();
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    pg_send_query($db, 'SELECT inet_server_port(), pg_sleep(0.05)');
    on_replicas('an asynchronous read', pg_fetch_result(pg_get_result($db), 0, 0));
    answers($db);
    pg_send_query_params($db, 'INSERT INTO t (n) VALUES ($1) RETURNING n', [200]);
    answers($db);
    pg_send_prepare($db, 's', 'SELECT $1::text');
    answers($db);
    pg_send_execute($db, 's', ['x']);
    answers($db);
    pg_send_query($db, 'SELECT pg_sleep(20)');
    usleep(100_000);
    told('cancelled', pg_cancel_query($db), ask($db, 'SELECT 1'));
}

function copies(): void
{
    $db = connect();
    told('copied', pg_copy_from($db, 't', array_map(fn ($n) => "$n\trow\t$n\t\\N\n", range(1000, 3000))), count(pg_copy_to($db, 't')));
    pg_query($db, 'COPY t (w) FROM STDIN');
    pg_put_line($db, "a\nb\n\\.\n");
    told('lines', pg_end_copy($db), ask($db, "SELECT count(*) FROM t WHERE w IN ('a', 'b')"));
    told('refused', pg_copy_from($db, 't', ["x\ty\n"]), pg_copy_to($db, 'nope'), ask($db, 'SELECT 1'));
}

function sessions(): void
{
    for ($n = 0; $n < 3; $n++) {
        $db = connect('', 'pg_pconnect');
        told('persistent', ask($db, 'SHOW work_mem'));
        pg_query($db, "SET work_mem = '" . (5 + $n) . "MB'");
    }
    $db = connect("options='-c client_encoding=LATIN1 -c search_path=public'");
    told('options', pg_client_encoding($db), bin2hex(ask($db, 'SELECT w FROM t WHERE n = 4')), ask($db, 'SHOW search_path'));
    pg_set_client_encoding($db, 'UTF8');
    pg_query($db, 'SET DateStyle = German');
    told('set', ask($db, 'SELECT w FROM t WHERE n = 4'), pg_parameter_status($db, 'DateStyle'), ask($db, "SELECT '2024-02-03'::date"));
    pg_query($db, 'CREATE TEMP TABLE own (n int)');
    pg_query($db, 'DISCARD ALL');
    told('discarded', pg_query($db, 'SELECT * FROM own'), ask($db, 'SHOW DateStyle'));
    [$listener, $speaker] = [connect(), connect()];
    pg_query($listener, 'LISTEN news');
    pg_query_params($speaker, 'SELECT pg_notify($1, $2)', ['news', 'hear']);
    [$read, $write, $except] = [[pg_socket($listener)], [], []];
    stream_select($read, $write, $except, 10);
    $news = pg_get_notify($listener, PGSQL_ASSOC);
    told('heard', $news['message'], $news['payload']);
    told('wrong', @pg_connect('host=' . HOST . ' port=' . PORT . ' user=nobody password=x dbname=' . DATABASE));
}

function transactions(): void
{
    $db = connect();
    pg_query($db, 'BEGIN');
    on_primary('a transaction', ask($db, WHERE));
    pg_query($db, 'SAVEPOINT s');
    pg_query($db, 'SELECT 1/0');
    told('failed', pg_transaction_status($db), pg_query($db, 'SELECT 1'));
    pg_query($db, 'ROLLBACK TO s');
    told('goes on', pg_transaction_status($db));
    pg_query($db, 'DECLARE c SCROLL CURSOR WITH HOLD FOR SELECT n FROM t WHERE n < 10 ORDER BY n');
    told('fetched', pg_fetch_all_columns(pg_query($db, 'FETCH 3 FROM c')), pg_affected_rows(pg_query($db, 'MOVE 2 IN c')));
    pg_query($db, 'COMMIT');
    told('held', pg_fetch_all_columns(pg_query($db, 'FETCH BACKWARD 2 FROM c')), pg_transaction_status($db));
    pg_query($db, 'CLOSE c; BEGIN READ ONLY');
    told('read only', pg_query($db, 'DELETE FROM t'), pg_transaction_status($db));
    pg_query($db, 'ROLLBACK; BEGIN');
    $object = pg_lo_create($db);
    $handle = pg_lo_open($db, $object, 'w+');
    // By a call of a function that is longer than what is gathered of one.
    told('large object', pg_lo_write($handle, str_repeat('large', 40_000)), pg_lo_seek($handle, 5, PGSQL_SEEK_SET));
    told('large object', strlen(pg_lo_read($handle, 300_000)), pg_lo_close($handle), pg_lo_unlink($db, $object));
    pg_query($db, 'COMMIT');

    $db = connect();
    soon_on_replicas('a read-only transaction', function () use ($db) {
        pg_query($db, 'BEGIN READ ONLY');
        $ports = [ask($db, WHERE), ask($db, WHERE)];
        pg_query($db, 'COMMIT');
        return $ports;
    });
}

queries();
prepared();
asynchronous();
copies();
sessions();
transactions();
pg_query(connect(), 'DROP TABLE t');
