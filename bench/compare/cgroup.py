"""A memory control group for one server, of cgroup v1 or v2: its limit, its highest use, and kills by the kernel."""

import os
from pathlib import Path


class Unavailable(Exception):
    """No control group can be made: not root, or no hierarchy that limits memory."""


class MemoryGroup:
    """A control group with a memory limit, to be entered by a command that starts with `wrap()`."""

    def __init__(self, limit):
        root, self.version = hierarchy()
        self.path = root / f"keypeg-abuse-{os.getpid()}"
        try:
            self.path.mkdir()
            self.write("memory.limit_in_bytes" if self.version == 1 else "memory.max", limit)
        except OSError as error:
            if self.path.exists():
                self.path.rmdir()
            raise Unavailable(f"{root}: {error.strerror}") from error
        if self.version == 2 and (self.path / "memory.swap.max").exists():
            self.write("memory.swap.max", 0)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.path.rmdir()

    def write(self, file, value):
        (self.path / file).write_text(str(value))

    def number(self, file):
        try:
            return int((self.path / file).read_text())
        except (OSError, ValueError):
            return 0

    def rows(self, file):
        """Returns the numbers of a file with one name and number a line."""
        try:
            words = [line.split() for line in (self.path / file).read_text().splitlines()]
        except OSError:
            return {}
        return {row[0]: int(row[1]) for row in words if len(row) == 2}

    def wrap(self):
        """Returns the words before a command that put its process into this group."""
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh")

    def peak(self):
        """Returns the most bytes ever charged, files included. The kernel reclaims files before it kills."""
        return self.number("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")

    def kernel(self):
        """Returns the bytes of the kernel for this group's sockets and files now."""
        if self.version == 1:
            return self.number("memory.kmem.usage_in_bytes") + self.number("memory.kmem.tcp.usage_in_bytes")
        rows = self.rows("memory.stat")
        return rows.get("kernel", 0) + rows.get("sock", 0)

    def kills(self):
        """Returns how many processes of the group the kernel has killed for want of memory."""
        rows = self.rows("memory.oom_control" if self.version == 1 else "memory.events")
        return rows.get("oom_kill", 0)


def hierarchy():
    """Returns the directory below which groups can be made, and its version."""
    if os.geteuid() != 0:
        raise Unavailable("a memory limit needs root")
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    for _, directory, kind, options, *_ in mounts:
        if kind == "cgroup" and "memory" in options.split(","):
            return Path(directory), 1
    for _, directory, kind, *_ in mounts:
        if kind == "cgroup2" and "memory" in (Path(directory) / "cgroup.subtree_control").read_text().split():
            return Path(directory), 2
    raise Unavailable("no hierarchy of control groups limits memory here")
