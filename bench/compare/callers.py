"""Many connections that repeat one request each, and read its answers without looking at them: for loads."""

import asyncio
import time

CONNECTIONS = 400


def repeat(target, method, path, body=b"", headers="", connections=CONNECTIONS):
    """Repeats a request on each connection until the load ends; returns a note for the table."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\n{target.authorization}{headers}\r\n"
    return asyncio.run(_repeat(target, head.encode() + body, connections))


async def _repeat(target, request, connections):
    counts = {}
    tasks = [asyncio.create_task(_one(target, request, counts)) for _ in range(connections)]
    await asyncio.wait(tasks, timeout=max(0, target.until - time.monotonic()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    statuses = ", ".join(f"{count} × {status}" for status, count in sorted(counts.items()))
    return f"{connections} connections; answers: {statuses or 'none'}"


async def _one(target, request, counts):
    writer = None
    while not target.has_ended():
        try:
            if writer is None:
                reader, writer = await asyncio.open_connection("127.0.0.1", target.port, local_addr=(target.address, 0))
            writer.write(request)
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head.split(b" ", 2)[1])
            counts[status] = counts.get(status, 0) + 1
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            while length > 0:
                length -= len(await reader.read(min(length, 1 << 18)) or exit_on_end())
            if b"connection: close" in head:
                writer.transport.abort()
                writer = None
            if status >= 400:
                await asyncio.sleep(0.05)
        except (OSError, EOFError, ValueError, asyncio.IncompleteReadError):
            if writer is not None:
                writer.transport.abort()
            writer = None
            await asyncio.sleep(0.05)


def exit_on_end():
    raise EOFError
