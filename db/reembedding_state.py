"""Which move to another embedding model is under way: one at most, kept in the table `reembedding`."""

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

import psycopg
from psycopg.sql import SQL

from db import reembedding_columns
from db.connection import Connection
from db.embedding_space import read_space
from db.errors import Conflict, ReembeddingConflict, SchemaMismatch
from db.schema import MIGRATE, EmbeddingSpace


class Phase(Enum):
    """How far a move is."""

    BACKFILL = "BACKFILL"
    """Searches use the embeddings there were; the standby ones are of the new model."""
    SWITCHED = "SWITCHED"
    """Searches use the new ones; the standby ones are the old, to go back to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reembedding:
    """A move that is under way."""

    embedder: str
    """The kind of embedder that makes standby embeddings."""
    standby: EmbeddingSpace
    live_embedder: str
    live: EmbeddingSpace
    phase: Phase
    started_at: datetime
    switched_at: datetime | None
    """When it was switched last, there or back."""


READ = """/* reembedding_state.read */
SELECT r.standby_embedder, r.standby_model, r.standby_dimensions, r.live_embedder, s.model, s.dimensions, r.phase,
    r.started_at, r.switched_at
FROM reembedding r CROSS JOIN embedding_space s
"""


def read_reembedding(conn: Connection) -> Reembedding | None:
    """Returns the move under way, None where there is none."""
    row = conn.query(READ, {}).fetchone()
    if row is None:
        return None
    embedder, model, dimensions, live_embedder, live_model, live_dimensions, phase, started_at, switched_at = row
    return Reembedding(
        embedder=embedder,
        standby=EmbeddingSpace(model, dimensions),
        live_embedder=live_embedder,
        live=EmbeddingSpace(live_model, live_dimensions),
        phase=Phase(phase),
        started_at=started_at,
        switched_at=switched_at,
    )


def require_reembedding(conn: Connection) -> Reembedding:
    """Returns the move under way.

    Raises:
        ReembeddingConflict: When there is none.
    """
    if (found := read_reembedding(conn)) is None:
        raise ReembeddingConflict("no move to another embedding model is under way; begin one")
    return found


# Whoever changes the state takes this first, then embedding_space, then memory_entries: in that order nobody waits in
# a circle. Readers do not mind it.
LOCK = "/* reembedding_state.lock */ LOCK TABLE reembedding IN SHARE ROW EXCLUSIVE MODE"

# Back to the role that logged in, which owns the tables, until the transaction ends (db/wall.py).
AS_OWNER = "/* reembedding_state.as_owner */ SELECT set_config('role', 'none', true)"

# Everybody waits behind whoever waits for the whole of a table.
IMPATIENT = SQL("SET LOCAL lock_timeout = {}")
LOCK_TIMEOUT = "2s"

INSERT = """/* reembedding_state.insert */
INSERT INTO reembedding (live_embedder, standby_embedder, standby_model, standby_dimensions, phase, started_at)
VALUES (%(live_embedder)s, %(embedder)s, %(model)s, %(dimensions)s, 'BACKFILL', %(now)s)
"""


def begin(
    conn: Connection, embedder: str, standby: EmbeddingSpace, *, live_embedder: str, now: datetime
) -> Reembedding:
    """Adds empty standby columns for embeddings of `standby`, unless that was done before; returns the move.

    Begun again for the same target it is returned as it is: back-filling, switched, or on its way back.

    Raises:
        ReembeddingConflict: Another move is under way, or the database is of this space already.
        Conflict: Other transactions were in the way; begin again.
        SchemaMismatch: The schema is not migrated, or this role does not own the tables.
    """
    try:
        with conn.transaction():
            conn.execute(AS_OWNER)
            conn.execute(IMPATIENT.format(LOCK_TIMEOUT))
            conn.execute(LOCK)
            if (found := read_reembedding(conn)) is not None:
                return _same(found, embedder, standby)
            live = read_space(conn)
            if live is None:
                raise SchemaMismatch(f"the database is not migrated; run: {MIGRATE}")
            if live == standby:
                raise ReembeddingConflict(f"the embeddings are of {live} already: there is nothing to do")
            reembedding_columns.add(conn, live_dimensions=live.dimensions, standby_dimensions=standby.dimensions)
            conn.query(
                INSERT,
                {
                    "live_embedder": live_embedder,
                    "embedder": embedder,
                    "model": standby.model,
                    "dimensions": standby.dimensions,
                    "now": now,
                },
            )
            return require_reembedding(conn)
    except psycopg.errors.LockNotAvailable as error:
        raise Conflict(f"other transactions kept the table of memories for {LOCK_TIMEOUT}: begin again") from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaMismatch("this role may not change the schema; use the owner of the database") from error


def _same(found: Reembedding, embedder: str, standby: EmbeddingSpace) -> Reembedding:
    # After the switch the target is the live one, and what searches came from may be brought up to date again.
    spaces = {(found.embedder, found.standby)}
    if found.phase is Phase.SWITCHED:
        spaces.add((found.live_embedder, found.live))
    if (embedder, standby) in spaces:
        return found
    towards = found.standby if found.phase is Phase.BACKFILL else found.live
    raise ReembeddingConflict(
        f"a move to {towards} is under way, phase {found.phase.value}: finish it, or end it by cleaning up"
    )
