"""Erasing a user: everything that is stored of it but the audit log, in small transactions, and verified to be gone.

Sweeps erase what is there in batches, each a transaction that others hardly notice. What the user's writers have
stored meanwhile goes in a last transaction that locks the user's row: a write needs that row, so it has either
committed before, and is erased, or waits and then begins the user anew (or fails with a Conflict, where it had seen
the row before). That transaction ends only if it finds no row of the user in any table.

Broken off at any point, it can be run again and finds less to do.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from psycopg.sql import SQL, Identifier

from db.cancellation import Call
from db.connection import Connection
from db.errors import Conflict
from db.pool import Database
from db.wall import ACROSS_USERS

# As long as a batch takes does a caller who wants one of its rows wait.
BATCH = 500
# Sweeps of a user that others write to; what these leave, the last transaction takes, however much it is.
SWEEPS = 3

TABLES = (
    *("memory_access", "embedding_jobs", "memory_entries", "conversations", "request_ids"),
    *("ann_indexes", "user_quotas", "users"),
)
"""All tables that have rows of single users, but the audit log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserContents:
    """How many rows a user has, or had."""

    memories: int = 0
    conversations: int = 0
    access_counters: int = 0
    request_ids: int = 0
    embedding_jobs: int = 0

    def __add__(self, other: Self) -> Self:
        """Returns the sums."""
        return type(self)(
            **{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)}
        )


COUNT = """/* erase.count */
SELECT
    (SELECT count(*) FROM memory_entries WHERE user_id = %(user_id)s),
    (SELECT count(*) FROM conversations WHERE user_id = %(user_id)s),
    (SELECT count(*) FROM memory_access WHERE user_id = %(user_id)s),
    (SELECT count(*) FROM request_ids WHERE user_id = %(user_id)s),
    (SELECT count(*) FROM embedding_jobs WHERE user_id = %(user_id)s)
"""


def count(conn: Connection, user_id: str) -> UserContents:
    """Returns what there is to erase."""
    row = conn.query(COUNT, {"user_id": user_id}).fetchone()
    assert row is not None  # noqa: S101 - it has no FROM
    memories, conversations, access_counters, request_ids, embedding_jobs = row
    return UserContents(
        memories=memories,
        conversations=conversations,
        access_counters=access_counters,
        request_ids=request_ids,
        embedding_jobs=embedding_jobs,
    )


def erase(database: Database, call: Call, user_id: str, *, now: datetime) -> UserContents:
    """Erases the user and returns what was erased.

    Raises:
        StatementTimeout: When the deadline passed. What was erased by then stays erased; so with other errors.
        CallCancelled: When the caller cancelled.
    """
    erased = sweep(database, call, user_id)
    return erased + database.write(call, lambda conn: finish(conn, user_id, now), user_id=ACROSS_USERS)


def sweep(database: Database, call: Call, user_id: str) -> UserContents:
    """Erases what is there, in small transactions, but for the user itself; raises what `erase` does."""
    erased = UserContents()
    for _ in range(SWEEPS):
        swept = _sweep(database, call, user_id)
        erased += swept
        if swept.memories < BATCH:
            break
    return erased


Key = UUID | str


@dataclass(frozen=True, slots=True)
class _Batch:
    erased: UserContents
    last: Key | None
    """The key it ended with; None when nothing comes after it."""


Step = Callable[[Connection, str, Key], _Batch]
"""Erases up to BATCH rows of a user from a key on."""


# The last one known now: a sweep does not run after what keeps coming.
LAST_MEMORY = """/* erase.last_memory */
SELECT id FROM memory_entries WHERE user_id = %(user_id)s ORDER BY id DESC LIMIT 1
"""


def _sweep(database: Database, call: Call, user_id: str) -> UserContents:
    def in_transaction(step: Step) -> Callable[[Key], _Batch]:
        return lambda start: database.write(call, lambda conn: step(conn, user_id, start), user_id=user_id)

    found = database.read(call, lambda conn: conn.query(LAST_MEMORY, {"user_id": user_id}).fetchone(), user_id=user_id)
    erased = _erase_all(in_transaction(_memories), UUID(int=0), until=None if found is None else found[0])
    erased += _erase_all(in_transaction(_conversations), "")
    return erased + _erase_all(in_transaction(_request_ids), UUID(int=0))


def _erase_all(step: Callable[[Any], _Batch], start: Key, *, until: Any = None) -> UserContents:
    """Takes step after step from where the one before ended: before that, the index is full of dead entries."""
    erased = UserContents()
    last: Key | None = start
    while last is not None:
        batch = step(last)
        erased += batch.erased
        last = None if until is not None and batch.last is not None and batch.last >= until else batch.last
    return erased


# Ranges of ids, not joins: the planner, who may not know yet how large the user is, compared each of a batch with each
# memory of the user (50,000 memories: 46 s). The counters and jobs would go with their memories; they are counted.
MEMORIES = """/* erase.memories */
WITH bound AS MATERIALIZED (
    SELECT (
        SELECT id FROM memory_entries
        WHERE user_id = %(user_id)s AND id >= %(start)s
        ORDER BY id
        OFFSET %(limit)s - 1
        LIMIT 1
    ) AS last
), range AS MATERIALIZED (
    SELECT coalesce(last, 'ffffffff-ffff-ffff-ffff-ffffffffffff') AS last FROM bound
), counters AS (
    DELETE FROM memory_access
    WHERE user_id = %(user_id)s AND id >= %(start)s AND id <= (SELECT last FROM range)
    RETURNING id
), jobs AS (
    DELETE FROM embedding_jobs
    WHERE user_id = %(user_id)s AND id >= %(start)s AND id <= (SELECT last FROM range)
    RETURNING id
), memories AS (
    DELETE FROM memory_entries
    WHERE user_id = %(user_id)s AND id >= %(start)s AND id <= (SELECT last FROM range)
    RETURNING id
)
SELECT
    (SELECT count(*) FROM memories), (SELECT count(*) FROM counters), (SELECT count(*) FROM jobs),
    (SELECT last FROM bound)
"""


def _memories(conn: Connection, user_id: str, start: Key) -> _Batch:
    row = conn.query(MEMORIES, {"user_id": user_id, "start": start, "limit": BATCH}).fetchone()
    assert row is not None  # noqa: S101 - it has no FROM
    memories, counters, jobs, last = row
    return _Batch(UserContents(memories=memories, access_counters=counters, embedding_jobs=jobs), last)


# Locked first, and looked at by the next statement: a conversation gets no memory any more then, and one that has got
# its first in between is left, or that memory would go uncounted.
LOCK_CONVERSATIONS = """/* erase.lock_conversations */
SELECT conversation_id FROM conversations
WHERE user_id = %(user_id)s AND conversation_id > %(start)s
ORDER BY conversation_id
LIMIT %(limit)s
FOR UPDATE
"""

EMPTY_CONVERSATIONS = """/* erase.empty_conversations */
DELETE FROM conversations c
WHERE c.user_id = %(user_id)s AND c.conversation_id = ANY(%(ids)s)
    AND NOT EXISTS (
        SELECT FROM memory_entries m WHERE m.user_id = %(user_id)s AND m.conversation_id = c.conversation_id)
RETURNING c.conversation_id
"""


def _conversations(conn: Connection, user_id: str, start: Key) -> _Batch:
    with conn.transaction():
        rows = conn.query(LOCK_CONVERSATIONS, {"user_id": user_id, "start": start, "limit": BATCH}).fetchall()
        ids = [row[0] for row in rows]
        erased = conn.query(EMPTY_CONVERSATIONS, {"user_id": user_id, "ids": ids}).fetchall()
    return _Batch(UserContents(conversations=len(erased)), ids[-1] if len(ids) == BATCH else None)


REQUEST_IDS = """/* erase.request_ids */
WITH bound AS MATERIALIZED (
    SELECT (
        SELECT request_id FROM request_ids
        WHERE user_id = %(user_id)s AND request_id >= %(start)s
        ORDER BY request_id
        OFFSET %(limit)s - 1
        LIMIT 1
    ) AS last
), forgotten AS (
    DELETE FROM request_ids
    WHERE user_id = %(user_id)s AND request_id >= %(start)s
        AND request_id <= (SELECT coalesce(last, 'ffffffff-ffff-ffff-ffff-ffffffffffff') FROM bound)
    RETURNING request_id
)
SELECT (SELECT count(*) FROM forgotten), (SELECT last FROM bound)
"""


def _request_ids(conn: Connection, user_id: str, start: Key) -> _Batch:
    row = conn.query(REQUEST_IDS, {"user_id": user_id, "start": start, "limit": BATCH}).fetchone()
    assert row is not None  # noqa: S101 - it has no FROM
    return _Batch(UserContents(request_ids=row[0]), row[1])


# Locked also where there is none, so that nobody begins the user in between.
OWN = """/* erase.own */
INSERT INTO users (user_id, created_at) VALUES (%(user_id)s, %(now)s) ON CONFLICT DO NOTHING
"""
LOCK = "/* erase.lock */ SELECT FROM users WHERE user_id = %(user_id)s FOR UPDATE"
INDEX = "/* erase.index */ DELETE FROM ann_indexes WHERE user_id = %(user_id)s"
QUOTA = "/* erase.quota */ DELETE FROM user_quotas WHERE user_id = %(user_id)s"
USER = "/* erase.user */ DELETE FROM users WHERE user_id = %(user_id)s"
LEFT = SQL("/* erase.left */ SELECT FROM {} WHERE user_id = %(user_id)s LIMIT 1")


def finish(conn: Connection, user_id: str, now: datetime) -> UserContents:
    """Erases what is left, the user's row last, in one transaction; maintenance drops an approximate index.

    Raises:
        Conflict: The user was written to meanwhile.
    """
    user = {"user_id": user_id}

    def in_this_transaction(step: Step) -> Callable[[Key], _Batch]:
        return lambda start: step(conn, user_id, start)

    with conn.transaction():
        while conn.query(LOCK, user).fetchone() is None:
            conn.query(OWN, user | {"now": now})
        erased = _erase_all(in_this_transaction(_memories), UUID(int=0))
        erased += _erase_all(in_this_transaction(_conversations), "")
        erased += _erase_all(in_this_transaction(_request_ids), UUID(int=0))
        for statement in (INDEX, QUOTA, USER):
            conn.query(statement, user)
        for table in TABLES:
            if conn.query(LEFT.format(Identifier(table)).as_bytes(None), user).fetchone() is not None:
                raise Conflict("the user was written to while it was erased")
    return erased
