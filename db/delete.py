"""Deleting memories, softly or for good, restoring them, and purging those whose time has come."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from db.connection import Connection
from db.errors import MemoryNotDeleted, MemoryNotFound
from db.fetch import fetch_for_update
from db.memory import Memory, View

SOFT_DELETE = """/* delete.soft */
UPDATE memory_entries
SET deleted_at = %(now)s, purge_at = %(purge_at)s, version = version + 1, updated_at = %(now)s
WHERE user_id = %(user_id)s AND id = %(id)s
"""


def soft_delete(
    conn: Connection, user_id: str, memory_id: UUID, *, etag: str, now: datetime, purge_at: datetime
) -> Memory:
    """Hides the memory until it is restored or purged.

    Raises:
        MemoryNotFound: When the user has no such memory, or it is soft-deleted already (AIP-164).
        EtagMismatch: When `etag` is not empty and the memory has changed since.
    """
    with conn.transaction():
        before = fetch_for_update(conn, user_id, memory_id, view=View.HEAD, etag=etag)
        if before.deleted_at is not None:
            raise MemoryNotFound(f"memory {memory_id} is deleted already")
        conn.query(SOFT_DELETE, {"user_id": user_id, "id": memory_id, "now": now, "purge_at": purge_at})
    return replace(before, deleted_at=now, purge_at=purge_at, version=before.version + 1, updated_at=now)


SUPERSEDE = """/* delete.supersede */
UPDATE memory_entries m
SET superseded_by = given.successor, deleted_at = %(now)s, purge_at = %(purge_at)s, version = version + 1,
    updated_at = %(now)s
FROM unnest(%(ids)s::uuid[], %(successors)s::uuid[]) AS given (id, successor)
WHERE m.user_id = %(user_id)s AND m.id = given.id
"""


def supersede(
    conn: Connection, user_id: str, successors: Mapping[UUID, UUID], *, now: datetime, purge_at: datetime
) -> None:
    """Soft-deletes live memories, by id, and notes the id of the one that replaces each."""
    if successors:
        parameters = {
            "user_id": user_id,
            "ids": list(successors),
            "successors": list(successors.values()),
            "now": now,
            "purge_at": purge_at,
        }
        conn.query(SUPERSEDE, parameters)


HARD_DELETE = """/* delete.hard */
DELETE FROM memory_entries WHERE user_id = %(user_id)s AND id = %(id)s
"""


def hard_delete(conn: Connection, user_id: str, memory_id: UUID, *, etag: str) -> Memory:
    """Erases the memory, live or soft-deleted, and returns its last state.

    Raises:
        MemoryNotFound: When the user has no such memory.
        EtagMismatch: When `etag` is not empty and the memory has changed since.
    """
    with conn.transaction():
        before = fetch_for_update(conn, user_id, memory_id, view=View.HEAD, etag=etag)
        conn.query(HARD_DELETE, {"user_id": user_id, "id": memory_id})
    return before


RESTORE = """/* delete.restore */
UPDATE memory_entries
SET deleted_at = NULL, purge_at = NULL, superseded_by = NULL, version = version + 1, updated_at = %(now)s
WHERE user_id = %(user_id)s AND id = %(id)s
"""


def restore(conn: Connection, user_id: str, memory_id: UUID, *, etag: str, now: datetime) -> Memory:
    """Brings a soft-deleted memory back.

    Raises:
        MemoryNotFound: When the user has no such memory.
        MemoryNotDeleted: When it is live.
        EtagMismatch: When `etag` is not empty and the memory has changed since.
    """
    with conn.transaction():
        before = fetch_for_update(conn, user_id, memory_id, view=View.BASIC, etag=etag)
        if before.deleted_at is None:
            raise MemoryNotDeleted(f"memory {memory_id} is not deleted")
        conn.query(RESTORE, {"user_id": user_id, "id": memory_id, "now": now})
    return replace(
        before, deleted_at=None, purge_at=None, superseded_by=None, version=before.version + 1, updated_at=now
    )


# Housekeeping crosses users; each row it deletes is still addressed by user_id. Rows that another process is
# purging, or a caller is restoring, are left to them.
PURGE = """/* delete.purge */
DELETE FROM memory_entries m
USING (
    SELECT user_id, id FROM memory_entries
    WHERE purge_at <= %(now)s
    ORDER BY purge_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) expired
WHERE m.user_id = expired.user_id AND m.id = expired.id
"""


def purge(conn: Connection, *, now: datetime, limit: int) -> int:
    """Erases up to `limit` soft-deleted memories whose purge_at has passed; returns how many."""
    return conn.query(PURGE, {"now": now, "limit": limit}).rowcount
