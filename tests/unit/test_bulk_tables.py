"""Parquet and NumPy files as `import` and `export` read and write them."""

import io
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memory_service.bulk import npz, parquet
from memory_service.bulk.errors import BadRecord, TransferError, UnreadableFile
from memory_service.bulk.records import Record, to_new_memory
from memory_service.v1 import memory_pb2 as pb
from tests.api.messages import f32, struct, timestamp

MOMENT = datetime(2026, 5, 4, 3, 2, 1, 987_654, tzinfo=UTC)
MICROSECONDS = 1_777_863_721_987_654


@pytest.fixture(params=[parquet, npz], ids=["parquet", "npz"])
def table(request: pytest.FixtureRequest) -> Any:
    """Either module: they offer the same."""
    return request.param


def write_parquet(path: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), path)


def write_npz(path: Path, **arrays: Any) -> None:
    np.savez(path, **arrays)


WRITERS: dict[Any, Callable[..., None]] = {parquet: write_parquet, npz: write_npz}


@pytest.fixture
def read(table: Any, tmp_path: Path) -> Callable[..., list[Record]]:
    """A function writing a file of these columns and reading it again."""

    def write_and_read(**columns: Any) -> list[Record]:
        path = tmp_path / f"file.{table.__name__}.npz"
        WRITERS[table](path, **columns)
        source = table.read(path)
        records = list(source.records)
        assert source.size == len(records)
        return records

    return write_and_read


def test_every_column(read: Callable[..., list[Record]]) -> None:
    [record] = read(
        id=np.array(["0195d3c8-0000-7000-8000-000000000001"]),
        conversation_id=np.array(["c"]),
        content=np.array(["Zürich \N{SNOWMAN}"]),
        summary=np.array(["s"]),
        metadata=np.array(['{"a": [1, null]}']),
        importance=np.array([7]),
        created_at=np.array([MICROSECONDS], "datetime64[us]"),
        language=np.array(["german"]),
    )
    assert record == Record(
        "row 1",
        1,
        pb.NewMemory(
            id="0195d3c8-0000-7000-8000-000000000001",
            conversation_id="c",
            content="Zürich \N{SNOWMAN}",
            summary="s",
            metadata=struct({"a": [1, None]}),
            importance=7,
            created_at=timestamp(MOMENT),
            language="german",
        ),
    )


def test_columns_left_out_are_left_to_the_server(read: Callable[..., list[Record]]) -> None:
    records = read(content=np.array(["a", "b", ""]))
    assert [record.memory for record in records] == [
        pb.NewMemory(content="a"),
        pb.NewMemory(content="b"),
        pb.NewMemory(),
    ]
    assert [(record.place, record.position) for record in records] == [("row 1", 1), ("row 2", 2), ("row 3", 3)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_of_any_unit(read: Callable[..., list[Record]], unit: str) -> None:
    [record] = read(created_at=np.array([MICROSECONDS], "datetime64[us]").astype(f"datetime64[{unit}]"))
    expected = MOMENT.replace(microsecond={"s": 0, "ms": 987_000}.get(unit, 987_654))
    assert record.memory.created_at.ToDatetime(UTC) == expected


def test_deleted_memories_are_marked(read: Callable[..., list[Record]]) -> None:
    times = np.array([MICROSECONDS, np.iinfo(np.int64).min], "datetime64[us]")
    assert [record.deleted for record in read(deleted_at=times)] == [True, False]


@pytest.mark.parametrize("metadata", ["{", "[]", "1", '{"a": NaN'])
def test_metadata_that_is_no_object_is_named(read: Callable[..., list[Record]], metadata: str) -> None:
    with pytest.raises(BadRecord, match=r"^row 2: metadata: is not "):
        read(metadata=np.array(["{}", metadata]))


def test_a_time_out_of_range_is_named(read: Callable[..., list[Record]]) -> None:
    with pytest.raises(BadRecord, match="row 1: created_at: lies outside the years 1 to 9999"):
        read(created_at=np.array([2**62], "datetime64[us]"))


def test_an_unknown_column_is_named(read: Callable[..., list[Record]]) -> None:
    with pytest.raises(UnreadableFile, match="content, colour"):
        read(content=np.array(["a"]), colour=np.array(["red"]))


@pytest.mark.parametrize("content", [b"", b"PAR1 no more", b"PK\x03\x04 nor this"])
def test_other_files_are_refused(table: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=str(path)):
        table.read(path)
    with pytest.raises(UnreadableFile, match="No such file"):
        table.read(tmp_path / "missing")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_embeddings_of_any_precision_in_parquet(tmp_path: Path, dtype: str) -> None:
    values = np.array([[0.5, 1.5], [2.5, -3.5]], dtype)
    lists = pa.array([row if dtype != "f8" else row.tolist() for row in values])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    for column in (lists, fixed):
        write_parquet(tmp_path / "file", embedding=column)
        vectors = [record.memory.embedding for record in parquet.read(tmp_path / "file").records]
        assert vectors == [f32(row) for row in values]


def test_rows_without_embedding_in_parquet(tmp_path: Path) -> None:
    column = pa.array([[1.0], None, [2.0], []], pa.list_(pa.float32()))
    write_parquet(tmp_path / "file", embedding=column.slice(1), content=["a", "b", "c"])
    found = [record.memory for record in parquet.read(tmp_path / "file").records]
    assert [memory.HasField("embedding") for memory in found] == [False, True, True]
    assert found[1].embedding == f32([2.0])


def test_nulls_in_parquet_are_left_to_the_server(tmp_path: Path) -> None:
    nothing = pa.array([None], pa.string())
    write_parquet(
        tmp_path / "file",
        id=nothing,
        conversation_id=nothing,
        content=nothing,
        metadata=nothing,
        importance=pa.array([None], pa.int64()),
        created_at=pa.array([None], pa.timestamp("ns")),
    )
    [record] = parquet.read(tmp_path / "file").records
    assert record.memory == pb.NewMemory()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("content", pa.array([b"\xff"], pa.binary())),
        ("importance", pa.array(["high"])),
        ("importance", pa.array([2**40])),
        ("created_at", pa.array([True])),
        ("embedding", pa.array(["[1, 2]"])),
        ("embedding", pa.array([["x"]])),
        ("metadata", pa.array([{"a": 1}])),
    ],
    ids=str,
)
def test_columns_of_other_types_are_refused_in_parquet(tmp_path: Path, name: str, column: Any) -> None:
    write_parquet(tmp_path / "file", **{name: column})
    with pytest.raises(UnreadableFile, match=f"column {name} "):
        list(parquet.read(tmp_path / "file").records)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("content", np.array([b"bytes"])),
        ("content", np.array([["a"]])),
        ("embedding", np.array([1.0])),
        ("embedding", np.array([[1, 2]])),
        ("importance", np.array([1.5])),
        ("created_at", np.array([1])),
    ],
    ids=str,
)
def test_arrays_of_other_types_are_refused_in_npz(tmp_path: Path, name: str, array: Any) -> None:
    write_npz(tmp_path / "file.npz", **{name: array})
    with pytest.raises(UnreadableFile, match=f"array {name} is of "):
        list(npz.read(tmp_path / "file.npz").records)


def test_what_numpy_files_must_not_be(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    write_npz(path, content=np.array(["a", "b"]), importance=np.array([1]))
    with pytest.raises(UnreadableFile, match="different lengths"):
        npz.read(path)
    write_npz(path, content=np.array([{"pickled": "code"}], object))
    with pytest.raises(UnreadableFile, match="pickle"):
        npz.read(path)
    write_npz(path)
    with pytest.raises(UnreadableFile, match="a memory has"):
        npz.read(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UnreadableFile, match="holds one array"):
        npz.read(tmp_path / "one.npy")


def stored() -> Iterator[pb.Memory]:
    """Yields memories as the server returns them, more than fit one row group."""
    for number in range(1_500):
        memory = pb.Memory(
            id=f"0195d3c8-0000-7000-8000-{number:012}",
            conversation_id="c" * (number % 2),
            content=f"number {number}\n",
            metadata=struct({"number": number} if number % 3 else {}),
            embedding=f32([number, 1.0]),
            importance=1 + number % 10,
            language="german" if number % 5 else "simple",
        )
        memory.created_at.FromMicroseconds(number)
        if not number % 3:
            memory.ClearField("metadata")
        if number == 7:
            memory.deleted_at.FromMicroseconds(9)
        yield memory


@pytest.mark.parametrize("with_embeddings", [False, True])
def test_what_is_written_is_read_again(table: Any, tmp_path: Path, *, with_embeddings: bool) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        writer = table.Writer(stream, with_embeddings=with_embeddings, with_deleted=True)
        for memory in stored():
            writer.write(memory)
        writer.close()
        assert not stream.closed

    records = list(table.read(path).records)
    expected = [to_new_memory(memory) for memory in stored()]
    for new in expected:
        if not with_embeddings:
            new.ClearField("embedding")
    assert [record.memory for record in records] == expected
    assert [record.position for record in records if record.deleted] == [8]


def test_nothing_can_be_written_and_read_again(table: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        table.Writer(stream, with_embeddings=True, with_deleted=False).close()
    source = table.read(path)
    assert source.size == 0
    assert list(source.records) == []


@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 1], [1, 2], [0, 1, 2]])
def test_memories_that_wait_for_their_embedding_are_written_without_in_parquet(
    tmp_path: Path, missing: list[int]
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as stream:
        writer = parquet.Writer(stream, with_embeddings=True, with_deleted=False)
        for number in range(3):
            embedding = None if number in missing else f32([number + 1, 0.5])
            writer.write(pb.Memory(id=f"{number}", content="c", embedding=embedding))
        writer.close()
    records = list(parquet.read(path).records)
    assert [record.memory.HasField("embedding") for record in records] == [n not in missing for n in range(3)]
    assert all(record.memory.embedding == f32([n + 1, 0.5]) for n, record in enumerate(records) if n not in missing)


def test_memories_that_wait_for_their_embedding_cannot_be_written_to_numpy() -> None:
    waiting = pb.Memory(id="0195d3c8-0000-7000-8000-000000000001", content="c")
    npz.Writer(io.BytesIO(), with_embeddings=False, with_deleted=False).write(waiting)
    with pytest.raises(TransferError, match="0195d3c8-0000-7000-8000-000000000001 has no embedding yet"):
        npz.Writer(io.BytesIO(), with_embeddings=True, with_deleted=False).write(waiting)


def test_texts_too_long_for_numpy_are_refused_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npz, "MAX_TEXT_BYTES", 4_000)
    writer = npz.Writer(io.BytesIO(), with_embeddings=False, with_deleted=False)
    writer.write(pb.Memory(content="x" * 1_000))
    with pytest.raises(TransferError, match="use --format parquet or jsonl"):
        writer.write(pb.Memory())
