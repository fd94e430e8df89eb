"""What a client has in its event loop: connections, leases, streams and the watch of the clock."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from . import _clock
from ._acquire import Acquire, SentGrant
from ._errors import InvalidInput, KeypegError, LeaseLost
from ._follow import Followers
from ._held import Held
from ._http import Http
from ._options import LeaseOptions
from ._settings import Settings

CLOSE_PATIENCE = 5.0
"""How long closing a client waits for the releases of its leases, in seconds."""
CLOCK_CHECK_EVERY = 0.5
"""The time between two comparisons of the clocks, which find a suspend of the machine."""


class Session:
    """The connections, leases and streams of a client in one event loop."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.http = Http(settings, timeout)
        self._followers = Followers(self.http)
        self._leases: set[Held] = set()
        self._acquiring: set[asyncio.Task[SentGrant]] = set()
        self._clock_task: asyncio.Task[None] | None = None
        self.pid = os.getpid()
        self.is_closed = False

    async def acquire(self, options: LeaseOptions, on_lost: Callable[[LeaseLost], None]) -> Held:
        """Acquires a key, and renews the lease from now on."""
        if self.is_closed:
            raise InvalidInput("this client is closed: create another one")
        acquire = Acquire(
            self.http,
            options.pool,
            ttl=options.ttl,
            holder=options.holder,
            wait=options.wait,
            on_retry=options.on_retry,
        )
        # A task of its own, so that closing the client can end it.
        task = asyncio.create_task(acquire.run())
        self._acquiring.add(task)
        try:
            sent = await task
        except asyncio.CancelledError:
            if self.is_closed:
                raise InvalidInput("this client was closed while it acquired a key") from None
            raise
        finally:
            self._acquiring.discard(task)
        self._leases = {held for held in self._leases if held.lost is None}
        if self._clock_task is None:
            self._clock_task = asyncio.create_task(self._watch_clock())
        held = Held(
            self.http,
            self._followers,
            sent,
            ttl=options.ttl,
            margin=options.margin,
            keep_alive=options.keep_alive,
            on_lost=on_lost,
        )
        self._leases.add(held)
        return held

    async def release(self, held: Held, body: dict[str, Any]) -> None:
        """Releases a lease; raises `LeaseLost` if it has ended before."""
        try:
            await held.release(body)
        finally:
            self._leases.discard(held)

    async def close(self) -> None:
        """Releases all leases, within `CLOSE_PATIENCE`, and closes the connections."""
        self.is_closed = True
        for task in self._acquiring:
            task.cancel()
        if self._acquiring:
            await asyncio.wait(self._acquiring, timeout=CLOSE_PATIENCE)
        if self._clock_task is not None:
            self._clock_task.cancel()
        releases = [asyncio.create_task(self.release(held, {})) for held in list(self._leases)]
        if releases:
            await asyncio.wait(releases, timeout=CLOSE_PATIENCE)
            for release in releases:
                if release.done():
                    # A lease that is lost or cannot be released ends by time.
                    with contextlib.suppress(KeypegError):
                        release.result()
                else:
                    release.cancel()
        await self.http.aclose()

    async def _watch_clock(self) -> None:
        """Asks for renewals after a suspend, during which the timers of the loop stood still."""
        offset = _clock.now() - time.monotonic()
        while True:
            await asyncio.sleep(CLOCK_CHECK_EVERY)
            present = _clock.now() - time.monotonic()
            if abs(present - offset) > 0.1:
                for held in list(self._leases):
                    held.wake()
            offset = present
