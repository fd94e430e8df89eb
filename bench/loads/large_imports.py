"""Imports 8 MB of values that exist already, from 12 connections, without an end."""

import json

from compare import callers


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})


def attack(target):
    # The last value is refused, so every import costs its full check, and the pool stays empty.
    values = [f"{number:0>780}" for number in range(9_999)]
    body = json.dumps({"values": [*values, values[0]]}, separators=(",", ":")).encode()
    return callers.repeat(target, "POST", "/v1/pools/load/keys", body, connections=12)
