#!/usr/bin/env python3
"""Figures of waiting, listing and slow clients, taken on a release binary.

    cargo build --release && bench/figures.py [handover crowd hangups listing slow]

Starts a server of its own for each, on loopback and in a directory of its own, and prints what it
saw. Standard library only. A figure that breaks a promise ends it with exit code 1.
"""

import asyncio
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
BINARY = os.environ.get("KEYPEG_BINARY", os.path.join(HERE, "..", "target", "release", "keypeg"))
LEASES = "/v1/pools/default/leases"
KEYS = "/v1/pools/default/keys"


class Server:
    """A server on a directory of its own; on disk, so every answer is durable."""

    def __init__(self, *options):
        self.data = tempfile.mkdtemp(prefix="keypeg-figures-")
        command = [BINARY, "serve", "--listen", "127.0.0.1:0", "--data", os.path.join(self.data, "d")]
        self.process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while True:
            line = self.process.stdout.readline()
            assert line, "the server did not start"
            found = re.search(r"127\.0\.0\.1:(\d+)", line)
            if found:
                self.port = int(found.group(1))
                break

    def resident(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) * 1024

    def stop(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.data, ignore_errors=True)


class Connection:
    """One connection that asks one thing at a time."""

    @classmethod
    async def open(cls, server):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", server.port)
        return self

    def send(self, method, path, body=None, headers=""):
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        self.writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)

    async def answer(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length.group(1))) if length else b""
        return int(head.split()[1]), json.loads(body) if body else None

    async def ask(self, method, path, body=None):
        self.send(method, path, body)
        return await self.answer()

    def hang_up(self):
        self.writer.transport.abort()


async def settled(pool, member, value):
    while (await pool.ask("GET", "/v1/pools/default"))[1][member] != value:
        await asyncio.sleep(0.01)


async def handover(server):
    """Three waiters and one key: each gets it in its order, soon after the release before it."""
    gaps = []
    control = await Connection.open(server)
    await control.ask("POST", KEYS, {"count": 1})
    for _ in range(100):
        _, held = await control.ask("POST", LEASES, {})
        waiters = [await Connection.open(server) for _ in range(3)]
        for place, waiter in enumerate(waiters):
            waiter.send("POST", LEASES, {"wait_seconds": 60, "holder": str(place)})
            await settled(control, "waiting", place + 1)
        for place, waiter in enumerate(waiters):
            released = time.perf_counter()
            await control.ask("POST", f"{LEASES}/{held['id']}/release")
            status, held = await waiter.answer()
            gaps.append(time.perf_counter() - released)
            assert (status, held["holder"]) == (201, str(place)), "out of order"
        await control.ask("POST", f"{LEASES}/{held['id']}/release")
        for waiter in waiters:
            waiter.hang_up()
    ms = sorted(gap * 1000 for gap in gaps)
    print(f"handover: 100 times three waiters and one key, all in order; release sent to grant read: "
          f"median {statistics.median(ms):.2f} ms, p99 {ms[int(len(ms) * 0.99)]:.2f} ms, greatest {ms[-1]:.2f} ms")


async def crowd(server, count=9_900):
    """So many wait on an empty pool; then as many keys come: each gets one, none twice."""
    control = await Connection.open(server)
    before = server.resident()
    waiters = []
    for _ in range(count):
        waiters.append(await Connection.open(server))
    connected = server.resident()
    for waiter in waiters:
        waiter.send("POST", LEASES, {"wait_seconds": 300})
    await settled(control, "waiting", count)
    waiting = server.resident()
    begun = time.perf_counter()
    for at in range(0, count, 10_000):
        status, _ = await control.ask("POST", KEYS, {"count": min(10_000, count - at)})
        assert status == 201
    grants = await asyncio.gather(*(waiter.answer() for waiter in waiters))
    took = time.perf_counter() - begun
    keys = {grant["key_id"] for status, grant in grants if status == 201}
    assert len(keys) == count, "somebody got none, or one was lent twice"
    print(f"crowd: {count} waiters over HTTP, {count} keys made: each got one of its own within {took:.2f} s; "
          f"resident {(connected - before) / count:.0f} bytes a connection, {(waiting - connected) / count:.0f} more while it waits")


async def hangups(server):
    """A thousand wait, half of them hang up at random while keys come: no key is lost."""
    control = await Connection.open(server)
    waiters = [await Connection.open(server) for _ in range(1_000)]
    gone = set(random.sample(range(1_000), 500))
    for place, waiter in enumerate(waiters):
        # Whose answer was on its way when they hung up hold a lease that ends by itself.
        waiter.send("POST", LEASES, {"wait_seconds": 300, "ttl_seconds": 2 if place in gone else 60})
    await settled(control, "waiting", 1_000)

    async def leave():
        for place in random.sample(sorted(gone), 500):
            waiters[place].hang_up()
            await asyncio.sleep(random.random() / 500)

    async def come():
        for _ in range(100):
            await control.ask("POST", KEYS, {"count": 7})
            await asyncio.sleep(random.random() / 100)

    await asyncio.gather(leave(), come())
    live = [waiters[place] for place in range(1_000) if place not in gone]
    grants = await asyncio.gather(*(waiter.answer() for waiter in live))
    held = {grant["key_id"] for status, grant in grants if status == 201}
    assert len(held) == 500, "a live caller got none"
    pool = (await control.ask("GET", "/v1/pools/default"))[1]
    on_its_way = pool["leased"] - 500
    await settled(control, "leased", 500)
    await settled(control, "available", 200)
    print(f"hangups: 1000 waiters, 500 hung up while 700 keys came: 500 live callers hold 500 keys, 200 are available; "
          f"{on_its_way} had been sent to somebody who was gone and came back by themselves")


async def pages(connection, limit=1_000):
    cursor, listed, times, count = "", [], [], 0
    while cursor is not None:
        asked = time.perf_counter()
        _, page = await connection.ask("GET", f"{KEYS}?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        times.append(time.perf_counter() - asked)
        listed += (key["id"] for key in page["keys"])
        cursor, count = page["next_cursor"], count + 1
    return listed, times, count


async def listing(server):
    """A million keys in pages while keys come and go: what stays is listed once."""
    control = await Connection.open(server)
    status, small = await control.ask("POST", KEYS, {"count": 1_000})
    kept = {key["id"] for key in small["keys"]}
    _, times, _ = await pages(control, 100)
    few = statistics.median(times)
    for _ in range(99):
        _, made = await control.ask("POST", KEYS, {"count": 10_000})
        kept.update(key["id"] for key in made["keys"])
    _, made = await control.ask("POST", KEYS, {"count": 9_000})
    passing = [key["id"] for key in made["keys"]]
    other, over = await Connection.open(server), asyncio.Event()
    churned = 0

    async def churn():
        nonlocal churned
        while not over.is_set():
            if passing:
                await other.ask("DELETE", f"{KEYS}/{passing.pop()}")
            _, new = await other.ask("POST", KEYS, {"count": 1})
            passing.append(new["keys"][0]["id"])
            churned += 1
            await other.ask("POST", LEASES, {})

    churning = asyncio.create_task(churn())
    begun = time.perf_counter()
    listed, times, count = await pages(control)
    took = time.perf_counter() - begun
    over.set()
    await churning
    assert len(listed) == len(set(listed)), "a key is listed twice"
    assert kept <= set(listed), "a key that stayed is missing"
    _, times_of_100, _ = await pages(control, 100)
    print(f"listing: {len(listed)} keys in {count} pages of 1000 within {took:.1f} s, while {churned} were deleted, made and lent: "
          f"complete, none twice; median page of 100: {few * 1000:.2f} ms at 1e3 keys, {statistics.median(times_of_100) * 1000:.2f} ms at 1e6")


async def slow(server):
    """200 clients that send a byte a second: cut in time, and nobody else is slowed."""

    async def pace(seconds):
        connections = [await Connection.open(server) for _ in range(8)]
        end, done = time.perf_counter() + seconds, 0

        async def work(connection):
            nonlocal done
            while time.perf_counter() < end:
                _, lease = await connection.ask("POST", LEASES, {})
                await connection.ask("POST", f"{LEASES}/{lease['id']}/release")
                done += 2

        await asyncio.gather(*(work(connection) for connection in connections))
        return done / seconds

    control = await Connection.open(server)
    await control.ask("POST", KEYS, {"count": 100})
    cut = []

    async def dawdle(text):
        connection = await Connection.open(server)
        begun = time.perf_counter()
        try:
            for byte in text:
                connection.writer.write(bytes([byte]))
                await connection.writer.drain()
                if connection.reader.at_eof():
                    break
                try:
                    if await asyncio.wait_for(connection.reader.read(1), 1) == b"":
                        break
                    break
                except asyncio.TimeoutError:
                    pass
        except OSError:
            pass
        cut.append(time.perf_counter() - begun)

    head = b"POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100
    body = b"POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"

    async def dawdle_in_body():
        connection = await Connection.open(server)
        begun = time.perf_counter()
        connection.writer.write(body)
        try:
            for _ in range(90):
                connection.writer.write(b" ")
                try:
                    await asyncio.wait_for(connection.reader.read(1), 1)
                    break
                except asyncio.TimeoutError:
                    pass
        except OSError:
            pass
        cut.append(time.perf_counter() - begun)

    alone = [await pace(2) for _ in range(3)]
    dawdling = [asyncio.create_task(dawdle(head)) for _ in range(100)]
    dawdling += [asyncio.create_task(dawdle_in_body()) for _ in range(100)]
    await asyncio.sleep(1)
    beside = [await pace(2) for _ in range(3)]
    await asyncio.gather(*dawdling)
    heads, bodies = sorted(cut)[:100], sorted(cut)[100:]
    print(f"slow: 200 clients a byte a second: heads cut after {heads[0]:.1f} to {heads[-1]:.1f} s (bound 10), "
          f"bodies after {bodies[0]:.1f} to {bodies[-1]:.1f} s (bound 30); others {statistics.median(alone):.0f} requests/s alone, "
          f"{statistics.median(beside):.0f} beside them (one slow Python client)")


FIGURES = {"handover": handover, "crowd": crowd, "hangups": hangups, "listing": listing, "slow": slow}


def main():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    for name in sys.argv[1:] or FIGURES:
        server = Server("--keepalive-ttl", "1h")
        try:
            asyncio.run(FIGURES[name](server))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
