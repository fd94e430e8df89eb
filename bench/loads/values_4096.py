"""Imports values of 4 096 bytes into one pool until the time has passed."""

import random

WORKERS = 2
SECONDS = 20


def attack(target):
    pool = f"/v1/pools/load-{target.worker}"
    target.request("PUT", pool, {"keepalive_ttl_seconds": None})
    source = random.Random(target.worker)
    added, refusals = 0, {}
    while not target.has_ended():
        values = [f"{source.getrandbits(128):032x}" * 128 for _ in range(1_900)]
        status, answer = target.request("POST", f"{pool}/keys", {"values": values})
        if status == 201:
            added += len(values)
        else:
            code = (answer or {}).get("code", "no answer")
            refusals[code] = refusals.get(code, 0) + 1
    return f"{added} values of 4096 bytes, refused {refusals or 0}"
