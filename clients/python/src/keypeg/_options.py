"""What a holder asks for: the options of a lease, and what its end means for the key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ._errors import InvalidInput, KeypegError, LeaseLost

RestOn = Mapping[type[BaseException], float | Callable[[Any], float | None]]
"""Seconds of rest by the type of the exception that left the block; a function computes them from
the exception, and returns `None` for no rest."""
QuarantineOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]
"""The types of the exceptions after which the key goes into quarantine, or a function that decides."""
OnLost = Literal["raise", "check"] | Callable[[LeaseLost], None]
"""What happens when the lease is lost; see `Client.lease`."""

REASON_MAX = 256
"""The longest reason of a release, in characters."""


@dataclass(frozen=True, slots=True)
class LeaseOptions:
    """The options of one lease; times in seconds."""

    pool: str
    wait: float = 0.0
    ttl: float | None = None
    holder: str | None = None
    on_lost: OnLost = "raise"
    rest_on: RestOn = field(default_factory=dict)
    quarantine_on: QuarantineOn = ()
    margin: float = 0.25
    keep_alive: bool = True
    on_retry: Callable[[KeypegError], None] | None = None

    def __post_init__(self) -> None:
        limits = (
            ("wait", self.wait, 0.0, 604_800.0),
            ("margin", self.margin, 0.0, 3_600.0),
            ("ttl", self.ttl, 0.001, 604_800.0),
        )
        for name, value, low, high in limits:
            if value is not None and not low <= value <= high:
                raise InvalidInput(f"{name} is {value!r}: use {low:g} to {high:g} seconds")
        if not callable(self.on_lost) and self.on_lost not in ("raise", "check"):
            raise InvalidInput(
                f'on_lost is {self.on_lost!r}: use "raise", "check" or a function that gets a LeaseLost'
            )

    def release_after(self, error: BaseException | None) -> dict[str, Any]:
        """Returns the release for the exception that left the block.

        The reason is the type of the exception: its words can contain a secret.
        """
        if error is None or isinstance(error, LeaseLost):
            return {}
        reason = type(error).__name__
        if self._is_quarantined(error):
            return release_body(quarantine=True, reason=reason)
        for kind, rest in self.rest_on.items():
            if isinstance(error, kind):
                seconds = rest(error) if callable(rest) else rest
                if seconds is not None:
                    return release_body(rest=seconds, reason=reason)
        return {}

    def _is_quarantined(self, error: BaseException) -> bool:
        on = self.quarantine_on
        if isinstance(on, type | tuple):
            return isinstance(error, on)
        return bool(on(error))


def release_body(
    rest: float | None = None, quarantine: bool = False, reason: str | None = None
) -> dict[str, Any]:
    """Returns the body of a release. A reason is cut to its limit, and its control characters are
    replaced, so that a release never fails for it."""
    body: dict[str, Any] = {}
    if rest is not None:
        body["rest_seconds"] = rest
    if quarantine:
        body["quarantine"] = True
    if reason:
        body["reason"] = "".join(sign if sign.isprintable() else "?" for sign in reason)[:REASON_MAX]
    return body
