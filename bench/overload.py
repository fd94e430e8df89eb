#!/usr/bin/env python3
"""Overload, as ratios within one run: many connections against few, on a fast disk and on a slow one.

    cargo build --release && python3 bench/overload.py [--seconds 8] [--binary target/release/keypeg]

Needs wrk and strace (Debian: apt-get install wrk strace). Goodput is what the server answered with 2xx,
by its own metrics. Nothing here passes or fails: the figures go to docs/reliability.md.
"""

import argparse, json, os, re, resource, signal, socket, subprocess, tempfile, time, urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))


class Server:
    def __init__(self, binary, under=()):
        self.dir = tempfile.TemporaryDirectory()
        command = [*under, binary, "serve", "--listen", "127.0.0.1:0", "--data", self.dir.name + "/data"]
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
        self.ask("GET", "/v1/pools/default")
        return (time.monotonic() - begun) * 1000

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def load(server, connections, seconds):
    """Closed loop: as many requests at once as there are connections."""
    wrk = subprocess.Popen(
        ["wrk", "-t2", f"-c{connections}", f"-d{seconds + 2}s", "--timeout", "30s",
         "-s", f"{HERE}/overload.lua", server.url],
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
    first.sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
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
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

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
