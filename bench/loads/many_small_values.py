"""Imports bodies of 8 MiB with many wrong values, and bodies with 10 000 small values, on many connections at once."""

import collections
import threading

SECONDS = 15
THREADS = 16


def attack(target):
    wrong = b'{"values":[' + b",".join([b'{"":0}'] * 1_190_000) + b"]}"
    seen, lock = collections.Counter(), threading.Lock()

    def send(number):
        added = 0
        while not target.has_ended():
            if number % 2:
                status, _ = target.request("POST", "/v1/pools/default/keys", wrong)
            else:
                values = [f"{number}-{added}-{value}" for value in range(10_000)]
                status, _ = target.request("POST", "/v1/pools/default/keys", {"values": values})
            added += 1
            with lock:
                seen[status] += 1

    threads = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.1, target.seconds + 1))
    return ", ".join(f"{count} × {status}" for status, count in sorted(seen.items()))
