"""A server that speaks HTTPS: which certificates a client accepts, and what it says about others."""

from __future__ import annotations

import http.server
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Server

from keypeg import Client, InvalidInput, Unreachable

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")


def certificate(directory: Path, name: str, *, host: str = "IP:127.0.0.1") -> tuple[Path, Path]:
    """Returns a certificate that is its own authority, and its key."""
    cert, key = directory / f"{name}.pem", directory / f"{name}-key.pem"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName={host}"]
    command = ["openssl", "req", "-x509", *curve, *subject, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    key.chmod(0o600)
    return cert, key


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[Server, Path]]:
    cert, key = certificate(tmp_path, "server")
    server = Server(tmp_path, "--tls-cert", str(cert), "--tls-key", str(key))
    yield server, cert
    server.kill()


def test_a_lease_works_over_https(https: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    server, cert = https
    assert server.url.startswith("https://")
    with Client(server.url, ca_file=cert) as client:
        client.generate()
        with client.lease(wait=5) as lease:
            assert lease.key
    monkeypatch.setenv("KEYPEG_CA_FILE", str(cert))
    with Client(server.url) as client:
        assert client.is_ready()


def test_an_unknown_authority_and_another_name_are_errors_that_say_so(
    https: tuple[Server, Path], tmp_path: Path
) -> None:
    server, cert = https
    with Client(server.url) as client, pytest.raises(Unreachable, match=r"certificate is not accepted: self"):
        client.version()
    other = server.url.replace("127.0.0.1", "localhost")
    with (
        Client(other, ca_file=cert) as client,
        pytest.raises(Unreachable, match=r"not valid for 'localhost'"),
    ):
        client.version()


class Version(http.server.BaseHTTPRequestHandler):
    """Answers with the name of the client certificate."""

    def do_GET(self) -> None:
        connection = self.connection
        assert isinstance(connection, ssl.SSLSocket)
        peer: Any = connection.getpeercert()
        body = json.dumps({"name": peer["subject"][0][0][1], "version": "1"}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_a_client_certificate_is_sent(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "server")
    own, own_key = certificate(tmp_path, "job", host="DNS:job")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=own)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    with http.server.HTTPServer(("127.0.0.1", 0), Version) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}"
        with Client(url, ca_file=cert, client_cert=own, client_key=own_key) as client:
            assert client.version().name == "job"
        server.shutdown()


def test_invalid_files_are_named(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no certificate")
    with pytest.raises(InvalidInput, match="belong together"):
        Client("https://a", client_cert=text)
    for file in (text, tmp_path / "missing"):
        with pytest.raises(InvalidInput, match=str(file)):
            Client("https://a", ca_file=file)
        with pytest.raises(InvalidInput, match=str(file)):
            Client("https://a", client_cert=file, client_key=file)
