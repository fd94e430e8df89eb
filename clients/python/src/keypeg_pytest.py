"""The pytest plugin: lends a key to each test, or to each worker of pytest-xdist.

A module of its own, so that a test run that uses no key does not import the client. A test whose
lease is lost while it runs fails with the cause: another holder may have used its key.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from keypeg import Client, Lease

WAIT_DEFAULT = 600.0
"""How long a test waits for a key by default, in seconds."""
HOLDER_MAX = 128
"""The longest name of a holder, in characters."""
_OPTIONS = {"pool": str, "wait": float, "ttl": float}
_leases = pytest.StashKey["list[Lease]"]()
_worker_lease = pytest.StashKey["Lease"]()
_is_running = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options, on the command line and in the configuration."""
    group = parser.getgroup("keypeg", "keys from a Keypeg server")
    for name, metavar, text in (
        ("server", "URL", "address of the server [default: KEYPEG_SERVER]"),
        ("pool", "NAME", "pool of the keys [default: default]"),
        ("wait", "SECONDS", "how long a test waits for a key [default: 600]"),
        ("ttl", "SECONDS", "how long a key stays leased after this process dies [default: of the pool]"),
    ):
        group.addoption(f"--keypeg-{name}", metavar=metavar, help=text, default=None)
        parser.addini(f"keypeg_{name}", text, default=None)


def pytest_configure(config: pytest.Config) -> None:
    """Registers the marker, and checks the options before a test runs."""
    config.addinivalue_line(
        "markers", "keypeg(pool=NAME, wait=SECONDS, ttl=SECONDS): options of the keys that the test borrows"
    )
    for name in ("wait", "ttl"):
        _option(config, name)


def _option(config: pytest.Config, name: str) -> Any:
    """Returns an option: from the command line, else from the configuration."""
    for source, value in (
        (f"--keypeg-{name}", config.getoption(f"keypeg_{name}")),
        (f"keypeg_{name}", config.getini(f"keypeg_{name}")),
    ):
        if value is not None:
            return _parse(source, name, value)
    return None


def _parse(source: str, name: str, value: Any) -> Any:
    kind = _OPTIONS.get(name, str)
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise pytest.UsageError(f"{source} is {value!r}: use a number of seconds") from None


def _lease_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Returns the options of a test: of its marker, else of the run."""
    options = {name: _option(request.config, name) for name in _OPTIONS}
    if options["wait"] is None:
        options["wait"] = WAIT_DEFAULT
    marker = request.node.get_closest_marker("keypeg") if request.scope == "function" else None
    if marker is not None:
        unknown = [*map(repr, marker.args), *(name for name in marker.kwargs if name not in _OPTIONS)]
        if unknown:
            raise pytest.UsageError(
                f"the marker keypeg of {request.node.nodeid} has {unknown[0]}: use pool=, wait= or ttl="
            )
        for name, value in marker.kwargs.items():
            options[name] = _parse(f"{name} of the marker keypeg", name, value)
    return {name: value for name, value in options.items() if value is not None}


def _holder(text: str) -> str:
    """Returns the name of a holder for people: the worker and the test."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    name = f"{worker} {text}" if worker else text
    return "".join(sign if sign.isprintable() else "?" for sign in name)[:HOLDER_MAX]


@pytest.fixture(scope="session")
def keypeg_client(pytestconfig: pytest.Config) -> Iterator[Client]:
    """The client of the session, for the server of `--keypeg-server` or KEYPEG_SERVER."""
    from keypeg import Client

    with Client(_option(pytestconfig, "server")) as client:
        yield client


@pytest.fixture
def keypeg_acquire(request: pytest.FixtureRequest, keypeg_client: Client) -> Iterator[Callable[..., Lease]]:
    """A function that acquires a key until the end of the test; it takes the arguments of `Client.lease`."""
    item = request.node
    leases = item.stash.setdefault(_leases, [])

    def acquire(pool: str | None = None, **options: Any) -> Lease:
        given = {**_lease_options(request), "holder": _holder(item.nodeid), "on_lost": "raise", **options}
        if pool is not None:
            given["pool"] = pool
        lease = keypeg_client.lease(**given).acquire()
        leases.append(lease)
        if item.stash.get(_is_running, False):
            lease.arm()
        return lease

    try:
        yield acquire
    finally:
        _release(leases)


@pytest.fixture
def keypeg_lease(keypeg_acquire: Callable[..., Lease]) -> Lease:
    """A key for this test alone: `keypeg_lease.key`."""
    return keypeg_acquire()


@pytest.fixture(scope="session")
def keypeg_worker_lease(request: pytest.FixtureRequest, keypeg_client: Client) -> Iterator[Lease]:
    """A key for the whole session: with pytest-xdist one for each worker."""
    lease = keypeg_client.lease(**_lease_options(request), holder=_holder("pytest session")).acquire()
    request.config.stash[_worker_lease] = lease
    try:
        yield lease
    finally:
        _release([lease])


def _release(leases: list[Lease]) -> None:
    """Releases all leases; a loss was reported with the test."""
    from keypeg import KeypegError, LeaseLost

    errors: list[KeypegError] = []
    while leases:
        try:
            leases.pop().release()
        except LeaseLost:
            pass
        except KeypegError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _leases_of(item: pytest.Item) -> list[Lease]:
    leases = list(item.stash.get(_leases, ()))
    worker = item.config.stash.get(_worker_lease, None)
    if worker is not None and "keypeg_worker_lease" in getattr(item, "fixturenames", ()):
        leases.append(worker)
    return leases


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Interrupts the test when one of its leases is lost, and never lets such a test pass."""
    item.stash[_is_running] = True
    leases = _leases_of(item)
    try:
        for lease in leases:
            lease.check()
            lease.arm()
        try:
            result = yield
        except Exception as error:
            for lease in _leases_of(item):
                if lease.lost is not None and lease.lost is not error:
                    error.add_note(f"keypeg: {lease.lost}")
            raise
        for lease in _leases_of(item):
            if lease.lost is not None:
                raise lease.lost
        return result
    finally:
        item.stash[_is_running] = False
        for lease in _leases_of(item):
            lease.disarm()
