# DBD::mysql and DBD::MariaDB, with statements prepared by the server and without: results that are stored and those
# that are not, transactions, several results, LOCAL INFILE, connections that come back.

use strict;
use warnings;
use FindBin;
use lib $FindBin::Bin;
use Told;
use DBI;
use File::Temp;

my ($driver) = @ARGV;
my $own = $driver eq 'MariaDB' ? 'mariadb_' : 'mysql_';
my $where = 'SELECT @@port';

sub connected {
    my ($more, %options) = @_;
    my $dsn = "dbi:$driver:database=$DATABASE;host=127.0.0.1;port=$PORT$more";
    return DBI->connect($dsn, $USER, $PASSWORD, { RaiseError => 1, PrintError => 0, AutoCommit => 1, %options });
}

sub statements {
    my ($db) = @_;
    soon_on_replicas('reads behind writes', sub { ask($db, $where) });
    on_replicas('reads', ask($db, $where), ask($db, "$where + ? - ?", $_, $_)) for 1 .. 10;
    $db->do('CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, w VARCHAR(60), n INT UNIQUE)');
    for my $n (0 .. 6) {
        $db->do('INSERT INTO t (w, n) VALUES (?, ?)', undef, "word's \\ $n", $n);
        told('inserted', $db->last_insert_id(undef, undef, undef, undef), ask($db, 'SELECT LAST_INSERT_ID()'));
        told('read back', ask($db, 'SELECT COUNT(*) FROM t'), ask($db, 'SELECT w FROM t WHERE n = ?', $n));
    }
    my $insert = $db->prepare('INSERT INTO t (w, n) VALUES (?, ?)');
    $insert->execute("prepared $_", 100 + $_) for 1 .. 5;
    refused('taken', sub { $insert->execute('again', 101) });
    refused('error', sub { ask($db, $_, 1) }) for 'SELEC ?', 'SELECT * FROM nope WHERE n = ?';
    my $select = $db->prepare('SELECT n, w FROM t WHERE n > ? ORDER BY n');
    for my $from (2, 4) {
        $select->execute($from);
        told('rows', $select->fetchall_arrayref);
    }
    told('changed', $db->do('UPDATE t SET w = ? WHERE n < 3', undef, 'u'), $db->{"${own}info"});
    told('table', map { $_->[3] } @{ $db->column_info(undef, $DATABASE, 't', '%')->fetchall_arrayref });
    told('session', $db->ping, $db->{"${own}thread_id"} == ask($db, 'SELECT CONNECTION_ID()'));
    my $many = $db->prepare('SELECT a.n FROM t a, t b, t c');
    $many->execute;
    my $sum = 0;
    while (my ($n) = $many->fetchrow_array) { $sum += $n }
    told('many', $sum);
}

sub transactions {
    my ($db) = @_;
    $db->begin_work;
    on_primary('a transaction', ask($db, $where));
    $db->do('DELETE FROM t');
    $db->rollback;
    $db->{AutoCommit} = 0;
    $db->do('DELETE FROM t WHERE n = 1');
    $db->commit;
    $db->do('DELETE FROM t');
    $db->rollback;
    $db->{AutoCommit} = 1;
    told('kept', ask($db, 'SELECT COUNT(*) FROM t'));
}

sub sessions {
    my $db = connected('', "${own}multi_statements" => 1);
    my $several = $db->prepare('SELECT 1; UPDATE t SET w = 1 WHERE n = 2; SELECT 2, 3');
    $several->execute;
    do { told('one of several', $several->{NUM_OF_FIELDS} ? $several->fetchall_arrayref : undef) } while $several->more_results;

    my $file = File::Temp->new;
    print $file "row\t$_\n" for 5000 .. 7999;
    $file->flush;
    $db = connected(";${own}local_infile=1");
    told('loaded', $db->do("LOAD DATA LOCAL INFILE '$file' INTO TABLE t (w, n)"), ask($db, 'SELECT COUNT(*) FROM t'));

    $db = connected(";${own}init_command=SET SESSION sql_mode='ANSI_QUOTES'");
    told('set', ask($db, 'SELECT @@sql_mode')) for 1 .. 3;

    $db = connected('', "${own}auto_reconnect" => 1);
    connected('')->do('KILL ' . $db->{"${own}thread_id"});
    told('came back', ask($db, 'SELECT 1'));
}

# DBD::MariaDB asks while rows of its own are unread.
my @ways = ({}, { "${own}server_prepare" => 1 });
push @ways, { mysql_use_result => 1 } if $driver eq 'mysql';
for my $options (@ways) {
    my $db = connected('', %$options);
    statements($db);
    transactions($db);
    sessions();
    $db->do('DROP TABLE t');
}
