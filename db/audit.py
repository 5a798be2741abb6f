"""The audit log: entries written and read back, and the partitions they live in.

An entry names users, memories and keys by their ids and holds nothing of what a caller stored. Nobody changes one: it
goes with its month's partition.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

from psycopg.rows import TupleRow
from psycopg.sql import SQL

from db.connection import Connection

# Two months ahead, so that a service that did not run at the turn of a month has made the next one before.
MONTHS_AHEAD = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One call that ended or, without a code, an administrator's that began."""

    at: datetime
    id: UUID
    """Tells apart entries of the same microsecond."""
    subject: str
    """Who called."""
    method: str
    user_id: str | None
    memory_ids: tuple[UUID, ...] = ()
    memory_count: int = 0
    key_id: str | None = None
    """The API key that was made, rotated or revoked."""
    request_id: str = ""
    peer: str = ""
    code: str | None = None
    reason: str | None = None


# Ids go as the text of an array for each row: arrays of several lengths are none that unnest takes apart.
WRITE = """/* audit.write */
INSERT INTO audit_log (
    at, id, subject, method, user_id, memory_ids, memory_count, key_id, request_id, peer, code, reason)
SELECT at, id, subject, method, user_id, memory_ids::uuid[], memory_count, key_id, request_id, peer, code, reason
FROM unnest(
    %(times)s::timestamptz[], %(ids)s::uuid[], %(subjects)s::text[], %(methods)s::text[], %(user_ids)s::text[],
    %(memory_ids)s::text[], %(memory_counts)s::bigint[], %(key_ids)s::text[], %(request_ids)s::text[],
    %(peers)s::text[], %(codes)s::text[], %(reasons)s::text[]
) AS given (
    at, id, subject, method, user_id, memory_ids, memory_count, key_id, request_id, peer, code, reason)
ON CONFLICT DO NOTHING
"""


def write(conn: Connection, entries: Sequence[AuditEntry]) -> None:
    """Adds entries to the log; those that it has already, by their time and id, are left as they are."""
    conn.bulk(
        WRITE,
        {
            "times": [entry.at for entry in entries],
            "ids": [entry.id for entry in entries],
            "subjects": [entry.subject for entry in entries],
            "methods": [entry.method for entry in entries],
            "user_ids": [entry.user_id for entry in entries],
            "memory_ids": ["{" + ",".join(map(str, entry.memory_ids)) + "}" for entry in entries],
            "memory_counts": [entry.memory_count for entry in entries],
            "key_ids": [entry.key_id for entry in entries],
            "request_ids": [entry.request_id for entry in entries],
            "peers": [entry.peer for entry in entries],
            "codes": [entry.code for entry in entries],
            "reasons": [entry.reason for entry in entries],
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries to read; what is None does not restrict."""

    user_id: str | None = None
    subject: str | None = None
    method: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditPosition:
    """Where a page ended: the sort key of its last entry."""

    at: datetime
    id: UUID


# One entry more than the page tells whether there is a next one. A page ends early where it names many memories: an
# import leaves entries of 5,000 ids. OFFSET 0 keeps the ids of entries beyond the page from being read.
PAGE = SQL("""/* audit.page */
WITH page AS (
    SELECT at, id, cardinality(memory_ids) AS named
    FROM audit_log
    WHERE {where}
    ORDER BY at DESC, id DESC
    LIMIT %(limit)s
), sized AS (
    SELECT at, id, row_number() OVER (ORDER BY at DESC, id DESC) AS position,
        sum(named) OVER (ORDER BY at DESC, id DESC) AS named
    FROM page
)
SELECT (SELECT count(*) FROM page), l.at, l.id, l.subject, l.method, l.user_id, l.memory_ids, l.memory_count, l.key_id,
    l.request_id, l.peer, l.code, l.reason
FROM sized
JOIN audit_log l ON l.at = sized.at AND l.id = sized.id
WHERE sized.position < %(limit)s AND (sized.named <= %(max_memory_ids)s OR sized.position = 1)
ORDER BY sized.position
""")

CONDITIONS = {
    "user_id": SQL("user_id = %(user_id)s"),
    "subject": SQL("subject = %(subject)s"),
    "method": SQL("method = %(method)s"),
    "since": SQL("at >= %(since)s"),
    "until": SQL("at < %(until)s"),
    "after": SQL("(at, id) < (%(after_at)s, %(after_id)s)"),
}


@lru_cache(maxsize=64)
def _statement(names: tuple[str, ...]) -> bytes:
    where = SQL(" AND ").join(CONDITIONS[name] for name in names) if names else SQL("true")
    return PAGE.format(where=where).as_bytes(None)


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some entries, and where the next page begins, if there is one."""

    entries: list[AuditEntry]
    end: AuditPosition | None


def read_page(
    conn: Connection, which: AuditFilter, *, after: AuditPosition | None, page_size: int, max_memory_ids: int
) -> AuditPage:
    """Returns the page of at most `page_size` entries, newest first, that follows `after`."""
    values: dict[str, Any] = {
        "user_id": which.user_id,
        "subject": which.subject,
        "method": which.method,
        "since": which.since,
        "until": which.until,
        "after": after,
    }
    names = tuple(name for name, value in values.items() if value is not None)
    parameters = values | {
        "after_at": after and after.at,
        "after_id": after and after.id,
        "limit": page_size + 1,
        "max_memory_ids": max_memory_ids,
    }
    rows = conn.query(_statement(names), parameters).fetchall()
    entries = [_from_row(row[1:]) for row in rows]
    if not rows or rows[0][0] == len(rows):
        return AuditPage(entries, None)
    return AuditPage(entries, AuditPosition(entries[-1].at, entries[-1].id))


def _from_row(row: TupleRow) -> AuditEntry:
    at, entry_id, subject, method, user_id, memory_ids, memory_count, key_id, request_id, peer, code, reason = row
    return AuditEntry(
        at=at,
        id=entry_id,
        subject=subject,
        method=method,
        user_id=user_id,
        memory_ids=tuple(memory_ids),
        memory_count=memory_count,
        key_id=key_id,
        request_id=request_id,
        peer=peer,
        code=code,
        reason=reason,
    )


PREPARE = "/* audit.prepare */ SELECT audit_log_prepare(%(now)s::timestamptz, %(months_ahead)s::integer)"
TRIM = "/* audit.trim */ SELECT audit_log_trim(%(before)s::timestamptz)"


def prepare_partitions(conn: Connection, *, now: datetime) -> int:
    """Makes the partitions of this month and the next ones; returns how many were missing."""
    row = conn.query(PREPARE, {"now": now, "months_ahead": MONTHS_AHEAD}).fetchone()
    return 0 if row is None else int(row[0])


def trim(conn: Connection, *, before: datetime) -> int:
    """Drops the partitions that hold nothing of `before` or later; returns how many."""
    row = conn.query(TRIM, {"before": before}).fetchone()
    return 0 if row is None else int(row[0])
