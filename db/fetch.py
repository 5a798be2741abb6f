"""Reading one memory by id, to show it or to change it."""

from uuid import UUID

from db.connection import Connection, Statement
from db.errors import EtagMismatch, MemoryNotFound
from db.memory import COLUMNS, Memory, View, from_row

FETCH: dict[View, Statement] = {
    view: "/* fetch.one */ SELECT "
    + columns
    + """
FROM memory_entries m
LEFT JOIN memory_access a ON a.user_id = m.user_id AND a.id = m.id
WHERE m.user_id = %(user_id)s AND m.id = %(id)s
"""
    for view, columns in COLUMNS.items()
}

# The lock is the one UPDATE takes itself, so access counters (whose foreign key takes KEY SHARE) are not blocked.
FETCH_FOR_UPDATE: dict[View, Statement] = {
    view: "/* fetch.for_update */ SELECT "
    + columns
    + """
FROM memory_entries m
LEFT JOIN memory_access a ON a.user_id = m.user_id AND a.id = m.id
WHERE m.user_id = %(user_id)s AND m.id = %(id)s
FOR NO KEY UPDATE OF m
"""
    for view, columns in COLUMNS.items()
}


def fetch(conn: Connection, user_id: str, memory_id: UUID, *, view: View) -> Memory:
    """Returns the memory, live or soft-deleted.

    Raises:
        MemoryNotFound: When the user has no such memory.
    """
    return _one(conn, FETCH[view], user_id, memory_id)


def fetch_for_update(conn: Connection, user_id: str, memory_id: UUID, *, view: View, etag: str) -> Memory:
    """Returns the memory locked until the transaction's end; an `etag` that is not empty must be the memory's.

    Raises:
        MemoryNotFound: When the user has no such memory.
        EtagMismatch: When the memory has changed since its etag was read.
    """
    memory = _one(conn, FETCH_FOR_UPDATE[view], user_id, memory_id)
    if etag and etag != memory.etag:
        # The etag sent is not quoted: it may be of any length, and errors travel in trailers of at most 16 KiB.
        raise EtagMismatch(f"memory {memory_id} has changed: its etag is now {memory.etag}")
    return memory


def _one(conn: Connection, statement: Statement, user_id: str, memory_id: UUID) -> Memory:
    row = conn.query(statement, {"user_id": user_id, "id": memory_id}).fetchone()
    if row is None:
        raise MemoryNotFound(f"the user has no memory {memory_id}")
    return from_row(row)
