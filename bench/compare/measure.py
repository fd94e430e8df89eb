"""Processes and measuring: starting servers on loopback, one slice of load, medians of many."""

import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEYPEG = ROOT / "target" / "bench" / "keypeg"
BUILT = KEYPEG.with_name("commit")
TICKS = os.sysconf("SC_CLK_TCK")


# So that what was started is ended, whoever asks for the end.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build():
    """The release build with what only a comparison needs."""
    command = ["cargo", "build", "--release", "--locked", "-p", "keypeg", "--features", "bench-constant,bench-peers"]
    subprocess.run(command, cwd=ROOT, check=True)
    KEYPEG.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "target" / "release" / "keypeg", KEYPEG)
    BUILT.write_text(described())


def workdir(given=None):
    """A directory on a real disk: syncing to memory would compare nothing."""
    path = Path(tempfile.mkdtemp(prefix="keypeg-bench-", dir=given))
    path.chmod(0o755)
    kind = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True).stdout.strip()
    if kind in ("tmpfs", "ramfs"):
        path.rmdir()
        sys.exit(f"bench: {path.parent} is in memory ({kind}): name a directory on a disk with --dir")
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process=None, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process and process.poll() is not None:
            raise RuntimeError(f"it ended with {process.returncode} before it listened")
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


def wait_until(ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError("it does not become ready")
        time.sleep(0.05)


class Process:
    """A server of ours, with its output in a file; ended with all it started."""

    def __init__(self, command, log, env=None, cwd=None):
        self.log = Path(log)
        with open(log, "ab") as out:
            self.child = subprocess.Popen(
                [str(word) for word in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                env=env, cwd=cwd, start_new_session=True,
            )
        self.pid = self.child.pid

    def poll(self):
        return self.child.poll()

    @property
    def returncode(self):
        return self.child.returncode

    def signal_group(self, number):
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            pass

    def kill(self):
        self.signal_group(signal.SIGKILL)
        self.child.wait()

    def stop(self, number=signal.SIGTERM):
        if self.child.poll() is None:
            self.child.send_signal(number)
            try:
                self.child.wait(20)
            except subprocess.TimeoutExpired:
                pass
        self.signal_group(signal.SIGKILL)
        self.child.wait()


def keypeg_serve(directory, *more, durable=True, wrap=()):
    """Starts Keypeg on a port of its own; gives the process and its URL once it is ready."""
    directory = Path(directory)
    log = directory / "log"
    port = free_port()
    where = ["--data", directory / "data"] if durable else ["--ephemeral"]
    process = Process([*wrap, KEYPEG, "serve", "--listen", f"127.0.0.1:{port}", *where, *more], log)
    wait_for_port(port, process, 600)
    return process, f"http://127.0.0.1:{port}"


def load(scenario, server, pid, connections, seconds, *more):
    """One slice of load, as `keypeg bench` tells it."""
    command = [
        KEYPEG, "bench", scenario, "--server", server, "--connections", connections,
        "--for", f"{int(seconds * 1000)}ms", "--server-pid", pid, "--output", "json", *more,
    ]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode not in (0, 70):
        raise RuntimeError(f"{scenario} on {server}: {done.stderr.strip()}")
    return json.loads(done.stdout)


def resident(pid):
    """Bytes a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def middle(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def ratio(ours, theirs, what):
    """The median of the ratios of the same rounds, with the least and the greatest."""
    pairs = [(what(a), what(b)) for a, b in zip(ours, theirs)]
    ratios = [a / b for a, b in pairs if a and b]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def per_cpu(slice_):
    return (slice_.get("process") or {}).get("requests_per_cpu_second")


def machine():
    """The machine in one line."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor())
    memory = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()
                      if line.startswith("MemTotal:"))) >> 20
    return f"{os.cpu_count()} x {cpu}, {memory} GiB, Linux {platform.release()}"


def commit():
    """What the binary that is measured was built from."""
    return BUILT.read_text().strip() if BUILT.exists() else described()


def described():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
