"""The S3 double moto, with one bucket, and stores with the API of S3 that run elsewhere."""

import contextlib
import http.client
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time

from .postgres import children, cpu_seconds


# Moto compares the condition of a creation and stores the object in two steps, and answers many requests at once: without
# the lock, two servers create one object now and then, which the probe of a start sees.
SERVER = """
import sys, threading
from moto.s3 import responses
lock, put = threading.Lock(), responses.S3Response.put_object
written = 0

def put_object(self, *arguments, **named):
    global written
    with lock:
        written += len(self.body or b"")
        with open(sys.argv[1], "w") as file:
            file.write(str(written))
        return put(self, *arguments, **named)

responses.S3Response.put_object = put_object
from moto.server import main
main(sys.argv[2:])
"""


class Moto:
    kind = "s3"

    def __init__(self, hosts, parent):
        self.host = hosts.add("s3")
        self.port = self.host.port(9000)
        if importlib.util.find_spec("moto") is None:
            sys.exit(f"cluster: {sys.executable} has no moto: pip install 'moto[s3,server]'")
        self.written = parent / "s3.written"
        words = [*self.host.prefix, sys.executable, "-c", SERVER, str(self.written), "-H", self.host.address, "-p", str(self.port)]
        self.process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                connection = http.client.HTTPConnection(self.host.address, self.port, timeout=5)
                connection.request("PUT", "/keypeg")
                if connection.getresponse().status == 200:
                    return
            if time.monotonic() > deadline:
                sys.exit("cluster: moto_server does not answer")
            time.sleep(0.05)

    @property
    def hosts(self):
        return [self.host]

    def url(self):
        endpoint = f"http://{self.host.address}:{self.port}"
        return f"s3://keypeg/run?region=us-east-1&endpoint={endpoint}&allow_http=true&timeout_s=5"

    def environment(self):
        return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

    def cpu(self):
        return cpu_seconds([self.process.pid, *children(self.process.pid)])

    def restart(self):
        """Does nothing: moto keeps the objects in memory."""

    def bytes_written(self):
        return int(self.written.read_text() or 0) if self.written.exists() else 0

    def stop(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


class External:
    """A bucket of a store that was started by hand, such as a radosgw of Ceph. Its credentials are in the environment."""

    kind = "s3"
    hosts = ()

    def __init__(self, endpoint, bucket, restart):
        self.endpoint, self.bucket, self.command = endpoint.rstrip("/"), bucket, restart
        # Each run is an installation of its own.
        self.prefix = f"run-{secrets.token_hex(4)}"

    def url(self):
        secure = "&allow_http=true" if self.endpoint.startswith("http:") else ""
        return f"s3://{self.bucket}/{self.prefix}?region=us-east-1&endpoint={self.endpoint}{secure}&timeout_s=5"

    def environment(self):
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        missing = [name for name in names if name not in os.environ]
        if missing:
            sys.exit(f"cluster: set {' and '.join(missing)} for {self.endpoint}")
        return {name: os.environ[name] for name in names}

    def restart(self):
        """Ends the store without notice and starts it again, if there is a command for it."""
        if self.command:
            subprocess.run(self.command, shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)

    def cpu(self):
        return float("nan")

    def bytes_written(self):
        return 0

    def stop(self):
        pass
