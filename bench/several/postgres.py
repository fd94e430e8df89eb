"""PostgreSQL with synchronous standbys: start, loss of the primary, promotion, return of the old primary.

Runs as user 65534 if the run is root's, because PostgreSQL refuses root.
"""

import contextlib
import glob
import os
import signal
import subprocess
import time
from pathlib import Path

UNPRIVILEGED = 65534


def programs():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
    return Path(found[-1]).parent if found else None


def children(pid):
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def cpu_seconds(pids):
    """CPU time of processes, with their children that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


class Node:
    """One server of PostgreSQL."""

    def __init__(self, name, host, parent, network):
        self.name, self.host, self.network = name, host, network
        self.dir, self.bin = parent / name, programs()
        self.log = parent / f"{name}.log"
        self.port = host.port(5432)

    def run(self, program, *arguments, check=True, **options):
        prefix = list(self.host.prefix)
        if os.geteuid() == 0:
            prefix += ["setpriv", f"--reuid={UNPRIVILEGED}", f"--regid={UNPRIVILEGED}", "--clear-groups"]
        is_start = "start" in arguments
        out = subprocess.DEVNULL if is_start else subprocess.PIPE
        done = subprocess.run(
            [*prefix, str(self.bin / program), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, cwd="/",
            env={**os.environ, "LC_ALL": "C"}, **options,
        )
        if check and done.returncode != 0:
            log = self.log.read_text()[-2000:] if self.log.exists() else ""
            raise RuntimeError(f"{program} {arguments}: {done.stdout}{done.stderr}\n{log}")
        return (done.stdout or "").strip()

    def create(self):
        self.run("initdb", "-D", self.dir, "-A", "trust", "-U", "postgres", "--no-sync", "--data-checksums")
        with open(self.dir / "pg_hba.conf", "a") as file:
            file.write(f"host all all {self.network} trust\nhost replication all {self.network} trust\n")
        self.configure(
            "unix_socket_directories = ''\nmax_connections = 200\nshared_buffers = 128MB\nwal_level = replica\n"
            "max_wal_senders = 10\nhot_standby = on\nwal_log_hints = on\nwal_keep_size = 1GB\n"
            "synchronous_standby_names = 'ANY 1 (*)'\nsynchronous_commit = on\n"
            "wal_receiver_timeout = 5s\nwal_sender_timeout = 5s\nwal_retrieve_retry_interval = 200ms\n"
        )
        self.start()

    def configure(self, lines=""):
        with open(self.dir / "postgresql.conf", "a") as file:
            file.write(f"listen_addresses = '{self.host.address}'\nport = {self.port}\ncluster_name = '{self.name}'\n")
            file.write(lines)

    def copy_of(self, primary):
        where = ["-h", primary.host.address, "-p", primary.port, "-U", "postgres"]
        self.run("pg_basebackup", *where, "-D", self.dir, "-c", "fast", "-R", "--no-sync")
        self.configure()
        self.start()

    def start(self):
        self.run("pg_ctl", "-D", self.dir, "-s", "-w", "-t", "60", "-l", self.log, "start")

    def stop(self, mode="fast"):
        self.run("pg_ctl", "-D", self.dir, "-s", "-w", "-t", "60", "-m", mode, "stop", check=False)

    def sql(self, sql, check=True):
        where = ["-h", self.host.address, "-p", self.port, "-U", "postgres", "-d", "postgres"]
        return self.run("psql", *where, "-XAtc", sql, check=check, timeout=60)

    def pids(self):
        try:
            postmaster = int((self.dir / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return []
        return [postmaster, *children(postmaster)]

    def kill(self):
        """The loss of the machine: all processes at once."""
        postmaster = self.pids()[0]
        os.kill(postmaster, signal.SIGSTOP)
        for pid in [*children(postmaster), postmaster]:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 20
        while any(is_alive(pid) for pid in [postmaster]) and time.monotonic() < deadline:
            time.sleep(0.01)
        (self.dir / "postmaster.pid").unlink(missing_ok=True)

    def follow(self, primary):
        """Follows another primary from now on."""
        where = f"host={primary.host.address} port={primary.port} user=postgres application_name={self.name}"
        with open(self.dir / "postgresql.auto.conf", "a") as file:
            file.write(f"primary_conninfo = '{where}'\n")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Postgres:
    """A primary and standbys, of which one must confirm each commit."""

    kind = "postgres"

    def __init__(self, hosts, parent, standbys=1):
        self.dir = parent / "postgres"
        self.dir.mkdir()
        if os.geteuid() == 0:
            parent.chmod(0o755)
            os.chown(self.dir, UNPRIVILEGED, UNPRIVILEGED)
        names = ["pg" + letter for letter in "abcdef"[: standbys + 1]]
        self.nodes = [Node(name, hosts.add(name), self.dir, hosts.network) for name in names]
        self.primary = self.nodes[0]
        self.primary.create()
        for node in self.nodes[1:]:
            node.copy_of(self.primary)
        self.wait_for_standbys(standbys)

    def wait_for_standbys(self, count):
        deadline = time.monotonic() + 60
        query = "select count(*) from pg_stat_replication where state = 'streaming'"
        while self.primary.sql(query) != str(count):
            if time.monotonic() > deadline:
                raise RuntimeError(f"no {count} standbys: {self.primary.sql('select * from pg_stat_replication')}")
            time.sleep(0.05)

    @property
    def hosts(self):
        return [node.host for node in self.nodes]

    def url(self):
        hosts = ",".join(f"{node.host.address}:{node.port}" for node in self.nodes)
        return f"postgres://postgres@{hosts}/postgres?sslmode=disable&timeout_s=5"

    def environment(self):
        return {}

    def pids(self):
        return [pid for node in self.nodes for pid in node.pids()]

    def cpu(self):
        # The time of a process whose parent has waited for it is in the parent's.
        return cpu_seconds(self.pids())

    def bytes_written(self):
        lsn = self.primary.sql("select pg_current_wal_lsn() - '0/0'")
        return int(lsn)

    def fail_over(self):
        """Kills the primary and promotes the standby that has most. Returns the old primary."""
        old = self.primary
        old.kill()
        standbys = [node for node in self.nodes if node is not old]
        received = "select coalesce(pg_last_wal_receive_lsn() - '0/0', 0)"
        new = max(standbys, key=lambda node: int(node.sql(received)))
        new.run("pg_ctl", "-D", new.dir, "-s", "-w", "-t", "60", "promote")
        self.primary = new
        for node in standbys:
            if node is not new:
                node.follow(new)
                node.run("pg_ctl", "-D", node.dir, "-s", "reload")
        return old

    def hold_back(self):
        """From now on the primary sends its standbys nothing: commits wait, and no other session sees them."""
        for pid in children(self.primary.pids()[0]):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if "walsender" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGSTOP)

    def crash_primary(self):
        """Restarts the primary, which gets no standby until `fail_over`: it shows the commits that were waiting."""
        self.primary.kill()
        # The file of rules is read at the start: the primary keeps this rule, and a node that copies the file has none.
        rules = self.primary.dir / "pg_hba.conf"
        text = rules.read_text()
        rules.write_text(f"host replication all {self.primary.network} reject\n{text}")
        self.primary.start()
        rules.write_text(text)

    def last_frames(self):
        """The position and a digest of the last frame of each shard that the primary shows."""
        sql = "select distinct on (shard) shard, position, md5(frame) from keypeg.frame order by shard, position desc"
        rows = [row.split("|") for row in self.primary.sql(sql).splitlines()]
        return {int(shard): (int(position), digest) for shard, position, digest in rows}

    def has_frame(self, shard, position, digest):
        where = f"shard = {shard} and position = {position} and md5(frame) = '{digest}'"
        return self.primary.sql(f"select count(*) from keypeg.frame where {where}") == "1"

    def bring_back(self, old, beside=0.0):
        """Starts the old primary beside the new one for some seconds, and then makes it a standby."""
        old.start()
        time.sleep(beside)
        old.stop("immediate" if beside else "fast")
        # Until its first checkpoint, the new primary names its old timeline, and there is nothing to rewind.
        self.primary.sql("checkpoint")
        source = f"host={self.primary.host.address} port={self.primary.port} user=postgres dbname=postgres"
        # Otherwise it would copy the file of settings with the address of the source.
        settings = {name: (old.dir / name).read_text() for name in ("postgresql.conf", "postgresql.auto.conf")}
        old.run("pg_rewind", "-D", old.dir, f"--source-server={source}", "--no-sync")
        for name, text in settings.items():
            (old.dir / name).write_text(text)
        (old.dir / "standby.signal").touch()
        old.follow(self.primary)
        if os.geteuid() == 0:
            for path in [*settings, "standby.signal"]:
                os.chown(old.dir / path, UNPRIVILEGED, UNPRIVILEGED)
        old.start()
        self.wait_for_standbys(len(self.nodes) - 1)

    def restart(self):
        """Restarts all nodes, the primary last."""
        for node in [*[node for node in self.nodes if node is not self.primary], self.primary]:
            node.stop("immediate")
        for node in [self.primary, *[node for node in self.nodes if node is not self.primary]]:
            node.start()

    def stop(self):
        for node in reversed(self.nodes):
            if node.pids():
                node.stop("immediate")
