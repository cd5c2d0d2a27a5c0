<?php
// What every script in PHP needs: where the server or the proxy is, and which server a port belongs to. What
// a script prints has to be the same past the proxy and through it.

const HOST = '127.0.0.1';
define('PORT', (int) getenv('POINTSMAN_PORT'));
define('USER', getenv('POINTSMAN_USER'));
define('PASSWORD', getenv('POINTSMAN_PASSWORD'));
define('DATABASE', getenv('POINTSMAN_DATABASE'));
define('PRIMARY', (int) getenv('PRIMARY_PORT'));
define('REPLICAS', array_map('intval', explode(',', getenv('REPLICA_PORTS'))));

set_error_handler(function (int $level, string $text): bool {
    told('warning', $text);
    return true;
});

/** Prints what the driver was told, without what differs between any two connections. */
function told(string $what, mixed ...$values): void
{
    $line = $what . ' ' . json_encode($values, JSON_UNESCAPED_UNICODE | JSON_PARTIAL_OUTPUT_ON_ERROR);
    echo str_replace([(string) PORT, DATABASE], ['PORT', 'DATABASE'], $line), "\n";
}

/** Fails unless every port is the primary's. */
function on_primary(string $what, int ...$ports): void
{
    if (array_diff($ports, [PRIMARY])) {
        throw new Exception("$what: ran on " . implode(', ', $ports) . ', the primary is ' . PRIMARY);
    }
}

/** Fails unless every port is a replica's. */
function on_replicas(string $what, int ...$ports): void
{
    if (array_diff($ports, REPLICAS)) {
        throw new Exception("$what: ran on " . implode(', ', $ports) . ', the replicas are ' . implode(', ', REPLICAS));
    }
}

/** Waits until what an action asks is answered by replicas alone: they have to have what was written before. */
function soon_on_replicas(string $what, callable $ports): void
{
    for ($end = microtime(true) + 15; array_diff($seen = $ports(), REPLICAS);) {
        if (microtime(true) > $end) {
            on_replicas($what, ...$seen);
        }
        usleep(20_000);
    }
}

/** Tells of the error that an action ends with, by what `describe` makes of it. */
function refused(string $what, callable $describe, callable $action): void
{
    try {
        $action();
        told($what, 'no error');
    } catch (Exception $error) {
        told($what, $describe($error));
    }
}
