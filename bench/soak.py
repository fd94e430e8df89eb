#!/usr/bin/env python3
"""Soak test: mixed load for a given time, while memory, file descriptors and the directory size are sampled.

    cargo build --release && python3 bench/soak.py 30m [--binary target/release/keypeg]

Clients acquire, renew, release, keep alive, delete and generate keys, so that the number of keys stays the same while
the keys change; some let leases expire, some disconnect during a request. The test passes if, compared with the maximum
of the first half of the time, memory, descriptors and directory size in the last half are at most 5 % and 16 MiB (one
segment) larger (for the directory: or below its limit), and no answer was a 5xx.
"""

import argparse, asyncio, json, os, random, re, resource, signal, subprocess, sys, tempfile, time

COUNTS = {"answers": 0, "grants": 0, "failures": 0, "hung_up": 0}
KEYS_PER_CLIENT = 20
# The journal grows to its limit of 256 MiB; preallocated segments, ballast and key set are added to that.
DIRECTORY_MIB = 256 + 16 * 4 + 8 + 32


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)([smh])", text).groups()
    return int(number) * {"s": 1, "m": 60, "h": 3600}[unit]


class Connection:
    """One HTTP/1.1 connection with one request at a time."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    async def request(self, method, path, body=None, hang_up=False):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode() if body is not None else b""
        self.writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
        if hang_up:
            self.writer.transport.abort()
            self.writer = None
            COUNTS["hung_up"] += 1
            return 0, {}
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        length = re.search(rb"content-length: (\d+)", head)
        text = await self.reader.readexactly(int(length[1])) if length else b""
        COUNTS["answers"] += 1
        COUNTS["failures"] += status >= 500
        return status, json.loads(text) if text.startswith(b"{") else {}


async def client(port, until, pool):
    connection, path, keys = Connection(port), f"/v1/pools/{pool}", []
    while time.monotonic() < until:
        choice = random.random()
        if len(keys) < KEYS_PER_CLIENT:
            status, made = await connection.request("POST", path + "/keys", {"count": KEYS_PER_CLIENT - len(keys)})
            keys += [key["id"] for key in made.get("keys", [])]
        elif choice < 0.6:
            status, grant = await connection.request("POST", path + "/leases", {"ttl_seconds": random.choice([0.05, 1, 5])})
            if status == 201:
                COUNTS["grants"] += 1
                lease = f"{path}/leases/{grant['id']}"
                if random.random() < 0.3:
                    await connection.request("POST", lease + "/renew", {"ttl_seconds": 5})
                if random.random() < 0.9:
                    await connection.request("POST", lease + "/release", random.choice([None, {"rest_seconds": 0.01}]))
        elif choice < 0.8:
            await connection.request("POST", f"{path}/keys/{random.choice(keys)}/keepalive")
        elif choice < 0.82:
            await connection.request("POST", path + "/leases", {"wait_seconds": 5}, hang_up=True)
        elif choice < 0.9:
            await connection.request("GET", path + "/keys?limit=20")
        elif choice < 0.98:
            await connection.request("DELETE", f"{path}/keys/{keys.pop(random.randrange(len(keys)))}")
        else:
            await connection.request("POST", path + "/keepalive", {"all": True})


async def pools(port, until):
    """Creates pools with keys, and deletes them or lets their keys be purged."""
    connection, number = Connection(port), 0
    while time.monotonic() < until:
        name = f"/v1/pools/brief-{number % 7}"
        await connection.request("PUT", name, {"keepalive_ttl_seconds": 0.5})
        await connection.request("POST", name + "/keys", {"count": 200})
        await connection.request("POST", name + "/leases", {})
        if number % 2:
            await connection.request("DELETE", name)
        number += 1
        await asyncio.sleep(0.2)


def sample(pid, data):
    with open(f"/proc/{pid}/status") as status:
        memory = int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024
    size = sum(entry.stat().st_size for entry in os.scandir(data)) / (1 << 20)
    return {"memory_mib": memory, "descriptors": len(os.listdir(f"/proc/{pid}/fd")), "directory_mib": size}


async def watch(process, data, port, started, length, samples):
    while (elapsed := time.monotonic() - started) < length:
        samples.append(sample(process.pid, data))
        print(f"{elapsed:7.0f} s ", " ".join(f"{name} {value:.0f}" for name, value in samples[-1].items()),
              json.dumps(COUNTS), flush=True)
        await asyncio.sleep(max(length / 40, 1))


async def run(process, data, port, length, clients):
    started = time.monotonic()
    samples, until = [], started + length
    await asyncio.gather(
        watch(process, data, port, started, length, samples), pools(port, until),
        *(client(port, until, f"pool-{number % 3}") for number in range(clients)))
    return samples


def is_flat(samples):
    # The first samples show a server that is still warming up.
    warm = samples[len(samples) // 10:]
    first, last = warm[: len(warm) // 2], warm[len(warm) // 2:]
    flat = True
    for name in samples[0]:
        before, after = max(one[name] for one in first), max(one[name] for one in last)
        margin = 16 if name.endswith("mib") else 2
        grew = after > max(before * 1.05 + margin, DIRECTORY_MIB if name == "directory_mib" else 0)
        flat &= not grew
        print(f"{name}: at most {before:.0f} in the first half, {after:.0f} in the last{': GREW' if grew else ''}")
    return flat


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("length", type=seconds, help="duration: a number with s, m or h")
    parser.add_argument("--binary", default="target/release/keypeg")
    parser.add_argument("--clients", type=int, default=32, help="clients [default: 32]")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as directory:
        data = directory + "/data"
        process = subprocess.Popen(
            [arguments.binary, "serve", "--listen", "127.0.0.1:0", "--data", data], stdout=subprocess.PIPE, text=True)
        try:
            port = int(re.search(r"http://[0-9.]+:(\d+)", process.stdout.readline())[1])
            setup = Connection(port)
            loop = asyncio.new_event_loop()

            async def run_all():
                for number in range(3):
                    await setup.request("PUT", f"/v1/pools/pool-{number}", {"keepalive_ttl_seconds": 600})
                return await run(process, data, port, arguments.length, arguments.clients)

            samples = loop.run_until_complete(run_all())
        finally:
            process.send_signal(signal.SIGTERM)
            exit_code = process.wait()
    flat = is_flat(samples)
    passed = flat and COUNTS["failures"] == 0 and exit_code == 0
    print("flat" if passed else "NOT flat", json.dumps(COUNTS), "exit", exit_code)
    sys.exit(not passed)


main()
