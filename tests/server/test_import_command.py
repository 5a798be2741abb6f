"""`memory-service import`: what it stores of which files, what it says, and what it refuses."""

import re
import socket
import subprocess
from base64 import b64encode
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from google.protobuf.json_format import MessageToDict

from memory_service.v1 import memory_pb2 as pb
from tests.fix_server import COMMAND, ServerProcess, environment
from tests.server.bulk_files import Import, all_memories, count, line, run_here, write_lines


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
        (["memories.csv"], "its name tells no format; say --format jsonl or parquet or npz"),
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
