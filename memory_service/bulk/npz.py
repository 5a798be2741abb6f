"""NumPy files (.npz): an array a field, under the names of records.COLUMNS. They are read and written as a whole."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from memory_service.bulk.errors import BadRecord, TransferError, UnreadableFile
from memory_service.bulk.records import COLUMNS, Record, Row, Source, from_row, to_row
from memory_service.v1 import memory_pb2 as pb

TEXTS = ("id", "conversation_id", "content", "summary", "metadata", "language")
TIMES = ("created_at", "deleted_at")

# NumPy gives every text of an array the room of the longest one, 4 bytes a character.
MAX_TEXT_BYTES = 1 << 30

NOT_A_TIME = np.iinfo(np.int64).min


def read(path: Path) -> Source:
    """Returns the memories; positions are rows. An empty text, importance 0 and NaT are taken as not given.

    The records raise BadRecord for the first memory that is none.

    Raises:
        UnreadableFile: When it is no such file, or its arrays are not those of memories.
    """
    arrays = _load(path)
    size = len(next(iter(arrays.values())))
    return Source(records=_records({name: _values(path, name, array) for name, array in arrays.items()}), size=size)


def _records(columns: Mapping[str, Any]) -> Iterator[Record]:
    for index, values in enumerate(zip(*columns.values(), strict=True)):
        place = f"row {index + 1}"
        row = Row(**dict(zip(columns, values, strict=True)))
        try:
            memory = from_row(row)
        except ValueError as error:
            raise BadRecord(place, str(error).partition("\n")[0]) from None
        yield Record(place, index + 1, memory, row.deleted_at is not None)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        # Opened here: np.load leaves a file open that it cannot read.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UnreadableFile(path, "holds one array; expected an .npz file of several, by name")
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UnreadableFile(path, str(error).partition("\n")[0]) from None
    unknown = [name for name in arrays if name not in COLUMNS]
    if unknown or not arrays:
        raise UnreadableFile(path, f"has the arrays {', '.join(arrays)}; a memory has {', '.join(COLUMNS)}")
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise UnreadableFile(path, f"has arrays of different lengths: {lengths}")
    return arrays


def _values(path: Path, name: str, array: NDArray[Any]) -> Any:
    kinds, description, dimensions, convert = _EXPECTED[name]
    if array.dtype.kind not in kinds or array.ndim != dimensions:
        shape = f"{array.dtype} in {array.ndim} dimensions"
        raise UnreadableFile(path, f"array {name} is of {shape}; expected {description}")
    return convert(array)


def _times(array: NDArray[Any]) -> list[int | None]:
    microseconds = array.astype("datetime64[us]").astype(np.int64).tolist()
    return [None if value == NOT_A_TIME else value for value in microseconds]


_Expected = tuple[str, str, int, Callable[[NDArray[Any]], Any]]
"""Kinds of dtype, how to call them, dimensions, and the conversion to the values of Row."""

_EXPECTED: dict[str, _Expected] = {
    **dict.fromkeys(TEXTS, ("U", "texts", 1, np.ndarray.tolist)),
    **dict.fromkeys(TIMES, ("M", "datetime64 values", 1, _times)),
    "embedding": ("f", "floats, a row a memory", 2, lambda array: array),
    "importance": ("iu", "integers", 1, lambda array: [value or None for value in array.tolist()]),
}


class Writer:
    """Gathers memories and writes them when it is closed."""

    def __init__(self, stream: IO[bytes], *, with_embeddings: bool, with_deleted: bool) -> None:
        self._stream = stream
        self._names = [
            name
            for name in COLUMNS
            if (name != "embedding" or with_embeddings) and (name != "deleted_at" or with_deleted)
        ]
        self._rows: list[Row] = []
        self._longest = 0

    def write(self, memory: pb.Memory) -> None:
        """Adds a memory.

        Raises:
            TransferError: When the texts would take too much memory in this format, or the embedding is missing.
        """
        row = to_row(memory)
        if row.embedding is None and "embedding" in self._names:
            raise TransferError(
                f"memory {row.id} has no embedding yet, and NumPy files cannot leave one out; use --format parquet or "
                "jsonl, or leave out --with-embeddings"
            )
        self._rows.append(row)
        self._longest = max(self._longest, *(len(getattr(row, name) or "") for name in TEXTS))
        if 4 * self._longest * len(self._rows) > MAX_TEXT_BYTES:
            raise TransferError(
                f"the longest text has {self._longest} characters, and NumPy files keep room for as many in each of "
                f"{len(self._rows)} or more memories; use --format parquet or jsonl"
            )

    def close(self) -> None:
        """Writes the file."""
        arrays = {name: self._array(name, [getattr(row, name) for row in self._rows]) for name in self._names}
        np.savez(self._stream, allow_pickle=False, **arrays)

    def _array(self, name: str, values: list[Any]) -> NDArray[Any]:
        if name == "embedding":
            return np.stack(values).astype(np.float32, copy=False) if values else np.empty((0, 0), np.float32)
        if name == "importance":
            return np.asarray(values, np.int32)
        if name in TIMES:
            times = [NOT_A_TIME if value is None else value for value in values]
            return np.asarray(times, np.int64).astype("datetime64[us]")
        return np.asarray([value or "" for value in values], np.str_)
