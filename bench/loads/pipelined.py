"""Pipelines requests on 400 connections for as long as the server reads them, and reads nothing."""

import selectors
import socket
import time

SECONDS = 15
CONNECTIONS = 400


def attack(target):
    requests = {
        "acquire": f"POST /v1/pools/no/leases HTTP/1.1\r\nHost: localhost\r\n{target.authorization}\r\n",
        "head": f"HEAD /livez HTTP/1.1\r\nHost: localhost\r\n{target.authorization}\r\n",
    }
    selector, sent = selectors.DefaultSelector(), 0
    for number in range(CONNECTIONS):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
        try:
            one.connect(("127.0.0.1", target.port))
        except OSError:
            continue
        one.setblocking(False)
        request = list(requests.values())[number % len(requests)].encode()
        # A whole number of requests; a partial send begins again in the middle of one at most.
        selector.register(one, selectors.EVENT_WRITE, [request * 100, 0])
    while not target.has_ended() and selector.get_map():
        for key, _ in selector.select(timeout=max(0.05, min(1, target.until - time.monotonic()))):
            data, offset = key.data
            try:
                length = key.fileobj.send(data[offset:])
                key.data[1] = (offset + length) % len(data)
                sent += length
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(key.fileobj)
    return f"{sent / (1 << 20):.0f} MiB of requests, {len(selector.get_map())} connections open at the end"
