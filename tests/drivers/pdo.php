<?php
// PDO on both databases, as Laravel, Magento and Drupal use it: prepared statements that are emulated and those
// of the server, buffered and not, transactions, and what Laravel says when it connects.

require __DIR__ . '/common.php';

define('MYSQL', getenv('POINTSMAN_ENGINE') === 'mysql');
define('WHERE', MYSQL ? 'SELECT @@port' : 'SELECT inet_server_port()');

function connect(array $options = []): PDO
{
    $dsn = MYSQL ? 'mysql:charset=utf8mb4;' : 'pgsql:';
    $dsn .= 'host=' . HOST . ';port=' . PORT . ';dbname=' . DATABASE;
    return new PDO($dsn, USER, PASSWORD, $options + [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function ask(PDO $db, string $sql, array $values = []): mixed
{
    $statement = $db->prepare($sql);
    $statement->execute($values);
    $value = $statement->fetchColumn();
    $statement->closeCursor();
    return $value;
}

function fails(string $what, callable $action): void
{
    refused($what, fn ($error) => $error->errorInfo ?? $error->getMessage(), $action);
}

function statements(array $options): void
{
    $db = connect($options);
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    $sum = MYSQL ? ' + ? - ?' : ' + ?::int - ?::int';
    for ($n = 0; $n < 10; $n++) {
        on_replicas('reads', ask($db, WHERE), ask($db, WHERE . $sum, [$n, $n]));
    }
    $id = MYSQL ? 'INT AUTO_INCREMENT PRIMARY KEY' : 'serial PRIMARY KEY';
    $db->exec("CREATE TABLE t (id $id, w VARCHAR(60), n INT UNIQUE)");
    $insert = $db->prepare('INSERT INTO t (w, n) VALUES (:w, :n)');
    for ($n = 0; $n < 10; $n++) {
        $insert->bindValue(':w', "wörd's $n ? \\");
        $insert->bindValue(':n', $n, PDO::PARAM_INT);
        $insert->execute();
        told('inserted', $insert->rowCount(), $db->lastInsertId(), ask($db, 'SELECT COUNT(*) FROM t'));
        told('read back', ask($db, 'SELECT w FROM t WHERE n = ?', [$n]));
    }
    $select = $db->prepare('SELECT id, w, n, NULL AS x FROM t WHERE n > ? ORDER BY n');
    foreach ([3, 7] as $from) {
        $select->execute([$from]);
        told('rows', $select->fetchAll(PDO::FETCH_ASSOC));
    }
    foreach (['INSERT INTO t (n) VALUES (1)', 'SELECT * FROM nope', 'SELEC 1'] as $sql) {
        fails('error', fn () => ask($db, $sql));
    }
    transactions($db);
    $many = $db->query('SELECT a.n FROM t a, t b, t c, t d');
    for ($count = 0; $many->fetch(); $count++);
    told('many', $count);
    $many = null;
    if (MYSQL) {
        called($db);
    }
    $db->exec('DROP TABLE t');
}

function transactions(PDO $db): void
{
    $db->beginTransaction();
    on_primary('a transaction', ask($db, WHERE));
    $db->exec('DELETE FROM t WHERE n = 3');
    $db->exec('SAVEPOINT s');
    $db->exec('DELETE FROM t');
    $db->exec('ROLLBACK TO SAVEPOINT s');
    $db->commit();
    $db->beginTransaction();
    $db->exec('DELETE FROM t');
    $db->rollBack();
    told('kept', ask($db, 'SELECT COUNT(*) FROM t'), $db->inTransaction());
    $db->exec('START TRANSACTION READ ONLY');
    told('read only', ask($db, 'SELECT COUNT(*) FROM t'));
    fails('read only', fn () => $db->exec('DELETE FROM t'));
    $db->exec('ROLLBACK');
}

function called(PDO $db): void
{
    $db->exec('CREATE PROCEDURE p(a INT) BEGIN SELECT a; SELECT a + 1; END');
    $call = $db->prepare('CALL p(?)');
    $call->execute([3]);
    do {
        told('called', $call->columnCount() ? $call->fetchAll(PDO::FETCH_NUM) : null);
    } while ($call->nextRowset());
    $call = null;
    $db->exec('DROP PROCEDURE p');
}

/** What Laravel's connectors say first, and its habits. */
function laravel(): void
{
    $db = connect([PDO::ATTR_EMULATE_PREPARES => false]);
    $first = MYSQL
        ? ['use `' . DATABASE . '`', "set names 'utf8mb4' collate 'utf8mb4_unicode_ci'", "set time_zone='+05:00'",
            "set session sql_mode='ONLY_FULL_GROUP_BY,STRICT_TRANS_TABLES'",
            'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED']
        : ["set client_encoding to 'utf8'", 'set search_path to "public"', "set time zone 'Asia/Karachi'",
            "set application_name to 'l''aravel'",
            'set session characteristics as transaction isolation level read committed'];
    foreach ($first as $sql) {
        $db->prepare($sql)->execute();
    }
    soon_on_replicas('reads behind writes', fn () => [ask($db, WHERE)]);
    $says = MYSQL
        ? 'select concat_ws(" ", @@time_zone, @@collation_connection, @@sql_mode)'
        : "select concat_ws(' ', current_setting('timezone'), current_setting('application_name'))";
    for ($n = 0; $n < 5; $n++) {
        on_replicas('reads', ask($db, WHERE));
        told('set', ask($db, $says));
    }
    // Schema::withoutForeignKeyConstraints, in a test's or a seeder's first steps.
    if (MYSQL) {
        $db->exec('SET FOREIGN_KEY_CHECKS=0');
        $db->exec('CREATE TABLE a (id INT PRIMARY KEY)');
        $db->exec('CREATE TABLE b (a INT, FOREIGN KEY (a) REFERENCES a (id))');
        $db->exec('SET FOREIGN_KEY_CHECKS=1');
        $db = null;
        $db = connect();
        fails('a foreign key', fn () => $db->exec('INSERT INTO b VALUES (1)'));
        $db->exec('DROP TABLE b, a');
    }
    told('locks', ask($db, MYSQL ? "SELECT GET_LOCK('l', 0)" : 'SELECT pg_try_advisory_lock(7)'));
}

foreach ([true, false] as $emulate) {
    statements([PDO::ATTR_EMULATE_PREPARES => $emulate]);
    statements([PDO::ATTR_EMULATE_PREPARES => $emulate] + (MYSQL
        ? [PDO::MYSQL_ATTR_USE_BUFFERED_QUERY => false]
        : [PDO::PGSQL_ATTR_DISABLE_PREPARES => true]));
}
for ($n = 0; $n < 3; $n++) {
    $db = connect([PDO::ATTR_PERSISTENT => true]);
    told('persistent', ask($db, MYSQL ? 'SELECT @x' : 'SHOW work_mem'));
    $db->exec(MYSQL ? "SET @x = $n" : "SET work_mem = '" . (5 + $n) . "MB'");
    $db = null;
}
laravel();
