"""The S3 double moto, with one bucket."""

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import time

from .postgres import children, cpu_seconds


class Moto:
    kind = "s3"

    def __init__(self, hosts, parent):
        self.host = hosts.add("s3")
        self.port = self.host.port(9000)
        program = shutil.which("moto_server")
        if program is None:
            sys.exit("cluster: moto_server is not on the PATH: pip install 'moto[s3,server]'")
        words = [*self.host.prefix, program, "-H", self.host.address, "-p", str(self.port)]
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
        return 0

    def stop(self):
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
