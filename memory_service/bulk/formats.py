"""The formats of files: which one a file has, and what reads and writes it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Literal, Protocol, get_args

from memory_service.bulk import jsonl, npz
from memory_service.bulk.errors import TransferError, UnreadableFile
from memory_service.bulk.records import Source
from memory_service.v1 import memory_pb2 as pb

Format = Literal["jsonl", "parquet", "npz"]
FORMATS: tuple[Format, ...] = get_args(Format)

STANDARD_STREAM = "-"

_SUFFIXES: dict[str, Format] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".npz": "npz"}


class RecordWriter(Protocol):
    """Writes memories into a file of some format."""

    def write(self, memory: pb.Memory) -> None:
        """Adds a memory."""

    def close(self) -> None:
        """Completes the file."""


def format_of(name: str, given: Format | None) -> Format:
    """Returns the format given, or else the one that a file's name tells.

    Raises:
        TransferError: When its name tells none, or the format needs a file and this is a standard stream.
    """
    if name == STANDARD_STREAM:
        if given not in {None, "jsonl"}:
            raise TransferError(f"{given} needs a file; standard input and output carry jsonl")
        return "jsonl"
    found = given or _SUFFIXES.get(Path(name).suffix.lower())
    if found is None:
        raise TransferError(f"{name}: its name tells no format; say --format {' or '.join(FORMATS)}")
    return found


@contextmanager
def open_source(name: str, file_format: Format) -> Iterator[Source]:
    """Opens a file, or standard input, for reading.

    Raises:
        UnreadableFile: When it cannot be opened, or is not of this format.
    """
    if name == STANDARD_STREAM:
        # Neither sys.stdin nor ever closed: both would wait for a thread that waits for input.
        yield Source(records=jsonl.read(os.fdopen(0, "rb", closefd=False)), size=None)
        return
    path = Path(name)
    if file_format == "jsonl":
        with _open(path) as stream:
            yield Source(records=jsonl.read(stream), size=path.stat().st_size if path.is_file() else None)
    elif file_format == "npz":
        yield npz.read(path)
    else:
        _require_pyarrow()
        from memory_service.bulk import parquet  # noqa: PLC0415 - pyarrow is an extra

        yield parquet.read(path)


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableFile(path, error.strerror or str(error)) from None


def open_writer(stream: IO[bytes], file_format: Format, *, with_embeddings: bool, with_deleted: bool) -> RecordWriter:
    """Returns what writes memories into an open file."""
    if file_format == "jsonl":
        return jsonl.Writer(stream)
    if file_format == "npz":
        return npz.Writer(stream, with_embeddings=with_embeddings, with_deleted=with_deleted)
    _require_pyarrow()
    from memory_service.bulk import parquet  # noqa: PLC0415 - pyarrow is an extra

    return parquet.Writer(stream, with_embeddings=with_embeddings, with_deleted=with_deleted)


def _require_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise TransferError("Parquet files need pyarrow; install memory-service[formats]")
