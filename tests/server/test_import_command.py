"""`memory-service import`: what it stores, what it says, and how it goes on after what can go wrong."""

import re
import signal
import socket
import subprocess
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import MessageToDict

from memory_service import import_command
from memory_service.bulk.target import Target
from memory_service.import_command import Request
from memory_service.v1 import memory_pb2 as pb
from tests.fix_server import COMMAND, ServerProcess, StartServer, environment
from tests.server.bulk_files import all_memories, line, run_here, write_lines

Import = Callable[..., int]


@pytest.fixture
def user_id() -> str:
    """A user that no other test knows."""
    return f"user-{uuid4().hex[:12]}"


@pytest.fixture
def import_file(server: ServerProcess, user_id: str) -> Import:
    """A function running the command on a file for the test's user; returns the exit status."""

    def run(path: Path, *arguments: str) -> int:
        return run_here("import", str(path), "--user", user_id, "--address", server.address, *arguments)

    return run


def count(server: ServerProcess, user_id: str) -> int:
    return server.stub.GetStats(pb.GetStatsRequest(user_id=user_id), timeout=30).live_count


def test_lines_become_memories(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = {"f32Le": b64encode(np.array([0, 0, 0, 4, 0, 0, 0, 3], "<f4").tobytes()).decode()}
    lines = [
        line(0, conversation_id="c", summary="s", metadata={"a": [1, {"b": None}]}, importance=9),
        "",
        line(1, content="Zürich \N{SNOWMAN}", embedding=encoded, createdAt="0001-01-01T00:00:00Z"),
    ]
    assert import_file(write_lines(tmp_path / "memories.jsonl", lines)) == 0

    out, err = capsys.readouterr()
    assert re.fullmatch(r"stored 2 memories, in \d+\.\d s \([\d,]+/s\)\n", out)
    assert err == ""
    one, other = all_memories(server.stub, user_id, view=pb.MEMORY_VIEW_FULL)
    assert (one.content, one.conversation_id, one.summary, one.importance) == ("number 0", "c", "s", 9)
    assert MessageToDict(one.metadata) == {"a": [1.0, {"b": None}]}
    assert one.created_at.ToJsonString() == "2026-01-01T00:00:00Z"
    assert (other.content, other.importance) == ("Zürich \N{SNOWMAN}", 5)
    assert other.created_at.ToJsonString() == "0001-01-01T00:00:00Z"
    assert np.allclose(other.embedding.floats.values, [0, 0, 0, 4, 0, 0, 0, 3], rtol=2e-3)


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


def test_standard_input_is_read(server: ServerProcess, user_id: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(number) for number in range(3)])
    with path.open("rb") as stream:
        result = subprocess.run(
            [*COMMAND, "import", "-", "--user", user_id, "--address", server.address],
            stdin=stream,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=environment(),
        )
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("stored 3 memories")
    assert count(server, user_id) == 3


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


def test_ids_are_kept_when_asked_for(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(uuid4()) for _ in range(3)]
    path = write_lines(tmp_path / "memories.jsonl", [line(number, id=id_) for number, id_ in enumerate(given)])
    assert import_file(path) == 0
    assert {memory.id for memory in all_memories(server.stub, user_id)}.isdisjoint(given)
    assert import_file(path, "--keep-ids", "--import-id", str(uuid4())) == 0
    assert {memory.id for memory in all_memories(server.stub, user_id)} > set(given)
    capsys.readouterr()

    assert import_file(path, "--keep-ids", "--import-id", str(uuid4())) == 1
    assert f"line 1: id: the user has a memory {given[0]} already" in capsys.readouterr().err
    assert count(server, user_id) == 6


def test_deleted_memories_are_left_out(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [line(0), line(1, deletedAt="2026-01-01T00:00:00Z"), line(2)]
    assert import_file(write_lines(tmp_path / "memories.jsonl", lines)) == 0
    assert capsys.readouterr().out.startswith("stored 2 memories, left out 1 deleted, in ")
    assert [memory.content for memory in all_memories(server.stub, user_id)] == ["number 2", "number 0"]


def test_parquet_and_numpy_files(import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(30, 8)).astype(np.float32)
    contents = [f"number {number}" for number in range(30)]
    pq.write_table(pa.table({"content": contents, "embedding": list(vectors)}), tmp_path / "memories.parquet")
    np.savez(tmp_path / "memories.npz", content=np.array(contents), embedding=vectors)
    assert import_file(tmp_path / "memories.parquet", "--chunk-size", "7") == 0
    assert count(server, user_id) == 30
    assert import_file(tmp_path / "memories.npz", "--chunk-size", "7") == 0
    stored = all_memories(server.stub, user_id, view=pb.MEMORY_VIEW_FULL)
    assert len(stored) == 60
    for memory in stored:
        vector = vectors[int(memory.content.removeprefix("number "))]
        assert np.allclose(memory.embedding.floats.values, vector, rtol=2e-3, atol=2e-3)


def test_a_file_larger_than_a_request(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Chunks end at the bytes a request may have where they do not end at the count.
    lines = [line(number, content="x" * 65_000) for number in range(300)]
    assert import_file(write_lines(tmp_path / "memories.jsonl", lines), "--chunk-size", "5000") == 0
    assert count(server, user_id) == 300
    path = write_lines(tmp_path / "large.jsonl", [line(0), line(1, content="x" * 9_000_000)])
    assert import_file(path) == 1
    assert "line 2: has 9000" in capsys.readouterr().err
    assert count(server, user_id) == 300


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jsonl"], "missing.jsonl: No such file or directory"),
        (["memories.csv"], "its name tells no format; say --format jsonl, parquet, npz"),
        (["-", "--format", "npz"], "npz needs a file"),
        (["memories.csv", "--format", "parquet"], "memories.csv: "),
        (["memories.csv", "--format", "npz"], "memories.csv: "),
        (["memories.csv", "--format", "jsonl", "--chunk-size", "0"], "--chunk-size is 0, expected 1 to 5000"),
        (["memories.csv", "--format", "jsonl", "--chunk-size", "5001"], "expected 1 to 5000"),
        (["memories.csv", "--format", "jsonl"], "line 1: is not JSON"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_imported_is_said_in_one_line(
    server: ServerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("memories.csv").write_text("content,importance\nhello,5\n")
    assert run_here("import", *arguments, "--user", "u", "--address", server.address) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("memory-service: ")]
    assert len(lines) == 1
    assert complaint in lines[0]


@pytest.mark.parametrize(
    "arguments",
    [[], ["f.jsonl"], ["f.jsonl", "--user", "u", "--import-id", "x"], ["f", "--user", "u", "--chunk-size", "x"]],
)
def test_wrong_usage_ends_with_2(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert run_here("import", *arguments) == 2
    assert "usage: memory-service import" in capsys.readouterr().err


def test_a_service_that_is_not_there_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(0)])
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert run_here("import", str(path), "--user", "u", "--address", address) == 1
    assert f"memory-service: cannot reach the service at {address}: " in capsys.readouterr().err


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


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


@pytest.mark.parametrize(
    ("policy", "said", "live"),
    [
        ("allow", "stored 4 memories, in ", 6),
        ("skip", "stored 1 memories, skipped 3 duplicates, in ", 3),
        ("reinforce", "stored 1 memories, reinforced 3 duplicates, in ", 3),
        ("supersede", "stored 4 memories, 3 of them in place of duplicates, in ", 3),
    ],
)
def test_duplicates_are_treated_as_asked(  # noqa: PLR0917 - fixtures and parameters
    import_file: Import,
    server: ServerProcess,
    user_id: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    policy: str,
    said: str,
    live: int,
) -> None:
    first = write_lines(tmp_path / "first.jsonl", [line(0), line(1)])
    second = write_lines(tmp_path / "second.jsonl", [line(1), line(2), line(0), line(2)])
    assert import_file(first) == 0
    capsys.readouterr()
    assert import_file(second, "--on-duplicate", policy, "--chunk-size", "3") == 0
    assert capsys.readouterr().out.startswith(said)
    assert count(server, user_id) == live
    assert import_file(second, "--on-duplicate", policy, "--chunk-size", "3") == 0
    assert capsys.readouterr().out.startswith("stored 0 memories, skipped 4 stored before, in ")


def test_another_policy_is_another_import(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(0), line(1)])
    assert import_file(path) == 0
    assert import_file(path, "--on-duplicate", "skip") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("stored 0 memories, skipped 2 duplicates, in ")
    assert import_file(path, "--on-duplicate", "skip", "--min-similarity", "0.999") == 0
    assert count(server, user_id) == 2


def test_similar_memories_are_duplicates_where_asked(
    import_file: Import, server: ServerProcess, user_id: str, tmp_path: Path
) -> None:
    embedding = [1.0, *[0.0] * 7]
    lines = [line(number, content=f"text {number}", embedding=embedding) for number in range(3)]
    path = write_lines(tmp_path / "memories.jsonl", lines)
    assert import_file(path, "--on-duplicate", "skip", "--min-similarity", "1") == 0
    assert count(server, user_id) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-similarity", "0.9"], "--min-similarity needs --on-duplicate"),
        (["--on-duplicate", "skip", "--min-similarity", "0"], "expected above 0 and at most 1"),
        (["--on-duplicate", "skip", "--min-similarity", "nan"], "expected above 0 and at most 1"),
        (["--on-duplicate", "skip", "--min-similarity", "1.01"], "expected above 0 and at most 1"),
        (["--on-duplicate", "merge"], "invalid choice"),
        (["--on-duplicate", "skip", "--min-similarity", "0.9", "--embed-async"], "compares embeddings"),
    ],
)
def test_senseless_policies_are_refused(
    import_file: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    path = write_lines(tmp_path / "memories.jsonl", [line(0)])
    assert import_file(path, *arguments) in {1, 2}
    assert said in capsys.readouterr().err
