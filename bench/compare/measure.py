"""Starts servers on loopback, runs one slice of load, and computes medians over slices."""

import json
import os
import platform
import resource
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
KEYPEG_BENCH = KEYPEG.with_name("keypeg-bench")
BUILD_COMMIT = KEYPEG.with_name("commit")
TICKS = os.sysconf("SC_CLK_TCK")


# Turns SIGTERM into an exception, so that `finally` blocks stop the servers that were started.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def progress(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def build():
    """Builds the release binaries: the server, with the feature that only the comparison needs, and the client."""
    command = ["cargo", "build", "--release", "--locked", "-p", "keypeg", "-p", "keypeg-bench",
               "--features", "keypeg/bench-constant"]
    subprocess.run(command, cwd=ROOT, check=True)
    KEYPEG.parent.mkdir(parents=True, exist_ok=True)
    for binary in (KEYPEG, KEYPEG_BENCH):
        shutil.copy2(ROOT / "target" / "release" / binary.name, binary)
    BUILD_COMMIT.write_text(git_describe())


def is_built():
    return KEYPEG.exists() and KEYPEG_BENCH.exists()


def workdir(parent=None):
    """Creates a directory on a real disk. In memory a sync costs nothing, and the comparison would be meaningless."""
    path = Path(tempfile.mkdtemp(prefix="keypeg-bench-", dir=parent))
    path.chmod(0o755)
    filesystem = subprocess.run(["stat", "-f", "-c", "%T", path], capture_output=True, text=True).stdout.strip()
    if filesystem in ("tmpfs", "ramfs"):
        path.rmdir()
        sys.exit(f"bench: {path.parent} is in memory ({filesystem}): pass a directory on a disk with --dir")
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
            raise RuntimeError(f"the server exited with {process.returncode} before it listened on port {port}")
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")


def wait_until(ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server is not ready after {seconds} s")
        time.sleep(0.05)


class Process:
    """A server that this run started, with its output in a file. Stopping it stops its process group."""

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


def keypeg_serve(directory, *options, durable=True, wrap=(), binary=KEYPEG):
    """Starts Keypeg on a free port. Returns the process and its URL once the port accepts connections."""
    directory = Path(directory)
    log = directory / "log"
    port = free_port()
    storage = ["--data", directory / "data"] if durable else ["--ephemeral"]
    process = Process([*wrap, binary, "serve", "--listen", f"127.0.0.1:{port}", *storage, *options], log)
    wait_for_port(port, process, 600)
    return process, f"http://127.0.0.1:{port}"


def load(scenario, server, pid, connections, seconds, *options):
    """Runs one slice of load on Keypeg and returns the JSON report of `keypeg bench`."""
    return report_of([
        KEYPEG, "bench", scenario, "--server", server, "--connections", connections,
        "--for", f"{int(seconds * 1000)}ms", "--server-pid", pid, "--output", "json", *options,
    ])


def load_peer(scenario, server, pid, connections, seconds, *options):
    """Runs one slice of load on any server of the comparison and returns the JSON report of `keypeg-bench`."""
    return report_of([
        KEYPEG_BENCH, scenario, "--server", server, "--connections", connections,
        "--for-ms", int(seconds * 1000), "--server-pid", pid, *options,
    ])


def report_of(command):
    """Runs a load and returns its report, even if no request succeeded."""
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if run.returncode not in (0, 70):
        words = " ".join(str(word) for word in command[1:])
        raise RuntimeError(f"{words}: {run.stderr.strip()}")
    return json.loads(run.stdout)


def raise_descriptor_limit():
    """Allows this process and its children as many descriptors as the system permits."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def slow_syncs(delay_ms):
    """Returns the words before a command that make each fdatasync of it take longer. Needs a C compiler, as Rust does."""
    library = KEYPEG.with_name("slow_syncs.so")
    source = Path(__file__).with_name("slow_syncs.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return ("env", f"LD_PRELOAD={library}", f"SYNC_DELAY_US={delay_ms * 1000}")


def resident(pid):
    """Returns the resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else None


def ratio(ours, theirs, metric):
    """Returns the median, least and greatest of the ratios `ours / theirs` of the same rounds."""
    pairs = [(metric(a), metric(b)) for a, b in zip(ours, theirs)]
    ratios = [a / b for a, b in pairs if a and b]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def per_cpu(slice_):
    return (slice_.get("process") or {}).get("requests_per_cpu_second")


def machine():
    """Returns the description of the machine, one line."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor())
    memory = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()
                      if line.startswith("MemTotal:"))) >> 20
    return f"{os.cpu_count()} x {cpu}, {memory} GiB, Linux {platform.release()}"


def measured_commit():
    """Returns the commit that the measured binary was built from."""
    return BUILD_COMMIT.read_text().strip() if BUILD_COMMIT.exists() else git_describe()


def git_describe():
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"
