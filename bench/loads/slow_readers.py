"""Requests pages of 1 000 keys on 400 connections, and reads 3 000 bytes of each every 10 s."""

import socket
import time

SECONDS = 30
CONNECTIONS = 400


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})
    status, _ = target.request("POST", "/v1/pools/load/keys", {"count": 10_000})
    assert status == 201, status


def attack(target):
    request = (f"GET /v1/pools/load/keys?limit=1000 HTTP/1.1\r\nHost: localhost\r\n{target.authorization}\r\n").encode()
    sockets = []
    for _ in range(CONNECTIONS):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            one.connect(("127.0.0.1", target.port))
            one.send(request * 4)
            one.setblocking(False)
            sockets.append(one)
        except OSError:
            one.close()
    open_at_end = len(sockets)
    while not target.has_ended():
        time.sleep(min(10, max(0, target.until - time.monotonic())))
        open_at_end = sum(still_open(one) for one in sockets)
    return f"{open_at_end} of {CONNECTIONS} connections are open at the end"


def still_open(one):
    try:
        return len(one.recv(3_000)) > 0
    except BlockingIOError:
        return True
    except OSError:
        return False
