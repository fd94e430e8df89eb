"""A well-behaved client that measures what a load on its server does to it.

It runs in a process of its own, from an address of its own (127.0.0.2), with its own token if the server has tokens. It
has two pools. In one it uses connections that it opened before the load; in the other it opens a connection for each
request. In both it keeps its keys alive four times in each keep-alive TTL, and lends and releases a key ten times a
second. A refused keep-alive or release is repeated after the time that the answer names, at most a second.
"""

import asyncio
import json
import multiprocessing
import re
import time

KEYS = 10
KEEPALIVE_TTL = 5
ADDRESS = "127.0.0.2"
# A request that takes longer counts as that long, and as failed.
PATIENCE = 20


class Client:
    """One request at a time, on one connection or on one for each request."""

    def __init__(self, port, token, is_kept):
        self.port, self.token, self.is_kept = port, token, is_kept
        self.reader = self.writer = None
        # The longest wait in seconds since the last `take`.
        self.longest, self.refused, self.broken = 0.0, {}, 0

    async def open(self):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(ADDRESS, 0))

    def close(self):
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None

    async def once(self, method, path, body):
        await self.open()
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(payload)}\r\n"
        head += "Content-Type: application/json\r\n" if payload else ""
        head += f"Authorization: Bearer {self.token}\r\n" if self.token else ""
        self.writer.write(f"{head}\r\n".encode() + payload)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        text = await self.reader.readexactly(int(length.group(1))) if length else b""
        if not self.is_kept or re.search(r"(?i)connection: close", head):
            self.close()
        retry = re.search(r"(?i)retry-after: (\d+)", head)
        return int(head.split()[1]), json.loads(text) if text else None, retry and int(retry.group(1))

    async def request(self, method, path, body=None, kind=None):
        """Returns status, JSON and Retry-After of the answer; status 0 if there is none."""
        started = time.monotonic()
        try:
            answer = await asyncio.wait_for(self.once(method, path, body), PATIENCE)
        except (OSError, EOFError, asyncio.TimeoutError, asyncio.IncompleteReadError, IndexError, ValueError):
            self.close()
            self.broken += 1
            answer = 0, None, None
        self.longest = max(self.longest, time.monotonic() - started)
        if kind and answer[0] in (0, 429, 503, 507):
            self.refused[kind] = self.refused.get(kind, 0) + 1
        return answer

    async def must(self, method, path, kind, end):
        """Repeats a request that must not be refused until it is served, or `end` has passed."""
        while time.monotonic() < end:
            status, answer, retry = await self.request(method, path, kind=kind)
            if status not in (0, 429, 503):
                return status, answer
            await asyncio.sleep(min(retry or 0.1, 1.0))
        return 0, None

    def take(self):
        longest, self.longest = self.longest, 0.0
        return longest * 1000


class Pool:
    """One pool, its keys, and the tasks that use them."""

    def __init__(self, name, port, token, is_kept):
        self.path = f"/v1/pools/{name}"
        self.keeper, self.lender = (Client(port, token, is_kept) for _ in range(2))
        self.keys = []

    async def prepare(self):
        policy = {"keepalive_ttl_seconds": KEEPALIVE_TTL, "lease_ttl_seconds": 30}
        await self.keeper.request("PUT", self.path, policy)
        status, added, _ = await self.keeper.request("POST", f"{self.path}/keys", {"count": KEYS})
        if status != 201:
            raise RuntimeError(f"the server refused the client's keys: {status} {added}")
        self.keys = [key["id"] for key in added["keys"]]
        await self.lender.request("GET", self.path)

    async def keep_alive(self, end):
        while time.monotonic() < end:
            due = time.monotonic() + KEEPALIVE_TTL / 4
            for key in self.keys:
                await self.keeper.must("POST", f"{self.path}/keys/{key}/keepalive", "keep-alive", end)
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def lend(self, end):
        while time.monotonic() < end:
            due = time.monotonic() + 0.1
            status, grant, _ = await self.lender.request("POST", f"{self.path}/leases", {}, kind="acquire")
            if status == 201:
                await self.lender.must("POST", f"{self.path}/leases/{grant['id']}/release", "release", end)
            await asyncio.sleep(max(0, due - time.monotonic()))

    async def purged(self):
        for _ in range(20):
            status, pool, _ = await self.keeper.request("GET", self.path)
            if status == 200:
                return KEYS - pool["total"]
            await asyncio.sleep(0.25)
        return None


async def live(port, token, calm, seconds, report):
    pools = [Pool("victim-kept", port, token, True), Pool("victim-new", port, token, False)]
    for pool in pools:
        await pool.prepare()
    report.send("ready")
    start = time.monotonic()
    end = start + calm + seconds
    clients = [client for pool in pools for client in (pool.keeper, pool.lender)]

    async def note_calm():
        await asyncio.sleep(calm)
        alone = max(client.take() for client in clients)
        for client in clients:
            client.refused.clear()
            client.broken = 0
        return alone

    tasks = [task for pool in pools for task in (pool.keep_alive(end), pool.lend(end))]
    alone, *_ = await asyncio.gather(note_calm(), *tasks)
    refused = {}
    for client in clients:
        for kind, count in client.refused.items():
            refused[kind] = refused.get(kind, 0) + count
    purged = [await pool.purged() for pool in pools]
    report.send({
        "alone_ms": round(alone, 1),
        "kept_ms": round(max(pools[0].keeper.longest, pools[0].lender.longest) * 1000, 1),
        "new_ms": round(max(pools[1].keeper.longest, pools[1].lender.longest) * 1000, 1),
        "keepalive_ms": round(max(pool.keeper.longest for pool in pools) * 1000, 1),
        "refused": refused,
        "purged": None if None in purged else sum(purged),
    })


class Victim:
    """The process of the client; `result` waits for its figures."""

    def __init__(self, port, token, calm, seconds):
        self.report, child = multiprocessing.Pipe()
        arguments = (port, token, calm, seconds, child)
        self.process = multiprocessing.Process(target=lambda: asyncio.run(live(*arguments)), daemon=True)
        self.process.start()
        child.close()

    def is_ready(self):
        """Waits until the client has its pools; returns false where the server did not create them."""
        try:
            return self.report.recv() == "ready"
        except EOFError:
            return False

    def result(self, seconds):
        try:
            return self.report.recv() if self.report.poll(seconds) else None
        except EOFError:
            return None
        finally:
            self.process.terminate()
            self.process.join()


