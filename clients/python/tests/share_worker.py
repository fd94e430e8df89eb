"""The workers of `share.py`: one process imports the client once, and forks all of them.

Prints the process id of each worker, and then when the run ends; waits for all of them. The run begins
when each worker has reached the server, so that starting 200 processes is no part of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time

from keypeg import Client, LeaseLost, Unreachable


def work(url: str, directory: str, number: int, run: dict[str, float], gate: Gate) -> None:
    """Uses keys until the time has passed; writes down when."""
    hold = random.Random(run["seed"] * 1_000_003 + number)
    file = os.open(f"{directory}/{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def note(*row: object) -> None:
        os.write(file, (json.dumps(row) + "\n").encode())

    with Client(url) as client:
        client.version()
        stop_at = gate.wait() + run["seconds"]
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


class Gate:
    """Lets all workers begin at one time, which it passes on."""

    def __init__(self) -> None:
        self._ready = os.pipe()
        self._begin = os.pipe()

    def wait(self) -> float:
        """In a worker: waits until all are ready, and returns when the run began."""
        os.close(self._begin[1])
        os.write(self._ready[1], b".")
        return float(os.read(self._begin[0], 32))

    def open(self, workers: int) -> float:
        """Waits until the workers are ready; returns when the run begins."""
        os.close(self._ready[1])
        ready = 0
        while ready < workers:
            arrived = len(os.read(self._ready[0], workers))
            assert arrived > 0, "a worker ended before the run began"
            ready += arrived
        begin = time.monotonic()
        # Each worker reads one row of this length; a pipe passes so few bytes on in one piece.
        os.write(self._begin[1], f"{begin:<32}".encode() * workers)
        return begin


def main() -> None:
    """Forks the workers."""
    url, directory, text = sys.argv[1:]
    # Imports what the first call imports, once for all workers. No thread may run while they are forked.
    with Client("http://127.0.0.1:1") as client, contextlib.suppress(Unreachable):
        client.version()
    run = json.loads(text)
    gate = Gate()
    for number in range(run["workers"]):
        process = os.fork()
        if process == 0:
            work(url, directory, number, run, gate)
            os._exit(0)
        print(process, flush=True)
    print(gate.open(run["workers"]) + run["seconds"], flush=True)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main()
