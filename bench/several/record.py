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


@dataclass
class Record:
    grants: list = field(default_factory=list)
    lost: list = field(default_factory=list)
    unexpected: list = field(default_factory=list)
    unknown: int = 0  # connections that broke after a request was sent
    refused: dict = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def refuse(self, code):
        with self.lock:
            self.refused[code] = self.refused.get(code, 0) + 1


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
            if status == 204:
                return
            if status == 0:
                continue
            if status is None:
                was_unknown = True
                continue
            code = body.get("code", status)
            if status in (421, 503):
                # Only these are surely not applied.
                was_unknown |= code == "owner_lost"
                self.record.refuse(code)
                self.move()
                time.sleep(0.02)
                continue
            if status in (404, 410) and was_unknown:
                return
            # The lease was acknowledged and its time is not over: it must exist.
            with self.record.lock:
                self.record.lost.append((grant, status, code))
            return

    def stop(self):
        self.is_stopping.set()


def check(record):
    """Returns what is wrong: overlaps, repeated tokens, tokens that decrease, lost grants."""
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
    wrong += [f"unexpected: {what}" for what in record.unexpected]
    return {"overlaps": overlaps, "tokens repeated": repeats, "tokens decreased": decreases, "lost": len(record.lost),
            "unexpected": len(record.unexpected)}, wrong


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
def running(servers, pools, record, clients_per_pool=3, hold=0.01):
    clients = [
        Client(number, servers, pools[number % len(pools)], record, hold, number // len(pools))
        for number in range(clients_per_pool * len(pools))
    ]
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


if __name__ == "__main__":
    test()
