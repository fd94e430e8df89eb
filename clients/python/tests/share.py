"""Many processes share few keys, while some of them and the server are killed.

Each worker writes down when it uses a key. The run passes if no two workers used one
key at the same time, the fencing tokens of each key grow, every worker that was not killed finished, and
the keys were idle for less than `--idle-max` per cent of the time. The times are those that the workers
see, so handing a key over counts as idle, and so does the time without a server in which a key cannot be
handed over. A key of a killed worker is not idle until its lease has ended.

`just python-share` runs it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import PATIENCE, Proxy, Server

from keypeg import Client

POOL = "shared"


@dataclass(frozen=True)
class Run:
    """What a run does; times in seconds."""

    workers: int = 200
    keys: int = 20
    seconds: float = 60.0
    hold: tuple[float, float] = (1.0, 3.0)
    ttl: float = 5.0
    killed: int = 20
    seed: int = 1


@dataclass(frozen=True)
class Result:
    """What a run found."""

    finished: int
    alive: int
    uses: int
    lost: int
    overlaps: int
    tokens_in_order: bool
    keys_used: int
    idle: float
    """The share of the time in which keys were not used and not leased by a killed worker."""
    length: float


def play(server: Server, run: Run) -> Result:
    """Plays a run."""
    dice = random.Random(run.seed)
    with Client(server.url) as client, tempfile.TemporaryDirectory() as directory:
        client.put_pool(POOL, lease_ttl_seconds=60, max_hold_seconds=3600, keepalive_ttl_seconds=None)
        client.generate(POOL, run.keys)
        proxy = Proxy(server.port)
        options = {
            "workers": run.workers,
            "seconds": run.seconds,
            "hold_min": run.hold[0],
            "hold_max": run.hold[1],
            "ttl": run.ttl,
            "seed": run.seed,
        }
        worker = str(Path(__file__).with_name("share_worker.py"))
        command = [sys.executable, worker, proxy.url, directory, json.dumps(options)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as workers:
            assert workers.stdout is not None
            processes = [int(workers.stdout.readline()) for _ in range(run.workers)]
            stop_at = float(workers.stdout.readline())
            begin = stop_at - run.seconds
            at = [begin + dice.uniform(0.3, 0.9) * run.seconds for _ in range(run.killed)]
            faults = list(zip(at, dice.sample(range(run.workers), run.killed), strict=True))
            killed_at: dict[int, float] = {}
            for when, victim in sorted([*faults, (begin + 0.5 * run.seconds, -1)]):
                time.sleep(max(0.0, when - time.monotonic()))
                if victim < 0:
                    proxy.upstream = None
                    server.kill()
                    proxy.cut()
                    server.start()
                    proxy.upstream = server.port
                else:
                    # On a slow machine it may have finished before.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(processes[victim], signal.SIGKILL)
                        killed_at[victim] = time.monotonic()
            try:
                workers.wait(run.seconds + PATIENCE * 4)
            finally:
                if workers.poll() is None:
                    for process in processes:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(process, signal.SIGKILL)
        proxy.close()
        return evaluate(Path(directory), run, killed_at, stop_at)


def evaluate(directory: Path, run: Run, killed_at: dict[int, float], stop_at: float) -> Result:
    """Computes the result from what the workers have written down."""
    # First and last time of use, fencing token, whether its worker was killed.
    spans: dict[str, list[list[float]]] = {}
    finished = lost = 0
    for number in range(run.workers):
        path = directory / str(number)
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for row in rows:
            if row[0] == "use":
                _, key, token, at = row
                spans.setdefault(key, []).append([at, at, token, False])
                span = spans[key][-1]
            elif row[0] == "used":
                span[1] = row[1]
            lost += row[0] == "lost"
            finished += row[0] == "finished" and number not in killed_at
        if number in killed_at and rows and rows[-1][0] in ("use", "used"):
            span[3] = True
    overlaps, idle, begin = 0, 0.0, min((span[0] for list_ in spans.values() for span in list_), default=0.0)
    tokens_in_order = True
    for list_ in spans.values():
        list_.sort()
        idle += list_[0][0] - begin
        for earlier, later in itertools.pairwise(list_):
            overlaps += earlier[1] > later[0]
            tokens_in_order &= earlier[2] < later[2]
            until = min(later[0], stop_at)
            # The lease of a killed worker runs on for its TTL at most.
            leased_until = earlier[1] + run.ttl if earlier[3] else earlier[1]
            idle += max(0.0, until - leased_until)
    return Result(
        finished=finished,
        alive=run.workers - len(killed_at),
        uses=sum(map(len, spans.values())),
        lost=lost,
        overlaps=overlaps,
        tokens_in_order=tokens_in_order,
        keys_used=len(spans),
        idle=100 * idle / (run.keys * (stop_at - begin)),
        length=stop_at - begin,
    )


def main() -> int:
    """Plays one run and prints its result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=Run.workers)
    parser.add_argument("--keys", type=int, default=Run.keys)
    parser.add_argument("--seconds", type=float, default=Run.seconds)
    parser.add_argument("--killed", type=int, default=Run.killed)
    parser.add_argument("--seed", type=int, default=Run.seed)
    parser.add_argument("--idle-max", type=float, default=2.0, help="in per cent of the time")
    given = parser.parse_args()
    run = Run(given.workers, given.keys, given.seconds, killed=given.killed, seed=given.seed)
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory))
        try:
            result = play(server, run)
        finally:
            server.kill()
    print(f"{result.finished} of {result.alive} live workers finished; {result.lost} leases lost")
    print(f"{result.uses} uses of {result.keys_used} keys in {result.length:.1f} s")
    print(f"{result.overlaps} overlaps; tokens in order: {result.tokens_in_order}; idle {result.idle:.2f} %")
    is_good = result.finished == result.alive and result.overlaps == 0 and result.tokens_in_order
    return 0 if is_good and result.idle < given.idle_max else 1


if __name__ == "__main__":
    sys.exit(main())
