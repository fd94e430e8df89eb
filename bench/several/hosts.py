"""Hosts of a run: the loopback address, or network namespaces that can be parted from each other.

Namespaces need root. They live in a network and mount namespace of the run's own, so nothing of the machine changes and
nothing is left behind.
"""

import os
import socket
import subprocess
import sys

NETWORK = "10.77.0"
INSIDE = "KEYPEG_CLUSTER_INSIDE"


def run(*words, check=True):
    return subprocess.run(words, check=check, capture_output=True, text=True)


def enter():
    """Starts this program again in namespaces of its own, unless it runs there already."""
    if os.environ.get(INSIDE):
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "tmpfs", "/run/netns")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "kp0", "type", "bridge")
        run("ip", "addr", "add", f"{NETWORK}.1/24", "dev", "kp0")
        run("ip", "link", "set", "kp0", "up")
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", "--mount", "--propagation", "private", sys.executable, *sys.argv])


class Loopback:
    """All hosts are the loopback address, with free ports."""

    can_part = False
    network = "127.0.0.1/32"

    def add(self, name):
        return Host(name, "127.0.0.1", [])


class Namespaces:
    """Each host is a network namespace on one bridge."""

    can_part = True
    network = f"{NETWORK}.0/24"

    def __init__(self):
        self.count = 1

    def add(self, name):
        self.count += 1
        host = Host(name, f"{NETWORK}.{self.count}", ["ip", "netns", "exec", name])
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"v{self.count}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"v{self.count}", "master", "kp0", "up")
        for words in (
            ["addr", "add", f"{host.address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            ["link", "set", "lo", "up"],
        ):
            run(*host.prefix, "ip", *words)
        return host


class Host:
    def __init__(self, name, address, prefix):
        self.name, self.address, self.prefix = name, address, prefix
        self.used = set()

    def port(self, preferred):
        """A port of this host that is free: the preferred one where the host is a namespace."""
        if self.prefix:
            while preferred in self.used:
                preferred += 1
            self.used.add(preferred)
            return preferred
        with socket.socket() as probe:
            probe.bind((self.address, 0))
            return probe.getsockname()[1]

    def _lose(self, other, is_lost):
        # An address that no interface has: the packets leave, and no host takes them.
        words = ["neigh", "replace", other.address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"]
        if not is_lost:
            words = ["neigh", "del", other.address, "dev", "eth0"]
        run(*self.prefix, "ip", *words, check=is_lost)

    def part_from(self, other):
        """Loses all packets between two hosts, in both directions, without an error for either."""
        self._lose(other, True)
        other._lose(self, True)

    def join_with(self, other):
        self._lose(other, False)
        other._lose(self, False)
