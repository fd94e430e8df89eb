"""Repeats a request for 10 000 keys under one Idempotency-Key from 400 connections, without an end."""

from compare import callers


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None})


def attack(target):
    headers = "Idempotency-Key: load\r\n"
    return callers.repeat(target, "POST", "/v1/pools/load/keys", b'{"count":10000}', headers)
