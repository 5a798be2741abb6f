"""Letting the standby embeddings become the live ones, and back: names change places in one transaction.

No row is written but those that have no embedding in the new space yet: they wait in the queue of db/embedding_jobs.py,
found by their words meanwhile. db/embedding_space.py says why nobody can mix both spaces on the way.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import structlog
from psycopg import errors as pg
from psycopg.sql import SQL, Composed, Identifier

from db import reembedding_columns, sign_bits
from db.ann_catalog import list_indexes
from db.ann_session import AnnSession
from db.connection import Connection
from db.errors import Conflict, ReembeddingBehind, ReembeddingConflict
from db.reembedding_columns import MISSING
from db.reembedding_indexes import SEARCH, SUFFIX, UNEMBEDDED, is_standby, missing_indexes, valid_indexes, working
from db.reembedding_sessions import end_sessions
from db.reembedding_state import AS_OWNER, IMPATIENT, LOCK, Reembedding, require_reembedding
from db.schema import EmbeddingSpace
from db.wall import ACROSS_USERS, settings_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchOutcome:
    """What a switch did."""

    live: EmbeddingSpace
    """What searches use from now on."""
    pending: int
    """Memories that wait for their embedding in the queue."""
    refused: int
    """Memories without one, because the model refused their text."""
    terminated: int
    """Sessions of the service that were ended."""
    waited_ms: float
    """How long it waited for transactions under way; statements that came meanwhile waited behind it."""
    locked_ms: float
    """How long after that nobody else could read or write memories."""


def switch(url: str, *, now: datetime, max_pending: int, lock_timeout_s: float) -> SwitchOutcome:
    """Lets the two families of columns, their indexes and the embedding spaces change places.

    Afterwards the standby embeddings are those that were live: the same again leads back, until `clean_up`.

    Args:
        url: The database, not through a transaction pooler.
        now: The time of the switch.
        max_pending: How many memories may be left to the queue; each takes about a millisecond under the lock.
        lock_timeout_s: How long to wait for transactions under way. Autovacuum gives way after a second.

    Raises:
        ReembeddingBehind: More memories than `max_pending` have no embedding yet; nothing was locked for long.
        ReembeddingConflict: No move is under way, or its indexes are not built.
        Conflict: Transactions, or the build of an index, took longer than `lock_timeout_s`; nothing has changed.
        DatabaseError: The connection failed. Where it was lost at the end, `read_reembedding` tells what holds.
    """
    with AnnSession(url) as session, working(session, on_wait=lambda: None, limit_s=lock_timeout_s):
        move = session.query(require_reembedding)
        if missing := session.query(lambda conn: missing_indexes(conn, move)):
            raise ReembeddingConflict(f"the indexes {', '.join(missing)} are missing or invalid: build the indexes")
        session.query(lambda conn: _require_caught_up(conn, max_pending))
        outcome = session.query(
            lambda conn: _switch(conn, now=now, max_pending=max_pending, lock_timeout_s=lock_timeout_s)
        )
    log.info("embedding_space_switched", model=outcome.live.model, dimensions=outcome.live.dimensions,
             pending=outcome.pending, locked_ms=round(outcome.locked_ms, 1))  # fmt: skip
    return outcome


BEHIND = (
    SQL("""/* reembedding_switch.behind */
SELECT count(*) FROM (SELECT FROM memory_entries WHERE {missing} LIMIT %(most)s) missing
""")
    .format(missing=MISSING)
    .as_bytes(None)
)

BY_INDEX = "SET LOCAL enable_seqscan = off"


def _require_caught_up(conn: Connection, max_pending: int) -> None:
    with conn.transaction():
        with _across_users(conn):
            conn.execute(BY_INDEX)
            row = conn.query(BEHIND, {"most": max_pending + 1}).fetchone()
        if row is not None and row[0] > max_pending:
            raise ReembeddingBehind(pending=row[0], allowed=max_pending)


# In this order, see db/reembedding_state.py. The first keeps new sessions waiting, the second outwaits statements under
# way: what is then left of the service's sessions is idle, or waits for memories.
LOCK_SPACE = "/* reembedding_switch.lock_space */ LOCK TABLE embedding_space IN ACCESS EXCLUSIVE MODE"
LOCK_MEMORIES = "/* reembedding_switch.lock_memories */ LOCK TABLE memory_entries IN ACCESS EXCLUSIVE MODE"


def _switch(conn: Connection, *, now: datetime, max_pending: int, lock_timeout_s: float) -> SwitchOutcome:
    started_at = time.perf_counter()
    with conn.transaction():
        try:
            conn.execute(AS_OWNER)
            conn.execute(IMPATIENT.format(f"{round(lock_timeout_s * 1_000)}ms"))
            for lock in (LOCK, LOCK_SPACE, LOCK_MEMORIES):
                conn.execute(lock)
        except pg.LockNotAvailable as error:
            raise Conflict(f"other transactions were in the way for {lock_timeout_s:g} s: try again") from error
        locked_at = time.perf_counter()
        move = require_reembedding(conn)
        _require_caught_up(conn, max_pending)
        terminated = end_sessions(conn)
        # In one round trip: all wait for it.
        conn.execute(SQL(";\n").join([*reembedding_columns.swapped(conn), *_swapped_indexes(conn)]))
        with _across_users(conn):
            conn.execute(BY_INDEX)
            pending, refused = _settle(conn, move.standby, now)
            conn.query(MOVE, _crosswise(move, now))
    return SwitchOutcome(
        live=move.standby,
        pending=pending,
        refused=refused,
        terminated=terminated,
        waited_ms=(locked_at - started_at) * 1_000,
        locked_ms=(time.perf_counter() - locked_at) * 1_000,
    )


@contextmanager
def _across_users(conn: Connection) -> Iterator[None]:
    """Lets the statements of a transaction see the rows of all users: even the owner sees none by itself."""
    if conn.roles is not None:
        conn.set_locally(settings_of(ACROSS_USERS, conn.roles))
    yield
    conn.execute(AS_OWNER)


RENAME = SQL("/* reembedding_switch.rename */ ALTER INDEX {name} RENAME TO {new_name}")
DROP = SQL("/* reembedding_switch.drop */ DROP INDEX {name}")


def _swapped_indexes(conn: Connection) -> list[Composed]:
    """Returns the commands by which each index of live embeddings changes its name with its counterpart.

    Either may be missing. Maintenance then builds the approximate index that is, like any other.
    """
    there = valid_indexes(conn)
    approximate = list_indexes(conn)
    commands = [DROP.format(name=Identifier(index.name)) for index in approximate if index.is_leftover]
    names = {SEARCH, UNEMBEDDED, *(index.name for index in approximate if not index.is_leftover)}
    names |= {name.removesuffix(SUFFIX) for name in there if is_standby(name)}
    for name in sorted(names):
        between = f"{name}_swapped"
        present = {*there, between} if name in there else there.keys()
        for old, new in (name, between), (name + SUFFIX, name), (between, name + SUFFIX):
            if old in present:
                commands.append(RENAME.format(name=Identifier(old), new_name=Identifier(new)))
    return commands


# The columns have changed their names by now: `embedding` is of the new space, and still of the older content where it
# is stale. What the old model made of the same content is right for the way back.
PENDING = SQL("""/* reembedding_switch.pending */
WITH pending AS (
    UPDATE memory_entries
    SET embedding = NULL, embedding_norm = NULL, {no_bits} embedding_error = NULL, embedding_model = %(model)s,
        standby_stale = NULL
    WHERE (embedding IS NULL AND embedding_error IS NULL) OR standby_stale
    RETURNING user_id, id
)
INSERT INTO embedding_jobs (user_id, id, queued_at, next_attempt_at)
SELECT user_id, id, %(now)s, %(now)s FROM pending
ON CONFLICT (user_id, id) DO UPDATE
SET attempts = 0, next_attempt_at = EXCLUDED.next_attempt_at, failed_at = NULL, last_error = NULL
""")
NO_BITS = {True: SQL("bits = NULL,"), False: SQL("")}

# As if the queue had given them up.
REFUSED = """/* reembedding_switch.refused */
INSERT INTO embedding_jobs (user_id, id, attempts, queued_at, next_attempt_at, failed_at, last_error)
SELECT user_id, id, 1, %(now)s, %(now)s, %(now)s, embedding_error
FROM memory_entries
WHERE embedding IS NULL AND embedding_error IS NOT NULL
ON CONFLICT (user_id, id) DO UPDATE SET failed_at = EXCLUDED.failed_at, last_error = EXCLUDED.last_error
"""

# What waited for the old model, or was refused by it, and has an embedding now.
EMBEDDED = """/* reembedding_switch.embedded */
DELETE FROM embedding_jobs j
USING memory_entries m
WHERE m.user_id = j.user_id AND m.id = j.id AND m.embedding IS NOT NULL
"""


def _settle(conn: Connection, live: EmbeddingSpace, now: datetime) -> tuple[int, int]:
    """Gives each memory without an embedding its job, and no other; returns how many wait and how many were refused."""
    no_bits = NO_BITS[sign_bits.kept_for(live.dimensions)]
    pending = conn.query(PENDING.format(no_bits=no_bits).as_bytes(None), {"model": live.model, "now": now}).rowcount
    refused = conn.query(REFUSED, {"now": now}).rowcount
    conn.query(EMBEDDED, {})
    return pending, refused


MOVE = """/* reembedding_switch.move */
WITH space AS (
    UPDATE embedding_space SET model = %(live_model)s, dimensions = %(live_dimensions)s
)
UPDATE reembedding
SET live_embedder = %(live_embedder)s, standby_embedder = %(standby_embedder)s, standby_model = %(standby_model)s,
    standby_dimensions = %(standby_dimensions)s, switched_at = %(now)s,
    phase = CASE phase WHEN 'BACKFILL' THEN 'SWITCHED' ELSE 'BACKFILL' END
"""


def _crosswise(move: Reembedding, now: datetime) -> dict[str, object]:
    return {
        "live_embedder": move.embedder,
        "live_model": move.standby.model,
        "live_dimensions": move.standby.dimensions,
        "standby_embedder": move.live_embedder,
        "standby_model": move.live.model,
        "standby_dimensions": move.live.dimensions,
        "now": now,
    }
