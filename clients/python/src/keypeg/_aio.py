"""The client for asyncio: each call of the API, leases, and keep-alives in the background.

Everything of a client runs in one event loop. The client that blocks uses this one in a thread.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

from ._acquire import new_key
from ._address import segment
from ._errors import InvalidInput, KeypegError, LeaseLost, UnexpectedAnswer, UnknownPool
from ._held import log
from ._http import REQUEST_TIMEOUT
from ._models import Kept, Key, KeyState, NewKey, Pool, QuarantineWhen, ServerVersion, Verification
from ._options import LeaseOptions, OnLost, QuarantineOn, RestOn, release_body
from ._session import Session
from ._settings import PathLike, Settings, TlsFiles
from ._view import LeaseView

T = TypeVar("T")

RETRY_KEEP_ALIVE = 0.5
"""The pause after a failed keep-alive: serving time stands still for 2 s after a refusal."""


def _read(read: Callable[[Any], T], answer: Any) -> T:
    try:
        return read(answer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnexpectedAnswer(200, f"its JSON has another form: {error!r}") from error


class AsyncClient:
    """A client of one server for asyncio.

    ```python
    async with AsyncClient() as client, client.lease("ci", wait=600) as lease:
        await test(account=lease.key)
    ```

    Args:
        server: The address, such as `http://127.0.0.1:8000`. Default: `KEYPEG_SERVER`, else that
            address. Requests to this machine never go through a proxy.
        token: The access token. Default: the one of `token_file`, else of `KEYPEG_TOKEN`.
        token_file: A file with one access token; it is read again after the server has refused the
            token. Default: `KEYPEG_TOKEN_FILE`.
        timeout: The longest time of a request in seconds, without its wait for a key.
        ca_file: Certificates of authorities in PEM, the only ones to trust for https. Default:
            `KEYPEG_CA_FILE`, else those of the system.
        client_cert: A client certificate in PEM, with `client_key`. Default: `KEYPEG_CLIENT_CERT`.
        client_key: Its private key in PEM. Default: `KEYPEG_CLIENT_KEY`.
        ssl_context: The context of https, instead of these files.

    Raises:
        InvalidInput: An argument, a variable or the token file is invalid. The constructor does not
            connect.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        token_file: PathLike | None = None,
        ca_file: PathLike | None = None,
        client_cert: PathLike | None = None,
        client_key: PathLike | None = None,
        ssl_context: ssl.SSLContext | None = None,
        timeout: float = REQUEST_TIMEOUT,
    ) -> None:
        if not timeout > 0:
            raise InvalidInput(f"timeout is {timeout!r}: use more than 0 seconds")
        tls = ssl_context or TlsFiles(ca_file, client_cert, client_key)
        self._settings = Settings(server, token, token_file, tls)
        self._timeout = timeout
        self._session: Session | None = None

    @property
    def server(self) -> str:
        """The address of the server, without a slash at its end."""
        return self._settings.address.base

    @property
    def session(self) -> Session:
        # A forked child must not use the connections of its parent.
        if self._session is None or self._session.pid != os.getpid():
            self._session = Session(self._settings, self._timeout)
        return self._session

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Releases the leases that are still held, within 5 s, and closes the connections."""
        if self._session is not None and self._session.pid == os.getpid():
            await self._session.close()

    def lease(
        self,
        pool: str = "default",
        *,
        wait: float = 0.0,
        ttl: float | None = None,
        holder: str | None = None,
        on_lost: OnLost = "raise",
        rest_on: RestOn | None = None,
        quarantine_on: QuarantineOn = (),
        margin: float = 0.25,
        keep_alive: bool = True,
        on_retry: Callable[[KeypegError], None] | None = None,
    ) -> AsyncLease:
        """Returns a lease to enter with `async with`; nothing is sent before.

        The arguments are those of `Client.lease`. With `on_lost="raise"` the task in the block is
        cancelled when the lease is lost, and the block raises `LeaseLost`. A function is called in
        the event loop.
        """
        options = LeaseOptions(
            pool=segment(pool),
            wait=wait,
            ttl=ttl,
            holder=holder,
            on_lost=on_lost,
            rest_on=rest_on or {},
            quarantine_on=quarantine_on,
            margin=margin,
            keep_alive=keep_alive,
            on_retry=on_retry,
        )
        return AsyncLease(self, options)

    async def pools(self) -> list[Pool]:
        """Returns all pools that the token may see, by name."""
        pools: list[Pool] = []
        cursor = None
        while True:
            query = f"?cursor={segment(cursor)}" if cursor else ""
            page = await self._call("GET", f"/v1/pools{query}", is_repeatable=True)
            pools += _read(lambda page: [Pool.of(pool) for pool in page["pools"]], page)
            cursor = page.get("next_cursor")
            if cursor is None:
                return pools

    async def pool(self, pool: str) -> Pool:
        """Returns one pool with its counts. Raises `UnknownPool`."""
        return _read(Pool.of, await self._call("GET", _pool(pool), is_repeatable=True))

    async def put_pool(
        self,
        pool: str,
        *,
        lease_ttl_seconds: float | EllipsisType = ...,
        max_hold_seconds: float | EllipsisType | None = ...,
        keepalive_ttl_seconds: float | EllipsisType | None = ...,
        rest_seconds: float | EllipsisType = ...,
        key_length: int | EllipsisType = ...,
        key_prefix: str | EllipsisType = ...,
        max_keys: int | EllipsisType | None = ...,
        draining: bool | EllipsisType = ...,
    ) -> Pool:
        """Creates a pool, or changes its policy; an argument that is left out keeps its value.

        While a pool is `draining`, it grants no key and its leases run on.
        """
        body = {
            "lease_ttl_seconds": lease_ttl_seconds,
            "max_hold_seconds": max_hold_seconds,
            "keepalive_ttl_seconds": keepalive_ttl_seconds,
            "rest_seconds": rest_seconds,
            "key_length": key_length,
            "key_prefix": key_prefix,
            "max_keys": max_keys,
            "draining": draining,
        }
        return _read(Pool.of, await self._call("PUT", _pool(pool), body, is_repeatable=True))

    async def delete_pool(self, pool: str) -> None:
        """Deletes a pool and all its keys."""
        await self._call("DELETE", _pool(pool))

    async def generate(
        self, pool: str = "default", count: int = 1, *, label: str | None = None
    ) -> list[NewKey]:
        """Generates 1 to 10 000 keys, all or none, and returns them with their values."""
        body: dict[str, Any] = {"count": count}
        if label is not None:
            body["label"] = label
        return await self._add(pool, body)

    async def import_values(
        self,
        pool: str,
        values: Sequence[str],
        *,
        keepalive: bool = True,
        allow_retired: bool = False,
        label: str | None = None,
    ) -> list[NewKey]:
        """Imports 1 to 10 000 values, all or none, and returns their keys in this order.

        `keepalive=False` imports keys that time never purges. `allow_retired=True` also imports
        values whose keys were deleted or purged. Raises `KeyExists`.
        """
        if isinstance(values, str):
            raise InvalidInput("values is one text: give a list of texts")
        body: dict[str, Any] = {"values": list(values)}
        if not keepalive:
            body["keepalive"] = False
        if allow_retired:
            body["allow_retired"] = True
        if label is not None:
            body["label"] = label
        return await self._add(pool, body)

    async def _add(self, pool: str, body: dict[str, Any]) -> list[NewKey]:
        path = f"{_pool(pool)}/keys"
        answer = await self._call("POST", path, body, key=new_key(), is_repeatable=True)
        return _read(lambda answer: [NewKey.of(key) for key in answer["keys"]], answer)

    async def keys(
        self, pool: str = "default", state: KeyState | None = None, *, label: str | None = None
    ) -> AsyncIterator[Key]:
        """Yields the keys of a pool without their values, page by page; of a `state` or a `label` alone."""
        cursor = None
        while True:
            query = "limit=1000"
            if state is not None:
                query += f"&state={segment(state)}"
            if label is not None:
                query += f"&label={quote(label, safe='')}"
            if cursor is not None:
                query += f"&cursor={segment(cursor)}"
            page = await self._call("GET", f"{_pool(pool)}/keys?{query}", is_repeatable=True)
            for key in _read(lambda page: [Key.of(item) for item in page["keys"]], page):
                yield key
            cursor = page.get("next_cursor")
            if cursor is None:
                return

    async def key(self, pool: str, key_id: str) -> Key:
        """Returns one key without its value. Raises `UnknownKey`."""
        return _read(Key.of, await self._call("GET", _key(pool, key_id), is_repeatable=True))

    async def delete_key(self, pool: str, key_id: str) -> None:
        """Deletes a key in any state, permanently; a lease on it ends."""
        await self._call("DELETE", _key(pool, key_id))

    async def force_release(self, pool: str, key_id: str) -> bool:
        """Ends the lease, rest or quarantine of a key; `False` if it was available already."""
        answer = await self._call("POST", f"{_key(pool, key_id)}/release")
        return _read(lambda answer: bool(answer["released"]), answer)

    async def quarantine(
        self, pool: str, key_id: str, *, when: QuarantineWhen = "now", reason: str | None = None
    ) -> Key:
        """Takes a key out of rotation, until it is put back, and returns it.

        A leased key loses its lease, or with `when="free"` is draining: it is quarantined when the
        lease ends.
        """
        body = {"when": when, "reason": reason}
        answer = await self._call("POST", f"{_key(pool, key_id)}/quarantine", body)
        return _read(Key.of, answer)

    async def end_quarantine(self, pool: str, key_id: str) -> Key:
        """Puts a quarantined key back, or cancels the draining of a leased one, and returns it."""
        path = f"{_key(pool, key_id)}/quarantine"
        return _read(Key.of, await self._call("DELETE", path))

    async def set_label(self, pool: str, key_id: str, label: str | None) -> Key:
        """Gives a key a label, or removes it, and returns the key."""
        answer = await self._call("PATCH", _key(pool, key_id), {"label": label}, is_repeatable=True)
        return _read(Key.of, answer)

    async def reveal(self, pool: str, key_id: str) -> str:
        """Returns the value of a key, also while another client holds it."""
        answer = await self._call("POST", f"{_key(pool, key_id)}/reveal", is_repeatable=True)
        return _read(lambda answer: str(answer["key"]), answer)

    async def verify(self, pool: str, key: str, states: Sequence[KeyState] = ("leased",)) -> Verification:
        """Returns whether a value is a key of the pool in one of these states, and which holder has it.

        For a service that accepts the keys of a pool. An unknown value is no error.
        """
        query = ",".join(segment(state) for state in states)
        path = f"{_pool(pool)}/verify?states={query}"
        return _read(Verification.of, await self._call("POST", path, {"key": key}, is_repeatable=True))

    async def keep_alive(self, pool: str = "default", key_ids: Iterable[str] | None = None) -> Kept:
        """Keeps keys alive once: those with these ids, or all keys of the pool."""
        body = {"all": True} if key_ids is None else {"ids": list(key_ids)}
        answer = await self._call("POST", f"{_pool(pool)}/keepalive", body, is_repeatable=True)
        return _read(lambda answer: Kept(answer["kept"], tuple(answer["missing"])), answer)

    @asynccontextmanager
    async def keeping_alive(
        self, pool: str = "default", key_ids: Sequence[str] | None = None
    ) -> AsyncIterator[None]:
        """Keeps keys alive while the block runs: those with these ids, or all keys of the pool.

        The interval is the one that the pool recommends. Failures are logged and repeated. Needs the
        scopes `read` and `lend`. Raises what the first keep-alive raises.
        """
        every = await self.start_keeping_alive(pool, key_ids)
        task = asyncio.create_task(self.keep_alive_until_cancelled(pool, key_ids, every))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def start_keeping_alive(self, pool: str, key_ids: Sequence[str] | None) -> float | None:
        """Sends the first keep-alive; returns the interval, or `None` if time purges no key."""
        await self.keep_alive(pool, key_ids)
        return (await self.pool(pool)).keepalive_every_seconds

    async def keep_alive_until_cancelled(
        self, pool: str, key_ids: Sequence[str] | None, every: float | None
    ) -> None:
        """Sends keep-alives until the task is cancelled or the pool is gone."""
        pause = every
        while pause is not None:
            await asyncio.sleep(pause)
            try:
                kept = await self.keep_alive(pool, key_ids)
                if kept.missing:
                    log.warning("pool %s: %d keys to keep alive are gone", pool, len(kept.missing))
                    gone = set(kept.missing)
                    key_ids = [key for key in key_ids or () if key not in gone]
                    if not key_ids:
                        return
                # The policy of the pool can have changed.
                every = pause = (await self.pool(pool)).keepalive_every_seconds
            except UnknownPool as error:
                log.warning("pool %s: no more keep-alives: %s", pool, error)
                return
            except KeypegError as error:
                log.warning("pool %s: a keep-alive failed and is repeated: %s", pool, error)
                pause = RETRY_KEEP_ALIVE

    async def version(self) -> ServerVersion:
        """Returns the version of the server."""
        answer = await self._call("GET", "/version", is_repeatable=True)
        return _read(
            lambda answer: ServerVersion(answer["name"], answer["version"], answer.get("commit")),
            answer,
        )

    async def is_ready(self) -> bool:
        """Returns whether the server accepts requests."""
        try:
            await self._call("GET", "/readyz", is_repeatable=True)
        except KeypegError:
            return False
        return True

    async def _call(self, method: str, path: str, *args: Any, **kwargs: Any) -> Any:
        if self.session.is_closed:
            raise InvalidInput("this client is closed: create another one")
        return await self.session.http.call(method, path, *args, **kwargs)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.server!r})"


def _pool(pool: str) -> str:
    return f"/v1/pools/{segment(pool)}"


def _key(pool: str, key_id: str) -> str:
    return f"{_pool(pool)}/keys/{segment(key_id)}"


class AsyncLease(LeaseView):
    """The exclusive right to use one key, for `async with`. Made by `AsyncClient.lease`.

    The lease is renewed until the block ends. It can be entered again after its end, for another
    key.
    """

    def __init__(self, client: AsyncClient, options: LeaseOptions) -> None:
        self._client = client
        self._options = options
        self._held = None
        self._pid = os.getpid()
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0
        self._was_cancelled = False

    async def acquire(self) -> Self:
        """Acquires a key; the caller releases it. The task is not cancelled when the lease is lost.

        Raises `NoKeyAvailable` without a wait, and `WaitEnded` after one.
        """
        if self._held is not None and self.is_held:
            raise InvalidInput("the lease is held already: create another one")
        self._pid = os.getpid()
        self._held = await self._client.session.acquire(self._options, self._on_lost)
        return self

    async def release(
        self,
        *,
        rest: float | None = None,
        quarantine: bool = False,
        reason: str | None = None,
    ) -> None:
        """Releases the key, with a rest in seconds or a quarantine, and a reason for both.

        While the server does not answer, the release is repeated for at most 10 s; then the lease
        ends by time. Does nothing after a release. Raises `LeaseLost` if the lease had ended before.
        """
        held = self._require()
        await self._client.session.release(held, release_body(rest, quarantine, reason))

    async def wait_lost(self) -> LeaseLost | None:
        """Waits until the lease is lost, and returns why; `None` if it was released."""
        held = self._require()
        await held.ended()
        return held.lost

    def _on_lost(self, lost: LeaseLost) -> None:
        if callable(self._options.on_lost):
            self._options.on_lost(lost)
        elif self._options.on_lost == "raise" and self._task is not None:
            self._was_cancelled = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        await self.acquire()
        self._was_cancelled = False
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        held = self._require()
        if held.lost is not None:
            self._task = None
            raise held.lost
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        held = self._held
        if held is None or self._pid != os.getpid():
            return
        if self._was_cancelled and task is not None:
            is_own = task.uncancel() <= self._cancelling
            if is_own and isinstance(error, asyncio.CancelledError) and held.lost is not None:
                raise held.lost from None
        if held.is_released:
            return
        try:
            await self._client.session.release(held, self._options.release_after(error))
        except LeaseLost as lost:
            if error is None:
                raise
            if error is not lost:
                error.add_note(f"keypeg: {lost}")
        except KeypegError as refusal:
            if error is None:
                raise
            error.add_note(f"keypeg: the key was not released: {refusal}")
