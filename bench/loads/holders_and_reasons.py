"""Leases keys under holders of 128 characters, and quarantines some of them with reasons of 256 characters."""

import collections

SECONDS = 20
WORKERS = 2
HOLDER, REASON = "ö" * 128, "ö" * 256


def prepare(target):
    target.request("PUT", "/v1/pools/load", {"keepalive_ttl_seconds": None, "lease_ttl_seconds": 3600})
    for _ in range(20):
        target.request("POST", "/v1/pools/load/keys", {"count": 10_000})


def attack(target):
    seen = collections.Counter()
    while not target.has_ended():
        status, grant = target.request("POST", "/v1/pools/load/leases", {"holder": HOLDER})
        seen[f"acquire {status}"] += 1
        if status == 201 and seen["acquire 201"] % 2:
            path = f"/v1/pools/load/leases/{grant['id']}/release"
            status, _ = target.request("POST", path, {"quarantine": True, "reason": REASON})
            seen[f"release {status}"] += 1
    return ", ".join(f"{count} {what}" for what, count in sorted(seen.items()))
