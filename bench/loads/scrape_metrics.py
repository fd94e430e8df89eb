"""Scrapes the metrics of 9 900 pools from 400 connections without a token."""

from compare import callers

POOLS = 9_900


def prepare(target):
    for number in range(POOLS):
        target.request("PUT", f"/v1/pools/load-{number}", {})


def attack(target):
    return callers.repeat(target, "GET", "/metrics")
