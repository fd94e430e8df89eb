"""One HTTP/1.1 connection of an asyncio client, with one request at a time: for scripts in which single clients wait,
are slow, or disconnect. `keypeg bench` generates load."""

import asyncio
import json
import re


class Connection:
    """A connection to loopback, which the first request opens."""

    def __init__(self, port):
        self.port, self.reader, self.writer = port, None, None

    @classmethod
    async def open(cls, port):
        self = cls(port)
        await self.connect()
        return self

    async def connect(self):
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    def send(self, method, path, body=None):
        """Sends a request on an open connection, without waiting for its answer."""
        payload = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload)

    async def response(self):
        """Returns the status and the JSON of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)content-length: (\d+)", head)
        body = await self.reader.readexactly(int(length.group(1))) if length else b""
        return int(head.split()[1]), json.loads(body) if body else None

    async def request(self, method, path, body=None):
        await self.connect()
        self.send(method, path, body)
        return await self.response()

    def disconnect(self):
        """Aborts the connection; a further request opens a new one."""
        self.writer.transport.abort()
        self.reader = self.writer = None
