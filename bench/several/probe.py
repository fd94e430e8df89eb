"""Reads that reach a server which was away: they must not show an older state.

A server that was paused, or parted from the store, can still believe that it owns its shards. While it is away, the
probe changes pools of its own through the other servers. Just before the server comes back, the probe sends it a read
of each key: an answer must show those changes. Half of the pools have no lease before, so that nothing but a read makes
the server append a frame.
"""

import contextlib
import http.client
import json
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from .record import TIMEOUT, TTL, Grant, Read

POOLS = 24


class Pending:
    """A read that was sent and is not answered yet."""

    def __init__(self, server, pool, key):
        self.server, self.pool, self.key = server, pool, key
        self.connection = http.client.HTTPConnection(server.host.address, server.port, timeout=TIMEOUT)
        self.connection.connect()
        self.sent = time.monotonic()
        self.connection.request("GET", f"/v1/pools/{pool}/keys/{key}")

    def answer(self):
        with contextlib.closing(self.connection):
            response = self.connection.getresponse()
            text = response.read()
            lease = json.loads(text).get("lease") if response.status == 200 else None
            token = lease["fencing_token"] if lease else None
            return Read(self.pool, self.key, self.server.index, self.sent, time.monotonic(), response.status, token)


def read_once(record, server, pool, key):
    """Reads a key; a server that does not answer says nothing."""
    with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
        found = Pending(server, pool, key).answer()
        with record.lock:
            record.reads.append(found)


class Reader(threading.Thread):
    """Reads keys of one pool from one server again and again."""

    def __init__(self, server, pool, keys, record):
        super().__init__(daemon=True)
        self.server, self.pool, self.keys, self.record = server, pool, keys, record
        self.is_stopping = threading.Event()

    def run(self):
        while not self.is_stopping.wait(0.05):
            read_once(self.record, self.server, self.pool, random.choice(self.keys))


@contextlib.contextmanager
def reading(servers, keys_of_pools, record):
    readers = [
        Reader(servers[number % len(servers)], pool, keys, record)
        for number, (pool, keys) in enumerate(keys_of_pools.items())
    ]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        for reader in readers:
            reader.is_stopping.set()
        for reader in readers:
            reader.join(2 * TIMEOUT)


class Probe:
    """Pools of its own, each with one key. `keys` has the key of each pool."""

    def __init__(self, keys):
        self.keys = keys
        self.held = {}  # the grant and the lease of a pool

    def _each(self, act, pools):
        with ThreadPoolExecutor(12) as workers:
            list(workers.map(act, pools))

    def before(self, record, servers, seconds):
        """Leases the keys of one half of the pools, and releases those of the other half."""
        for half, act in enumerate((self._acquire, self._release)):
            self._each(lambda pool: act(record, servers, pool, seconds), list(self.keys)[half::2])

    def change(self, record, servers, seconds):
        """Releases what is leased and leases the rest, through these servers."""

        def act(pool):
            change = self._release if pool in self.held else self._acquire
            change(record, servers, pool, seconds)

        self._each(act, self.keys)

    def hold(self, record, servers, seconds):
        """Leases the keys of all pools."""
        self._each(lambda pool: self._acquire(record, servers, pool, seconds), self.keys)

    def start_releases(self, record, servers, seconds):
        """Begins to release all leases at once. Each release is repeated until its outcome is known."""
        workers = ThreadPoolExecutor(POOLS)
        releases = [workers.submit(self._release, record, servers, pool, seconds) for pool in list(self.held)]
        workers.shutdown(wait=False)
        return releases

    def ask(self, server):
        """Sends a read of each key, and does not wait for the answers."""
        pending = []
        for pool, key in self.keys.items():
            with contextlib.suppress(OSError):
                pending.append(Pending(server, pool, key))
        return pending

    def collect(self, record, pending):
        """Waits for the answers."""
        for each in pending:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                record.reads.append(each.answer())

    def _call(self, servers, path, body, seconds):
        """Repeats a call until its outcome is known. Returns status, body, and whether it may have been applied before."""
        headers = {"content-type": "application/json", "Idempotency-Key": str(uuid.uuid4())}
        deadline = time.monotonic() + seconds
        was_unknown = False
        while time.monotonic() < deadline:
            server = random.choice(servers)
            connection = http.client.HTTPConnection(server.host.address, server.port, timeout=TIMEOUT)
            try:
                with contextlib.closing(connection):
                    connection.request("POST", path, json.dumps(body), headers)
                    response = connection.getresponse()
                    text = response.read()
                found = json.loads(text) if text else {}
                if response.status not in (421, 503):
                    return response.status, found, was_unknown
                was_unknown |= found.get("code") == "owner_lost"
            except (OSError, http.client.HTTPException, ValueError):
                was_unknown = True
            time.sleep(0.05)
        raise RuntimeError(f"no answer to {path} within {seconds} s")

    def _acquire(self, record, servers, pool, seconds):
        if pool in self.held:
            if time.monotonic() < self.held[pool][0].first_sent + TTL / 2:
                return
            self._release(record, servers, pool, seconds)
        sent = time.monotonic()
        path = f"/v1/pools/{pool}/leases"
        status, body, _ = self._call(servers, path, {"ttl_seconds": TTL, "holder": "probe"}, seconds)
        received = time.monotonic()
        if status != 201:
            record.unexpected.append(("probe", status, body))
            return
        grant = Grant(pool, body["key_id"], body["fencing_token"], 0, sent, received, received)
        self.held[pool] = grant, body["id"]
        with record.lock:
            record.grants.append(grant)

    def _release(self, record, servers, pool, seconds):
        if pool not in self.held:
            return
        grant, lease = self.held.pop(pool)
        grant.release_sent = time.monotonic()
        path = f"/v1/pools/{pool}/leases/{lease}/release"
        status, body, was_unknown = self._call(servers, path, {}, seconds)
        record.released(grant, status, body, was_unknown, time.monotonic())
