"""Fetching an issuer's keys over a real socket: found, and not believed when something is odd."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from memory_service.access import jwks_source
from memory_service.access.jwks_source import FetchFailed, JwksSource
from memory_service.settings.identity import is_safe_url
from tests.access.jwks_server import Issuer, Reply, running_issuer, send
from tests.certificates import Authority


@pytest.fixture(scope="module")
def running() -> Iterator[Issuer]:
    """An issuer that answers."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def issuer(running: Issuer) -> Iterator[Issuer]:
    """The same, behaving well at first."""
    running.requests.clear()
    yield running
    running.reply = None


def test_keys_are_fetched_from_where_they_are_said_to_be(issuer: Issuer) -> None:
    [key] = JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url).fetch()
    assert key["kid"] == "first"
    assert issuer.requests == ["/keys"]


def test_keys_are_discovered(issuer: Issuer) -> None:
    [key] = JwksSource(issuer=issuer.url, jwks_url=None).fetch()
    assert key["kid"] == "first"
    assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


def test_this_machine_is_asked_directly(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url).fetch()


def saying(document: Any, status: int = 200, **headers: str) -> Reply:
    return lambda handler: send(handler, document, status=status, **headers)


def dripping(handler: BaseHTTPRequestHandler) -> None:
    """Sends a byte now and then, for longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(20):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "reply",
    [
        saying({}),
        saying({"keys": {}}),
        saying([]),
        saying(b"<html>"),
        saying(b"\xff\xfe"),
        saying(b"[" * 100_000),
        saying({"keys": []}, 500),
        saying({"keys": []}, 302, Location="https://evil.example/keys"),
        saying(b"[" + b" " * (jwks_source.MAX_BYTES + 1) + b"]"),
        lambda handler: handler.connection.close(),
    ],
)
def test_other_answers_are_no_keys(issuer: Issuer, reply: Reply) -> None:
    issuer.reply = reply
    with pytest.raises(FetchFailed):
        JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url).fetch()


def test_nobody_waits_for_ever(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_source, "FETCH_TIMEOUT_S", 0.2)
    issuer.reply = dripping
    started_at = time.monotonic()
    with pytest.raises(FetchFailed, match="takes longer"):
        JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url).fetch()
    assert time.monotonic() - started_at < 1


def dripping_headers(handler: BaseHTTPRequestHandler) -> None:
    """Begins to answer, and never comes to the point."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 20:
        handler.connection.sendall(bytes([byte]))
        time.sleep(0.05)


def test_nobody_waits_for_ever_for_a_header(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_source, "FETCH_TIMEOUT_S", 0.2)
    issuer.reply = dripping_headers
    started_at = time.monotonic()
    with pytest.raises(FetchFailed, match="takes longer"):
        JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url).fetch()
    assert time.monotonic() - started_at < 1


def test_nobody_waits_for_ever_for_a_handshake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_source, "FETCH_TIMEOUT_S", 0.3)
    gone = threading.Event()

    def drip() -> None:
        connection, _ = listening.accept()
        with connection, suppress(OSError):
            for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 40:  # a record of 16 KiB
                connection.sendall(bytes([byte]))
                if gone.wait(0.05):
                    return

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=drip)
        thread.start()
        started_at = time.monotonic()
        with pytest.raises(FetchFailed, match="takes longer"):
            JwksSource(issuer="x", jwks_url=f"https://127.0.0.1:{listening.getsockname()[1]}/keys").fetch()
        assert time.monotonic() - started_at < 1
        gone.set()
        thread.join()


def test_keys_are_fetched_over_tls_from_whom_the_machine_trusts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority()
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(authority.certificate)
    with running_issuer(authority.sign("issuer").write(tmp_path, "issuer")) as issuer:
        untrusted = JwksSource(issuer=issuer.url, jwks_url=issuer.jwks_url)
        with pytest.raises(FetchFailed, match="CERTIFICATE_VERIFY_FAILED"):
            untrusted.fetch()
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert JwksSource(issuer=issuer.url, jwks_url=None).fetch()
        assert issuer.requests == ["/.well-known/openid-configuration", "/keys"]


@pytest.mark.parametrize(
    "document",
    [
        {"issuer": "https://another.example", "jwks_uri": "https://another.example/keys"},
        {"jwks_uri": "https://another.example/keys"},
        {"issuer": True, "jwks_uri": "http://another.example/keys"},
        {"issuer": True, "jwks_uri": "file:///etc/passwd"},
        {"issuer": True},
    ],
    ids=str,
)
def test_an_odd_configuration_is_not_followed(issuer: Issuer, document: dict[str, Any]) -> None:
    if document.get("issuer") is True:
        document = {**document, "issuer": issuer.url}
    issuer.reply = saying(document)
    with pytest.raises(FetchFailed):
        JwksSource(issuer=issuer.url, jwks_url=None).fetch()
    assert issuer.requests == ["/.well-known/openid-configuration"]


def test_nobody_there_is_a_failure() -> None:
    with pytest.raises(FetchFailed):
        JwksSource(issuer="x", jwks_url="http://127.0.0.1:1/keys").fetch()


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("https://issuer.example/keys", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://localhost/keys", True),
        ("http://[::1]:1/keys", True),
        ("http://issuer.example/keys", False),
        ("http://127.0.0.1.evil.example/keys", False),
        ("http://localhost.evil.example/keys", False),
        ("ftp://127.0.0.1/keys", False),
        ("file:///etc/passwd", False),
        ("https://", False),
        ("https://issuer:0/", False),
        ("https://[::1/", False),
        ("issuer.example", False),
    ],
)
def test_only_what_nobody_can_change_on_the_way_is_fetched(url: str, safe: bool) -> None:  # noqa: FBT001 - a parameter
    assert is_safe_url(url) is safe
