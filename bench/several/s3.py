"""The S3 double moto, with one bucket."""

import contextlib
import http.client
import importlib.util
import os
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

    def bytes_written(self):
        return int(self.written.read_text() or 0) if self.written.exists() else 0

    def stop(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
