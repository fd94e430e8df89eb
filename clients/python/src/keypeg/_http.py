"""Requests to one server, in one event loop: what is sent, and what an answer or its absence means.

A call is sent once, except after a 401 with a token file, and except calls that are safe to repeat
when a kept connection was closed. Waits and streams have connections of their own, so that they
never delay a renewal.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx

from . import __about__
from ._address import proxy_variable
from ._errors import InvalidInput, KeypegError, Refused, Unauthorized, UnexpectedAnswer, Unreachable
from ._settings import Settings

CONNECT_TIMEOUT = 5.0
"""The timeout of opening a connection, in seconds."""
REQUEST_TIMEOUT = 60.0
"""The timeout of a request without its wait for a key; above the limits of the server."""
STREAM_READ_TIMEOUT = 45.0
"""After this time without a byte a stream counts as dead: three times the interval of comments."""
CALLS_MAX = 256
"""The number of connections for calls that do not wait."""


class Http:
    """The connections to one server. Every method runs in the event loop that uses it first."""

    def __init__(self, settings: Settings, timeout: float) -> None:
        self.settings = settings
        self.timeout = timeout
        self.address = settings.address
        self._calls = self._client(CALLS_MAX)
        # Each of these connections belongs to a caller that waits, or to one stream of a pool.
        self._waits = self._client(None)

    def _client(self, connections: int | None) -> httpx.AsyncClient:
        context = self.settings.ssl_context
        return httpx.AsyncClient(
            headers={"user-agent": f"keypeg-python/{__about__.__version__}"},
            # For plain HTTP the roots of TLS are not loaded, which would take longer than a call.
            verify=context if context is not None else False,
            trust_env=not self.address.is_loopback,
            follow_redirects=False,
            timeout=httpx.Timeout(self.timeout, connect=min(CONNECT_TIMEOUT, self.timeout)),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=32),
        )

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._calls.aclose()
        await self._waits.aclose()

    async def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        wait: int = 0,
        key: str | None = None,
        is_repeatable: bool = False,
    ) -> Any:
        """Sends a request and returns its JSON, or `None` for an answer without a body.

        `wait` is the longest time in whole seconds that the server may wait for a key, and `key` an
        Idempotency-Key. Raises a `KeypegError`.
        """
        headers = {}
        if wait:
            # The header, not the body: a repeat with another wait has the same body.
            headers["prefer"] = f"wait={wait}"
        if key is not None:
            headers["idempotency-key"] = key
        content = None
        if body is not None:
            headers["content-type"] = "application/json"
            content = json.dumps({k: v for k, v in body.items() if v is not ...}).encode()
        attempts = 2 if is_repeatable else 1
        while True:
            attempts -= 1
            token = self.settings.tokens.token()
            try:
                return await self._send(method, path, content, headers, token, wait)
            except Unauthorized:
                if not self.settings.tokens.refresh(token):
                    raise
            except Unreachable as error:
                # The server may have closed a kept connection in this moment.
                is_closed = isinstance(error.__cause__, httpx.RemoteProtocolError | httpx.ReadError)
                if not is_closed or attempts <= 0:
                    raise

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str],
        token: str | None,
        wait: int,
    ) -> Any:
        client = self._waits if wait else self._calls
        timeout = httpx.Timeout(
            self.timeout, connect=min(CONNECT_TIMEOUT, self.timeout), read=self.timeout + wait
        )
        try:
            async with asyncio.timeout(self.timeout + wait):
                response = await client.request(
                    method,
                    self.address.base + path,
                    content=content,
                    headers=self._headers(headers, token),
                    timeout=timeout,
                )
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
            raise self._unreachable(error) from error
        return self._answer(response)

    @asynccontextmanager
    async def stream(self, path: str, after: str | None) -> AsyncIterator[httpx.Response]:
        """Opens an event stream, after the event with the id `after` if there is one."""
        headers = {"accept": "text/event-stream"}
        if after is not None:
            headers["last-event-id"] = after
        token = self.settings.tokens.token()
        timeout = httpx.Timeout(STREAM_READ_TIMEOUT, connect=CONNECT_TIMEOUT)
        request = self._waits.build_request(
            "GET", self.address.base + path, headers=self._headers(headers, token), timeout=timeout
        )
        try:
            response = await self._waits.send(request, stream=True)
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise self._unreachable(error) from error
        try:
            if not response.is_success:
                await response.aread()
                try:
                    self._answer(response)
                except Unauthorized:
                    self.settings.tokens.refresh(token)
                    raise
            yield response
        except (httpx.HTTPError, OSError) as error:
            raise self._unreachable(error) from error
        finally:
            await response.aclose()

    def _headers(self, headers: Mapping[str, str], token: str | None) -> dict[str, str]:
        return {**headers, "authorization": f"Bearer {token}"} if token else dict(headers)

    def _answer(self, response: httpx.Response) -> Any:
        if response.status_code == 204:
            return None
        try:
            body = response.json()
            if response.is_success:
                return body
            return self._refuse(body, response)
        except (ValueError, KeyError, TypeError) as error:
            raise self._unexpected(response) from error

    def _refuse(self, body: Any, response: httpx.Response) -> None:
        retry_after = response.headers.get("retry-after", "")
        seconds = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None
        raise Refused.of(body, seconds)

    def _unexpected(self, response: httpx.Response) -> UnexpectedAnswer:
        media_type = response.headers.get("content-type", "").partition(";")[0].strip()[:100]
        if not response.content:
            what = "its body is empty"
        elif not media_type:
            what = "it has no content type"
        else:
            what = f"its content type is {media_type}"
        variable = None if self.address.is_loopback else proxy_variable(is_tls=self.address.is_tls)
        origin = "another server or a proxy answered: check the address of the server"
        if variable is not None:
            origin = (
                f"the variable {variable} sends requests through a proxy; if the proxy answered, "
                "add the server to no_proxy"
            )
        return UnexpectedAnswer(response.status_code, f"{what}; {origin}")

    def _unreachable(self, error: Exception) -> KeypegError:
        """Names the server without the path of the request, which can contain the id of a lease."""
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol | httpx.LocalProtocolError):
            return InvalidInput(f"invalid server address {self.address.origin}: {error}")
        never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
        variable = None if self.address.is_loopback else proxy_variable(is_tls=self.address.is_tls)
        proxy = f" through the proxy that the variable {variable} names" if variable else ""
        return Unreachable(
            f"the server at {self.address.origin} cannot be reached{proxy}: {_reason(error)}",
            was_sent=not isinstance(error, never_sent),
        )


def whole_seconds(seconds: float) -> int:
    """Rounds up to whole seconds, at most the longest wait of a server."""
    return min(math.ceil(seconds), 300)


def _reason(error: BaseException) -> str:
    """Returns the words of the root cause, which is the most specific."""
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return "it did not answer in time"
    words = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {cause.verify_message}; check KEYPEG_CA_FILE"
        if isinstance(cause, ssl.SSLError | socket.gaierror):
            return cause.strerror or str(cause)
        if isinstance(cause, OSError) and cause.errno:
            # The loop puts its own words, with an address, in place of the reason.
            words = os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return words
