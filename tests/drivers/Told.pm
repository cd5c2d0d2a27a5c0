package Told;

# What every script in Perl needs: where the server or the proxy is, and which server a port belongs to. What a
# script prints has to be the same past the proxy and through it.

use strict;
use warnings;
use Data::Dumper;
use Exporter 'import';
use Time::HiRes qw(sleep time);

our @EXPORT = qw($PORT $USER $PASSWORD $DATABASE told refused ask on_primary on_replicas soon_on_replicas);
our ($PORT, $USER, $PASSWORD, $DATABASE) = @ENV{map { "POINTSMAN_$_" } qw(PORT USER PASSWORD DATABASE)};
my %replicas = map { $_ => 1 } split /,/, $ENV{REPLICA_PORTS};

$Data::Dumper::Terse = $Data::Dumper::Sortkeys = 1;
$Data::Dumper::Indent = 0;
$| = 1;

# Prints what the driver was told, without what differs between any two connections.
sub told {
    my $line = Dumper(\@_);
    $line =~ s/$PORT/PORT/g;
    $line =~ s/$DATABASE/DATABASE/g;
    print "$line\n";
}

# Tells of the error that an action ends with.
sub refused {
    my ($what, $action) = @_;
    my $done = eval { $action->(); 1 };
    told($what, $done ? 'no error' : ($DBI::err, $DBI::state, $DBI::errstr));
}

# The first column of the first row.
sub ask {
    my ($db, $sql, @values) = @_;
    my ($value) = $db->selectrow_array($sql, undef, @values);
    return $value;
}

sub on_primary {
    my ($what, @ports) = @_;
    die "$what: ran on @ports, the primary is $ENV{PRIMARY_PORT}" if grep { $_ != $ENV{PRIMARY_PORT} } @ports;
}

sub on_replicas {
    my ($what, @ports) = @_;
    die "$what: ran on @ports, the replicas are $ENV{REPLICA_PORTS}" if grep { !$replicas{$_} } @ports;
}

# Waits until what is asked is answered by a replica: it has to have what was written before.
sub soon_on_replicas {
    my ($what, $port) = @_;
    my $limit = time + 15;
    while (!$replicas{my $seen = $port->()}) {
        on_replicas($what, $seen) if time > $limit;
        sleep 0.02;
    }
}

1;
