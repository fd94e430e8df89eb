#!/usr/bin/env python3
"""Measures waiting, listing and slow clients on a release binary.

    cargo build --release && bench/figures.py [handover crowd hangups listing slow]

Starts a server with its own directory on loopback for each measurement, and prints the results. Standard library only.
Exits with 1 if a guarantee is violated.
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
    """A server with its own directory on a disk, so that every response is durable."""

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
    """One HTTP/1.1 connection with one request at a time."""

    @classmethod
    async def open(cls, server):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", server.port)
        return self

    def send(self, method, path, body=None, headers=""):
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{headers}"
        self.writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)

    async def response(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length.group(1))) if length else b""
        return int(head.split()[1]), json.loads(body) if body else None

    async def request(self, method, path, body=None):
        self.send(method, path, body)
        return await self.response()

    def disconnect(self):
        self.writer.transport.abort()


async def wait_for_count(control, member, value):
    """Waits until a count of the pool has this value."""
    while (await control.request("GET", "/v1/pools/default"))[1][member] != value:
        await asyncio.sleep(0.01)


async def handover(server):
    """Three waiters and one key: they get it in order, soon after the previous release."""
    gaps = []
    control = await Connection.open(server)
    await control.request("POST", KEYS, {"count": 1})
    for _ in range(100):
        _, held = await control.request("POST", LEASES, {})
        waiters = [await Connection.open(server) for _ in range(3)]
        for index, waiter in enumerate(waiters):
            waiter.send("POST", LEASES, {"wait_seconds": 60, "holder": str(index)})
            await wait_for_count(control, "waiting", index + 1)
        for index, waiter in enumerate(waiters):
            released = time.perf_counter()
            await control.request("POST", f"{LEASES}/{held['id']}/release")
            status, held = await waiter.response()
            gaps.append(time.perf_counter() - released)
            assert (status, held["holder"]) == (201, str(index)), "out of order"
        await control.request("POST", f"{LEASES}/{held['id']}/release")
        for waiter in waiters:
            waiter.disconnect()
    ms = sorted(gap * 1000 for gap in gaps)
    print(f"handover: 100 times three waiters and one key, all in order; release sent to grant read: "
          f"median {statistics.median(ms):.2f} ms, p99 {ms[int(len(ms) * 0.99)]:.2f} ms, greatest {ms[-1]:.2f} ms")


async def crowd(server, count=9_900):
    """`count` waiters on an empty pool, then as many keys: each waiter gets one, no key is granted twice."""
    control = await Connection.open(server)
    before = server.resident()
    waiters = []
    for _ in range(count):
        waiters.append(await Connection.open(server))
    connected = server.resident()
    for waiter in waiters:
        waiter.send("POST", LEASES, {"wait_seconds": 300})
    await wait_for_count(control, "waiting", count)
    waiting = server.resident()
    started = time.perf_counter()
    for at in range(0, count, 10_000):
        status, _ = await control.request("POST", KEYS, {"count": min(10_000, count - at)})
        assert status == 201
    grants = await asyncio.gather(*(waiter.response() for waiter in waiters))
    took = time.perf_counter() - started
    keys = {grant["key_id"] for status, grant in grants if status == 201}
    assert len(keys) == count, "a waiter got no key, or a key was granted twice"
    print(f"crowd: {count} waiters over HTTP, {count} keys generated: each got a key within {took:.2f} s; "
          f"resident {(connected - before) / count:.0f} bytes a connection, {(waiting - connected) / count:.0f} more while it waits")


async def hangups(server):
    """1000 waiters, half of which disconnect at random while keys are generated: no key is lost."""
    control = await Connection.open(server)
    waiters = [await Connection.open(server) for _ in range(1_000)]
    leaving = set(random.sample(range(1_000), 500))
    for index, waiter in enumerate(waiters):
        # A waiter that disconnects while its response is in flight holds a lease that expires after 2 s.
        waiter.send("POST", LEASES, {"wait_seconds": 300, "ttl_seconds": 2 if index in leaving else 60})
    await wait_for_count(control, "waiting", 1_000)

    async def disconnect():
        for index in random.sample(sorted(leaving), 500):
            waiters[index].disconnect()
            await asyncio.sleep(random.random() / 500)

    async def generate():
        for _ in range(100):
            await control.request("POST", KEYS, {"count": 7})
            await asyncio.sleep(random.random() / 100)

    await asyncio.gather(disconnect(), generate())
    live = [waiters[index] for index in range(1_000) if index not in leaving]
    grants = await asyncio.gather(*(waiter.response() for waiter in live))
    held = {grant["key_id"] for status, grant in grants if status == 201}
    assert len(held) == 500, "a connected waiter got no key"
    pool = (await control.request("GET", "/v1/pools/default"))[1]
    in_flight = pool["leased"] - 500
    await wait_for_count(control, "leased", 500)
    await wait_for_count(control, "available", 200)
    print(f"hangups: 1000 waiters, 500 disconnected while 700 keys were generated: 500 connected waiters hold 500 keys, 200 are "
          f"available; {in_flight} had been sent to a disconnected client and were released")


async def pages(connection, limit=1_000):
    cursor, listed, times, count = "", [], [], 0
    while cursor is not None:
        sent = time.perf_counter()
        _, page = await connection.request("GET", f"{KEYS}?limit={limit}" + (f"&cursor={cursor}" if cursor else ""))
        times.append(time.perf_counter() - sent)
        listed += (key["id"] for key in page["keys"])
        cursor, count = page["next_cursor"], count + 1
    return listed, times, count


async def listing(server):
    """Lists a million keys in pages while keys are generated and deleted: a key that stays is listed once."""
    control = await Connection.open(server)
    status, small = await control.request("POST", KEYS, {"count": 1_000})
    kept = {key["id"] for key in small["keys"]}
    _, times, _ = await pages(control, 100)
    small_pool_ms = statistics.median(times)
    for _ in range(99):
        _, generated = await control.request("POST", KEYS, {"count": 10_000})
        kept.update(key["id"] for key in generated["keys"])
    _, generated = await control.request("POST", KEYS, {"count": 9_000})
    temporary = [key["id"] for key in generated["keys"]]
    other, stopped = await Connection.open(server), asyncio.Event()
    churned = 0

    async def churn():
        nonlocal churned
        while not stopped.is_set():
            if temporary:
                await other.request("DELETE", f"{KEYS}/{temporary.pop()}")
            _, new = await other.request("POST", KEYS, {"count": 1})
            temporary.append(new["keys"][0]["id"])
            churned += 1
            await other.request("POST", LEASES, {})

    churning = asyncio.create_task(churn())
    started = time.perf_counter()
    listed, times, count = await pages(control)
    took = time.perf_counter() - started
    stopped.set()
    await churning
    assert len(listed) == len(set(listed)), "a key is listed twice"
    assert kept <= set(listed), "a key that stayed is missing"
    _, large_pool_times, _ = await pages(control, 100)
    print(f"listing: {len(listed)} keys in {count} pages of 1000 within {took:.1f} s, while {churned} were deleted, generated and "
          f"leased: "
          f"complete, none twice; median page of 100: {small_pool_ms * 1000:.2f} ms at 1e3 keys, {statistics.median(large_pool_times) * 1000:.2f} ms at 1e6")


async def slow(server):
    """200 clients that send a byte a second: they are disconnected in time, and no other client is slowed down."""

    async def measure_rate(seconds):
        connections = [await Connection.open(server) for _ in range(8)]
        end, done = time.perf_counter() + seconds, 0

        async def work(connection):
            nonlocal done
            while time.perf_counter() < end:
                _, lease = await connection.request("POST", LEASES, {})
                await connection.request("POST", f"{LEASES}/{lease['id']}/release")
                done += 2

        await asyncio.gather(*(work(connection) for connection in connections))
        return done / seconds

    control = await Connection.open(server)
    await control.request("POST", KEYS, {"count": 100})
    cut_after = []

    async def send_slow_head(text):
        connection = await Connection.open(server)
        started = time.perf_counter()
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
        cut_after.append(time.perf_counter() - started)

    head = b"POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100
    body = b"POST /v1/pools/default/leases HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"

    async def send_slow_body():
        connection = await Connection.open(server)
        started = time.perf_counter()
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
        cut_after.append(time.perf_counter() - started)

    rate_alone = [await measure_rate(2) for _ in range(3)]
    slow_clients = [asyncio.create_task(send_slow_head(head)) for _ in range(100)]
    slow_clients += [asyncio.create_task(send_slow_body()) for _ in range(100)]
    await asyncio.sleep(1)
    rate_beside = [await measure_rate(2) for _ in range(3)]
    await asyncio.gather(*slow_clients)
    heads, bodies = sorted(cut_after)[:100], sorted(cut_after)[100:]
    print(f"slow: 200 clients a byte a second: heads are cut after {heads[0]:.1f} to {heads[-1]:.1f} s (limit 10), "
          f"bodies after {bodies[0]:.1f} to {bodies[-1]:.1f} s (limit 30); others {statistics.median(rate_alone):.0f} requests/s alone, "
          f"{statistics.median(rate_beside):.0f} beside them (one slow Python client)")


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
