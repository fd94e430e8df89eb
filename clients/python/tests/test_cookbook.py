"""Runs every command of the cookbook, in order, against a real server.

A block of `sh` is run. A block of `python` or `yaml` whose first line is a comment with a file name is
written to that file, for a later command. In any other block of `yaml` the lines that call `keypeg exec` are
run. A block that names the file of a token runs against a server with the page's tokens. Programs of other
products are stubs that log their arguments and print what the page needs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import BINARY, ROOT, Server

from keypeg import Client

COOKBOOK = ROOT / "docs/cookbook"
PAGES = [*sorted(COOKBOOK.glob("*.md")), ROOT / "docs/python.md"]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w.]+\.(?:py|yaml))\n")
LANGUAGES = {"sh", "python", "yaml"}
PATIENCE = 300
"""How long a block may take, in seconds: far more than it does."""

STUBS = {
    "kubectl": """case "$*" in *"get resources"*) printf 'project-1\\nproject-2\\n' ;; esac""",
    "vault": """echo '["svc-1@example.com","svc-2@example.com"]'""",
    "redis-cli": """case "$*" in *SMEMBERS*) printf 't-1\\nt-2\\n' ;; *) echo t-3 ;; esac""",
    "run-tests": """test -n "$ACCOUNT" """,
}


States = dict[str, Counter[str]]
"""How many keys of each pool are in each state."""


class Provider(BaseHTTPRequestHandler):
    """A provider of a language model, and the metrics of Boskos."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        key = (self.headers["authorization"] or "").removeprefix("Bearer ")
        self.answer({"sk-limited": 429, "sk-revoked": 401}.get(key, 200))

    def do_GET(self) -> None:
        self.answer(200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Workplace:
    """Where the blocks of a page run."""

    directory: Path
    environment: dict[str, str]

    def run(self, block: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def calls(self) -> str:
        """Returns what the stubs were called with."""
        log = self.directory / "calls"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def workplace(server: Server, tmp_path: Path) -> Iterator[Workplace]:
    programs, directory = tmp_path / "bin", tmp_path / "work"
    programs.mkdir()
    directory.mkdir()
    (programs / "keypeg").symlink_to(BINARY)
    for name, body in STUBS.items():
        place = directory if name == "run-tests" else programs
        (place / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{directory}/calls"\n{body}\n')
        (place / name).chmod(0o755)
    provider = ThreadingHTTPServer(("127.0.0.1", 0), Provider)
    threading.Thread(target=provider.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{provider.server_port}"
    # A page runs pytest, which must not see that it runs below another one.
    foreign = re.compile("KEYPEG|PYTEST")
    environment = {name: value for name, value in os.environ.items() if not foreign.search(name)}
    yield Workplace(
        directory,
        {
            **environment,
            "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "KEYPEG_SERVER": server.url,
            "MODEL_URL": address,
            "BOSKOS_URL": address,
            "USER": "tester",
            "GITHUB_REPOSITORY": "example/project",
            "GITHUB_RUN_ID": "7",
            "CI_JOB_URL": "https://gitlab.example/jobs/7",
        },
    )
    provider.shutdown()
    provider.server_close()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Returns language and text of each block of a page."""
    return [(match[2], match[3]) for match in FENCE.finditer(page.read_text())]


def run_with_tokens(block: str, workplace: Workplace) -> str:
    """Runs a block against another server, which has the tokens that the page has created."""
    directory = workplace.directory / "server-with-tokens"
    directory.mkdir()
    server = Server(directory, "--tokens", str(workplace.directory / "tokens.toml"))
    try:
        environment = {**workplace.environment, "KEYPEG_SERVER": server.url}
        return replace(workplace, environment=environment).run(block)
    finally:
        server.kill()


def play(page: Path, workplace: Workplace) -> list[str]:
    """Runs a page; returns the output of its blocks."""
    outputs = []
    for language, text in blocks(page):
        assert language in LANGUAGES, f"{page.name}: a block of {language!r} is not run"
        name = FILE.match(text)
        if name is not None:
            (workplace.directory / name[1]).write_text(text)
        elif language == "sh" and "KEYPEG_TOKEN_FILE" in text:
            outputs.append(run_with_tokens(text, workplace))
        elif language == "sh":
            outputs.append(workplace.run(text))
        else:
            commands = re.findall(r"- (?:run: )?(keypeg exec .*)", text)
            assert commands, f"{page.name}: a block of {language} has no file name and no command"
            outputs += [workplace.run(command) for command in commands]
    return outputs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(page: Path, workplace: Workplace, server: Server) -> None:
    outputs = play(page, workplace)
    with Client(server.url) as client:
        pools = [found.pool for found in client.pools()]
        states: States = {pool: Counter(str(key.state) for key in client.keys(pool)) for pool in pools}
    check = CHECKS.get(page.stem)
    if check is not None:
        check(outputs, states, workplace.calls())


def _ci(outputs: list[str], states: States, calls: str) -> None:
    assert states["ci"] == {"available": 5}
    assert calls.count("run-tests") == 2


def _first_tasks(outputs: list[str], states: States, calls: str) -> None:
    assert states["accounts"] == {"available": 5}
    assert outputs[0].splitlines()[-1] == "5"
    assert "job-21" in outputs[2]
    assert "the login fails" in outputs[3]
    assert "account-1" in outputs[6]
    assert "team-a" in outputs[6]
    assert "resync" in outputs[7]


def _llm_keys(outputs: list[str], states: States, calls: str) -> None:
    assert states["llm"]["quarantined"] == 1
    assert states["llm"]["resting"] == 1


def _seats(outputs: list[str], states: States, calls: str) -> None:
    assert states["seats"] == {"available": 2, "resting": 1}


def _gateway(outputs: list[str], states: States, calls: str) -> None:
    assert "204 No Content" in outputs[1]
    assert '"active":true' in outputs[1]
    assert "403 Forbidden" in outputs[1] + outputs[2]


def _kubernetes(outputs: list[str], states: States, calls: str) -> None:
    assert calls.count("kubectl") == 3


def _rotation(outputs: list[str], states: States, calls: str) -> None:
    assert sum(states["accounts"].values()) == 3


def _migrate(outputs: list[str], states: States, calls: str) -> None:
    assert states["gce-project"] == {"available": 2}
    assert states["ldap"] == {"available": 2}
    assert states["tokens"] == {"available": 3}


CHECKS = {
    "ci": _ci,
    "first-tasks": _first_tasks,
    "llm-keys": _llm_keys,
    "licence-seats": _seats,
    "gateway": _gateway,
    "kubernetes": _kubernetes,
    "rotation": _rotation,
    "migrate": _migrate,
}


def test_the_job_of_kubernetes_calls_the_program_with_options_that_exist(workplace: Workplace) -> None:
    """The job itself is not run: its commands are."""
    text = (COOKBOOK / "kubernetes.md").read_text()
    commands = [json.loads(found) for found in re.findall(r"command: (\[.*\])", text)]
    assert len(commands) == 2
    environment = workplace.environment
    with Client(environment["KEYPEG_SERVER"]) as client:
        client.put_pool("ci", max_hold_seconds=3600, keepalive_ttl_seconds=None)
        client.import_values("ci", ["account"])
    for command in commands:
        address = environment["KEYPEG_SERVER"]
        words = [address if word == "http://keypeg.keypeg:8000" else word for word in command]
        words = ["keypeg" if word == "/usr/bin/keypeg" else word for word in words]
        done = subprocess.run(
            words, cwd=workplace.directory, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
    assert "run-tests" in workplace.calls()
