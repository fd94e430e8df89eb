"""Many processes share few keys, while some of them and the server are killed."""

from __future__ import annotations

import subprocess
import sys

from conftest import Proxy, Server, wait_for
from share import Run, play

from keypeg import Client


def test_no_two_workers_use_one_key_and_every_live_worker_finishes(server: Server) -> None:
    """The run of a minute, and how long keys are idle, is `just python-share`."""
    run = Run(workers=24, keys=4, seconds=4.0, hold=(0.05, 0.3), ttl=2.0, killed=4)
    result = play(server, run)
    assert result.overlaps == 0
    assert result.tokens_in_order
    assert result.finished == result.alive
    assert result.keys_used == 4


def test_a_waiter_that_is_killed_leaves_the_wait_queue_also_behind_a_proxy(
    server: Server, proxy: Proxy
) -> None:
    """A key that is handed to a process that has ended is idle for the time of a lease."""
    with Client(server.url) as client:
        client.put_pool("empty")
        code = f"from keypeg import Client; Client({proxy.url!r}).lease('empty', wait=600).acquire()"
        with subprocess.Popen([sys.executable, "-c", code]) as waiter:
            wait_for(lambda: client.pool("empty").waiting == 1, "the wait")
            waiter.kill()
        wait_for(lambda: client.pool("empty").waiting == 0, "the end of the wait")
