<?php
// mysqli over mysqlnd, as WordPress and Moodle use it: text, prepared statements, unbuffered results, several
// results, asynchronous queries, persistent connections, LOCAL INFILE.

require __DIR__ . '/common.php';

mysqli_report(MYSQLI_REPORT_ERROR | MYSQLI_REPORT_STRICT);

const WHERE = 'SELECT @@port';
const MANY = 'WITH RECURSIVE s AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM s WHERE n < 300)
    SELECT a.n, b.n, REPEAT("x", 50) FROM s a, s b WHERE b.n <= 30';

function connect(string $host = HOST, int $flags = 0, string $password = PASSWORD): mysqli
{
    $db = mysqli_init();
    $db->options(MYSQLI_OPT_LOCAL_INFILE, true);
    $db->real_connect($host, USER, $password, DATABASE, PORT, null, $flags);
    return $db;
}

function ask(mysqli $db, string $sql): mixed
{
    $result = $db->query($sql);
    $value = $result->fetch_row()[0];
    $result->free();
    return $value;
}

function fails(string $what, callable $action): void
{
    refused($what, fn ($error) => [$error->getCode(), $error->getSqlState(), $error->getMessage()], $action);
}

function text(): void
{
    $db = connect();
    on_replicas('reads', ...array_map(fn () => ask($db, WHERE), range(1, 20)));
    $db->query('CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, w VARCHAR(60), n INT UNIQUE, d DECIMAL(8, 2),
        at DATETIME, b MEDIUMBLOB) CHARACTER SET utf8mb4');
    $db->set_charset('utf8mb4');
    for ($n = 0; $n < 10; $n++) {
        $word = $db->real_escape_string("wörd's \"$n\" \\ \n\0");
        $db->query("INSERT INTO t (w, n) VALUES ('$word', $n)");
        told('inserted', $db->insert_id, $db->affected_rows, ask($db, 'SELECT COUNT(*) FROM t'));
        told('read back', ask($db, "SELECT w FROM t WHERE n = $n"), ask($db, 'SELECT LAST_INSERT_ID()'));
    }
    foreach (['UPDATE t SET w = "x" WHERE n < 3', 'UPDATE t SET w = "x" WHERE n < 4', 'REPLACE INTO t (id, n) VALUES (1, 3)',
        'INSERT INTO t (n) VALUES (5) ON DUPLICATE KEY UPDATE id = LAST_INSERT_ID(id)', 'INSERT INTO t (n) VALUES (50), (51)'] as $sql) {
        $db->query($sql);
        told('changed', $db->affected_rows, $db->insert_id, $db->info);
    }
    $db->query('INSERT IGNORE INTO t (id, n) VALUES (2, 2)');
    $warning = $db->get_warnings();
    told('warned', $db->warning_count, $warning->errno, $warning->message);
    $rows = $db->query('SELECT SQL_CALC_FOUND_ROWS n FROM t ORDER BY n LIMIT 2')->fetch_all();
    told('found', $rows, ask($db, 'SELECT FOUND_ROWS()'));
    told('session', ask($db, 'SELECT CONNECTION_ID()') == $db->thread_id, substr($db->stat(), 0, 6), $db->character_set_name());
    $db->select_db('information_schema');
    told('schema', ask($db, 'SELECT DATABASE()'));
    $db->select_db(DATABASE);
    foreach (['SELEC 1', 'SELECT * FROM nope', 'INSERT INTO t (n) VALUES (2)', 'CALL nope()', 'SELECT 1; SELECT 2'] as $sql) {
        fails('text', fn () => $db->query($sql));
    }
    $db->query('SET NAMES latin1');
    told('latin1', bin2hex(ask($db, 'SELECT w FROM t WHERE n = 6')));
    $db->close();
}

function prepared(): void
{
    $db = connect();
    $db->set_charset('utf8mb4');
    $insert = $db->prepare('INSERT INTO t (w, n, d, at, b) VALUES (?, ?, ?, ?, ?)');
    for ($n = 100; $n < 105; $n++) {
        [$word, $price, $at, $long] = ["prepared $n", '12.50', '2024-02-03 04:05:06', null];
        $insert->bind_param('sissb', $word, $n, $price, $at, $long);
        $insert->send_long_data(4, str_repeat('x', 100_000));
        $insert->send_long_data(4, 'end');
        $insert->execute();
        told('inserted', $insert->insert_id, $insert->affected_rows, ask($db, "SELECT LENGTH(b) FROM t WHERE n = $n"));
    }
    fails('prepared', function () use ($insert, $db) {
        [$word, $n, $none] = ['again', 100, null];
        $insert->bind_param('sissb', $word, $n, $none, $none, $none);
        $insert->execute();
    });
    fails('preparing', fn () => $db->prepare('SELECT * FROM nope WHERE n = ?'));

    $select = $db->prepare('SELECT w, n, d, at, NULL FROM t WHERE n >= ? ORDER BY n');
    $from = 100;
    $select->bind_param('i', $from);
    $select->execute();
    told('rows', $select->get_result()->fetch_all());
    $select->execute();
    $select->bind_result($word, $n, $price, $at, $null);
    while ($select->fetch()) {
        told('row', $word, $n, $price, $at, $null);
    }
    $select->execute();
    $select->store_result();
    $select->data_seek(3);
    $select->fetch();
    told('the fourth of', $select->num_rows, $word);
    $select->free_result();
    $select->execute();
    fails('out of sync', fn () => $db->query('SELECT 1'));
    $select->close();

    $cursor = $db->prepare('SELECT n FROM t ORDER BY n');
    $cursor->attr_set(MYSQLI_STMT_ATTR_CURSOR_TYPE, MYSQLI_CURSOR_TYPE_READ_ONLY);
    $cursor->execute();
    $cursor->bind_result($n);
    for ($sum = 0; $cursor->fetch(); $sum += $n);
    told('cursor', $sum);
    $db->close();

    $db = connect();
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    $where = $db->prepare('SELECT @@port + ? - ?');
    for ($n = 0; $n < 10; $n++) {
        $where->execute([$n, $n]);
        on_replicas('prepared reads', $where->get_result()->fetch_row()[0]);
    }
    $db->close();
}

function results(): void
{
    $db = connect();
    $result = $db->query(MANY, MYSQLI_USE_RESULT);
    for ($sum = 0; $row = $result->fetch_row(); $sum += $row[1]);
    told('unbuffered', $sum);
    $result = $db->query(MANY, MYSQLI_USE_RESULT);
    $result->fetch_row();
    fails('unread', fn () => $db->query('SELECT 1'));
    $result->free();

    $db->multi_query("SELECT 1; INSERT INTO t (n) VALUES (200); SELECT LAST_INSERT_ID() > 0; SELECT COUNT(*) FROM t");
    do {
        $result = $db->store_result();
        told('one of several', $result ? $result->fetch_all() : $db->affected_rows);
    } while ($db->more_results() && $db->next_result());
    fails('several', function () use ($db) {
        $db->multi_query('SELECT 1; SELECT nope; SELECT 3');
        $db->store_result();
        $db->next_result();
    });
    $db->query('CREATE PROCEDURE p(a INT, OUT b INT) BEGIN SELECT a; SELECT a + 1; SET b = a * 2; END');
    $db->multi_query('CALL p(7, @b); SELECT @b');
    do {
        $result = $db->store_result();
        told('called', $result ? $result->fetch_all() : null);
    } while ($db->more_results() && $db->next_result());
    told('compressed', strlen(ask(connect(HOST, MYSQLI_CLIENT_COMPRESS), 'SELECT REPEAT("abc", 100000)')));
    // It leaves in the middle of an answer.
    $db->query(MANY, MYSQLI_USE_RESULT)->fetch_row();
    $db->close();
}

function transactions(): void
{
    $db = connect();
    $db->begin_transaction();
    on_primary('a transaction', ask($db, WHERE));
    $db->query('INSERT INTO t (n) VALUES (300)');
    $db->savepoint('s');
    $db->query('DELETE FROM t');
    $db->query('ROLLBACK TO s');
    $db->commit();
    $db->autocommit(false);
    $db->query('DELETE FROM t');
    $db->rollback();
    $db->query('UPDATE t SET w = "kept" WHERE n = 300');
    $db->commit(MYSQLI_TRANS_COR_AND_CHAIN);
    $db->query('DELETE FROM t');
    $db->rollback();
    $db->autocommit(true);
    told('kept', ask($db, 'SELECT w FROM t WHERE n = 300'), ask($db, 'SELECT COUNT(*) FROM t'));
    $db->begin_transaction(MYSQLI_TRANS_START_READ_ONLY);
    fails('read only', fn () => $db->query('DELETE FROM t'));
    $db->commit(MYSQLI_TRANS_COR_RELEASE);
    fails('released', fn () => $db->query('SELECT 1'));

    $db = connect();
    soon_on_replicas('a read-only transaction', function () use ($db) {
        $db->begin_transaction(MYSQLI_TRANS_START_READ_ONLY);
        $ports = [ask($db, WHERE), ask($db, WHERE)];
        $db->commit();
        return $ports;
    });
    $db->close();
}

function sessions(): void
{
    $db = connect();
    $db->query('SET @x = 5, SESSION sql_mode = ""');
    $db->query('CREATE TEMPORARY TABLE own (n INT)');
    $db->change_user(USER, PASSWORD, DATABASE);
    told('changed user', $db->query('SELECT @x, @@sql_mode = "", CURRENT_USER()')->fetch_row());
    fails('changed user', fn () => $db->query('SELECT * FROM own'));
    for ($n = 0; $n < 3; $n++) {
        // It is the same connection: what was left open is undone, and what was set is gone.
        $db = connect('p:' . HOST);
        told('persistent', ask($db, 'SELECT @y'), ask($db, 'SELECT COUNT(*) FROM t'));
        $db->query("SET @y = $n, foreign_key_checks = 0");
        $db->begin_transaction();
        $db->query('DELETE FROM t');
        $db->close();
    }
    // Whoever comes next undoes it.
    connect('p:' . HOST)->close();
    $db = connect();
    told('checked', ask($db, '/* pointsman: primary */ SELECT @@foreign_key_checks'));
    fails('password', fn () => connect(HOST, 0, 'wrong'));
}

function asynchronous(): void
{
    $db = connect();
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    $waiting = [];
    for ($n = 0; $n < 4; $n++) {
        $waiting[] = $db = connect();
        $db->query('SELECT SLEEP(0.05), @@port', MYSQLI_ASYNC);
    }
    while ($waiting) {
        $ready = $failed = $rejected = array_values($waiting);
        if (!mysqli_poll($ready, $failed, $rejected, 10)) {
            throw new Exception('nothing came');
        }
        foreach ($ready as $db) {
            on_replicas('asynchronous reads', $db->reap_async_query()->fetch_row()[1]);
            unset($waiting[array_search($db, $waiting, true)]);
        }
    }
    [$db, $other] = [connect(), connect()];
    $db->query('SELECT SLEEP(20)', MYSQLI_ASYNC);
    usleep(200_000);
    $other->query("KILL QUERY {$db->thread_id}");
    $ready = $failed = $rejected = [$db];
    told('killed', mysqli_poll($ready, $failed, $rejected, 10));
}

function files(): void
{
    $db = connect();
    $file = tempnam(sys_get_temp_dir(), 'load');
    file_put_contents($file, implode('', array_map(fn ($n) => "row\t$n\n", range(1000, 5999))));
    $db->query("LOAD DATA LOCAL INFILE '$file' INTO TABLE t (w, n)");
    told('loaded', $db->affected_rows, $db->info, ask($db, 'SELECT COUNT(*) FROM t WHERE n >= 1000'));
    unlink($file);
    refused('no file', fn ($error) => $error->getCode(), fn () => $db->query("LOAD DATA LOCAL INFILE '$file' INTO TABLE t (w)"));
    told('goes on', ask($db, 'SELECT 1'));
}

text();
prepared();
results();
transactions();
sessions();
asynchronous();
files();
$db = connect();
$db->query('DROP PROCEDURE p');
$db->query('DROP TABLE t');
