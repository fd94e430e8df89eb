"""A real server for each test, and a proxy in front of it that loses answers."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from keypeg import Client

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[3]
BINARY = os.environ.get("KEYPEG_BINARY", str(ROOT / "target/debug/keypeg"))
PATIENCE = 30.0
"""How long a test waits for what must happen, in seconds: far more than it takes."""

DELAY = 0.5
"""How late the answers are that a proxy delays, in seconds."""


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Waits until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {PATIENCE} s"
        time.sleep(0.005)


class Server:
    """A server process on a free port, with a data directory that survives a restart."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        self.start()

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if "KEYPEG" not in name}
        command = [BINARY, "serve", "--data", str(self.directory / "data"), "--listen", "127.0.0.1:0"]
        with (self.directory / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *self.options], stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        assert self.process.stdout is not None
        ready = re.search(r"https?://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert ready is not None, (self.directory / "log").read_text()
        self.url = ready.group()
        self.port = int(ready.group(1))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Proxy:
    """Passes bytes between clients and a server, which can change, and loses answers on request."""

    def __init__(self, port: int) -> None:
        self.upstream: int | None = port
        """The port of the server; `None` refuses connections by closing them."""
        self.loses = ""
        """The start of the requests whose answers are lost, as a pattern: the server applies such a
        request, then its connection is cut."""
        self.holds = ""
        """The start of the requests that are passed on, and whose answers never arrive."""
        self.delays = ""
        """The start of the requests whose answers arrive late, by half a second."""
        self.lost = 0
        """How many answers were lost or held."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cuts all connections."""
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._sockets = []

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                # Otherwise the body of a request waits until its head has been acknowledged, 40 ms.
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self.upstream is None:
                return
            with socket.create_connection(("127.0.0.1", self.upstream)) as server:
                server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += [client, server]
                fate = Fate()
                back = threading.Thread(target=self._back, args=(client, server, fate), daemon=True)
                back.start()
                while data := client.recv(65536):
                    line = data.decode("latin-1")
                    # The body of a request can arrive after its head.
                    if re.match(r"[A-Z]+ /", line):
                        fate.is_lost = bool(self.loses) and re.match(self.loses, line) is not None
                        fate.is_held = bool(self.holds) and re.match(self.holds, line) is not None
                        fate.is_late = bool(self.delays) and re.match(self.delays, line) is not None
                    server.sendall(data)
                # The client has left; so does its connection to the server. Closing it is not enough
                # while another thread reads from it: a waiter that has left would still get a key.
                server.shutdown(socket.SHUT_RDWR)

    def _back(self, client: socket.socket, server: socket.socket, fate: Fate) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if fate.is_lost or fate.is_held:
                    self.lost += 1
                    if fate.is_held:
                        continue
                    break
                if fate.is_late:
                    time.sleep(DELAY)
                client.sendall(data)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)


class Fate:
    """What happens to the answer of the last request of a connection."""

    is_lost = False
    is_held = False
    is_late = False


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KEYPEG_") and name != "KEYPEG_BINARY"]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for tests that use pools of their own and leave it running."""
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server for one test, which may stop it."""
    server = Server(tmp_path)
    yield server
    server.kill()
    shutil.rmtree(tmp_path / "data", ignore_errors=True)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


_numbers = iter(range(1_000_000))


@pytest.fixture
def client(shared_server: Server) -> Iterator[Client]:
    with Client(shared_server.url) as client:
        yield client


@pytest.fixture
def pool(client: Client) -> str:
    """A pool with two keys, whose leases last a minute and can be renewed for an hour."""
    name = f"pool-{os.getpid()}-{next(_numbers)}"
    client.put_pool(name, max_hold_seconds=3600, keepalive_ttl_seconds=None)
    client.import_values(name, [f"{name}-a", f"{name}-b"])
    return name
