"""Uses the installed package, without the tools of the tests: the server of the wheel, and a lease."""

import asyncio
import os
import re
import subprocess
import tempfile
from importlib import metadata, resources

import keypeg
from keypeg import AsyncClient, Client

with tempfile.TemporaryDirectory() as directory:
    server = subprocess.Popen(
        [os.environ["KEYPEG_BINARY"], "serve", "--data", f"{directory}/data", "--listen", "127.0.0.1:0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    try:
        match = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert match is not None
        with Client(match.group()) as client:
            client.generate("default", 1)
            with client.lease(wait=5) as lease:
                assert client.verify("default", lease.key).active

        async def main(url: str) -> None:
            async with AsyncClient(url) as client, client.lease(wait=5) as lease:
                assert lease.is_held

        asyncio.run(main(match.group()))
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()

printed = subprocess.run(
    [os.environ["KEYPEG_BINARY"], "--version"], capture_output=True, text=True, check=True
)
assert keypeg.__version__ in printed.stdout, printed.stdout
assert metadata.version("keypeg") == keypeg.__version__
assert resources.files("keypeg").joinpath("py.typed").is_file()
(entry,) = metadata.entry_points(group="pytest11", name="keypeg")
assert entry.value == "keypeg_pytest"
assert metadata.metadata("keypeg").get_all("License-File") == ["LICENSE-APACHE", "LICENSE-MIT"]
