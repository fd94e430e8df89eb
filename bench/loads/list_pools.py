"""Lists 9 900 pools (6 000 in a small control group) from 400 connections, without an end."""

from compare import callers


def prepare(target):
    # A small control group has room for fewer.
    for number in range(9_900 if target.memory is None or target.memory > 200 << 20 else 6_000):
        target.request("PUT", f"/v1/pools/load-{number}", {})


def attack(target):
    return callers.repeat(target, "GET", "/v1/pools")
