"""What the server answers, as frozen data classes. Instants are aware datetimes in UTC.

Members that this version does not know are left out, so a newer server works too. The value of a
key and the id of a lease are not in the `repr`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

KeyState = Literal["available", "leased", "resting", "quarantined"]
QuarantineWhen = Literal["now", "free"]


def _instant(text: Any) -> datetime:
    if not isinstance(text, str):
        raise TypeError("not an instant")
    return datetime.fromisoformat(text)


def _optional_instant(text: Any) -> datetime | None:
    return None if text is None else _instant(text)


def _optional_seconds(value: Any) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True, slots=True)
class Grant:
    """A new lease, with the value of its key."""

    id: str = field(repr=False)
    """The id of the lease, a secret: it gives the right to renew and release the lease."""
    pool: str
    key_id: str
    key: str = field(repr=False)
    """The value of the key."""
    fencing_token: int
    """Increases with every grant of the server, also across restarts."""
    holder: str | None
    granted_at: datetime
    waited_seconds: float
    expires_at: datetime
    expires_in_seconds: float
    key_expires_at: datetime | None
    """When the server purges the key unless it is kept alive; `None`: never."""

    @staticmethod
    def of(answer: Mapping[str, Any]) -> Grant:
        return Grant(
            id=answer["id"],
            pool=answer["pool"],
            key_id=answer["key_id"],
            key=answer["key"],
            fencing_token=int(answer["fencing_token"]),
            holder=answer.get("holder"),
            granted_at=_instant(answer["granted_at"]),
            waited_seconds=float(answer["waited_seconds"]),
            expires_at=_instant(answer["expires_at"]),
            expires_in_seconds=float(answer["expires_in_seconds"]),
            key_expires_at=_optional_instant(answer.get("key_expires_at")),
        )


@dataclass(frozen=True, slots=True)
class KeyLease:
    """The lease on a key, without its id."""

    holder: str | None
    fencing_token: int
    granted_at: datetime
    expires_at: datetime

    @staticmethod
    def of(answer: Mapping[str, Any]) -> KeyLease:
        return KeyLease(
            holder=answer["holder"],
            fencing_token=int(answer["fencing_token"]),
            granted_at=_instant(answer["granted_at"]),
            expires_at=_instant(answer["expires_at"]),
        )


@dataclass(frozen=True, slots=True)
class Key:
    """A key without its value."""

    id: str
    pool: str
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    """When the server purges the key unless it is kept alive; `None`: never."""
    rests_until: datetime | None
    reason: str | None
    """Why the key rests, is quarantined or is draining, in the words of a request."""
    keepalive: bool
    """Whether keep-alives change `expires_at`."""
    lease: KeyLease | None
    label: str | None = None
    draining: bool = False
    """Whether the key is leased, and is quarantined when its lease ends."""

    @staticmethod
    def of(answer: Mapping[str, Any]) -> Key:
        lease = answer.get("lease")
        return Key(
            id=answer["id"],
            pool=answer["pool"],
            state=answer["state"],
            created_at=_instant(answer["created_at"]),
            expires_at=_optional_instant(answer["expires_at"]),
            rests_until=_optional_instant(answer["rests_until"]),
            reason=answer["reason"],
            keepalive=bool(answer.get("keepalive", True)),
            lease=None if lease is None else KeyLease.of(lease),
            label=answer.get("label"),
            draining=bool(answer.get("draining", False)),
        )


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was generated or imported, with its value."""

    id: str
    key: str = field(repr=False)
    """The value of the key."""
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    label: str | None = None

    @staticmethod
    def of(answer: Mapping[str, Any]) -> NewKey:
        return NewKey(
            id=answer["id"],
            key=answer["key"],
            state=answer["state"],
            created_at=_instant(answer["created_at"]),
            expires_at=_optional_instant(answer["expires_at"]),
            label=answer.get("label"),
        )


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool: its policy, with durations in seconds, and the number of keys in each state."""

    pool: str
    lease_ttl_seconds: float
    max_hold_seconds: float | None
    """The longest time from a grant to the end of its lease; `None`: `lease_ttl_seconds`."""
    keepalive_ttl_seconds: float | None
    """The time without a keep-alive after which a key is purged; `None`: never."""
    keepalive_every_seconds: float | None
    rest_seconds: float
    key_length: int
    key_prefix: str
    max_keys: int | None
    available: int
    leased: int
    resting: int
    quarantined: int
    total: int
    waiting: int
    """Requests in the wait queue."""
    next_return_at: datetime | None
    next_purge_at: datetime | None
    draining_keys: int = 0
    """The leased keys that are quarantined when their leases end; `leased` contains them too."""
    draining: bool = False
    """Whether the pool grants no key; its leases run on."""

    @staticmethod
    def of(answer: Mapping[str, Any]) -> Pool:
        return Pool(
            pool=answer["pool"],
            lease_ttl_seconds=float(answer["lease_ttl_seconds"]),
            max_hold_seconds=_optional_seconds(answer["max_hold_seconds"]),
            keepalive_ttl_seconds=_optional_seconds(answer["keepalive_ttl_seconds"]),
            keepalive_every_seconds=_optional_seconds(answer["keepalive_every_seconds"]),
            rest_seconds=float(answer["rest_seconds"]),
            key_length=int(answer["key_length"]),
            key_prefix=answer["key_prefix"],
            max_keys=answer["max_keys"],
            available=int(answer["available"]),
            leased=int(answer["leased"]),
            resting=int(answer["resting"]),
            quarantined=int(answer["quarantined"]),
            total=int(answer["total"]),
            waiting=int(answer["waiting"]),
            next_return_at=_optional_instant(answer["next_return_at"]),
            next_purge_at=_optional_instant(answer["next_purge_at"]),
            draining_keys=int(answer.get("draining_keys", 0)),
            draining=bool(answer.get("draining", False)),
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of a keep-alive."""

    kept: int
    """The number of distinct keys that were kept alive."""
    missing: tuple[str, ...]
    """The requested ids that no key has."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Whether a value is an active key; the rest is `None` if it is not."""

    active: bool
    state: KeyState | None
    key_id: str | None
    lease: KeyLease | None

    @staticmethod
    def of(answer: Mapping[str, Any]) -> Verification:
        lease = answer.get("lease")
        return Verification(
            active=bool(answer["active"]),
            state=answer.get("state"),
            key_id=answer.get("key_id"),
            lease=None if lease is None else KeyLease.of(lease),
        )


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """The name and version of a server; `commit` is `None` if its build does not know it."""

    name: str
    version: str
    commit: str | None
