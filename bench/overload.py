#!/usr/bin/env python3
"""Measures overload as ratios within one run: many connections against few, on a fast disk and on slow ones.

    cargo build --release && python3 bench/overload.py [--seconds 8] [--binary target/release/keypeg]

Needs wrk and strace (Debian: apt-get install wrk strace). Goodput is the number of 2xx answers in the server's own
metrics. The script has no pass criterion; its results are reported in docs/reliability.md.
"""

import argparse, http.client, json, os, re, resource, signal, socket, subprocess, tempfile, threading, time, urllib.error, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))


class Server:
    def __init__(self, binary, under=(), *options):
        self.dir = tempfile.TemporaryDirectory()
        command = [*under, binary, "serve", "--listen", "127.0.0.1:0", "--data", self.dir.name + "/data", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.url = re.search(r"http://[0-9.:]+[0-9]", self.process.stdout.readline()).group()
        self.request("POST", "/v1/pools/default/keys", {"count": 10000})
        self.request("POST", "/v1/pools/default/keys", {"count": 10000})

    def request(self, method, path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read().decode()

    def counts(self):
        served = refused = 0
        for line in self.request("GET", "/metrics").splitlines():
            if found := re.match(r'keypeg_http_requests_total\{.*status="(\d)xx"\} (\d+)', line):
                if found[1] == "2":
                    served += int(found[2])
                else:
                    refused += int(found[2])
        return served, refused

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024

    def cpu_seconds(self):
        with open(f"/proc/{self.process.pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def latency_ms(self):
        """Returns how long one additional client waits for one answer."""
        started = time.monotonic()
        try:
            self.request("GET", "/v1/pools/default")
        except urllib.error.HTTPError as refused:
            assert refused.code == 503, refused
        return (time.monotonic() - started) * 1000

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(server, connections, seconds, script="overload.lua"):
    """Runs a closed loop: each connection always has one request in progress."""
    wrk = subprocess.Popen(
        ["wrk", "-t2", f"-c{connections}", f"-d{seconds + 2}s", "--timeout", "30s",
         "-s", f"{HERE}/{script}", server.url],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(2)  # until all connections are open
    started, served, refused = time.monotonic(), *server.counts()
    cpu = server.cpu_seconds()
    time.sleep(seconds / 2)
    latencies = sorted(server.latency_ms() for _ in range(5))
    time.sleep(seconds / 2 - 1)
    served_after, refused_after = server.counts()
    elapsed = time.monotonic() - started
    figures = {
        "connections": connections,
        "good_per_s": round((served_after - served) / elapsed),
        "good_per_cpu_s": round((served_after - served) / (server.cpu_seconds() - cpu)),
        "refused_per_s": round((refused_after - refused) / elapsed),
        "one_more_waits_ms": round(latencies[2], 1),
        "memory_mib": round(server.memory_mib()),
    }
    wrk.wait()
    return figures


def compare(name, server, few, many, seconds):
    print(f"\n{name}: {few} against {many} connections, and back")
    rounds = [load(server, connections, seconds) for connections in (few, many, many, few)]
    for figures in rounds:
        print("  ", json.dumps(figures))
    served = [figures["good_per_s"] for figures in rounds]
    cpu = [figures["good_per_cpu_s"] for figures in rounds]
    print(f"   goodput {many} / {few}: {(served[1] + served[2]) / (served[0] + served[3]):.2f}"
          f" · per server CPU second: {(cpu[1] + cpu[2]) / (cpu[0] + cpu[3]):.2f}"
          f" · after it / before it: {served[3] / served[0]:.2f}")


def percentiles(waits):
    waits = sorted(waits)
    return {"p50_ms": round(waits[len(waits) // 2], 1), "p99_ms": round(waits[int(len(waits) * 0.99)], 1)}


def probe(server, seconds, path, body, answers):
    """Repeats one request on one connection; appends status, latency and Retry-After of each answer to `answers`."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        started = time.monotonic()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        waited = (time.monotonic() - started) * 1000
        retry = answer.getheader("Retry-After")
        answers.append((answer.status, waited, retry))


def overload_small_queues(binary, seconds):
    """Measures the capacity with syncs of 50 ms and short queues, then loads the server with five times as much."""
    slow = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync",
            "--inject=fdatasync:delay_exit=50000"]
    server = Server(binary, slow, "--max-queued", "64")
    pool = json.loads(server.request("POST", "/v1/pools/default/keys", {"count": 1}))
    kept = pool["keys"][0]["id"]
    capacity = load(server, 320, seconds)
    requested_rate = 5 * capacity["good_per_s"]
    connections = int(requested_rate * 0.1)
    seen = {"acquire": [], "keepalive": []}
    probes = [
        threading.Thread(target=probe, args=(server, seconds, "/v1/pools/default/leases", '{"ttl_seconds":1}', seen["acquire"])),
        threading.Thread(target=probe, args=(server, seconds, f"/v1/pools/default/keys/{kept}/keepalive", None, seen["keepalive"])),
    ]
    [thread.start() for thread in probes]
    overload = load(server, connections, seconds, "overload_paced.lua")
    [thread.join() for thread in probes]
    after = load(server, 320, seconds)
    print(f"\nsyncs of 50 ms, 64 queue entries per core: capacity {capacity['good_per_s']}/s; {connections} connections request up to {requested_rate}/s")
    for figures in (capacity, overload, after):
        print("  ", json.dumps(figures))
    print(f"   goodput {overload['good_per_s'] / capacity['good_per_s']:.2f} of capacity, afterwards {after['good_per_s'] / capacity['good_per_s']:.2f}")
    for name, answers in seen.items():
        refused = [(wait, retry) for status, wait, retry in answers if status == 503]
        served = [wait for status, wait, _ in answers if status < 300]
        print(f"   {name}: {len(served)} served {percentiles(served) if served else ''}, {len(refused)} refused"
              + (f" {percentiles([wait for wait, _ in refused])}, Retry-After on {sum(retry is not None for _, retry in refused)}" if refused else ""))
    server.stop()


def exceed_connection_limit(server):
    """Opens more connections than the limit: which are closed, how soon, and are the others served?"""
    held, closed = [], 0
    host, port = server.url.removeprefix("http://").split(":")
    for _ in range(10_400):
        connection = socket.create_connection((host, int(port)), timeout=10)
        held.append(connection)
    # Before the server closes connections that have sent nothing for 10 s.
    first = held[0]
    started = time.monotonic()
    first.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
    served, wait_ms = first.recv(12), (time.monotonic() - started) * 1000
    for connection in held[-300:]:
        connection.settimeout(0.01)
        try:
            closed += connection.recv(1) == b""
        except ConnectionResetError:
            closed += 1
        except TimeoutError:
            pass
    print(f"\n10400 idle connections: {closed} of the last 300 were closed at once; one of the others is"
          f" answered {served.decode()!r} in {wait_ms:.1f} ms;"
          f" memory {server.memory_mib():.0f} MiB")
    for connection in held:
        connection.close()
    started = time.monotonic()
    server.latency_ms()
    print(f"   after all are closed: a new connection is answered after {(time.monotonic() - started) * 1000:.1f} ms")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--binary", default="target/release/keypeg")
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--many", type=int, default=9_900)
    parser.add_argument("--only-small", action="store_true", help="only the measurement with short queues")
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    overload_small_queues(arguments.binary, arguments.seconds)
    if arguments.only_small:
        return
    server = Server(arguments.binary)
    compare("CPU-bound", server, 256, arguments.many, arguments.seconds)
    exceed_connection_limit(server)
    server.stop()
    for delay_ms in (5, 50):
        slow = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync",
                f"--inject=fdatasync:delay_exit={delay_ms * 1000}"]
        server = Server(arguments.binary, slow)
        compare(f"each sync {delay_ms} ms longer", server, arguments.many // 5, arguments.many, arguments.seconds)
        server.stop()


main()
