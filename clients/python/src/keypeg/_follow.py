"""Following the events of pools: one stream for each pool in which a client holds leases.

A lease learns from the stream at once that it has ended. Each new connection and each `resync` asks
for renewals, which find what the stream missed. While a stream is not connected, the leases renew
often instead.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from . import _clock
from ._backoff import Backoff
from ._errors import KeypegError, LeaseEnd, Refused, Unauthorized, UnexpectedAnswer
from ._events import ENDS, Message, Parser, data_of, lease_end
from ._http import Http

if TYPE_CHECKING:
    from ._held import Held

log = logging.getLogger("keypeg")

RECONNECT = (0.1, 2.0)
"""The range of the pauses before a new connection, in seconds."""
LONG_PAUSE = 60.0
"""The pause after a refusal that rarely changes, such as a missing scope, or too many events."""
EVENTS_PER_SECOND_MAX = 500
"""More events per second than this cost a Python program more than the renewals that replace them."""


class Followers:
    """The event streams of one client, by pool."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self._pools: dict[str, _Follower] = {}

    def join(self, held: Held) -> None:
        """Follows the events of the lease's pool, if that is not so yet."""
        pool = held.grant.pool
        follower = self._pools.get(pool)
        if follower is None:
            follower = self._pools[pool] = _Follower(self._http, pool)
        if held not in follower.leases:
            follower.leases.add(held)

    def leave(self, held: Held) -> None:
        """Forgets the lease. The stream ends with the last lease of its pool."""
        pool = held.grant.pool
        follower = self._pools.get(pool)
        if follower is None:
            return
        follower.leases.discard(held)
        if not follower.leases:
            del self._pools[pool]
            follower.task.cancel()

    def is_following(self, held: Held) -> bool:
        """Returns whether the end of this lease would arrive as an event."""
        follower = self._pools.get(held.grant.pool)
        return follower is not None and follower.is_connected and held in follower.leases

    def wake_all(self) -> None:
        """Asks all leases with a stream for a renewal."""
        for follower in self._pools.values():
            follower.wake_all()


class _Follower:
    def __init__(self, http: Http, pool: str) -> None:
        self._http = http
        self._pool = pool
        self._last_id: str | None = None
        self.leases: set[Held] = set()
        self.is_connected = False
        self.task = asyncio.create_task(self._follow())

    def wake_all(self) -> None:
        for held in self.leases:
            held.wake()

    async def _follow(self) -> None:
        backoff = Backoff(*RECONNECT)
        while True:
            try:
                pause = await self._read(backoff)
            except Unauthorized:
                pause = backoff.pause()
            except UnexpectedAnswer as error:
                pause = backoff.pause() if error.is_temporary else LONG_PAUSE
            except Refused as error:
                is_lasting = 400 <= error.status < 500 and error.status != 408
                pause = LONG_PAUSE if is_lasting else backoff.pause(error.retry_after)
                log.info("pool %s: the events cannot be followed: %s", self._pool, error)
            except KeypegError:
                pause = backoff.pause()
            except (ValueError, KeyError, TypeError) as error:
                log.warning("pool %s: invalid event: %s", self._pool, error)
                pause = LONG_PAUSE
            if self.is_connected:
                self.is_connected = False
                # A renewal of each lease finds what the stream can have missed.
                self.wake_all()
            await asyncio.sleep(pause)

    async def _read(self, backoff: Backoff) -> float:
        """Reads a stream to its end; returns the pause before the next connection."""
        parser = Parser()
        second, count = _clock.now(), 0
        async with self._http.stream(f"/v1/pools/{self._pool}/events", self._last_id) as response:
            self.is_connected = True
            self.wake_all()
            async for chunk in response.aiter_raw():
                now = _clock.now()
                if now - second >= 1.0:
                    second, count = now, 0
                for message in parser.feed(chunk):
                    count += 1
                    self._last_id = message.id or self._last_id
                    self._on(message)
                backoff.reset()
                if count > EVENTS_PER_SECOND_MAX:
                    return LONG_PAUSE
        return backoff.pause()

    def _on(self, message: Message) -> None:
        if message.name == "resync":
            self.wake_all()
        elif message.name == "dropped":
            for held in list(self.leases):
                held.lose(LeaseEnd.POOL_DELETED)
        elif message.name in ENDS:
            data = data_of(message)
            for held in [held for held in self.leases if held.grant.key_id == data["key_id"]]:
                cause = lease_end(message.name, data, held.grant.fencing_token)
                if cause is not None:
                    held.lose(cause)
