"""Lets as many requests as possible wait for a key, each with a long holder."""

import json
import socket

SECONDS = 15
COUNT = 8_000


def prepare(target):
    target.request("PUT", "/v1/pools/load", {})


def attack(target):
    body = json.dumps({"holder": "ö" * 128, "wait_seconds": 60}).encode()
    request = (f"POST /v1/pools/load/leases HTTP/1.1\r\nHost: localhost\r\n{target.authorization}"
               f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n").encode() + body
    waiting = []
    while len(waiting) < COUNT and not target.has_ended():
        try:
            connection = socket.create_connection(("127.0.0.1", target.port), timeout=5)
            connection.sendall(request)
        except OSError:
            continue
        waiting.append(connection)
    target.keep = waiting
    return f"{len(waiting)} requests sent"
