# DBD::Pg, with statements prepared by the server and without: transactions, COPY, asynchronous queries, LISTEN,
# large objects, what it asks of the catalog.

use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Told;
use DBI;
use DBD::Pg qw(:async :pg_types);
use Time::HiRes qw(sleep);

my $where = 'SELECT inet_server_port()';

sub connected {
    my (%options) = @_;
    my $dsn = "dbi:Pg:dbname=$DATABASE;host=127.0.0.1;port=$PORT";
    return DBI->connect($dsn, $USER, $PASSWORD, { RaiseError => 1, PrintError => 0, AutoCommit => 1, %options });
}

sub statements {
    my ($db) = @_;
    soon_on_replicas('reads behind writes', sub { ask($db, $where) });
    my $prepared = $db->prepare("$where WHERE ?::int > 0");
    for my $n (1 .. 10) {
        on_replicas('reads', ask($db, $where), ask($db, "$where WHERE ?::int > 0", $n));
        $prepared->execute($n);
        on_replicas('prepared reads', $prepared->fetchrow_array);
    }
    $db->do('CREATE TABLE t (id serial PRIMARY KEY, w text, n int UNIQUE, b bytea, a int[])');
    for my $n (0 .. 6) {
        my $insert = 'INSERT INTO t (w, n, a) VALUES (?, ?, ?) RETURNING id, inet_server_port()';
        my ($id, $port) = $db->selectrow_array($insert, undef, "word's $n", $n, [1, $n]);
        on_primary('a write', $port);
        told('inserted', $id, ask($db, 'SELECT count(*) FROM t'), ask($db, 'SELECT w FROM t WHERE n = ?', $n));
        told('drawn', $db->last_insert_id(undef, undef, 't', undef));
    }
    my $insert = $db->prepare('INSERT INTO t (w, n, b) VALUES ($1, $2, $3)');
    $insert->bind_param(3, undef, { pg_type => PG_BYTEA });
    $insert->execute('prepared', 100 + $_, "\0\1'") for 1 .. 4;
    refused('taken', sub { $insert->execute('again', 101, undef) });
    refused('error', sub { $db->do($_) }) for 'SELEC', 'SELECT * FROM nope', 'SELECT 1/0';
    told('row', $db->selectrow_array('SELECT a, b, 1.5::float8, true FROM t WHERE n = 101'));
    told('table', map { $_->[3] } @{ $db->column_info(undef, 'public', 't', '%')->fetchall_arrayref });
    told('key', $db->primary_key(undef, 'public', 't'));
}

sub transactions {
    my ($db) = @_;
    $db->begin_work;
    on_primary('a transaction', ask($db, $where));
    $db->pg_savepoint('s');
    $db->do('DELETE FROM t');
    $db->pg_rollback_to('s');
    $db->commit;
    $db->{AutoCommit} = 0;
    $db->do('DELETE FROM t WHERE n = 1');
    $db->commit;
    $db->do('DELETE FROM t');
    $db->rollback;
    $db->{AutoCommit} = 1;
    told('kept', ask($db, 'SELECT count(*) FROM t'));
    $db->{ReadOnly} = 1;
    $db->begin_work;
    told('read only', ask($db, 'SELECT count(*) FROM t'));
    refused('read only', sub { $db->do('DELETE FROM t') });
    $db->rollback;
    $db->{ReadOnly} = 0;
    $db->begin_work;
    my $object = $db->pg_lo_creat($db->{pg_INV_WRITE} | $db->{pg_INV_READ});
    my $handle = $db->pg_lo_open($object, $db->{pg_INV_WRITE});
    told('large object', $db->pg_lo_write($handle, 'x' x 200_000, 200_000), $db->pg_lo_unlink($object));
    $db->commit;
}

sub streams {
    my ($db) = @_;
    $db->do('COPY t (w, n) FROM STDIN');
    $db->pg_putcopydata("row\t$_\n") for 1000 .. 2999;
    $db->pg_putcopyend;
    $db->do('COPY t TO STDOUT');
    my ($rows, $line) = (0);
    $rows++ while $db->pg_getcopydata($line) >= 0;
    told('copied', $rows);

    my $insert = $db->prepare('INSERT INTO t (n) VALUES (?)', { pg_async => PG_ASYNC });
    $insert->execute(7777);
    told('asynchronous', $db->pg_result, ask($db, 'SELECT count(*) FROM t WHERE n = 7777'));
    $db->do('SELECT pg_sleep(20)', { pg_async => PG_ASYNC });
    sleep 0.1;
    told('cancelled', $db->pg_cancel, ask($db, 'SELECT 1'));

    $db->do('LISTEN news');
    connected()->do("NOTIFY news, 'hear'");
    for (1 .. 200) {
        if (my $news = $db->pg_notifies) {
            told('heard', $news->[0], $news->[2]);
            last;
        }
        sleep 0.05;
    }
}

for my $by_server (0, 1) {
    my $db = connected(pg_server_prepare => $by_server);
    statements($db);
    transactions($db);
    streams($db);
    $db->do('DROP TABLE t');
}
