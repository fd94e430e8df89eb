"""Clients that acquire and release through any server and record what they were granted, and the checker of the record.

All times are of one monotonic clock. A client repeats a call whose outcome is not known, with the same Idempotency-Key.
"""

import contextlib
import http.client
import json
import random
import threading
import time
import uuid
from dataclasses import dataclass, field

TTL = 120
TIMEOUT = 15


@dataclass
class Grant:
    pool: str
    key: str
    token: int
    server: int
    first_sent: float  # of the first attempt
    last_sent: float  # of the attempt that was answered
    received: float
    release_sent: float = 0.0  # 0: never
    attempts: int = 1
    released: float = 0.0  # when the release was acknowledged; 0: never


@dataclass
class Read:
    """What a server answered to a read of one key."""

    pool: str
    key: str
    server: int
    sent: float
    received: float
    status: int
    token: int | None  # of the lease that it showed


@dataclass
class Record:
    grants: list = field(default_factory=list)
    reads: list = field(default_factory=list)
    lost: list = field(default_factory=list)
    ended_early: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    unknown: int = 0  # connections that broke after a request was sent
    refused: dict = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, code):
        with self.lock:
            self.refused[code] = self.refused.get(code, 0) + 1

    def released(self, grant, status, body, was_unknown, at):
        """Notes the answer to a release. `was_unknown`: an earlier attempt may have been applied."""
        with self.lock:
            if status == 204:
                grant.released = at
            elif at >= grant.first_sent + TTL:
                return
            elif status in (404, 410) and body.get("cause") == "expired":
                self.ended_early.append((grant, status, body.get("code")))
            elif status not in (404, 410) or not was_unknown:
                # The lease was acknowledged and its time is not over: it must exist.
                self.lost.append((grant, status, body.get("code")))


class Client(threading.Thread):
    def __init__(self, number, servers, pool, record, hold, at):
        super().__init__(daemon=True)
        self.number, self.servers, self.pool, self.record, self.hold = number, servers, pool, record, hold
        self.at = at % len(servers)
        self.connection = None
        self.is_stopping = threading.Event()

    def run(self):
        while not self.is_stopping.is_set():
            grant = self.acquire()
            if grant is not None:
                self.is_stopping.wait(random.uniform(0, 2 * self.hold))
                self.release(*grant)

    def move(self):
        """Goes on with the next server."""
        if self.connection is not None:
            self.connection.close()
        self.connection, self.at = None, (self.at + 1) % len(self.servers)

    def call(self, path, body, headers):
        """Returns status and body; None if the connection broke: the outcome is then not known."""
        try:
            if self.connection is None:
                server = self.servers[self.at]
                self.connection = http.client.HTTPConnection(server.host.address, server.port, timeout=TIMEOUT)
                self.connection.timeout = 2
                self.connection.connect()
                self.connection.sock.settimeout(TIMEOUT)
        except OSError:
            self.move()
            self.is_stopping.wait(0.02)
            return 0, {}
        try:
            self.connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
            response = self.connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else {}
        except (OSError, http.client.HTTPException, ValueError):
            self.move()
            return None, {}

    def acquire(self):
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        first = None
        attempts = 0
        give_up = time.monotonic() + TTL
        while time.monotonic() < give_up:
            sent = time.monotonic()
            status, body = self.call(f"/v1/pools/{self.pool}/leases", {"ttl_seconds": TTL, "holder": str(self.number)}, headers)
            received = time.monotonic()
            if status == 0:
                if self.is_stopping.is_set() and first is None:
                    return None
                continue
            first = first or sent
            attempts += 1
            if status == 201:
                grant = Grant(self.pool, body["key_id"], body["fencing_token"], self.at, first, sent, received, 0.0, attempts)
                with self.record.lock:
                    self.record.grants.append(grant)
                return grant, body["id"]
            if status is None:
                self.record.unknown += 1
                continue
            code = body.get("code", status)
            if code == "no_key_available":
                self.is_stopping.wait(0.005)
                if self.is_stopping.is_set():
                    return None
                headers = {"Idempotency-Key": str(uuid.uuid4())}
                first = None
                continue
            self.record.refuse(code)
            if status not in (421, 503):
                self.record.unexpected.append(("acquire", status, body))
                return None
            self.is_stopping.wait(0.02)
            if code != "no_key_available":
                self.move()
        self.record.unexpected.append(("acquire", "no answer within the TTL", self.pool))
        return None

    def release(self, grant, lease):
        grant.release_sent = time.monotonic()
        was_unknown = False
        while time.monotonic() < grant.first_sent + TTL:
            status, body = self.call(f"/v1/pools/{self.pool}/leases/{lease}/release", {}, {})
            if status == 0:
                continue
            if status is None:
                was_unknown = True
                continue
            if status in (421, 503):
                # Only these are surely not applied.
                was_unknown |= body.get("code") == "owner_lost"
                self.record.refuse(body.get("code", status))
                self.move()
                time.sleep(0.02)
                continue
            self.record.released(grant, status, body, was_unknown, time.monotonic())
            return

    def stop(self):
        self.is_stopping.set()


def is_stale(read, grants):
    """Whether a read shows less than what was acknowledged before it was sent. `grants` are those of its key."""
    if read.status not in (200, 404):
        return False
    for grant in grants:
        # It shows a lease whose release was acknowledged before.
        if grant.token == read.token and grant.released and grant.released < read.sent:
            return True
        # It does not show the lease that was held from before it was sent until after it was answered.
        end = min(grant.release_sent or float("inf"), grant.first_sent + TTL)
        if grant.received < read.sent and read.received < end and read.token != grant.token:
            return True
    return False


def check(record):
    """Returns what is wrong: overlaps, repeated tokens, tokens that decrease, lost grants, stale reads."""
    wrong = []
    of_key, of_pool = {}, {}
    for grant in record.grants:
        of_key.setdefault((grant.pool, grant.key), []).append(grant)
        of_pool.setdefault(grant.pool, []).append(grant)
    overlaps = repeats = decreases = 0
    for key, grants in of_key.items():
        grants.sort(key=lambda grant: grant.token)
        for one, next_one in zip(grants, grants[1:]):
            # Surely held until the release was sent or the TTL had passed; surely granted when the answer came.
            end = min(one.release_sent or float("inf"), one.first_sent + TTL)
            if next_one.received < end:
                overlaps += 1
                wrong.append(f"overlap on {key}: {one} and {next_one}")
    for pool, grants in of_pool.items():
        tokens = {}
        for grant in grants:
            if grant.token in tokens:
                repeats += 1
                wrong.append(f"token {grant.token} twice in {pool}: {tokens[grant.token]} and {grant}")
            tokens[grant.token] = grant
        # A grant that was sent after another one was received has a greater token.
        grants.sort(key=lambda grant: grant.received)
        by_sent = sorted(grants, key=lambda grant: grant.first_sent)
        greatest, index = 0, 0
        for grant in by_sent:
            while index < len(grants) and grants[index].received < grant.first_sent:
                greatest = max(greatest, grants[index].token)
                index += 1
            if grant.token <= greatest:
                decreases += 1
                wrong.append(f"token {grant.token} after {greatest} in {pool}")
    wrong += [f"lost: {grant} {status} {code}" for grant, status, code in record.lost]
    wrong += [f"ended early: {grant} {status} {code}" for grant, status, code in record.ended_early]
    wrong += [f"unexpected: {what}" for what in record.unexpected]
    stale = [read for read in record.reads if is_stale(read, of_key.get((read.pool, read.key), []))]
    wrong += [f"stale: {read}" for read in stale]
    return {"overlaps": overlaps, "tokens repeated": repeats, "tokens decreased": decreases, "lost": len(record.lost),
            "ended early": len(record.ended_early), "stale reads": len(stale), "unexpected": len(record.unexpected)}, wrong


def seconds_until_grants(record, pools, at):
    """Returns the time from `at` until each pool had a grant that was asked for after it: the longest of all pools; None
    while a pool has none."""
    first = {}
    with record.lock:
        for grant in reversed(record.grants):
            if grant.received < at:
                break
            if grant.last_sent >= at:
                first[grant.pool] = min(grant.received, first.get(grant.pool, grant.received))
    if any(pool not in first for pool in pools):
        return None
    return max(first.values()) - at


@contextlib.contextmanager
def running(servers, pools, record, clients_per_pool=3, hold=0.01, long_hold=None):
    """Runs clients; with `long_hold`, one more for each pool that holds its leases so long."""
    count = clients_per_pool * len(pools)
    clients = [
        Client(number, servers, pools[number % len(pools)], record, hold, number // len(pools)) for number in range(count)
    ]
    if long_hold is not None:
        clients += [Client(count + number, servers, pool, record, long_hold, number) for number, pool in enumerate(pools)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        for client in clients:
            client.stop()
        for client in clients:
            client.join(TTL)


def test():
    """The checker sees each kind of fault. Run this file to check it."""

    def grant(token, sent, received, release_sent, key="k"):
        return Grant("p", key, token, 1, sent, sent, received, release_sent)

    for name, grants in {
        "overlaps": [grant(1, 0, 1, 5), grant(2, 3, 4, 6)],
        "tokens repeated": [grant(1, 0, 1, 2), grant(1, 3, 4, 5, "other")],
        "tokens decreased": [grant(2, 0, 1, 2), grant(1, 3, 4, 5, "other")],
    }.items():
        found, wrong = check(Record(grants=grants))
        assert found[name] == 1 and wrong, (name, found)
    # The next grant can be on its way when the release is sent.
    found, wrong = check(Record(grants=[grant(1, 0, 1, 5), grant(2, 3, 5.5, 6)]))
    assert not wrong, wrong
    # A lease that was never released ends with its TTL.
    found, _ = check(Record(grants=[grant(1, 0, 1, 0), grant(2, 3, TTL - 1, 0)]))
    assert found["overlaps"] == 1
    found, wrong = check(Record(grants=[grant(1, 0, 1, 0), grant(2, 3, TTL + 1, 0)]))
    assert not wrong, wrong
    test_ends()
    test_reads()


def test_ends():
    """An answer to a release that the lease has ended."""
    grant = Grant("p", "k", 1, 1, 0, 0, 1.0)
    for at, status, body, was_unknown, expected in (
        (2, 204, {}, False, (0, 0)),
        (2, 410, {"cause": "expired"}, False, (0, 1)),
        (2, 410, {"cause": "expired"}, True, (0, 1)),
        (TTL, 410, {"cause": "expired"}, False, (0, 0)),
        (2, 410, {"cause": "released"}, False, (1, 0)),
        (2, 410, {"cause": "released"}, True, (0, 0)),
        (2, 404, {}, False, (1, 0)),
    ):
        record = Record(grants=[grant])
        record.released(grant, status, body, was_unknown, at)
        found, _ = check(record)
        assert (found["lost"], found["ended early"]) == expected, (status, body, was_unknown, found)


def test_reads():
    """The checker sees each kind of stale read, and no other."""

    def grant(release_sent=0.0, released=0.0):
        return [Grant("p", "k", 1, 1, 0, 0, 1.0, release_sent, 1, released)]

    for name, sent, received, token, status, grants, expected in (
        ("a lease whose release was acknowledged", 4, 5, 1, 200, grant(2.0, 3.0), 1),
        ("a lease whose release is on its way", 2.5, 5, 1, 200, grant(2.0, 3.0), 0),
        ("no lease after the release", 4, 5, None, 200, grant(2.0, 3.0), 0),
        ("no lease while it is held", 2, 3, None, 200, grant(), 1),
        ("no key while it is leased", 2, 3, None, 404, grant(), 1),
        ("the lease before", 2, 3, 7, 200, grant(), 1),
        ("the lease", 2, 3, 1, 200, grant(), 0),
        ("a refusal", 2, 3, None, 503, grant(), 0),
        ("no lease, sent before the grant was acknowledged", 0.5, 3, None, 200, grant(), 0),
        ("no lease after the TTL", TTL + 1, TTL + 2, None, 200, grant(), 0),
    ):
        found, _ = check(Record(grants=grants, reads=[Read("p", "k", 1, sent, received, status, token)]))
        assert found["stale reads"] == expected, name


if __name__ == "__main__":
    test()
