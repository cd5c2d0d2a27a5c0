"""A bare PostgreSQL client: SCRAM login and simple queries, cheap enough to open thousands of."""

import base64
import hashlib
import hmac
import os
import socket
import struct

READY = b"Z\x00\x00\x00\x05I"


class Connection:
    def __init__(self, address, user, password, database):
        host, port = address.rsplit(":", 1)
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.unread = b""
        options = f"user\0{user}\0database\0{database}\0\0".encode()
        self.socket.sendall(struct.pack("!ii", len(options) + 8, 196608) + options)
        self._log_in(password)

    def _log_in(self, password):
        while True:
            tag, body = self._receive()
            if tag == b"Z":
                return
            if tag == b"E":
                raise ConnectionError(body.decode(errors="replace"))
            if tag != b"R":
                continue
            kind = struct.unpack("!i", body[:4])[0]
            if kind == 10:
                self._scram(password)
            elif kind == 3:
                self._send(b"p", password.encode() + b"\0")
            elif kind != 0:
                raise ConnectionError(f"authentication {kind} is not for this client")

    def _scram(self, password):
        nonce = base64.b64encode(os.urandom(18)).decode()
        first = f"n=,r={nonce}"
        message = b"n,," + first.encode()
        self._send(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(message)) + message)
        challenge = self._challenge()
        fields = dict(field.split("=", 1) for field in challenge.split(","))
        salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(fields["s"]), int(fields["i"]))
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        last = f"c=biws,r={fields['r']}"
        signed = f"{first},{challenge},{last}".encode()
        signature = hmac.digest(hashlib.sha256(client_key).digest(), signed, "sha256")
        proof = bytes(a ^ b for a, b in zip(client_key, signature))
        self._send(b"p", f"{last},p={base64.b64encode(proof).decode()}".encode())
        self._challenge()

    def _challenge(self):
        tag, body = self._receive()
        if tag != b"R":
            raise ConnectionError(body.decode(errors="replace"))
        return body[4:].decode()

    def _send(self, tag, body):
        self.socket.sendall(tag + struct.pack("!i", len(body) + 4) + body)

    def _receive(self):
        while len(self.unread) < 5 or len(self.unread) <= struct.unpack("!i", self.unread[1:5])[0]:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("closed during the login")
            self.unread += data
        end = struct.unpack("!i", self.unread[1:5])[0] + 1
        message, self.unread = self.unread[:end], self.unread[end:]
        return message[:1], message[5:]

    def query(self, sql):
        """Runs one statement and returns how many bytes were answered."""
        self._send(b"Q", sql.encode() + b"\0")
        received, tail = 0, b""
        while tail[-6:] != READY:
            data = self.socket.recv(1 << 20)
            if not data:
                raise ConnectionError("closed in an answer")
            received += len(data)
            tail = (tail + data)[-6:]
        return received

    def close(self):
        try:
            self._send(b"X", b"")
        except OSError:
            pass
        self.socket.close()
