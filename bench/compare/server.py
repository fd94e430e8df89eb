"""One Keypeg server with its own data directory on a disk, so that every response is durable."""

import json
import shutil
import subprocess
import urllib.request
from pathlib import Path

from . import measure


class Server:
    """A Keypeg server on loopback. `stop` ends it and deletes its directory."""

    def __init__(self, *options, wrap=(), parent=None):
        self.directory = measure.workdir(parent)
        try:
            self.process, self.url = measure.keypeg_serve(self.directory, *options, wrap=wrap)
        except BaseException:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    @property
    def pid(self):
        return self.process.pid

    @property
    def port(self):
        return int(self.url.rsplit(":", 1)[1])

    @property
    def data(self):
        return self.directory / "data"

    def request(self, method, path, body=None):
        """Returns the JSON of the answer, or None if it has no body."""
        payload = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, payload, {"content-type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as response:
            text = response.read()
            return json.loads(text) if text else None

    def fill(self, pool, keys):
        """Creates the pool if it does not exist, and generates keys until it has `keys`."""
        command = [measure.KEYPEG, "bench", "--server", self.url, "--pool", pool, "--keys", keys, "--for", "100ms",
                   "--connections", 1, "--output", "json"]
        subprocess.run([str(word) for word in command], check=True, capture_output=True)

    def resident(self):
        """Returns the resident bytes."""
        return measure.resident(self.pid)

    def cpu_ticks(self, prefixes=None):
        """Returns ticks of processor time of the server, or only of threads with such a prefix of their names."""
        process, ticks = Path(f"/proc/{self.pid}"), 0
        for stat in process.glob("task/*/stat") if prefixes else [process / "stat"]:
            try:
                name, fields = stat.read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:
                continue
            if prefixes is None or name.startswith(prefixes):
                ticks += sum(int(word) for word in fields.split()[11:13])
        return ticks

    def stop(self):
        """Ends the server by SIGTERM and returns its exit status."""
        self.process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
        return self.process.returncode
