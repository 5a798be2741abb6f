"""Changing a stored memory, under its etag where the caller gave one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from psycopg.types.json import Jsonb

from db import sign_bits
from db.connection import Connection
from db.errors import Conflict, MemoryDeleted
from db.fetch import fetch_for_update
from db.memory import EmbeddingState, Memory, Metadata, View
from db.vectors import Embedding, to_parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class Unchanged:
    """Stands for a field that an update leaves alone (None is a value: no conversation)."""


UNCHANGED = Unchanged()

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The new values of a memory's fields."""

    content: str | Unchanged = UNCHANGED
    summary: str | Unchanged = UNCHANGED
    metadata: Metadata | Unchanged = UNCHANGED
    merge_metadata: bool = True
    importance: int | Unchanged = UNCHANGED
    conversation_id: str | Unchanged | None = UNCHANGED
    language: str | Unchanged = UNCHANGED
    embedding: Embedding | Unchanged = UNCHANGED
    embedding_model: str | Unchanged = UNCHANGED
    expected_content: str | None = None
    """The stored content that these changes follow from, where the content itself is left alone."""


CONVERSATION = """/* update.conversation */
INSERT INTO conversations (user_id, conversation_id, created_at)
VALUES (%(user_id)s, %(conversation_id)s, %(now)s)
ON CONFLICT DO NOTHING
"""

# The embedding by another model, where there is one, is then of a content that is no more (db/reembedding.py).
UPDATE = """/* update.one */
UPDATE memory_entries
SET content = %(content)s, summary = %(summary)s, metadata = %(metadata)s, importance = %(importance)s,
    conversation_id = %(conversation_id)s, language = %(language)s, version = version + 1, updated_at = %(now)s,
    standby_stale = CASE WHEN content = %(content)s THEN standby_stale ELSE true END
WHERE user_id = %(user_id)s AND id = %(id)s
"""

# A memory that waited for its embedding does so no more.
_UPDATE_WITH_EMBEDDING = """/* update.with_embedding */
WITH job AS (
    DELETE FROM embedding_jobs WHERE user_id = %(user_id)s AND id = %(id)s
)
UPDATE memory_entries
SET content = %(content)s, summary = %(summary)s, metadata = %(metadata)s, importance = %(importance)s,
    conversation_id = %(conversation_id)s, language = %(language)s, version = version + 1, updated_at = %(now)s,
    embedding = %(embedding)s, embedding_norm = %(embedding_norm)s, embedding_model = %(embedding_model)s,
    embedding_error = NULL, standby_stale = true{signs}
WHERE user_id = %(user_id)s AND id = %(id)s
"""
UPDATE_WITH_EMBEDDING = _UPDATE_WITH_EMBEDDING.format(signs="")
UPDATE_WITH_BITS = _UPDATE_WITH_EMBEDDING.format(signs=", bits = binary_quantize(%(embedding)s)")


def update(
    conn: Connection,
    user_id: str,
    memory_id: UUID,
    changes: Changes,
    *,
    etag: str,
    now: datetime,
    check_metadata: Callable[[Metadata], None],
) -> Memory:
    """Applies the changes and returns the memory after them, without its embedding.

    `check_metadata` sees the metadata as merged and may raise, before anything is written.

    Raises:
        MemoryNotFound: When the user has no such memory.
        MemoryDeleted: When it is soft-deleted.
        EtagMismatch: When `etag` is not empty and the memory has changed since.
        Conflict: When the stored content is no longer the one that the changes follow from.
    """
    with conn.transaction():
        before = fetch_for_update(conn, user_id, memory_id, view=View.BASIC, etag=etag)
        require_live(before)
        if changes.expected_content not in (None, before.content):
            raise Conflict(f"the content of memory {memory_id} changed meanwhile")
        after = _apply(before, changes, now)
        check_metadata(after.metadata or {})
        _write(conn, after, changes.embedding, now)
        return after


def require_live(memory: Memory) -> None:
    """Returns when the memory may be changed.

    Raises:
        MemoryDeleted: When it is soft-deleted.
    """
    if memory.deleted_at is not None:
        raise MemoryDeleted(f"memory {memory.id} is deleted; restore it first")


def _write(conn: Connection, after: Memory, embedding: Embedding | Unchanged, now: datetime) -> None:
    parameters = {
        "user_id": after.user_id,
        "id": after.id,
        "content": after.content,
        "summary": after.summary,
        "metadata": Jsonb(after.metadata),
        "importance": after.importance,
        "conversation_id": after.conversation_id,
        "language": after.language,
        "now": now,
    }
    if after.conversation_id is not None:
        conn.query(CONVERSATION, parameters)
    if isinstance(embedding, Unchanged):
        conn.query(UPDATE, parameters)
        return
    vector = {
        "embedding": to_parameter(embedding),
        "embedding_norm": embedding.norm,
        "embedding_model": after.embedding_model,
    }
    statement = UPDATE_WITH_BITS if sign_bits.kept_beside([embedding]) else UPDATE_WITH_EMBEDDING
    conn.query(statement, parameters | vector)


def _apply(before: Memory, changes: Changes, now: datetime) -> Memory:
    metadata = before.metadata
    if not isinstance(changes.metadata, Unchanged):
        metadata = merge_patch(dict(metadata or {}), changes.metadata) if changes.merge_metadata else changes.metadata
    return replace(
        before,
        content=_changed(changes.content, before.content),
        summary=_changed(changes.summary, before.summary),
        metadata=metadata,
        importance=_changed(changes.importance, before.importance),
        conversation_id=_changed(changes.conversation_id, before.conversation_id),
        language=_changed(changes.language, before.language),
        embedding_state=before.embedding_state if isinstance(changes.embedding, Unchanged) else EmbeddingState.READY,
        embedding_model=_changed(changes.embedding_model, before.embedding_model),
        version=before.version + 1,
        updated_at=now,
    )


def _changed(new: T | Unchanged, old: T) -> T:
    return old if isinstance(new, Unchanged) else new


def merge_patch(target: Metadata, patch: Metadata) -> Metadata:
    """Returns `target` with `patch` applied as a JSON Merge Patch (RFC 7396, section 2)."""
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = merge_patch(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[key] = value
    return merged
