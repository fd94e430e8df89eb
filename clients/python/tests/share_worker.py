"""The workers of `share.py`: one process imports the client once, and forks all of them.

Prints when the run ends, and then the process id of each worker; waits for all of them.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

import httpx

from keypeg import Client, LeaseLost


def work(url: str, directory: str, number: int, run: dict[str, float], stop_at: float) -> None:
    """Uses keys until the time has passed; writes down when."""
    hold = random.Random(run["seed"] * 1_000_003 + number)
    file = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(*row: object) -> None:
        os.write(file, (json.dumps(row) + "\n").encode())

    with Client(url) as client:
        while True:
            try:
                with client.lease("shared", wait=600, ttl=run["ttl"], holder=f"worker {number}") as lease:
                    # Each row is a time at which the key was used: taken before the check, so that a
                    # worker that gets no processor for seconds does not count as one that uses a key.
                    used_at = time.monotonic()
                    lease.check()
                    note("use", lease.key_id, lease.fencing_token, used_at)
                    # After the end each waiter still gets its turn, and uses the key for a moment.
                    length = hold.uniform(run["hold_min"], run["hold_max"]) if used_at < stop_at else 0.0
                    last = used_at + length
                    while used_at < last:
                        time.sleep(min(0.1, max(0.0, last - used_at)))
                        used_at = time.monotonic()
                        lease.check()
                        note("used", used_at)
                note("released")
            except LeaseLost:
                note("lost")
            if time.monotonic() >= stop_at:
                break
    note("finished")


def main() -> None:
    """Forks the workers."""
    url, directory, text = sys.argv[1:]
    # Imports what the first client imports, once for all workers.
    httpx.AsyncClient(verify=False)
    run = json.loads(text)
    stop_at = time.monotonic() + run["seconds"]
    print(stop_at, flush=True)
    for number in range(run["workers"]):
        process = os.fork()
        if process == 0:
            work(url, directory, number, run, stop_at)
            os._exit(0)
        print(process, flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
