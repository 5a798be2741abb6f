"""JSON Lines: a memory a line, as protobuf's JSON writes a NewMemory."""

import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from google.protobuf import json_format

from memory_service.bulk.errors import BadRecord
from memory_service.bulk.records import Record, metadata_of, to_new_memory, vector
from memory_service.v1 import memory_pb2 as pb

# A request may have 16 MiB, and a line is part of one.
MAX_LINE_BYTES = 16 << 20

# Beside the fields of NewMemory. Both spellings, as protobuf's JSON reads both.
DELETED_AT = ("deletedAt", "deleted_at")


def read(stream: IO[bytes]) -> Iterator[Record]:
    """Yields the memory of each line; positions are bytes. Empty lines are skipped.

    Raises:
        BadRecord: For the first line that is none.
    """
    position = 0
    for number in _count():
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        position += len(line)
        if not line.strip():
            continue
        place = f"line {number}"
        if len(line) > MAX_LINE_BYTES:
            raise BadRecord(place, f"is longer than {MAX_LINE_BYTES} bytes")
        try:
            memory, deleted = _parse(line)
        except (ValueError, RecursionError, json_format.ParseError) as error:
            raise BadRecord(place, _first_line(error)) from None
        yield Record(place, position, memory, deleted)


def _count() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


def _parse(line: bytes) -> tuple[pb.NewMemory, bool]:
    try:
        fields = json.loads(line.rstrip(b"\r\n"))
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    if not isinstance(fields, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - a fault of the file, not of the program
    deleted = any(fields.get(name) for name in DELETED_AT)
    for name in DELETED_AT:
        fields.pop(name, None)
    numbers = fields.pop("embedding", None)
    if not isinstance(numbers, list):
        if numbers is not None:
            fields["embedding"] = numbers
        return json_format.ParseDict(fields, pb.NewMemory()), deleted
    memory = json_format.ParseDict(fields, pb.NewMemory())
    memory.embedding.CopyFrom(vector(_floats(numbers)))
    return memory, deleted


def _floats(numbers: list[Any]) -> "np.ndarray[Any, np.dtype[np.floating]]":
    try:
        values = np.asarray(numbers)
    except (ValueError, OverflowError):  # lists of different lengths, integers beyond all bounds
        values = np.asarray(None)
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError("embedding: is not a list of numbers")
    return values.astype(np.float64, copy=False)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


class Writer:
    """Writes a memory a line."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def write(self, memory: pb.Memory) -> None:
        """Adds a memory; its embedding is written as f32Le, in base64, a third of what its digits would take."""
        fields = json_format.MessageToDict(to_new_memory(memory))
        if "metadata" in fields:
            fields["metadata"] = metadata_of(memory)
        if memory.HasField("deleted_at"):
            fields["deletedAt"] = memory.deleted_at.ToJsonString()
        self._stream.write(json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")

    def close(self) -> None:
        """Writes what is still held back: nothing."""
