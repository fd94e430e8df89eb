"""Lists 10 000 pools from 400 connections, without an end."""

from compare import callers

POOLS = 9_900


def prepare(target):
    for number in range(POOLS):
        target.request("PUT", f"/v1/pools/load-{number}", {})


def attack(target):
    return callers.repeat(target, "GET", "/v1/pools")
