"""Parquet files: a memory a row, under the names of records.COLUMNS."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from memory_service.bulk.errors import BadRecord, UnreadableFile
from memory_service.bulk.records import COLUMNS, Record, Row, Source, from_row, to_row
from memory_service.v1 import memory_pb2 as pb

READ_ROWS = 1_000
WRITE_ROWS = 1_000

TEXTS = ("id", "conversation_id", "content", "summary", "metadata", "language")
TIMES = ("created_at", "deleted_at")


def read(path: Path) -> Source:
    """Returns the memories; positions are rows.

    The records raise BadRecord for the first row that is no memory, and UnreadableFile for a column of another type.

    Raises:
        UnreadableFile: When it is no Parquet file, or its columns are not named like those of a memory.
    """
    file = _open(path)
    _check_names(path, file.schema_arrow.names)
    return Source(records=_records(path, file), size=int(file.metadata.num_rows))


def _records(path: Path, file: "pq.ParquetFile") -> Iterator[Record]:
    number = 0
    with file:
        for batch in file.iter_batches(READ_ROWS):
            for row in _rows(path, batch):
                number += 1
                place = f"row {number}"
                try:
                    memory = from_row(row)
                except ValueError as error:
                    raise BadRecord(place, str(error).partition("\n")[0]) from None
                yield Record(place, number, memory, row.deleted_at is not None)


def _open(path: Path) -> "pq.ParquetFile":
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UnreadableFile(path, str(error).partition("\n")[0]) from None


def _check_names(path: Path, names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown or len(set(names)) < len(names):
        found = f"has the columns {', '.join(names)}"
        raise UnreadableFile(path, f"{found}; a memory has {', '.join(COLUMNS)}, and each at most once")


def _rows(path: Path, batch: "pa.RecordBatch") -> Iterator[Row]:
    columns: list[Sequence[Any]] = []
    for name in batch.schema.names:
        try:
            columns.append(_values(name, batch.column(name)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            problem = f"column {name} ({batch.column(name).type}): {error}"
            raise UnreadableFile(path, problem.partition("\n")[0]) from None
    for values in zip(*columns, strict=True):
        yield Row(**dict(zip(batch.schema.names, values, strict=True)))


def _values(name: str, column: "pa.Array") -> Sequence[Any]:
    if name == "embedding":
        return _vectors(column)
    if name in TIMES:
        # Without safe=False, nanoseconds that are no whole microseconds would be refused.
        return _list(column.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()))
    return _list(column.cast(pa.string() if name in TEXTS else pa.int32()))


def _list(column: "pa.Array") -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values


def _vectors(column: "pa.Array") -> list[Any]:
    lists = column.cast(pa.list_(pa.float32()))
    numbers = lists.values.to_numpy(zero_copy_only=False)
    offsets = lists.offsets.to_numpy()
    return [
        numbers[start:end] if present else None
        for present, start, end in zip(lists.is_valid().to_pylist(), offsets[:-1], offsets[1:], strict=True)
    ]


class Writer:
    """Writes a memory a row, in row groups of WRITE_ROWS."""

    def __init__(self, stream: IO[bytes], *, with_embeddings: bool, with_deleted: bool) -> None:
        left_out = ({"embedding"} if not with_embeddings else set()) | ({"deleted_at"} if not with_deleted else set())
        self._schema = pa.schema([(name, _TYPES[name]()) for name in COLUMNS if name not in left_out])
        self._file = pq.ParquetWriter(stream, self._schema, compression="zstd")
        self._rows: list[Row] = []

    def write(self, memory: pb.Memory) -> None:
        """Adds a memory."""
        self._rows.append(to_row(memory))
        if len(self._rows) == WRITE_ROWS:
            self._flush()

    def close(self) -> None:
        """Writes what is still held back, and the file's end."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        columns = {name: [getattr(row, name) for row in self._rows] for name in self._schema.names}
        if "embedding" in columns:
            columns["embedding"] = _lists(columns["embedding"])
        self._file.write_batch(pa.RecordBatch.from_pydict(columns, schema=self._schema))
        self._rows = []


def _lists(vectors: list[Any]) -> "pa.Array":
    """Returns the column of these vectors, null for None; from_pydict would go through every single number."""
    present = [vector for vector in vectors if vector is not None]
    ends = np.cumsum([0 if vector is None else len(vector) for vector in vectors], dtype=np.int32)
    # A list whose beginning is null is null itself.
    absent = np.array([*(vector is None for vector in vectors), False])
    offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]), mask=absent)
    numbers = np.concatenate(present) if present else np.empty(0, np.float32)
    return pa.ListArray.from_arrays(offsets, numbers.astype(np.float32, copy=False))


_TYPES: dict[str, Callable[[], Any]] = {
    **dict.fromkeys(TEXTS, pa.string),
    **dict.fromkeys(TIMES, lambda: pa.timestamp("us", "UTC")),
    "embedding": lambda: pa.list_(pa.float32()),
    "importance": pa.int32,
}
