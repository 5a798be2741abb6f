"""`memory-service import` after what can go wrong: what is stored is skipped, and the rest goes on from there."""

import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from memory_service import import_command
from memory_service.bulk.target import Target
from memory_service.import_command import Request
from tests.fix_server import COMMAND, ServerProcess, StartServer, environment
from tests.server.bulk_files import Import, count, free_address, line, write_lines


def test_the_same_file_again_is_skipped(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(number) for number in range(25)])
    assert import_file(path, "--chunk-size", "10") == 0
    assert import_file(path.rename(tmp_path / "renamed.ndjson"), "--chunk-size", "10") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("stored 0 memories, skipped 25 stored before, in ")
    assert import_file(path.with_name("renamed.ndjson"), "--import-id", str(uuid4())) == 0
    assert count(server, user_id) == 50


def test_other_chunks_under_the_same_id_are_refused(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(number) for number in range(25)])
    assert import_file(path, "--chunk-size", "10") == 0
    assert import_file(path, "--chunk-size", "5") == 1
    assert "another --chunk-size" in capsys.readouterr().err
    assert count(server, user_id) == 25


def test_an_end_while_waiting_for_standard_input(server: ServerProcess, user_id: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "import", "-", "--user", user_id, "--address", server.address, "--chunk-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process:
        process.stdin.write('{"content": "refused, for it has no embedding"}\n{"content": "starts a chunk"}\n')
        process.stdin.flush()
        assert process.wait(60) == 1
        complaint = process.stderr.read()
        process.stdin.close()
    assert "memory-service: line 1: content: cannot be embedded" in complaint
    assert "Fatal" not in complaint


@pytest.mark.parametrize(
    ("bad", "complaint"),
    [
        ('{"content": "unfinished', "line 28: is not JSON: Unterminated string starting at at character 13"),
        (line(0, colour="red"), 'line 28: Message type "memory_service.v1.NewMemory" has no field named "colour"'),
        (line(0, embedding=[1.0] * 9), "line 28: embedding: has 9 dimensions, expected 8"),
        (line(0, embedding=[0.0] * 8), "line 28: embedding: is the zero vector, which has no direction"),
        (line(0, importance=0), "line 28: importance: is 0, expected 1 to 10"),
        (line(0, metadata={"x": "\0"}), "line 28: metadata: holds a NUL character"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_line_is_named_and_its_chunk_not_stored(
    import_file: Import,
    server: ServerProcess,
    user_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    bad: Any,
    complaint: str,
) -> None:
    lines = [line(number) for number in range(40)]
    path = write_lines(tmp_path / "memories.jsonl", [*lines[:27], bad, *lines[27:]])
    assert import_file(path, "--chunk-size", "10") == 1

    told = capsys.readouterr()
    assert complaint in told.err
    assert "Traceback" not in told.err
    assert told.out == ""
    assert count(server, user_id) == 20

    [import_id] = re.findall(r"20 memories are stored; the same command with --import-id (\S+) goes on", told.err)
    mended = write_lines(tmp_path / "mended.jsonl", [*lines[:27], line(99), *lines[27:]])
    assert import_file(mended, "--chunk-size", "10", "--import-id", import_id) == 0
    assert capsys.readouterr().out.startswith("stored 21 memories, skipped 20 stored before")
    assert count(server, user_id) == 41


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.long
def test_an_import_survives_the_servers_replacement(
    start_server: StartServer,
    database_url: str,
    user_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    how: signal.Signals,
) -> None:
    address = free_address()
    server = start_server(database_url=database_url, listen=address)
    path = write_lines(tmp_path / "memories.jsonl", [line(number) for number in range(20_000)])
    request = Request(
        file=str(path),
        user_id=user_id,
        target=Target(address=address),
        file_format=None,
        chunk_size=20,
        import_id=None,
        keep_ids=False,
    )
    ended: list[int] = []
    importing = threading.Thread(target=lambda: ended.append(import_command.run(request)))
    importing.start()
    while count(server, user_id) < 100:
        time.sleep(0.01)
    server.process.send_signal(how)
    server.wait()
    successor = start_server(database_url=database_url, listen=address)
    importing.join(90)

    assert ended == [0]
    assert count(successor, user_id) == 20_000
    told = capsys.readouterr()
    assert "; trying again in " in told.err
    summary = re.match(r"stored ([\d,]+) memories(?:, skipped ([\d,]+) stored before)?, in ", told.out)
    assert summary is not None
    assert sum(int(number.replace(",", "")) for number in summary.groups() if number) == 20_000


def test_an_interrupted_import_says_how_to_go_on(server: ServerProcess, user_id: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "import", "-", "--user", user_id, "--address", server.address, "--chunk-size", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stderr is not None
    with process:
        process.stdin.write('{"content": "a", "embedding": [1, 0, 0, 0, 0, 0, 0, 0]}\n' * 2)
        process.stdin.flush()
        while count(server, user_id) < 2:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        complaint = process.stderr.read()
        process.stdin.close()
    # What is told is what was acknowledged: the second acknowledgement may have been under way.
    assert re.search(r"^[12] memories are stored; the same command with --import-id \S+ goes on from there$", complaint)
