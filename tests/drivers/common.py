"""What every driver's script needs: where the proxy is, and which server a port belongs to."""

import os
import time

HOST = "127.0.0.1"
PORT = int(os.environ["POINTSMAN_PORT"])
USER = os.environ["POINTSMAN_USER"]
PASSWORD = os.environ["POINTSMAN_PASSWORD"]
DATABASE = os.environ["POINTSMAN_DATABASE"]
PRIMARY = int(os.environ["PRIMARY_PORT"])
REPLICAS = {int(port) for port in os.environ["REPLICA_PORTS"].split(",")}

DSN = f"host={HOST} port={PORT} user={USER} password={PASSWORD} dbname={DATABASE}"
URL = f"{USER}:{PASSWORD}@{HOST}:{PORT}/{DATABASE}"
# "postgresql" or "mysql", as the drivers' layers of Python call them.
ENGINE = os.environ["POINTSMAN_ENGINE"]
WHERE = {"postgresql": "SELECT inet_server_port()", "mysql": "SELECT @@port"}[ENGINE]


def on_primary(ports, what):
    """Fails unless every port is the primary's."""
    ports = list(ports)
    assert ports and set(ports) == {PRIMARY}, f"{what}: ran on {ports}, the primary is {PRIMARY}"


def on_replicas(ports, what):
    """Fails unless every port is a replica's."""
    ports = list(ports)
    assert ports and set(ports) <= REPLICAS, f"{what}: ran on {ports}, the replicas are {REPLICAS}"


def equal(left, right):
    assert left == right, f"{left!r} is not {right!r}"


def eventually(condition, what, seconds=15):
    """Waits until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)
