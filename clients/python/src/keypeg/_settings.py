"""Which server a client calls and with which access token: arguments first, then variables.

The variables are those of the command `keypeg`. A token is never shown. A token from a file is read
again after the server has refused it, so it can be replaced while a program runs.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from ._address import ServerAddress
from ._errors import InvalidInput

log = logging.getLogger("keypeg")

DEFAULT_SERVER = "http://127.0.0.1:8000"
TOKEN_MAX = 4096
"""The largest access token, and the largest file with one, in bytes."""


class TokenSource:
    """The present access token, and how it is read again. Safe in threads."""

    def __init__(self, token: str | None, read: Callable[[], str] | None = None) -> None:
        self._token = token
        self._read = read
        self._lock = threading.Lock()

    def token(self) -> str | None:
        """Returns the token that was read last; `None` if there is none."""
        return self._token

    def refresh(self, refused: str | None) -> bool:
        """Reads the token again; returns whether it differs from the one that the server refused."""
        if self._read is None:
            return False
        with self._lock:
            try:
                self._token = self._read()
            except (InvalidInput, OSError):
                # A file that is just being replaced may be invalid for a moment.
                return False
            return self._token != refused

    def reset_lock(self) -> None:
        """Makes the source usable in a forked child, where another thread may have held the lock."""
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return "TokenSource(…)"


class Settings:
    """The address, the token and the TLS settings of one client."""

    def __init__(
        self,
        server: str | None,
        token: str | None,
        token_file: str | os.PathLike[str] | None,
        tls: TlsFiles | ssl.SSLContext,
    ) -> None:
        if server is None:
            server = os.environ.get("KEYPEG_SERVER") or DEFAULT_SERVER
        self.address = ServerAddress.parse(server)
        self.tokens = token_source(token, token_file)
        self.ssl_context: ssl.SSLContext | None = None
        """`None` for plain HTTP."""
        if isinstance(tls, ssl.SSLContext):
            self.ssl_context = tls
        elif self.address.is_tls:
            self.ssl_context = tls.context()


PathLike = str | os.PathLike[str]


class TlsFiles:
    """The files of a client for https: arguments first, then variables."""

    def __init__(
        self, ca_file: PathLike | None, client_cert: PathLike | None, client_key: PathLike | None
    ) -> None:
        self.ca_file = ca_file or os.environ.get("KEYPEG_CA_FILE") or None
        self.client_cert = client_cert or os.environ.get("KEYPEG_CLIENT_CERT") or None
        self.client_key = client_key or os.environ.get("KEYPEG_CLIENT_KEY") or None
        if (self.client_cert is None) != (self.client_key is None):
            raise InvalidInput("client_cert and client_key belong together: give both, or neither")

    def context(self) -> ssl.SSLContext:
        """Reads the files. With `ca_file` only the authorities of that file are trusted."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ValueError) as error:
            raise InvalidInput(
                f"cannot read certificates in PEM from {self.ca_file}: {error}; check KEYPEG_CA_FILE"
            ) from error
        if self.client_cert is not None and self.client_key is not None:
            try:
                context.load_cert_chain(self.client_cert, self.client_key)
            except (OSError, ValueError) as error:
                raise InvalidInput(
                    f"cannot use the client certificate {self.client_cert} with the key "
                    f"{self.client_key}: {error}; both must be in PEM, and belong together"
                ) from error
        return context


def token_source(token: str | None, token_file: str | os.PathLike[str] | None) -> TokenSource:
    """Returns the token of the arguments, else of KEYPEG_TOKEN_FILE, else of KEYPEG_TOKEN."""
    if token is not None and token_file is not None:
        raise InvalidInput("token and token_file are both given: use one of them")
    if token is not None:
        return TokenSource(_visible(token, "token"))
    if token_file is None:
        token_file = os.environ.get("KEYPEG_TOKEN_FILE") or None
    if token_file is not None:
        path = Path(token_file)
        return TokenSource(_read(path, warn=True), lambda: _read(path))
    given = os.environ.get("KEYPEG_TOKEN")
    if given is None:
        return TokenSource(None)
    if not given.strip():
        raise InvalidInput(
            "KEYPEG_TOKEN is set but does not contain a token: unset it, or set it to an access token"
        )
    return TokenSource(_visible(given, "KEYPEG_TOKEN"))


def _read(path: Path, *, warn: bool = False) -> str:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(TOKEN_MAX + 1)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidInput(
            f"cannot read the access token file {path}: {reason}; check KEYPEG_TOKEN_FILE"
        ) from error
    if warn and os.name == "posix" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        log.warning("%s: every user of this machine can read this access token: run chmod 0600 on it", path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the access token file {path} is not UTF-8: save it as UTF-8") from error
    if not text.strip() or len(content) > TOKEN_MAX:
        raise InvalidInput(
            f"{path} must contain one access token and nothing else, in at most {TOKEN_MAX} bytes"
        )
    return _visible(text, str(path))


def _visible(text: str, source: str) -> str:
    token = text.strip()
    if token and len(token) <= TOKEN_MAX and all("!" <= sign <= "~" for sign in token):
        return token
    raise InvalidInput(
        f"{source} must contain one access token of visible characters only, at most {TOKEN_MAX}, "
        'as "keypeg token new" prints it, and nothing else'
    )
