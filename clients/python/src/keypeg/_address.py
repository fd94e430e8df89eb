"""The address of a server, and whether requests to it may go through a proxy.

A request to this machine never goes through the proxy that the environment names: the proxy would
get the access token, and would look for the server on its own machine. Sends nothing.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

from ._errors import InvalidInput

_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server: scheme, host and port, with a path if a proxy adds one."""

    base: str
    """Without a slash at the end."""
    is_loopback: bool
    """Whether the server is on this machine."""
    is_tls: bool
    """Whether the scheme is https."""

    @staticmethod
    def parse(address: str) -> ServerAddress:
        """Parses an address. Raises `InvalidInput`, without a password that the address contains."""
        if "@" in address:
            raise InvalidInput(
                "invalid server address: remove the user name and the password; an access token "
                "has its own options"
            )
        scheme, separator, rest = address.partition("://")
        if not separator or scheme not in ("http", "https"):
            given = address if address and not separator else "HOST:PORT"
            raise InvalidInput(f"invalid server address {address!r}: use http://{given} or https://{given}")
        authority, _, path = rest.partition("/")
        path = path.rstrip("/")
        is_allowed = all("!" <= sign <= "~" and sign not in "?#\\" for sign in rest)
        has_dots = any(segment in (".", "..") for segment in path.split("/"))
        host, port = _split_port(authority)
        is_port = port is None or (port.isascii() and port.isdigit() and int(port) < 65536)
        if not host or not is_allowed or has_dots or not is_port:
            raise InvalidInput(
                f"invalid server address {address!r}: use {scheme}://HOST:PORT, or "
                f"{scheme}://HOST:PORT/PATH behind a proxy"
            )
        base = f"{scheme}://{authority}/{path}" if path else f"{scheme}://{authority}"
        return ServerAddress(base, is_loopback(host), scheme == "https")

    @property
    def origin(self) -> str:
        """The address without its path."""
        scheme, _, rest = self.base.partition("://")
        return f"{scheme}://{rest.partition('/')[0]}"


def _split_port(authority: str) -> tuple[str, str | None]:
    if authority.endswith("]"):
        return authority, None
    host, separator, port = authority.rpartition(":")
    return (host, port) if separator else (authority, None)


def is_loopback(host: str) -> bool:
    """Returns whether a host, without its port, is this machine."""
    name = host.lower().strip("[]").rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    # A connection to the unspecified address reaches this machine too.
    return address.is_loopback or address.is_unspecified


def proxy_variable(*, is_tls: bool) -> str | None:
    """Returns the variable that names a proxy for requests to other machines, if one does."""
    names = ("https_proxy", "HTTPS_PROXY") if is_tls else ("http_proxy", "HTTP_PROXY")
    return next((name for name in (*names, "all_proxy", "ALL_PROXY") if os.environ.get(name)), None)


def segment(text: str) -> str:
    """Checks a name, id or cursor before it becomes part of a path, so that it cannot change the path."""
    if not isinstance(text, str) or not _SEGMENT.fullmatch(text) or text in (".", ".."):
        raise InvalidInput(f"invalid name, id or cursor {text!r}: only letters, digits and _.- are allowed")
    return text
