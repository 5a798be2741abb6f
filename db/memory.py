"""A memory as the database layer passes it around, and the columns it is read from."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Any, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from db.languages import DEFAULT_LANGUAGE
from db.vectors import Embedding, from_column

Metadata = dict[str, Any]


class View(Enum):
    """How much of a memory is read."""

    HEAD = "head"
    """No text, no metadata, no embedding."""
    BASIC = "basic"
    """Everything but the embedding."""
    FULL = "full"


class EmbeddingState(Enum):
    """Whether a memory has its embedding."""

    READY = auto()
    PENDING = auto()
    """It waits for it."""
    FAILED = auto()
    """It was refused, or tried too often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """A memory to store; its id and times are decided."""

    id: UUID
    conversation_id: str | None
    content: str
    summary: str
    metadata: Metadata
    embedding: Embedding | None
    """None: it waits for its embedding, with a job in the queue (db/embedding_jobs.py)."""
    embedding_model: str
    importance: int
    created_at: datetime
    embed_text: str | None = None
    """What is embedded in place of the content, where it waits for its embedding."""
    language: str = DEFAULT_LANGUAGE
    """One of db.languages, to stem its words in."""


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
    language: str | None = None
    superseded_by: UUID | None = None
    """None also where nothing has replaced it."""
    embedding_state: EmbeddingState | None = None
    embedding: Embedding | None = None
    """None also where it has none, see embedding_state."""

    @property
    def etag(self) -> str:
        """Changes with every change of the memory, and when its id is given to another one."""
        return etag(self.version, self.updated_at)


def etag(version: int, updated_at: datetime) -> str:
    """Returns the etag of a version; the time tells apart two memories that had the same id in turn."""
    return f"{version:x}-{round(updated_at.timestamp() * 1_000_000):x}"


# In the order of Memory's fields, embedding_state taking two columns; `m` is memory_entries, `a` is memory_access.
_HEAD = """
    m.id, m.user_id, m.conversation_id, m.importance, m.version, m.embedding_model,
    m.created_at, m.updated_at, m.deleted_at, m.purge_at,
    coalesce(a.access_count, 0), a.last_accessed_at"""
_BASIC = (
    _HEAD
    + """,
    m.content, m.summary, m.metadata, m.language, m.superseded_by,
    m.embedding IS NOT NULL, m.embedding_error IS NOT NULL"""
)

COLUMNS: dict[View, LiteralString] = {
    View.HEAD: _HEAD,
    View.BASIC: _BASIC,
    View.FULL: _BASIC + ", m.embedding, m.embedding_norm",
}

_WIDTH_HEAD, _WIDTH_BASIC = 12, 19


def from_row(row: TupleRow) -> Memory:
    """Builds a memory from the columns of any view, in the order of `COLUMNS`."""
    if len(row) == _WIDTH_HEAD:
        return Memory(*row)
    *basic, embedded, failed = row[:_WIDTH_BASIC]
    vector = row[_WIDTH_BASIC:]
    return Memory(*(*basic, _state(embedded, failed), from_column(*vector) if embedded and vector else None))


def _state(embedded: bool, failed: bool) -> EmbeddingState:  # noqa: FBT001 - columns of a row
    if embedded:
        return EmbeddingState.READY
    return EmbeddingState.FAILED if failed else EmbeddingState.PENDING
