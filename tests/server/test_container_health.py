"""A container's health check finds the service by the settings that both have, with and without TLS."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memory_service import container_health
from memory_service.addresses import with_port
from memory_service.certificates import CertificateFiles, Certificates
from tests.certificates import Authority
from tests.server.conftest import Listener, StartListener


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that runs the check in the environment of a listener; returns the exit status."""

    def run(listener: Listener, **settings: str) -> int:
        own = {"listen": listener.addresses.listen, "ops_listen": listener.addresses.ops_listen or "off"}
        for name, value in {"embedder": "none", "embedding_dimensions": "8", **own, **settings}.items():
            monkeypatch.setenv(f"MEMORY_{name.upper()}", value)
        return container_health.run()

    return run


@pytest.mark.parametrize("ops_listen", ["127.0.0.1:0", "off"])
def test_a_service_is_healthy_while_it_serves(start_listener: StartListener, check: Any, ops_listen: str) -> None:
    listener = start_listener(ops_listen=ops_listen)
    assert check(listener) == 1
    listener.server.health.report(serving=True)
    assert check(listener) == 0
    listener.server.close()
    assert check(listener) == 1


@pytest.mark.parametrize("ops_listen", ["127.0.0.1:0", "off"])
def test_behind_tls_it_is_enough_that_somebody_listens(
    start_listener: StartListener, check: Any, ops_listen: str, tmp_path: Path
) -> None:
    certificate, key = Authority().sign("localhost").write(tmp_path, "server")
    tls = {"tls_certificate": str(certificate), "tls_key": str(key), "ops_tls": "true"}
    certificates = Certificates(CertificateFiles(certificate=certificate, key=key, client_ca=None))
    listener = start_listener(certificates=certificates, ops_listen=ops_listen, **tls)
    assert check(listener, **tls) == 0
    listener.server.close()
    assert check(listener, **tls) == 1


def test_an_address_of_all_interfaces_is_reached(start_listener: StartListener, check: Any) -> None:
    listener = start_listener()
    listener.server.health.report(serving=True)
    assert listener.addresses.ops_listen is not None
    everywhere = with_port("0.0.0.0:0", int(listener.addresses.ops_listen.rpartition(":")[2]))
    assert check(listener, ops_listen=everywhere) == 0


def test_the_command_says_what_is_wrong() -> None:
    settings = {"MEMORY_OPS_LISTEN": "127.0.0.1:1", "MEMORY_EMBEDDER": "none", "MEMORY_EMBEDDING_DIMENSIONS": "8"}
    result = subprocess.run(
        [sys.executable, "-m", "memory_service.container_health"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (1, "memory-service: 127.0.0.1:1: UNAVAILABLE\n")
