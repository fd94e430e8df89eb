"""Requests pages of 1 000 keys on 3 000 connections, and reads nothing."""

import asyncio
import socket

SECONDS = 15
CONNECTIONS = 3_000


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})
    status, _ = target.request("POST", "/v1/pools/load/keys", {"count": 10_000})
    assert status == 201, status


def attack(target):
    return asyncio.run(run(target))


async def run(target):
    request = (f"GET /v1/pools/load/keys?limit=1000 HTTP/1.1\r\nHost: localhost\r\n{target.authorization}\r\n").encode()
    # More than one, so that the answers do not fit into the load's own kernel buffers.
    sockets = [s for s in [await connect(target) for _ in range(CONNECTIONS)] if s]
    sent = 0
    for one in sockets:
        try:
            one.send(request * 4)
            sent += 1
        except OSError:
            pass
    await asyncio.sleep(max(0, target.until - asyncio.get_running_loop().time()))
    return f"{sent} connections"


async def connect(target):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.setblocking(False)
    try:
        await asyncio.wait_for(asyncio.get_running_loop().sock_connect(one, ("127.0.0.1", target.port)), 2)
    except OSError:
        one.close()
        return None
    return one
