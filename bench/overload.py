#!/usr/bin/env python3
"""Overload, as ratios within one run: many connections against few, on a fast disk and on a slow one.

    cargo build --release && python3 bench/overload.py [--seconds 8] [--binary target/release/keypeg]

Needs wrk and strace (Debian: apt-get install wrk strace). Goodput is what the server answered with 2xx,
by its own metrics. Nothing here passes or fails: the figures go to docs/reliability.md.
"""

import argparse, http.client, json, os, re, resource, signal, socket, subprocess, tempfile, threading, time, urllib.error, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))


class Server:
    def __init__(self, binary, under=(), *options):
        self.dir = tempfile.TemporaryDirectory()
        command = [*under, binary, "serve", "--listen", "127.0.0.1:0", "--data", self.dir.name + "/data", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = re.search(r"http://[0-9.:]+[0-9]", self.process.stdout.readline()).group()
        self.ask("POST", "/v1/pools/default/keys", {"count": 10000})
        self.ask("POST", "/v1/pools/default/keys", {"count": 10000})

    def ask(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def counts(self):
        good = refused = 0
        for line in self.ask("GET", "/metrics").splitlines():
            if found := re.match(r'keypeg_http_requests_total\{.*status="(\d)xx"\} (\d+)', line):
                if found[1] == "2":
                    good += int(found[2])
                else:
                    refused += int(found[2])
        return good, refused

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def latency_ms(self):
        """How long one more client waits for one answer."""
        begun = time.monotonic()
        try:
            self.ask("GET", "/v1/pools/default")
        except urllib.error.HTTPError as refused:
            assert refused.code == 503, refused
        return (time.monotonic() - begun) * 1000

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(server, connections, seconds, script="overload.lua"):
    """Closed loop: as many requests at once as there are connections."""
    wrk = subprocess.Popen(
        ["wrk", "-t2", f"-c{connections}", f"-d{seconds + 2}s", "--timeout", "30s",
         "-s", f"{HERE}/{script}", server.url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)  # until all are connected
    begun, good, refused = time.monotonic(), *server.counts()
    cpu = server.cpu_seconds()
    time.sleep(seconds / 2)
    waits = sorted(server.latency_ms() for _ in range(5))
    time.sleep(seconds / 2 - 1)
    now_good, now_refused = server.counts()
    spent = time.monotonic() - begun
    figures = {
        "connections": connections,
        "good_per_s": round((now_good - good) / spent),
        "good_per_cpu_s": round((now_good - good) / (server.cpu_seconds() - cpu)),
        "refused_per_s": round((now_refused - refused) / spent),
        "one_more_waits_ms": round(waits[2], 1),
        "memory_mib": round(server.memory_mib()),
    }
    wrk.wait()
    return figures


def compare(name, server, few, many, seconds):
    print(f"\n{name}: {few} against {many} connections, and back")
    rounds = [load(server, connections, seconds) for connections in (few, many, many, few)]
    for figures in rounds:
        print("  ", json.dumps(figures))
    good = [figures["good_per_s"] for figures in rounds]
    cpu = [figures["good_per_cpu_s"] for figures in rounds]
    print(f"   goodput {many} / {few}: {(good[1] + good[2]) / (good[0] + good[3]):.2f}"
          f" · per server CPU second: {(cpu[1] + cpu[2]) / (cpu[0] + cpu[3]):.2f}"
          f" · after it / before it: {good[3] / good[0]:.2f}")


def percentiles(waits):
    waits = sorted(waits)
    return {"p50_ms": round(waits[len(waits) // 2], 1), "p99_ms": round(waits[int(len(waits) * 0.99)], 1)}


def probe(server, seconds, path, body, answers):
    """One client that asks this again and again: how often it is refused, and how long it waits."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.monotonic()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        waited = (time.monotonic() - begun) * 1000
        retry = answer.getheader("Retry-After")
        answers.append((answer.status, waited, retry))


def small_lanes(binary, seconds):
    """Capacity set by a disk of 50 ms and short queues; then five times as much is asked."""
    slow = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync",
            "--inject=fdatasync:delay_exit=50000"]
    server = Server(binary, slow, "--max-queued", "64")
    pool = json.loads(server.ask("POST", "/v1/pools/default/keys", {"count": 1}))
    kept = pool["keys"][0]["id"]
    capacity = load(server, 320, seconds)
    asked = 5 * capacity["good_per_s"]
    connections = int(asked * 0.1)
    seen = {"acquire": [], "keepalive": []}
    probes = [
        threading.Thread(target=probe, args=(server, seconds, "/v1/pools/default/leases", '{"ttl_seconds":1}', seen["acquire"])),
        threading.Thread(target=probe, args=(server, seconds, f"/v1/pools/default/keys/{kept}/keepalive", None, seen["keepalive"])),
    ]
    [thread.start() for thread in probes]
    over = load(server, connections, seconds, "overload_paced.lua")
    [thread.join() for thread in probes]
    after = load(server, 320, seconds)
    print(f"\nsyncs of 50 ms, 64 places a core: capacity {capacity['good_per_s']}/s; {connections} connections ask for up to {asked}/s")
    for figures in (capacity, over, after):
        print("  ", json.dumps(figures))
    print(f"   goodput {over['good_per_s'] / capacity['good_per_s']:.2f} of capacity, afterwards {after['good_per_s'] / capacity['good_per_s']:.2f}")
    for name, answers in seen.items():
        refused = [(wait, retry) for status, wait, retry in answers if status == 503]
        served = [wait for status, wait, _ in answers if status < 300]
        print(f"   {name}: {len(served)} served {percentiles(served) if served else ''}, {len(refused)} refused"
              + (f" {percentiles([wait for wait, _ in refused])}, Retry-After on {sum(retry is not None for _, retry in refused)}" if refused else ""))
    server.stop()


def over_the_bound(server):
    """More connections than the server takes: which are closed, how soon, and is the rest served?"""
    held, closed = [], 0
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(10_400):
        connection = socket.create_connection((host, int(port)), timeout=10)
        held.append(connection)
    # Before the server ends those that have sent nothing for 10 s.
    first = held[0]
    begun = time.monotonic()
    first.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    served, wait_ms = first.recv(12), (time.monotonic() - begun) * 1000
    for connection in held[-300:]:
        connection.settimeout(0.01)
        try:
            closed += connection.recv(1) == b""
        except ConnectionResetError:
            closed += 1
        except TimeoutError:
            pass
    print(f"\n10400 idle connections: {closed} of the last 300 closed at once; one of the others is"
          f" answered {served.decode()!r} in {wait_ms:.1f} ms;"
          f" memory {server.memory_mib():.0f} MiB")
    for connection in held:
        connection.close()
    begun = time.monotonic()
    server.latency_ms()
    print(f"   all gone: a new one is answered after {(time.monotonic() - begun) * 1000:.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/release/keypeg")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--many", type=int, default=9_900)
    parser.add_argument("--only-small", action="store_true", help="the short queues alone")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    small_lanes(arguments.binary, arguments.seconds)
    if arguments.only_small:
        return
    server = Server(arguments.binary)
    compare("CPU-bound", server, 256, arguments.many, arguments.seconds)
    over_the_bound(server)
    server.stop()
    for delay_ms in (5, 50):
        slow = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync",
                f"--inject=fdatasync:delay_exit={delay_ms * 1000}"]
        server = Server(arguments.binary, slow)
        compare(f"each sync {delay_ms} ms longer", server, arguments.many // 5, arguments.many, arguments.seconds)
        server.stop()


main()
