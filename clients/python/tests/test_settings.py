"""The address of the server and the access token: where they come from, and what is refused."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BINARY, Server, wait_for

from keypeg import Client, Forbidden, InvalidInput, RateLimited, Unauthorized
from keypeg._address import ServerAddress, segment
from keypeg._settings import token_source


@pytest.mark.parametrize(
    ("address", "base", "is_loopback"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000", True),
        ("http://localhost/", "http://localhost", True),
        ("http://LOCALHOST:1", "http://LOCALHOST:1", True),
        ("http://a.localhost.:1", "http://a.localhost.:1", True),
        ("http://127.255.0.1", "http://127.255.0.1", True),
        ("http://0.0.0.0:8000", "http://0.0.0.0:8000", True),
        ("http://[::1]:8000", "http://[::1]:8000", True),
        ("https://[::1]", "https://[::1]", True),
        ("http://[fe80::1]:8000", "http://[fe80::1]:8000", False),
        ("http://10.0.0.1:80/keys//", "http://10.0.0.1:80/keys", False),
        ("https://keys.example/a/b", "https://keys.example/a/b", False),
        ("http://localhost.example", "http://localhost.example", False),
    ],
)
def test_an_address_is_a_scheme_a_host_and_perhaps_a_path(address: str, base: str, is_loopback: bool) -> None:
    parsed = ServerAddress.parse(address)
    assert (parsed.base, parsed.is_loopback) == (base, is_loopback)
    assert parsed.is_tls == address.startswith("https")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("", "use http://HOST:PORT"),
        ("localhost:8000", "use http://localhost:8000"),
        ("ftp://a", "use http://HOST:PORT"),
        ("http://", "use http://HOST:PORT"),
        ("http:///a", "use http://HOST:PORT"),
        ("http://user:p4ss@b", "remove the user name"),
        ("https://user:p4ss@b", "remove the user name"),
        ("user:p4ss@b", "remove the user name"),
        ("http://a/?b", "http://HOST:PORT/PATH"),
        ("http://a/../b", "http://HOST:PORT/PATH"),
        ("http://a b", "http://HOST:PORT/PATH"),
        ("http://a:port", "use http://HOST:PORT"),
        ("http://a:65536", "use http://HOST:PORT"),
        ("http://a\n", "use http://HOST:PORT"),
    ],
)
def test_an_invalid_address_says_what_to_use(address: str, says: str) -> None:
    with pytest.raises(InvalidInput) as error:
        Client(address)
    assert str(error.value).startswith("invalid server address")
    assert says in str(error.value)
    assert "p4ss" not in str(error.value)


@pytest.mark.parametrize("text", ["", ".", "..", "a/b", "a?b", "%2e", "ä", "a b", "a\n"])
def test_a_text_that_could_change_the_path_is_refused(text: str) -> None:
    assert segment("A-b_0..") == "A-b_0.."
    with pytest.raises(InvalidInput):
        segment(text)


def test_arguments_come_before_variables_and_the_file_before_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Client().server == "http://127.0.0.1:8000"
    assert token_source(None, None).token() is None
    file = tmp_path / "token"
    file.write_text("\ufefffrom-file\n")
    monkeypatch.setenv("KEYPEG_SERVER", "http://keys.example/")
    monkeypatch.setenv("KEYPEG_TOKEN", " from-variable ")
    assert Client().server == "http://keys.example"
    assert Client("http://other.example").server == "http://other.example"
    assert token_source(None, None).token() == "from-variable"
    monkeypatch.setenv("KEYPEG_TOKEN_FILE", str(file))
    assert token_source(None, None).token() == "from-file"
    assert token_source("given", None).token() == "given"
    with pytest.raises(InvalidInput, match="both given"):
        token_source("given", file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "must contain one access token"),
        (b" \n", "must contain one access token"),
        (b"two words", "visible characters only"),
        (b"a" * 4097, "at most 4096"),
        (b"\xff\xfet\0o\0", "is not UTF-8"),
        (None, "cannot read the access token file"),
    ],
)
def test_an_invalid_token_file_is_named(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput, match=says) as error:
        Client(token_file=file)
    assert str(file) in str(error.value)


def test_an_invalid_token_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "  ", "two words"):
        monkeypatch.setenv("KEYPEG_TOKEN", value)
        with pytest.raises(InvalidInput, match="KEYPEG_TOKEN"):
            Client()


def test_a_token_file_that_others_can_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("secret-token")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING, "keypeg"):
        Client(token_file=file)
        assert "run chmod 0600" in caplog.text
        assert "secret-token" not in caplog.text
        caplog.clear()
        file.chmod(0o600)
        Client(token_file=file)
        assert caplog.text == ""


def new_token(tokens: Path, name: str, *scopes: str) -> str:
    """Returns a new token, and adds its entry to the token file of the server."""
    command = [BINARY, "token", "new", "--name", name, "--pool", "*", "--tokens", str(tokens)]
    for scope in scopes:
        command += ["--scope", scope]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def admin_token(tokens: Path) -> str:
    return new_token(tokens, "admin", "admin")


@pytest.fixture
def guarded(tmp_path: Path, tokens: Path, admin_token: str) -> Iterator[Server]:
    """A server with access tokens."""
    server = Server(tmp_path, "--tokens", str(tokens))
    yield server
    server.kill()


def test_a_token_file_is_read_again_after_its_token_was_refused(
    tmp_path: Path, tokens: Path, admin_token: str, guarded: Server
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("never-valid\n")
    with Client(guarded.url, token_file=file) as client:
        with pytest.raises(Unauthorized) as refused:
            client.pools()
        assert refused.value.next_step
        assert "never-valid" not in str(refused.value)
        with pytest.raises(Unauthorized):
            client.lease(wait=600).acquire()
        file.write_text(admin_token)
        assert [pool.pool for pool in client.pools()] == ["default"]


def test_a_lease_outlives_the_token_with_which_it_was_acquired(
    tmp_path: Path, tokens: Path, admin_token: str, guarded: Server
) -> None:
    """The token of the holder is replaced by another one of the same name while it holds a key."""
    old = new_token(tokens, "job", "lend", "read")
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(old)
    with Client(guarded.url, token=admin_token) as admin:
        wait_for(lambda: is_accepted(Client(guarded.url, token=old)), "the reload of the tokens")
        admin.put_pool("ci", max_hold_seconds=3600, keepalive_ttl_seconds=None)
        admin.generate("ci")
        with Client(guarded.url, token_file=file) as client, client.lease("ci", ttl=10) as lease:
            text = tokens.read_text()
            before, _, _ = text.partition('[[token]]\nname = "job"')
            assert before != text
            tokens.write_text(before)
            new = new_token(tokens, "job", "lend", "read")
            file.write_text(new)
            wait_for(lambda: not is_accepted(Client(guarded.url, token=old)), "the end of the token")
            assert lease._held is not None
            end = lease._held.end
            wait_for(lambda: lease._held is not None and lease._held.end > end, "a renewal")
        assert admin.pool("ci").leased == 0


def is_accepted(client: Client) -> bool:
    with client:
        try:
            client.version()
        except (Unauthorized, RateLimited):
            return False
        return True


def test_without_the_right_to_follow_events_a_loss_is_found_by_renewals(
    tokens: Path, admin_token: str, tmp_path: Path
) -> None:
    lend = new_token(tokens, "lend", "lend")
    server = Server(tmp_path, "--tokens", str(tokens))
    try:
        with Client(server.url, token=admin_token) as admin, Client(server.url, token=lend) as client:
            admin.put_pool("ci", max_hold_seconds=3600, keepalive_ttl_seconds=None)
            admin.generate("ci")
            with pytest.raises(Forbidden) as forbidden:
                client.generate("ci")
            assert forbidden.value.members["scope"] == "keys"
            lease = client.lease("ci", on_lost="check").acquire()
            wait_for(lambda: lease._held is not None and lease._held._followers._pools, "a stream")
            admin.force_release("ci", lease.key_id)
            wait_for(lambda: lease.lost, "the loss")
    finally:
        server.kill()


def test_a_proxy_of_the_environment_is_not_used_for_this_machine(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with Client(shared_server.url) as client:
        assert client.is_ready()
    with Client("http://keys.invalid") as client, pytest.raises(Exception, match="variable http_proxy names"):
        client.version()
