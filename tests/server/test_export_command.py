"""`memory-service export`: what it writes, and that `import` makes the same memories of it."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from memory_service.bulk import download
from memory_service.bulk.errors import TransferError
from memory_service.bulk.retrying import MAX_ATTEMPTS, Retrying
from memory_service.v1 import memory_pb2 as pb
from tests.fix_server import COMMAND, ServerProcess, StartServer, environment
from tests.server.bulk_files import all_memories, free_address, line, run_here, write_lines

FORMATS = ["jsonl", "parquet", "npz"]

# What no file holds: it belongs to the stored memory, not to what it remembers.
NOT_EXPORTED = {"userId", "etag", "updatedAt", "embeddingModel", "embedding"}


@pytest.fixture
def filled(server: ServerProcess, user_id: str) -> str:
    """The test's user, with memories of all kinds, one of them soft-deleted."""
    memories = [
        new_memory(number, conversation_id=f"c{number % 3}", metadata={"number": number}) for number in range(30)
    ]
    memories += [
        new_memory(30, content="Zürich\n\N{SNOWMAN}", summary="s", importance=10, metadata={"a": [0.5, {"b": None}]}),
        new_memory(31, content="", createdAt="0001-01-01T00:00:00.000001Z"),
        new_memory(33, content="Häuser am Hafen", language="german"),
        new_memory(32, content="gone"),
    ]
    request = pb.BatchInsertVectorsRequest(user_id=user_id, memories=memories)
    ids = [result.id for result in server.stub.BatchInsertVectors(request).results]
    server.stub.DeleteVector(pb.DeleteVectorRequest(user_id=user_id, id=ids[-1]))
    return user_id


def new_memory(number: int, **fields: Any) -> pb.NewMemory:
    described = line(number, **fields)
    vector = pb.Vector(floats=pb.FloatArray(values=described.pop("embedding")))
    memory = ParseDict(described, pb.NewMemory())
    memory.embedding.CopyFrom(vector)
    return memory


def export(server: ServerProcess, user_id: str, *arguments: str) -> int:
    return run_here("export", "--user", user_id, "--address", server.address, *arguments)


def without_ids(memories: list[pb.Memory], *, keep: bool) -> list[dict[str, Any]]:
    dropped = NOT_EXPORTED if keep else NOT_EXPORTED | {"id"}
    return [{key: value for key, value in MessageToDict(one).items() if key not in dropped} for one in memories]


@pytest.mark.parametrize("keep_ids", [False, True])
@pytest.mark.parametrize("file_format", FORMATS)
def test_what_is_exported_can_be_imported(
    server: ServerProcess,
    filled: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    file_format: str,
    keep_ids: bool,
) -> None:
    path = tmp_path / f"memories.{file_format}"
    assert export(server, filled, "--output", str(path), "--with-embeddings") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("exported 33 memories, in ")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]

    other = f"{filled}-{file_format}"
    flags = ["--keep-ids"] if keep_ids else []
    assert run_here("import", str(path), "--user", other, "--address", server.address, *flags) == 0
    mine = all_memories(server.stub, filled, view=pb.MEMORY_VIEW_FULL)
    theirs = all_memories(server.stub, other, view=pb.MEMORY_VIEW_FULL)
    assert without_ids(theirs, keep=keep_ids) == without_ids(mine, keep=keep_ids)
    for one, same in zip(mine, theirs, strict=True):
        assert np.allclose(one.embedding.floats.values, same.embedding.floats.values, rtol=2e-3, atol=2e-3)


def test_standard_output_is_lines_of_new_memories(
    server: ServerProcess, filled: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert export(server, filled) == 0
    lines = [json.loads(line) for line in capfdbinary.readouterr().out.splitlines()]
    memories = [ParseDict(fields, pb.NewMemory()) for fields in lines]
    stored = all_memories(server.stub, filled)
    assert [memory.id for memory in memories] == [memory.id for memory in stored]
    assert [memory.content for memory in memories] == [memory.content for memory in stored]
    assert not any(memory.HasField("embedding") for memory in memories)
    assert lines[-2]["metadata"] == {"number": 0}


@pytest.mark.parametrize("file_format", FORMATS)
def test_deleted_memories_are_exported_when_asked_for_and_not_revived(
    server: ServerProcess, filled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], file_format: str
) -> None:
    path = tmp_path / f"memories.{file_format}"
    assert export(server, filled, "--output", str(path), "--with-embeddings", "--show-deleted") == 0
    assert capsys.readouterr().err.startswith("exported 34 memories")
    other = f"{filled}-{file_format}"
    assert run_here("import", str(path), "--user", other, "--address", server.address) == 0
    assert capsys.readouterr().out.startswith("stored 33 memories, left out 1 deleted, in ")
    assert "gone" not in {memory.content for memory in all_memories(server.stub, other, show_deleted=True)}


def test_many_pages(server: ServerProcess, user_id: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [line(number, content="x" * 3_000) for number in range(2_500)])
    assert run_here("import", str(path), "--user", user_id, "--address", server.address) == 0
    assert export(server, user_id, "--output", str(tmp_path / "out.jsonl")) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 2_500


def test_a_user_without_memories_has_an_empty_file(
    server: ServerProcess, user_id: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file_format in FORMATS:
        path = tmp_path / f"memories.{file_format}"
        assert export(server, user_id, "--output", str(path), "--with-embeddings") == 0
        assert run_here("import", str(path), "--user", user_id, "--address", server.address) == 0
    assert capsys.readouterr().out.count("stored 0 memories, in ") == 3


def test_a_file_appears_whole_or_not_at_all(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memories.jsonl"
    path.write_text("from before")
    assert export(server, "u" * 256, "--output", str(path)) == 1
    assert "memory-service: user_id: has 256 characters" in capsys.readouterr().err
    assert path.read_text() == "from before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_as_readable_as_any_other(server: ServerProcess, filled: str, tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    assert export(server, filled, "--output", str(tmp_path / "memories.jsonl")) == 0
    assert (tmp_path / "memories.jsonl").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--output", "memories.csv"], "its name tells no format"),
        (["--format", "parquet"], "parquet needs a file"),
        (["--output", "missing/memories.jsonl"], "missing/memories.jsonl: No such file or directory"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_written_is_said_in_one_line(
    server: ServerProcess,
    user_id: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(server, user_id, *arguments) == 1
    [told] = capsys.readouterr().err.splitlines()
    assert told.startswith("memory-service: ")
    assert complaint in told


@pytest.mark.long
def test_a_reader_that_has_enough_ends_the_export(server: ServerProcess, user_id: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "in.jsonl", [line(number, content="x" * 1_000) for number in range(2_500)])
    assert run_here("import", str(path), "--user", user_id, "--address", server.address) == 0
    with subprocess.Popen(
        [*COMMAND, "export", "--user", user_id, "--address", server.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["content"]
        process.stdout.close()
        complaint = process.stderr.read()
        assert process.wait(60) == 1
    assert complaint == "memory-service: the output was closed before everything was written\n"


@pytest.mark.long
def test_a_page_that_fails_is_asked_for_again(
    start_server: StartServer, database_url: str, user_id: str, tmp_path: Path
) -> None:
    address = free_address()
    server = start_server(database_url=database_url, listen=address)
    path = write_lines(tmp_path / "in.jsonl", [line(number) for number in range(2_100)])
    assert run_here("import", str(path), "--user", user_id, "--address", address) == 0
    told: list[str] = []

    def say(message: str) -> None:
        told.append(message)
        if len(told) == 1:
            start_server(database_url=database_url, listen=address)

    retrying = Retrying(say=say, sleep=time.sleep)
    found = download.memories(server.stub, user_id, with_embeddings=False, show_deleted=False, retrying=retrying)
    ids = [next(found).id]
    server.process.kill()
    server.process.wait()
    ids += [memory.id for memory in found]

    assert len(set(ids)) == len(ids) == 2_100
    assert told
    assert all("; trying again in " in message for message in told)


def test_a_server_that_stays_away_is_given_up(start_server: StartServer, user_id: str) -> None:
    server = start_server()
    stub = server.stub
    server.process.kill()
    server.process.wait()
    waited: list[float] = []
    retrying = Retrying(say=lambda _: None, sleep=waited.append)
    with pytest.raises(TransferError, match=f"gave up after {MAX_ATTEMPTS} tries"):
        download.count(stub, user_id, show_deleted=False, retrying=retrying)
    assert len(waited) == MAX_ATTEMPTS - 1
    assert waited[0] <= 0.5
    assert 15 <= waited[-1] <= 30
