"""Load on several servers: requests per second and per CPU second, latency, bytes written, forwarded calls, takeovers."""

import json
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from . import server, stores

SERVERS = (1, 2, 4)
CONNECTIONS = (1, 64, 256)
POOLS = 8
KEYS = 1000
MASK = (1 << 64) - 1


def mixed(bits):
    bits = (bits + 0x9E3779B97F4A7C15) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


def shard_of(pool, shards):
    """The shard of a pool, as keypeg-shard/src/ownership.rs computes it."""
    bits = 0x006B6579706567_00
    for byte in pool.encode():
        bits = mixed(bits ^ byte)
    return (bits * shards) >> 64


class Cluster:
    """A store with some servers."""

    def __init__(self, args, place, directory, servers):
        # PostgreSQL runs as another user.
        directory.parent.chmod(0o711)
        directory.mkdir()
        self.shards = args.shards
        self.store = stores.start(args.store, place, directory, endpoint=args.endpoint, bucket=args.bucket)
        self.servers = [
            server.Server(index + 1, place.add(f"l{index + 1}-{servers}"), args.binary, self.store, directory)
            for index in range(servers)
        ]

    def __enter__(self):
        for each in self.servers:
            each.start(self.shards)
        for each in self.servers:
            each.wait_until_ready()
        return self

    def __exit__(self, *_):
        for each in self.servers:
            if each.is_running():
                each.kill()
        self.store.stop()

    def spread(self, seconds=40):
        """Waits until the shards are spread over the servers."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and len(set(server.owners(self.servers).values())) < len(self.servers):
            time.sleep(0.2)
        time.sleep(1)

    def owner_of(self, pool):
        return server.owners(self.servers)[shard_of(pool, self.shards)]


def bench(binary, each, pool, connections, seconds):
    words = [str(binary), "bench", "--server", f"http://{each.address}", "--pool", pool, "-c", str(connections)]
    words += ["-l", f"{seconds}s", "--keys", str(KEYS), "-o", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 120)
    if done.returncode != 0:
        raise RuntimeError(f"{words}: {done.stderr or done.stdout}")
    return json.loads(done.stdout)


def fill(cluster, pools, binary):
    for pool in pools:
        bench(binary, cluster.servers[0], pool, 1, 1)


def measure(args, cluster, connections):
    """One row of the table."""
    pools = [f"load-{number}" for number in range(min(POOLS, connections))]
    fill(cluster, pools, args.binary)
    each = max(1, connections // len(pools))
    before = [one.cpu() for one in cluster.servers], cluster.store.cpu(), cluster.store.bytes_written()
    with ThreadPoolExecutor(len(pools)) as threads:
        calls = [
            threads.submit(bench, args.binary, cluster.servers[number % len(cluster.servers)], pool, each, args.seconds)
            for number, pool in enumerate(pools)
        ]
        reports = [call.result() for call in calls]
    servers = sum(one.cpu() - was for one, was in zip(cluster.servers, before[0]))
    store = cluster.store.cpu() - before[1]
    written = cluster.store.bytes_written() - before[2]
    requests = sum(report["requests"] for report in reports)
    latencies = sorted(report["latency"]["p50_ms"] for report in reports)
    p99 = max(report["latency"]["p99_ms"] for report in reports)
    broken = sum(report["broken"] for report in reports) + sum(sum(report["refused"].values()) for report in reports)
    print(
        f"| {args.store} | {len(cluster.servers)} | {connections} | {requests / args.seconds:.0f} | "
        f"{requests / max(servers, 0.01):.0f} | {requests / max(store, 0.01):.0f} | {latencies[len(latencies) // 2]:.2f} | "
        f"{p99:.2f} | {written / max(requests, 1):.0f} | {broken} |",
        flush=True,
    )


def run(args, place, directory):
    print("| store | servers | connections | requests/s | per CPU second of the servers | per CPU second of the store | "
          "p50 ms | greatest p99 ms of a pool | bytes written per request | refused or broken |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for servers in SERVERS:
        with Cluster(args, place, directory / f"load-{servers}", servers) as cluster:
            cluster.spread()
            for connections in CONNECTIONS:
                measure(args, cluster, connections)
            if servers == 2:
                forwarded(args, cluster)


def takeovers(args, place, directory):
    for keys in args.takeover:
        takeover(args, place, directory / f"takeover-{keys}", keys)


def forwarded(args, cluster):
    """The same calls at the owner of a pool and at another server."""
    pool = "load-0"
    owner = cluster.owner_of(pool)
    other = next(each for each in cluster.servers if each is not owner)
    for name, each in (("direct", owner), ("forwarded", other)):
        report = bench(args.binary, each, pool, 1, args.seconds)
        many = bench(args.binary, each, pool, 64, args.seconds)
        print(f"{args.store} {name}: 1 connection p50 {report['latency']['p50_ms']:.2f} ms, p99 "
              f"{report['latency']['p99_ms']:.2f} ms; 64 connections {many['requests_per_second']:.0f} requests/s", flush=True)


def takeover(args, place, directory, keys):
    """The time from SIGKILL of the owner to the first grant of the next one: warm, and cold, without a follower."""
    with Cluster(args, place, directory, 2) as cluster:
        first, second = cluster.servers
        first.call("PUT", "/v1/pools/many", {"keepalive_ttl_seconds": None})
        for _ in range(keys // 10_000):
            status, body = first.call("POST", "/v1/pools/many/keys", {"count": 10_000}, timeout=60)
            if status != 201:
                raise RuntimeError(f"{status} {body}")
        time.sleep(3)
        owner = cluster.owner_of("many")
        other = second if owner is first else first
        warm = until_grant(owner.kill, other)
        cold = until_grant(lambda: (other.kill(), other.start(args.shards)), other)
        print(f"{args.store} takeover with {keys} keys: warm {warm:.2f} s after SIGKILL, cold {cold:.2f} s after SIGKILL and "
              "start of the only server", flush=True)


def until_grant(act, each, seconds=600):
    at = time.monotonic()
    act()
    while time.monotonic() < at + seconds:
        try:
            if each.call("POST", "/v1/pools/many/leases", {"ttl_seconds": 1}, timeout=30)[0] == 201:
                return time.monotonic() - at
        except OSError:
            pass
        time.sleep(0.02)
    raise RuntimeError(f"no grant within {seconds} s")
