"""Servers of Keypeg that share a store."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import time

from .postgres import cpu_seconds


class Server:
    """One server, which can be killed, paused and started again under the same name and address."""

    def __init__(self, index, host, binary, store, directory, options=(), variables=None, boot_offset=0):
        self.index, self.host, self.binary, self.store = index, host, binary, store
        self.variables = variables or {}
        # Another machine has another time since boot. `unshare` becomes the server: it does not fork.
        self.prefix = [*host.prefix, *(["unshare", "--time", "--boottime", str(boot_offset)] if boot_offset else [])]
        self.name = f"keys-{index}"
        self.port = host.port(8000)
        self.dir = directory / self.name
        self.log_path = directory / f"{self.name}.log"
        self.options = options
        self.process = None

    @property
    def address(self):
        return f"{self.host.address}:{self.port}"

    def start(self, shards=16):
        log = open(self.log_path, "ab")
        words = [
            *self.prefix, str(self.binary), "serve", "--listen", self.address, "--insecure-listen",
            "--advertise", f"http://{self.address}", "--server-name", self.name, "--shards", str(shards),
            "--data", str(self.dir), *self.options,
        ]
        environment = {**os.environ, **self.store.environment(), "KEYPEG_STORE": self.store.url(), **self.variables}
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log, env=environment)
        line = self.process.stdout.readline()
        if b"ready" not in line:
            tail = self.log_path.read_text()[-2000:]
            raise RuntimeError(f"{self.name} did not start: {tail}")

    def call(self, method, path, body=None, timeout=15):
        connection = http.client.HTTPConnection(self.host.address, self.port, timeout=timeout)
        with contextlib.closing(connection):
            headers = {"content-type": "application/json"} if body is not None else {}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.read()

    def followed(self):
        """The shards that it follows, with the last frame that it has applied."""
        status, text = self.call("GET", "/v1/cluster", timeout=2)
        shards = json.loads(text)["shards"] if status == 200 else []
        return {each["shard"]: each["position"] for each in shards if each["role"] != "owner"}

    def wait_until_ready(self, seconds=60):
        deadline = time.monotonic() + seconds
        found = None
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                found = self.call("GET", "/readyz", timeout=2)
                if found[0] == 200:
                    return
            time.sleep(0.05)
        raise RuntimeError(f"{self.name} is not ready: {found}\n{self.log_path.read_text()[-2000:]}")

    def signal(self, number):
        os.kill(self.process.pid, number)

    def kill(self):
        self.signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, seconds=30):
        self.signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def cpu(self):
        return cpu_seconds([self.process.pid])


def owners(servers):
    """The server that has taken each shard over last, by the logs."""
    last = {}
    for each in servers:
        for line in each.log_path.read_text().splitlines():
            found = re.search(r"^(\S+).*this server owns the shard.*shard=(\d+)", line)
            if found and last.get(found[2], ("", 0))[0] < found[1]:
                last[found[2]] = (found[1], each)
    return {int(shard): owner for shard, (_, owner) in last.items()}
