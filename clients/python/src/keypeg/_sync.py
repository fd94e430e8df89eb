"""The client that blocks: the client for asyncio in one background thread, however many leases.

A forked child gets a thread and connections of its own at its first call. Leases stay with the
process that acquired them: a child neither renews nor releases the leases of its parent.
"""

from __future__ import annotations

import concurrent.futures
import os
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar

from ._address import segment
from ._aio import AsyncClient
from ._errors import InvalidInput, KeypegError, LeaseLost
from ._held import Held
from ._http import REQUEST_TIMEOUT
from ._interrupt import Interrupter
from ._models import Kept, Key, KeyState, NewKey, Pool, QuarantineWhen, ServerVersion, Verification
from ._options import LeaseOptions, OnLost, QuarantineOn, RestOn, release_body
from ._runtime import Runtime
from ._settings import PathLike
from ._view import LeaseView

T = TypeVar("T")

CANCEL_PATIENCE = 3.0
"""How long an interrupted call waits until the server has no grant for it, in seconds."""
_inherited: list[Any] = []
"""What a forked child must keep: closing it would disturb the event loop of its parent."""


def _wait(future: concurrent.futures.Future[T]) -> T:
    # On Windows Ctrl-C does not end a wait without a limit.
    while sys.platform == "win32" and not future.done():
        concurrent.futures.wait([future], timeout=0.2)
    return future.result()


class Client:
    """A client of one server. Safe in threads; one background thread, however many leases.

    ```python
    with Client().lease("ci", wait=600) as lease:
        test(account=lease.key)
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
        self._async = AsyncClient(
            server,
            token=token,
            token_file=token_file,
            ca_file=ca_file,
            client_cert=client_cert,
            client_key=client_key,
            ssl_context=ssl_context,
            timeout=timeout,
        )
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._is_closed = False
        _clients.add(self)

    @property
    def server(self) -> str:
        """The address of the server, without a slash at its end."""
        return self._async.server

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Releases the leases that are still held, within 5 s, and ends the background thread.

        A client that is not closed does so when it is collected and at the exit of the program.
        """
        self._is_closed = True
        if self._runtime is not None:
            self._runtime.stop()

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
    ) -> Lease:
        """Returns a lease to enter with `with`; nothing is sent before.

        Args:
            pool: The name of the pool.
            wait: How long to wait for a key, in seconds, up to a week. A wait survives restarts of
                the server, and keeps its place in the wait queue.
            ttl: The length of the lease and of each renewal, in seconds: how long the key stays
                leased after this process dies. Default and maximum: `lease_ttl_seconds` of the pool.
            holder: A name for people, at most 128 characters, which the server shows to others.
            on_lost: What happens within a second after the lease is lost. `"raise"` raises
                `LeaseLost` in the block: in the main thread also in a blocking call, in another
                thread after it. A function gets the `LeaseLost`, in the background thread, and
                nothing is raised in the block: use it to end a subprocess. `"check"` does neither.
                In all cases `key` and `check()` raise after the loss, and so does the end of the
                block, unless another exception leaves it.
            rest_on: Seconds of rest by the type of the exception that leaves the block, such as
                `{RateLimited: 60}`; a function computes them from the exception.
            quarantine_on: The types of exceptions after which the key goes into quarantine, or a
                function of the exception.
            margin: How long before its end a lease that cannot be renewed counts as lost, in
                seconds; at most a quarter of the lease.
            keep_alive: Whether to keep the key alive, so that it is not purged meanwhile.
            on_retry: Gets each failure after which the request for a key is repeated.

        Raises:
            InvalidInput: An argument is invalid.
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
        return Lease(self, options)

    def pools(self) -> list[Pool]:
        """Returns all pools that the token may see, by name."""
        return self._run(self._async.pools)

    def pool(self, pool: str) -> Pool:
        """Returns one pool with its counts. Raises `UnknownPool`."""
        return self._run(lambda: self._async.pool(pool))

    def put_pool(
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
        return self._run(
            lambda: self._async.put_pool(
                pool,
                lease_ttl_seconds=lease_ttl_seconds,
                max_hold_seconds=max_hold_seconds,
                keepalive_ttl_seconds=keepalive_ttl_seconds,
                rest_seconds=rest_seconds,
                key_length=key_length,
                key_prefix=key_prefix,
                max_keys=max_keys,
                draining=draining,
            )
        )

    def delete_pool(self, pool: str) -> None:
        """Deletes a pool and all its keys."""
        self._run(lambda: self._async.delete_pool(pool))

    def generate(self, pool: str = "default", count: int = 1, *, label: str | None = None) -> list[NewKey]:
        """Generates 1 to 10 000 keys, all or none, and returns them with their values."""
        return self._run(lambda: self._async.generate(pool, count, label=label))

    def import_values(
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
        return self._run(
            lambda: self._async.import_values(
                pool, values, keepalive=keepalive, allow_retired=allow_retired, label=label
            )
        )

    def keys(
        self, pool: str = "default", state: KeyState | None = None, *, label: str | None = None
    ) -> Iterator[Key]:
        """Yields the keys of a pool without their values, page by page; of a `state` or a `label` alone."""
        keys = self._async.keys(pool, state, label=label)
        while True:
            key = self._run(lambda: _next(keys))
            if key is None:
                return
            yield key

    def key(self, pool: str, key_id: str) -> Key:
        """Returns one key without its value. Raises `UnknownKey`."""
        return self._run(lambda: self._async.key(pool, key_id))

    def delete_key(self, pool: str, key_id: str) -> None:
        """Deletes a key in any state, permanently; a lease on it ends."""
        self._run(lambda: self._async.delete_key(pool, key_id))

    def force_release(self, pool: str, key_id: str) -> bool:
        """Ends the lease, rest or quarantine of a key; `False` if it was available already."""
        return self._run(lambda: self._async.force_release(pool, key_id))

    def quarantine(
        self, pool: str, key_id: str, *, when: QuarantineWhen = "now", reason: str | None = None
    ) -> Key:
        """Takes a key out of rotation, until it is put back, and returns it.

        A leased key loses its lease, or with `when="free"` is draining: it is quarantined when the
        lease ends.
        """
        return self._run(lambda: self._async.quarantine(pool, key_id, when=when, reason=reason))

    def end_quarantine(self, pool: str, key_id: str) -> Key:
        """Puts a quarantined key back, or cancels the draining of a leased one, and returns it."""
        return self._run(lambda: self._async.end_quarantine(pool, key_id))

    def set_label(self, pool: str, key_id: str, label: str | None) -> Key:
        """Gives a key a label, or removes it, and returns the key."""
        return self._run(lambda: self._async.set_label(pool, key_id, label))

    def reveal(self, pool: str, key_id: str) -> str:
        """Returns the value of a key, also while another client holds it."""
        return self._run(lambda: self._async.reveal(pool, key_id))

    def verify(self, pool: str, key: str, states: Sequence[KeyState] = ("leased",)) -> Verification:
        """Returns whether a value is a key of the pool in one of these states, and which holder has it.

        For a service that accepts the keys of a pool. An unknown value is no error.
        """
        return self._run(lambda: self._async.verify(pool, key, states))

    def keep_alive(self, pool: str = "default", key_ids: Iterable[str] | None = None) -> Kept:
        """Keeps keys alive once: those with these ids, or all keys of the pool."""
        return self._run(lambda: self._async.keep_alive(pool, key_ids))

    @contextmanager
    def keeping_alive(self, pool: str = "default", key_ids: Sequence[str] | None = None) -> Iterator[None]:
        """Keeps keys alive while the block runs: those with these ids, or all keys of the pool.

        The interval is the one that the pool recommends. Failures are logged and repeated. Needs the
        scopes `read` and `lend`. Raises what the first keep-alive raises.
        """
        every = self._run(lambda: self._async.start_keeping_alive(pool, key_ids))
        work = self._async.keep_alive_until_cancelled(pool, key_ids, every)
        future = self._loop().start(work)
        try:
            yield
        finally:
            future.cancel()

    def version(self) -> ServerVersion:
        """Returns the version of the server."""
        return self._run(self._async.version)

    def is_ready(self) -> bool:
        """Returns whether the server accepts requests."""
        return self._run(self._async.is_ready)

    def _loop(self) -> Runtime:
        """Returns the background thread of this process; starts it at the first call."""
        with self._lock:
            if self._is_closed:
                raise InvalidInput("this client is closed: create another one")
            if self._runtime is None:
                runtime = Runtime()
                runtime.session = self._async.session
                weakref.finalize(self, runtime.stop)
                self._runtime = runtime
            return self._runtime

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine in the background thread. An interrupt of the caller cancels it."""
        runtime = self._loop()
        if threading.current_thread() is runtime.thread:
            raise InvalidInput("this is the background thread of the client: call from another one")
        future = runtime.start(work())
        try:
            return _wait(future)
        except BaseException:
            future.cancel()
            raise

    def _acquire(self, options: LeaseOptions, on_lost: Callable[[LeaseLost], None]) -> Held:
        """Acquires a key. After an interrupt, such as Ctrl-C, no lease is left behind."""
        runtime = self._loop()
        session = self._async.session
        ended = threading.Event()
        granted: list[Held] = []

        async def acquire() -> Held:
            try:
                granted.append(await session.acquire(options, on_lost))
                return granted[0]
            finally:
                ended.set()

        future = runtime.start(acquire())
        try:
            return _wait(future)
        except KeypegError:
            raise
        except BaseException:
            future.cancel()
            ended.wait(CANCEL_PATIENCE)
            if granted:
                runtime.start(session.release(granted[0], {}))
            raise

    def _release(self, held: Held, body: dict[str, Any]) -> None:
        """Releases a lease. An interrupt does not stop the release."""
        runtime = self._runtime
        if runtime is None or runtime.is_stopped or runtime.pid != os.getpid():
            return
        _wait(runtime.start(self._async.session.release(held, body)))

    def _after_fork(self) -> None:
        _inherited.append((self._runtime, self._async._session))
        self._runtime = None
        self._lock = threading.Lock()
        self._async._settings.tokens.reset_lock()

    def __repr__(self) -> str:
        return f"Client({self.server!r})"


async def _next(keys: Any) -> Key | None:
    key: Key | None = await anext(keys, None)
    return key


_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    for client in list(_clients):
        client._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Lease(LeaseView):
    """The exclusive right to use one key, for `with`. Made by `Client.lease`.

    The lease is renewed in the background until the block ends. It can be entered again after its
    end, for another key.
    """

    def __init__(self, client: Client, options: LeaseOptions) -> None:
        self._client = client
        self._options = options
        self._held = None
        self._pid = os.getpid()
        self._interrupter: Interrupter | None = None

    def acquire(self) -> Self:
        """Acquires a key; the caller releases it. Nothing is raised when the lease is lost: `key` and
        `check()` find it.

        Raises `NoKeyAvailable` without a wait, and `WaitEnded` after one.
        """
        if self._held is not None and self.is_held:
            raise InvalidInput("the lease is held already: create another one")
        self._pid = os.getpid()
        self._held = self._client._acquire(self._options, self._on_lost)
        return self

    def release(
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
        self.disarm()
        self._client._release(held, release_body(rest, quarantine, reason))

    def _on_lost(self, lost: LeaseLost) -> None:
        interrupter = self._interrupter
        if callable(self._options.on_lost):
            self._options.on_lost(lost)
        elif interrupter is not None:
            interrupter.interrupt(lost)

    def arm(self) -> None:
        """Raises `LeaseLost` in the present thread when the lease is lost, until `disarm`, if
        `on_lost` is `"raise"`. `with` does so by itself.
        """
        if self._options.on_lost == "raise" and self._interrupter is None:
            interrupter = Interrupter()
            interrupter.arm()
            self._interrupter = interrupter
        self.check()

    def disarm(self) -> None:
        """Ends what `arm` began; must be called in the same thread."""
        interrupter, self._interrupter = self._interrupter, None
        if interrupter is not None:
            interrupter.disarm()

    def __enter__(self) -> Self:
        self.acquire()
        held = self._require()
        try:
            self.arm()
        except BaseException:
            self.disarm()
            if not held.lost:
                self._client._release(held, {})
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held = self._held
        if held is None or self._pid != os.getpid():
            return
        self.disarm()
        if held.is_released:
            return
        try:
            self._client._release(held, self._options.release_after(error))
        except LeaseLost as lost:
            if error is None:
                raise
            if not isinstance(error, LeaseLost):
                error.add_note(f"keypeg: {lost}")
        except KeypegError as refusal:
            if error is None:
                raise
            error.add_note(f"keypeg: the key was not released: {refusal}")
