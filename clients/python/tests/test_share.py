"""Many processes share few keys, while some of them and the server are killed."""

from __future__ import annotations

from conftest import Server
from share import Run, play


def test_no_two_workers_use_one_key_and_every_live_worker_finishes(server: Server) -> None:
    """The run of a minute, and how long keys are idle, is `just python-share`."""
    run = Run(workers=24, keys=4, seconds=4.0, hold=(0.05, 0.3), ttl=2.0, killed=4)
    result = play(server, run)
    assert result.overlaps == 0
    assert result.tokens_in_order
    assert result.finished == result.alive
    assert result.keys_used == 4
