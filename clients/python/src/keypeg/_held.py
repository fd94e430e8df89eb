"""A lease that is held: its renewals, its keep-alives, and its end.

The lease ends here no later than on the server, because its time counts from the sending of the
request. A renewal that is not answered is repeated on another connection long before the end; one
that is refused is repeated with growing pauses. Two tasks for each lease, and at most four requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from . import _clock
from ._acquire import SentGrant
from ._backoff import Backoff
from ._errors import (
    KeypegError,
    LeaseEnd,
    LeaseEnded,
    LeaseLost,
    MaxHoldReached,
    Refused,
    UnknownKey,
    UnknownPool,
)
from ._follow import Followers
from ._http import Http
from ._models import Grant

log = logging.getLogger("keypeg")

CHECK_EVERY = 0.8
"""The time between renewals, in seconds, while the events of the pool are not followed."""
FOLLOW_AFTER = 2.0
"""The age at which a lease is worth an event stream; shorter leases only renew."""
RETRY = (0.01, 0.05, 5.0)
"""The minimum pause between attempts to renew, and the range of the maximum pause."""
ATTEMPTS_MAX = 4
"""The number of renewals without an answer, each on a connection of its own."""
ATTEMPT = (0.25, 10.0)
"""The range of the time after which a renewal without an answer is repeated."""
RELEASE_PATIENCE = 10.0
"""The time for which a release is repeated."""
RELEASE_PAUSE = 0.25
"""The pause between attempts to release."""
KEEP_ALIVE_FIRST = 2.0
"""The longest time before the first keep-alive; shorter leases send none."""


class Held:
    """A lease that was granted, from its grant to its release or its end."""

    def __init__(
        self,
        http: Http,
        followers: Followers,
        sent: SentGrant,
        *,
        ttl: float | None,
        margin: float,
        keep_alive: bool,
        on_lost: Callable[[LeaseLost], None],
    ) -> None:
        self.grant: Grant = sent.grant
        self._http = http
        self._followers = followers
        self._ttl = ttl
        self._on_lost = on_lost
        self._path = f"/v1/pools/{self.grant.pool}/leases/{self.grant.id}"
        self._length = self.grant.waited_seconds + self.grant.expires_in_seconds
        self.end = sent.sent_at + self._length
        """When the lease ends, as far as an answer has confirmed it, by `_clock`."""
        self._margin = min(margin, self._length / 4)
        self._granted_at = _clock.now()
        self.next_at = self._granted_at + min(CHECK_EVERY, self._length / 2)
        """When the next renewal is sent, by `_clock`."""
        self.lost: LeaseLost | None = None
        self._failure = (LeaseEnd.NOT_RENEWED, "the server did not answer")
        self.is_released = False
        """Whether the holder has ended the lease."""
        self._wake = asyncio.Event()
        self._is_ended = asyncio.Event()
        self._attempts: set[asyncio.Task[tuple[float, dict[str, Any]]]] = set()
        self._tasks = [asyncio.create_task(self._renew())]
        if keep_alive and self.grant.key_expires_at is not None:
            self._tasks.append(asyncio.create_task(self._keep_alive()))

    @property
    def usable_until(self) -> float:
        """Until when the key may be used, by `_clock`: the end of the lease less the margin."""
        return self.end - self._margin

    def check(self) -> LeaseLost | None:
        """Returns why the lease is lost, if it is: also if its time has passed just now. Safe in
        threads."""
        if self.lost is not None:
            return self.lost
        if not self.is_released and _clock.now() >= self.usable_until:
            return self._lost(*self._failure)
        return None

    def wake(self) -> None:
        """Asks for a renewal now: events may have been missed, or the clock has jumped."""
        self._wake.set()

    def lose(self, cause: LeaseEnd, detail: str = "") -> None:
        """Ends the lease, once, and reports it to its holder."""
        self._lose(self._lost(cause, detail))

    def _lose(self, lost: LeaseLost) -> None:
        if self.lost is not None or self.is_released:
            return
        self.lost = lost
        self._stop()
        self._is_ended.set()
        try:
            self._on_lost(lost)
        except Exception:
            log.exception("on_lost of a lease of pool %s failed", lost.pool)

    async def ended(self) -> None:
        """Waits until the lease is lost or released."""
        await self._is_ended.wait()

    def _lost(self, cause: LeaseEnd, detail: str) -> LeaseLost:
        grant = self.grant
        return LeaseLost(
            cause,
            detail,
            pool=grant.pool,
            key_id=grant.key_id,
            fencing_token=grant.fencing_token,
        )

    def _stop(self) -> None:
        self._followers.leave(self)
        current = asyncio.current_task()
        for task in (*self._tasks, *self._attempts):
            if task is not current:
                task.cancel()

    def _ends_by(self, error: KeypegError) -> bool:
        """Ends the lease if the refusal of a renewal or release says that it has ended."""
        match error:
            case LeaseEnded():
                cause = {
                    "released": LeaseEnd.RELEASED,
                    "expired": LeaseEnd.EXPIRED,
                    "superseded": LeaseEnd.EXPIRED,
                    "key_gone": LeaseEnd.KEY_GONE,
                }.get(str(error.members.get("cause")), LeaseEnd.REFUSED)
            case UnknownPool():
                cause = LeaseEnd.POOL_DELETED
            case UnknownKey():
                cause = LeaseEnd.KEY_GONE
            case _:
                return False
        self.lose(cause)
        return True

    def _pause(self) -> float:
        """Returns the time until the next renewal."""
        half = self._length / 2
        return half if self._followers.is_following(self) else min(CHECK_EVERY, half)

    async def _renew(self) -> None:
        try:
            await self._renew_until_the_end()
        except asyncio.CancelledError:
            raise
        except Exception:
            # The holder must not go on with a lease that is not renewed.
            log.exception("renewing a lease of pool %s failed", self.grant.pool)
            self.lose(LeaseEnd.NOT_RENEWED, "a defect of the client")

    async def _renew_until_the_end(self) -> None:
        backoff = self._retries()
        while True:
            now = _clock.now()
            if now >= self.usable_until:
                self.lose(*self._failure)
                return
            answered = await self._any_answer(min(self.next_at, self.usable_until) - now)
            now = _clock.now()
            is_woken = self._wake.is_set()
            self._wake.clear()
            if is_woken:
                self.next_at = now
            if answered is None:
                if now >= self.next_at:
                    if now - self._granted_at >= FOLLOW_AFTER:
                        self._followers.join(self)
                    # An earlier attempt may still be answered. It must not be waited for alone.
                    if len(self._attempts) < ATTEMPTS_MAX:
                        self._attempts.add(asyncio.create_task(self._attempt()))
                    self.next_at = now + min(max(self._length / 8, ATTEMPT[0]), ATTEMPT[1])
                continue
            self._attempts.discard(answered)
            try:
                sent_at, lease = answered.result()
                length = float(lease["expires_in_seconds"])
            except KeypegError as error:
                if self._ends_by(error):
                    return
                if isinstance(error, MaxHoldReached):
                    self._failure = (LeaseEnd.MAX_HOLD, "")
                    self.next_at = now + max(min(self._pause(), (self.end - now) / 2), RETRY[0])
                else:
                    self._failure = (LeaseEnd.NOT_RENEWED, str(error))
                    advice = error.retry_after if isinstance(error, Refused) else None
                    self.next_at = now + backoff.pause(min(advice or 0.0, self._length / 8))
                continue
            for attempt in self._attempts:
                attempt.cancel()
            self._attempts.clear()
            # An earlier renewal whose answer was lost can have moved the end further.
            self.end = max(self.end, sent_at + length)
            self._length = length
            backoff = self._retries()
            self._failure = (LeaseEnd.NOT_RENEWED, "the server did not answer")
            self.next_at = now if is_woken else now + self._pause()

    async def _any_answer(self, timeout: float) -> asyncio.Task[tuple[float, dict[str, Any]]] | None:
        """Waits for an answer to a renewal, a reason to renew, or the time."""
        wake = asyncio.create_task(self._wake.wait())
        try:
            done, _ = await asyncio.wait(
                {wake, *self._attempts},
                timeout=max(timeout, 0.0),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            wake.cancel()
        return next((task for task in self._attempts if task in done), None)

    async def _attempt(self) -> tuple[float, dict[str, Any]]:
        sent_at = _clock.now()
        body = {} if self._ttl is None else {"ttl_seconds": self._ttl}
        lease = await self._http.call("POST", f"{self._path}/renew", body)
        return sent_at, lease

    def _retries(self) -> Backoff:
        return Backoff(RETRY[0], min(max(self._length / 16, RETRY[1]), RETRY[2]))

    async def _keep_alive(self) -> None:
        """Keeps the key alive, so that it is not purged while it is used."""
        grant = self.grant
        assert grant.key_expires_at is not None
        # The server's clock at the grant, continued by ours: both clocks may differ in the date.
        answered_at = grant.expires_at.timestamp() - grant.expires_in_seconds
        remaining = grant.key_expires_at.timestamp() - answered_at
        pause = min(remaining * 2 / 5, KEEP_ALIVE_FIRST)
        backoff = Backoff(0.05, min(max(remaining / 20, 0.05), 10.0))
        path = f"/v1/pools/{grant.pool}/keys/{grant.key_id}/keepalive"
        while True:
            await asyncio.sleep(pause)
            age = _clock.now() - self._granted_at
            try:
                kept = await self._http.call("POST", path, is_repeatable=True)
            except KeypegError as error:
                if isinstance(error, UnknownKey | UnknownPool) and self._ends_by(error):
                    return
                log.info("pool %s: a keep-alive failed: %s", grant.pool, error)
                pause = backoff.pause(error.retry_after if isinstance(error, Refused) else None)
                continue
            if kept["expires_at"] is None:
                return
            backoff.reset()
            lives = datetime.fromisoformat(kept["expires_at"]).timestamp() - answered_at - age
            pause = max(lives * 2 / 5, 0.05)

    async def release(self, body: dict[str, Any]) -> None:
        """Releases the lease, and repeats that while no answer arrives or the server refuses for now.

        Raises `LeaseLost` if the lease had ended before.
        """
        if self.is_released:
            return
        lost = self.check()
        if lost is not None:
            self._lose(lost)
            # It may still run for the moment in which it was no longer safe to use.
            if _clock.now() < self.end and lost.cause in (LeaseEnd.MAX_HOLD, LeaseEnd.NOT_RENEWED):
                with contextlib.suppress(KeypegError, TimeoutError):
                    async with asyncio.timeout(self.end - _clock.now()):
                        await self._http.call("POST", f"{self._path}/release", body)
            raise self.lost or lost
        self._stop()
        try:
            await self._release(body)
        finally:
            self.is_released = True
            self._is_ended.set()

    async def _release(self, body: dict[str, Any]) -> None:
        deadline = min(self.end, _clock.now() + RELEASE_PATIENCE)
        may_be_released = False
        while True:
            words = "the server did not answer"
            try:
                async with asyncio.timeout(max(deadline - _clock.now(), 0.0)):
                    await self._http.call("POST", f"{self._path}/release", body)
                return
            except TimeoutError:
                pass
            except KeypegError as error:
                words = str(error)
                # A release whose answer was lost can have ended the lease.
                is_own = may_be_released and error_cause(error) == "released"
                if is_own:
                    return
                if self._ends_by(error):
                    assert self.lost is not None
                    raise self.lost from None
                if isinstance(error, Refused) and not error.is_temporary and error.status != 401:
                    if body:
                        # The rest or the reason is invalid: the key must not stay leased for that.
                        await self._release({})
                    raise
                may_be_released |= not isinstance(error, Refused)
            if _clock.now() + RELEASE_PAUSE >= deadline:
                log.warning(
                    "pool %s: cannot release key %s: %s; its lease will expire",
                    self.grant.pool,
                    self.grant.key_id,
                    words,
                )
                return
            await asyncio.sleep(RELEASE_PAUSE)

    def forget(self) -> None:
        """Stops renewing, and does not release: the lease ends by time."""
        self.is_released = True
        self._is_ended.set()
        self._stop()


def error_cause(error: KeypegError) -> str | None:
    """Returns why a lease has ended, in the word of the server."""
    return error.members.get("cause") if isinstance(error, LeaseEnded) else None
