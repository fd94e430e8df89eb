"""What a holder sees of its lease, the same for both clients. Sends nothing."""

from __future__ import annotations

import os
from datetime import datetime

from . import _clock
from ._errors import InvalidInput, LeaseLost
from ._held import Held
from ._models import Grant
from ._options import LeaseOptions


class LeaseView:
    """What a holder sees of its lease; the properties are the same for both clients."""

    _options: LeaseOptions
    _held: Held | None
    _pid: int

    @property
    def key(self) -> str:
        """The value of the key. Raises `LeaseLost` if the lease has ended."""
        self.check()
        return self._grant.key

    @property
    def key_id(self) -> str:
        """The public id of the key."""
        return self._grant.key_id

    @property
    def pool(self) -> str:
        """The pool of the key."""
        return self._options.pool

    @property
    def holder(self) -> str | None:
        """The holder, as the server shows it to others."""
        return self._grant.holder

    @property
    def fencing_token(self) -> int:
        """A number below 2^53 that increases with every grant of the server. A resource that stores
        the greatest token it has seen can refuse a holder whose lease has ended."""
        return self._grant.fencing_token

    @property
    def granted_at(self) -> datetime:
        """When the lease was granted, by the server's clock."""
        return self._grant.granted_at

    @property
    def remaining(self) -> float:
        """Seconds until which the key may be used if no further renewal succeeds, by the local
        clock; 0 after the end."""
        held = self._require()
        is_ended = held.lost is not None or held.is_released
        return 0.0 if is_ended else max(held.usable_until - _clock.now(), 0.0)

    @property
    def lost(self) -> LeaseLost | None:
        """Why the lease was lost; `None` while it is held, and after its release."""
        return None if self._held is None else self._held.check()

    @property
    def is_held(self) -> bool:
        """Whether the key may be used now."""
        held = self._held
        if held is None or self._pid != os.getpid():
            return False
        return not held.is_released and held.check() is None

    def check(self) -> None:
        """Raises `LeaseLost` if the lease has ended. Costs no request."""
        held = self._require()
        lost = held.check()
        if lost is not None:
            raise lost
        if held.is_released:
            raise InvalidInput("the lease was released: acquire another one")

    def _require(self) -> Held:
        if self._held is None:
            raise InvalidInput("the lease was not acquired yet: enter it with `with`")
        if self._pid != os.getpid():
            raise InvalidInput(
                f"the lease belongs to the process {self._pid}, from which this one was forked: "
                "acquire another one here"
            )
        return self._held

    @property
    def _grant(self) -> Grant:
        return self._require().grant

    def __repr__(self) -> str:
        held = self._held
        if held is None:
            return f"<{type(self).__name__} of pool {self._options.pool}, not acquired>"
        state = "held" if self.is_held else "lost" if held.lost else "ended"
        grant = held.grant
        return (
            f"<{type(self).__name__} of key {grant.key_id} in pool {grant.pool}, "
            f"fencing token {grant.fencing_token}, {state}>"
        )
