"""A memory as the database layer passes it around, and the columns it is read from."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from db.vectors import Embedding, from_column

Metadata = dict[str, Any]


class View(Enum):
    """How much of a memory is read."""

    HEAD = "head"
    """No text, no metadata, no embedding."""
    BASIC = "basic"
    """Everything but the embedding."""
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """A memory to store; its id and times are decided."""

    id: UUID
    conversation_id: str | None
    content: str
    summary: str
    metadata: Metadata
    embedding: Embedding
    embedding_model: str
    importance: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Memory:
    """A stored memory. What the view leaves out is None."""

    id: UUID
    user_id: str
    conversation_id: str | None
    importance: int
    version: int
    embedding_model: str
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None
    purge_at: datetime | None
    access_count: int
    last_accessed_at: datetime | None
    content: str | None = None
    summary: str | None = None
    metadata: Metadata | None = None
    embedding: Embedding | None = None

    @property
    def etag(self) -> str:
        """Changes with every change of the memory, and when its id is given to another one."""
        return etag(self.version, self.updated_at)


def etag(version: int, updated_at: datetime) -> str:
    """Returns the etag of a version; the time tells apart two memories that had the same id in turn."""
    return f"{version:x}-{round(updated_at.timestamp() * 1_000_000):x}"


# In the order of Memory's fields; `m` is memory_entries, `a` is memory_access.
_HEAD = """
    m.id, m.user_id, m.conversation_id, m.importance, m.version, m.embedding_model,
    m.created_at, m.updated_at, m.deleted_at, m.purge_at,
    coalesce(a.access_count, 0), a.last_accessed_at"""
_BASIC = _HEAD + ", m.content, m.summary, m.metadata"

COLUMNS: dict[View, LiteralString] = {
    View.HEAD: _HEAD,
    View.BASIC: _BASIC,
    View.FULL: _BASIC + ", m.embedding, m.embedding_norm",
}

_WIDTH_BASIC = 15


def from_row(row: TupleRow) -> Memory:
    """Builds a memory from the columns of any view, in the order of `COLUMNS`."""
    if len(row) <= _WIDTH_BASIC:
        return Memory(*row)
    vector, norm = row[_WIDTH_BASIC:]
    return Memory(*(*row[:_WIDTH_BASIC], from_column(vector, norm)))
