"""Many connections that each send one request after the other and read the whole answer: the closed loop of a load."""

import asyncio
import re


def flood(target, connections, request):
    """Sends until the load has ended; `request(n)` returns method, path, more head lines and body of the n-th request.

    Returns the number of answers by status, and the bytes of their bodies.
    """
    counts, numbers = {}, iter(range(1 << 62))

    async def connection():
        reader = writer = None
        while not target.has_ended():
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
                method, path, lines, body = request(next(numbers))
                writer.write((f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{target.authorization}{lines}"
                              f"Content-Length: {len(body)}\r\n\r\n{body}").encode())
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                left = int(length.group(1)) if length else 0
                counts["bytes"] = counts.get("bytes", 0) + left
                while left:
                    part = await reader.read(min(left, 1 << 16))
                    if not part:
                        raise EOFError
                    left -= len(part)
                status = int(head.split(b" ", 2)[1])
                counts[status] = counts.get(status, 0) + 1
                if b"connection: close" in head.lower():
                    raise EOFError
                if status in (429, 503):
                    await asyncio.sleep(0.01)
            except (OSError, EOFError, asyncio.IncompleteReadError):
                counts["ended"] = counts.get("ended", 0) + 1
                if writer is not None:
                    writer.transport.abort()
                reader = writer = None
                await asyncio.sleep(0.01)

    async def all_connections():
        await asyncio.gather(*(connection() for _ in range(connections)))

    async def until_the_end():
        task = asyncio.ensure_future(all_connections())
        while not target.has_ended() and not task.done():
            await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(until_the_end())
    return counts, counts.pop("bytes", 0)
