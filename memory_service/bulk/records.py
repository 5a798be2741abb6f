"""A memory as files hold it: the fields of NewMemory, and when it was deleted where it was."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from memory_service.v1 import memory_pb2 as pb

COLUMNS = (
    "id",
    "conversation_id",
    "content",
    "summary",
    "metadata",
    "embedding",
    "importance",
    "created_at",
    "language",
    "deleted_at",
)
"""Names of the columns of Parquet files and of the arrays of NumPy files."""

MAX_EXACT_INTEGER = 2**53

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Record:
    """One memory of a file."""

    place: str
    """Where it stands, for a message: "line 12"."""
    position: int
    """How much of the file has been read with it, in the units of the file's size."""
    memory: pb.NewMemory
    deleted: bool = False
    """Whether it was soft-deleted when the file was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file being read."""

    records: Iterator[Record]
    size: int | None
    """What the position of its last record will be; None where that cannot be known before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A memory in columns; what is empty or None is left to the server's defaults."""

    id: str | None = None
    conversation_id: str | None = None
    content: str | None = None
    summary: str | None = None
    metadata: str | None = None
    """A JSON object."""
    embedding: NDArray[np.floating] | None = field(default=None, compare=False)
    importance: int | None = None
    created_at: int | None = None
    """Microseconds since 1970."""
    language: str | None = None
    deleted_at: int | None = None
    """As created_at."""


def from_row(row: Row) -> pb.NewMemory:
    """Returns the memory to store.

    Raises:
        ValueError: When the metadata is no JSON object, or a number is out of range.
    """
    memory = pb.NewMemory(
        id=row.id or "",
        conversation_id=row.conversation_id or "",
        content=row.content or "",
        summary=row.summary or "",
        importance=row.importance,
        language=row.language or "",
    )
    if row.metadata:
        json_format.ParseDict(_object(row.metadata), memory.metadata)
    if row.embedding is not None:
        memory.embedding.CopyFrom(vector(row.embedding))
    if row.created_at is not None:
        memory.created_at.CopyFrom(timestamp(row.created_at))
    return memory


def to_row(memory: pb.Memory) -> Row:
    """Returns a stored memory in columns."""
    return Row(
        id=memory.id,
        conversation_id=memory.conversation_id or None,
        content=memory.content,
        summary=memory.summary,
        metadata=json.dumps(json_format.MessageToDict(memory.metadata), ensure_ascii=False)
        if memory.metadata
        else None,
        embedding=np.frombuffer(memory.embedding.f32_le, "<f4") if memory.HasField("embedding") else None,
        importance=memory.importance,
        created_at=microseconds(memory.created_at),
        language=memory.language or None,
        deleted_at=microseconds(memory.deleted_at) if memory.HasField("deleted_at") else None,
    )


def metadata_of(memory: pb.Memory) -> Any:
    """Returns a stored memory's metadata with whole numbers as such: a Struct knows only doubles."""
    return _whole(json_format.MessageToDict(memory.metadata))


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_EXACT_INTEGER:
        return int(value)
    return value


def to_new_memory(memory: pb.Memory) -> pb.NewMemory:
    """Returns what would store a stored memory again."""
    new = pb.NewMemory(
        id=memory.id,
        conversation_id=memory.conversation_id,
        content=memory.content,
        summary=memory.summary,
        importance=memory.importance,
        created_at=memory.created_at,
        language=memory.language,
    )
    if memory.HasField("metadata"):
        new.metadata.CopyFrom(memory.metadata)
    if memory.HasField("embedding"):
        new.embedding.CopyFrom(memory.embedding)
    return new


def vector(values: NDArray[np.floating]) -> pb.Vector:
    """Returns the numbers as an embedding, in the precision they have."""
    if values.dtype == np.float16:
        return pb.Vector(f16_le=values.astype("<f2", copy=False).tobytes())
    with np.errstate(over="ignore"):  # the server refuses infinity, naming its position
        return pb.Vector(f32_le=values.astype("<f4", copy=False).tobytes())


def timestamp(microseconds_since_1970: int) -> Timestamp:
    """Returns the time; raises ValueError where the contract's years, 1 to 9999, do not hold it."""
    try:
        moment = EPOCH + microseconds_since_1970 * MICROSECOND
    except OverflowError:
        raise ValueError("created_at: lies outside the years 1 to 9999") from None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def microseconds(time: Timestamp) -> int:
    """Returns the microseconds since 1970."""
    return time.seconds * 1_000_000 + time.nanos // 1_000


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"metadata: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("metadata: is not a JSON object")  # noqa: TRY004 - a fault of the file, not of the program
    return value
