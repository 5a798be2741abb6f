"""The examples and the README's commands work as they stand there, against a real service."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.temporary_service import temporary_service
from scripts.generate_docs import README, ROOT
from tests.command_line_clients import program_of_grpcurl

pytestmark = pytest.mark.slow

CLIENTS = ROOT / "docs" / "clients.md"
DEFAULT_ADDRESS = "127.0.0.1:50051"
INVALID_ARGUMENT_OF_GRPCURL = 64 + 3
TIMEOUT_S = 100


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A service with the settings a newcomer has, and an empty database."""
    with temporary_service() as address:
        yield address


def run(*command: str | Path, environment: dict[str, str] | None = None) -> str:
    """Runs a command in the repository; returns what it printed."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def client(address: str, *arguments: str) -> str:
    return run(sys.executable, "examples/client.py", "--address", address, *arguments)


def blocks_of(document: Path, language: str) -> list[str]:
    return re.findall(
        rf"^ *```{language}\n(.*?)^ *```$", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.long
def test_demo_stores_searches_and_keeps_users_apart() -> None:
    # As root, PostgreSQL runs as another user, who cannot pass through pytest's own temporary folders.
    with tempfile.TemporaryDirectory(prefix="memory-test-") as folder:
        output = run(sys.executable, "examples/demo.py", environment={**os.environ, "TMPDIR": folder})
        assert not list(Path(folder).iterdir()), "the demo left files behind"
    assert "96 memories by 96 InsertVector" in output
    assert "99 memories by 4 BatchInsertVectors" in output
    assert "102 memories by 5 BatchInsertVectors" in output
    first = output.split('amara: "knee pain when running"')[1].splitlines()[2]
    assert "My left knee starts to ache" in first
    assert "mei asks amara's question: 102 memories found, 0 of them amara's" in output
    assert output.rstrip().endswith("NOT_FOUND")


def test_demo_says_when_nobody_answers() -> None:
    done = subprocess.run(
        [sys.executable, "examples/demo.py", "--address", "127.0.0.1:1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("UNAVAILABLE")


def test_client_adds_searches_edits_and_lists(address: str) -> None:
    memory_id = client(address, "--user", "client", "add", "Ada is allergic to penicillin").strip()
    client(address, "--user", "client", "add", "Ada plays the cello on Thursdays")
    nearest = client(address, "--user", "client", "search", "drug allergies").splitlines()[0]
    assert memory_id in nearest
    assert "penicillin" in nearest
    client(address, "--user", "client", "edit", memory_id, "Ada tolerates penicillin after all")
    listed = client(address, "--user", "client", "recent").splitlines()
    assert [line.partition("Ada ")[2] for line in listed] == [
        "plays the cello on Thursdays",
        "tolerates penicillin after all",
    ]


def test_client_explains_errors(address: str) -> None:
    done = subprocess.run(
        [sys.executable, "examples/client.py", "--address", address, "edit", "1234", "text"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    code, reason, field = done.stderr.splitlines()
    assert code.startswith("INVALID_ARGUMENT: ")
    assert reason == "  reason: INVALID_FIELD"
    assert field.startswith("  id: ")


def test_python_of_the_readme_runs(address: str) -> None:
    [block] = blocks_of(README, "python")
    assert DEFAULT_ADDRESS in block
    stored, *found = run(sys.executable, "-c", block.replace(DEFAULT_ADDRESS, address)).splitlines()
    assert stored.endswith("wordllama-l2-supercat-256")
    assert found[0].endswith("Ada wants the window seat and vegetarian food on long flights")


def test_buf_commands_of_the_readme_run(address: str) -> None:
    commands = [block for block in blocks_of(README, "sh") if block.startswith(".venv/bin/buf curl")]
    assert len(commands) == 3
    outputs = []
    for command in commands:
        one_line = command.replace("\\\n", "").replace(DEFAULT_ADDRESS, address)
        program, *arguments = shlex.split(one_line)
        outputs.append(run(Path(sys.executable).with_name(Path(program).name), *arguments))
    stored, found, listed = outputs
    assert '"content": "Ada plays the cello on Thursdays"' in stored
    assert '"score"' in found
    assert '"memories"' in listed


def test_python_of_the_page_on_clients_runs(address: str) -> None:
    [block] = blocks_of(CLIENTS, "python")
    assert DEFAULT_ADDRESS in block
    printed = run(sys.executable, "-c", block.replace(DEFAULT_ADDRESS, address))
    assert printed.split() == ["500", "1000", "1200"]


def test_grpcurl_commands_run(address: str) -> None:
    program_of_grpcurl()
    blocks = [block for document in (README, CLIENTS) for block in blocks_of(document, "sh")]
    scripts = [block for block in blocks if "grpcurl -plaintext" in block]
    assert len(scripts) == 8
    outputs = []
    for script in scripts:
        command = ["bash", "-e", "-c", script.replace(DEFAULT_ADDRESS, address)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        mistaken = '"importance": 99' in script
        assert done.returncode == (INVALID_ARGUMENT_OF_GRPCURL if mistaken else 0), script + done.stderr
        outputs.append(done.stdout + done.stderr)
    printed = "".join(outputs)
    assert '"status": "SERVING"' in printed
    assert '"content": "Ada is allergic to penicillin"' in printed
    assert '"summary": "penicillin allergy"' in printed
    assert '"acknowledgedCount": "2"' in printed
    assert '"field": "memory.importance"' in printed
