"""The event stream of a pool: parses the subset of server-sent events that Keypeg writes, and says
what an event means for a lease. Sends nothing and knows no time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ._errors import LeaseEnd

LINE_MAX = 1 << 20
"""The maximum length of a line and of an event in bytes: far above what a server writes."""


@dataclass(frozen=True, slots=True)
class Message:
    """An event before its data is parsed."""

    id: str
    name: str
    data: str


class Parser:
    """Assembles lines from chunks, and events from lines."""

    def __init__(self) -> None:
        self._line = b""
        self._fields: dict[str, str] = {}

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yields the events that are complete. Raises `ValueError` if the stream is not one of Keypeg."""
        *lines, self._line = (self._line + chunk).split(b"\n")
        for line in lines:
            message = self._field(line.removesuffix(b"\r").decode())
            if message is not None:
                yield message
        if len(self._line) + len(self._fields.get("data", "")) > LINE_MAX:
            raise ValueError("an event is too long")

    def _field(self, line: str) -> Message | None:
        if not line:
            fields, self._fields = self._fields, {}
            if not fields.get("data"):
                return None
            return Message(fields.get("id", ""), fields.get("event", ""), fields["data"])
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        if name in ("id", "event", "data"):
            self._fields[name] = value
        return None


_OF_LEASE = {
    "released": LeaseEnd.RELEASED,
    "quarantined": LeaseEnd.RELEASED,
    "expired": LeaseEnd.EXPIRED,
}
_OF_KEY = {"deleted": LeaseEnd.KEY_DELETED, "purged": LeaseEnd.KEY_PURGED}
ENDS = frozenset({*_OF_LEASE, *_OF_KEY, "granted"})
"""The names of events that can end the lease of the key that they name."""


def lease_end(name: str, data: dict[str, Any], fencing_token: int) -> LeaseEnd | None:
    """Returns why the lease with this token has ended, if an event about its key reports it."""
    if name in _OF_KEY:
        return _OF_KEY[name]
    # An event of an earlier lease of the same key can arrive late.
    if name in _OF_LEASE:
        return _OF_LEASE[name] if data.get("fencing_token") == fencing_token else None
    if name == "granted" and data.get("fencing_token", 0) > fencing_token:
        return LeaseEnd.EXPIRED
    return None


def data_of(message: Message) -> dict[str, Any]:
    """Parses the data of an event. Raises `ValueError` if it is no JSON object."""
    data = json.loads(message.data)
    if not isinstance(data, dict):
        raise ValueError("the data of an event is not an object")
    return data
