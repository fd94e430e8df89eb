"""Opens connections as fast as it can, and sends nothing on them."""

import socket

TOKENS = True
SECONDS = 10
WORKERS = 2
OPEN_MAX = 6_000


def attack(target):
    opened = 0
    open_now = []
    while not target.has_ended():
        try:
            open_now.append(socket.create_connection((target.address, target.port), timeout=5))
            opened += 1
        except OSError:
            pass
        if len(open_now) > OPEN_MAX:
            open_now.pop(0).close()
    return f"{opened} silent connections opened"
