"""Acquiring a key, with a wait of any length, over restarts of the server.

One Idempotency-Key covers the whole wait. Before the wait of a request ends, a repeat takes its
place in the wait queue, so the order of the waiters is kept; and an answer that was lost is
repeated, so no lease is left behind. The lease counts from the sending of the answered request.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import _clock
from ._address import segment
from ._backoff import Backoff
from ._errors import (
    KeypegError,
    KeysGone,
    LeaseEnded,
    NoKeyAvailable,
    Refused,
    Unauthorized,
    Unreachable,
    WaitEnded,
)
from ._http import Http, whole_seconds
from ._models import Grant

log = logging.getLogger("keypeg")

REQUEST_WAIT_MAX = 300.0
"""The longest wait that a server allows for one request, in seconds."""
REPEAT_AT = 0.8
"""The part of the wait of a request after which a repeat takes its place."""
PAUSE = (0.1, 5.0)
"""The range of the pauses between attempts that failed."""
GRACE = 0.05
"""How long the answer of the last request may be late before its outcome is asked for."""
SETTLE = 5.0
"""How long the outcome of an attempt is asked for after the wait."""
SETTLE_CANCELLED = 2.0
"""The same after a cancellation."""


@dataclass(frozen=True, slots=True)
class SentGrant:
    """A grant, and when the request that it answers was sent: the lease counts from there."""

    grant: Grant
    sent_at: float


def new_key() -> str:
    """Returns a unique Idempotency-Key."""
    return uuid.uuid4().hex


class Acquire:
    """One acquire: its requests share an Idempotency-Key and a body."""

    def __init__(
        self,
        http: Http,
        pool: str,
        *,
        ttl: float | None,
        holder: str | None,
        wait: float,
        on_retry: Callable[[KeypegError], None] | None = None,
        request_wait: float = REQUEST_WAIT_MAX,
        repeat_at: float = REPEAT_AT,
    ) -> None:
        self._http = http
        self._path = f"/v1/pools/{segment(pool)}/leases"
        self._pool = pool
        self._body: dict[str, Any] = {}
        if ttl is not None:
            self._body["ttl_seconds"] = ttl
        if holder is not None:
            self._body["holder"] = holder
        self._wait = wait
        self._request_wait = request_wait
        self._repeat_at = repeat_at
        self._on_retry = on_retry
        self._key = new_key()
        self._deadline = 0.0
        self.attempts = 0
        """How many requests were sent."""
        self._is_unsettled = False
        """Whether a request may have a grant whose answer did not arrive."""

    async def run(self) -> SentGrant:
        """Returns a grant; raises the refusal, or `WaitEnded` when the wait has ended.

        While the server cannot be reached or accepts no requests, the request is repeated until the
        wait ends. After a cancellation the grant that may exist is released.
        """
        self._deadline = _clock.now() + self._wait
        try:
            return await self._repeat()
        except BaseException as error:
            if self._is_unsettled:
                await self._abandon(SETTLE if isinstance(error, KeypegError) else SETTLE_CANCELLED)
            raise

    async def _repeat(self) -> SentGrant:
        backoff = Backoff(*PAUSE)
        was_accepted = False
        while True:
            token = self._http.settings.tokens.token()
            try:
                return await self._wait_once()
            except KeypegError as raised:
                error = raised
            if isinstance(error, NoKeyAvailable) and error.is_temporary:
                was_accepted = True
                backoff.reset()
            elif isinstance(error, LeaseEnded | KeysGone):
                # The answer was lost, and its lease has ended since.
                self._key = new_key()
            elif isinstance(error, Unauthorized):
                if self._http.settings.tokens.refresh(token):
                    continue
                # A token that was never accepted is a mistake; another one is being replaced.
                if not was_accepted:
                    raise error
            elif not error.is_temporary:
                raise error
            pause = backoff.pause(error.retry_after if isinstance(error, Refused) else None)
            if _clock.now() + pause >= self._deadline:
                return await self._end(error)
            if not isinstance(error, NoKeyAvailable):
                log.info("pool %s: %s; the request for a key is repeated", self._pool, error)
                if self._on_retry is not None:
                    self._on_retry(error)
            await asyncio.sleep(pause)

    async def _end(self, error: KeypegError) -> SentGrant:
        """Ends the wait: returns the grant whose answer was lost, if there is one, or raises."""
        if self._is_unsettled:
            try:
                async with asyncio.timeout(SETTLE):
                    return await self._settle()
            except TimeoutError:
                pass
            except KeypegError as last:
                error = last if isinstance(last, NoKeyAvailable) else error
            self._is_unsettled = False
        raise WaitEnded(self._wait, error) if self._wait > 0 else error

    async def _wait_once(self) -> SentGrant:
        """Waits in the queue, and keeps the place there with repeats, until a request fails or a key
        is granted."""
        waiting = self._start()
        try:
            while True:
                sent_at = _clock.now()
                remaining = self._deadline - sent_at
                wait = min(self._request_wait, max(remaining, 0.0))
                is_last = wait >= remaining
                pause = wait * self._repeat_at
                if is_last:
                    # A call that does not wait is limited by its own timeout.
                    pause = remaining + GRACE if self._wait > 0 else self._http.timeout * 2
                done, _ = await asyncio.wait({waiting}, timeout=pause)
                if done:
                    return waiting.result()
                repeat = self._start()
                try:
                    await asyncio.wait({waiting, repeat}, return_when=asyncio.FIRST_COMPLETED)
                    # An error of the first is usual: the server gives its place to the repeat.
                    if waiting.done() and not waiting.cancelled() and not waiting.exception():
                        return waiting.result()
                    if not repeat.done() and is_last:
                        await asyncio.wait({repeat}, timeout=SETTLE)
                        if not repeat.done():
                            raise Unreachable("the server did not answer in time", was_sent=True)
                finally:
                    await _drop(waiting)
                    waiting = repeat
                if repeat.done():
                    return repeat.result()
        finally:
            await _drop(waiting)

    def _start(self) -> asyncio.Task[SentGrant]:
        remaining = self._deadline - _clock.now()
        wait = whole_seconds(min(self._request_wait, max(remaining, 0.0)))
        return asyncio.create_task(self._send(wait))

    async def _send(self, wait: int) -> SentGrant:
        sent_at = _clock.now()
        was_unsettled, self._is_unsettled = self._is_unsettled, True
        self.attempts += 1
        attempt = self.attempts
        try:
            answer = await self._http.call("POST", self._path, self._body, wait=wait, key=self._key)
        except Refused as error:
            # Only a defect leaves the outcome open. The place of an earlier attempt belongs to the
            # last one, so the refusal of the last one settles all.
            if error.outcome != "unknown" and attempt == self.attempts:
                self._is_unsettled = False
            raise
        except Unreachable as error:
            if not error.was_sent and attempt == self.attempts:
                self._is_unsettled = was_unsettled
            raise
        return SentGrant(Grant.of(answer), sent_at)

    async def _settle(self) -> SentGrant:
        """Asks for the outcome: a repeat that does not wait gets the grant that exists, or takes the
        place in the wait queue and leaves it."""
        while True:
            try:
                return await self._send(0)
            except Refused as error:
                if not error.is_temporary or isinstance(error, NoKeyAvailable):
                    raise
            except Unreachable:
                pass
            await asyncio.sleep(0.1)

    async def _abandon(self, patience: float) -> None:
        """Releases the grant of an answer that did not arrive, if there is one."""

        async def release() -> None:
            sent = await self._settle()
            await self._http.call("POST", f"{self._path}/{sent.grant.id}/release", is_repeatable=True)

        try:
            # The caller is being cancelled: a second cancellation ends this, too.
            async with asyncio.timeout(patience):
                await release()
        except (KeypegError, TimeoutError):
            pass
        self._is_unsettled = False


async def _drop(task: asyncio.Task[SentGrant]) -> None:
    """Ends a request whose answer is not needed: the server gives its place to a repeat."""
    if task.done():
        if not task.cancelled():
            task.exception()
        return
    task.cancel()
    await asyncio.wait({task})
