"""Pauses between attempts: each is about twice as long as the one before, up to a maximum.

Pauses never become shorter until an attempt succeeds. They vary at random, so that many clients of
a server that restarts do not all come back at one instant.
"""

from __future__ import annotations

import random


class Backoff:
    """The pauses of one series of attempts, in seconds."""

    def __init__(self, first: float, longest: float) -> None:
        self._first = min(first, longest)
        self._longest = longest
        self._next = self._first

    def pause(self, advice: float | None = None) -> float:
        """Returns the pause before the next attempt: at least the server's advice, up to 30 s."""
        pause = self._next * random.uniform(0.75, 1.0)
        self._next = min(self._next * 2, self._longest)
        return max(pause, min(advice or 0.0, 30.0))

    def reset(self) -> None:
        """Begins again with the first pause, after a success."""
        self._next = self._first
