"""Giving memories their standby embedding: finding those that lack it, storing it, counting how far it is.

All of the progress is in the rows, so it can stop anywhere and go on anywhere. Writers never wait for the second
model: what they add has no standby embedding, what they change has a stale one (`standby_stale`, see db/update.py), and
the next round finds both. A text that the model refuses counts as done, with its error, until its content changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg.sql import SQL

from db import sign_bits
from db.bulk_insert import array, halfvecs
from db.connection import Connection
from db.errors import ReembeddingConflict
from db.reembedding_columns import MISSING
from db.reembedding_state import require_reembedding
from db.vectors import Embedding


@dataclass(frozen=True, slots=True)
class Progress:
    """How many memories there are, soft-deleted ones included, and how many have their standby embedding."""

    total: int
    fresh: int
    refused: int
    """Without one, because the model refused their text."""

    @property
    def missing(self) -> int:
        """How many are still to be embedded."""
        return self.total - self.fresh - self.refused


@dataclass(frozen=True, slots=True)
class Stale:
    """A memory without an embedding of its present content."""

    user_id: str
    id: UUID
    content_hash: int
    """Of the content that `text` was read with."""
    text: str
    """What is to be embedded."""


@dataclass(frozen=True, slots=True)
class Reembedded:
    """What became of it: an embedding, or why there is none."""

    stale: Stale
    embedding: Embedding | None
    error: str | None


# For what may read the whole table, however large it is.
UNLIMITED = "SET LOCAL statement_timeout = 0"
IN_ORDER = "SET LOCAL enable_seqscan = on"

PROGRESS = """/* reembedding_backfill.progress */
SELECT count(*),
    count(*) FILTER (WHERE standby_embedding IS NOT NULL AND standby_stale IS NOT TRUE),
    count(*) FILTER (
        WHERE standby_embedding IS NULL AND standby_embedding_error IS NOT NULL AND standby_stale IS NOT TRUE
    )
FROM memory_entries
"""


def progress(conn: Connection) -> Progress:
    """Returns how far the back-fill is; reads the whole table, half a second for a million memories and more on disk.

    Raises:
        ReembeddingConflict: When no move is under way.
    """
    with _standby_columns(), conn.transaction():
        conn.execute(UNLIMITED)
        conn.execute(IN_ORDER)
        row = conn.query(PROGRESS, {}).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    return Progress(*row)


# In the order of the primary key, from where the last batch ended. Until its index is there (db/reembedding_indexes.py)
# it looks at every row on the way.
STALE = (
    SQL("""/* reembedding_backfill.stale */
SELECT m.user_id, m.id, m.content_hash, coalesce(j.embed_text, m.content)
FROM memory_entries m
LEFT JOIN embedding_jobs j ON j.user_id = m.user_id AND j.id = m.id
WHERE (m.user_id, m.id) > (%(after_user_id)s, %(after_id)s) AND {missing}
ORDER BY m.user_id, m.id
LIMIT %(limit)s
""")
    .format(missing=MISSING)
    .as_bytes(None)
)

FIRST = ("", UUID(int=0))
NO_REASON = "the model gave no embedding"


def stale_batch(conn: Connection, *, after: tuple[str, UUID] | None, limit: int) -> list[Stale]:
    """Returns the next memories to embed, by user and id, soft-deleted ones too; none at the end of a round.

    Args:
        conn: A connection.
        after: User and id of the last memory of the batch before; None begins a round.
        limit: How many to return at most.

    Raises:
        ReembeddingConflict: When no move is under way.
    """
    user_id, memory_id = after or FIRST
    parameters = {"after_user_id": user_id, "after_id": memory_id, "limit": limit}
    with _standby_columns(), conn.transaction():
        conn.execute(UNLIMITED)
        return [Stale(*row) for row in conn.query(STALE, parameters).fetchall()]


# A content that has changed since keeps its memory stale. The standby columns must still be those that the embeddings
# are for: a switch gives them another model's, and ends or outwaits whoever is here (db/reembedding_switch.py).
_STORE = """/* reembedding_backfill.store */
WITH current AS (
    SELECT m.user_id, m.id, given.embedding, given.norm, given.error
    FROM unnest(%(user_ids)s::text[], %(ids)s::uuid[], %(hashes)s::bigint[], %(embeddings)b::halfvec[],
        %(norms)s::float8[], %(errors)s::text[]) AS given (user_id, id, content_hash, embedding, norm, error)
    JOIN memory_entries m ON m.user_id = given.user_id AND m.id = given.id
    WHERE m.content_hash = given.content_hash AND EXISTS (
        SELECT FROM reembedding WHERE standby_model = %(model)s AND standby_dimensions = %(dimensions)s)
    ORDER BY m.user_id, m.id  -- as in embedding_jobs.embed
    FOR NO KEY UPDATE OF m
)
UPDATE memory_entries m
SET standby_embedding = current.embedding, standby_embedding_norm = current.norm, standby_embedding_model = %(model)s,
    standby_embedding_error = current.error, standby_stale = NULL{signs}
FROM current
WHERE m.user_id = current.user_id AND m.id = current.id
"""
STORE = _STORE.format(signs="")
STORE_WITH_BITS = _STORE.format(signs=", standby_bits = binary_quantize(current.embedding)")


def store_batch(conn: Connection, batch: Sequence[Reembedded], *, model: str) -> int:
    """Stores embeddings, and errors where there are none; returns for how many memories they were still right.

    The others have changed or are gone: the next round finds what is left of them.

    Raises:
        ReembeddingConflict: The standby columns are for another model or number of dimensions by now.
    """
    if not batch:
        return 0
    with _standby_columns(), conn.transaction():
        standby = require_reembedding(conn).standby
        embeddings = [one.embedding for one in batch]
        sizes = {len(embedding.unit) for embedding in embeddings if embedding is not None}
        if standby.model != model or not sizes <= {standby.dimensions}:
            raise ReembeddingConflict(f"the standby embeddings are to be of {standby}, not of {model!r}: start again")
        encoded = halfvecs([embedding for embedding in embeddings if embedding is not None])
        parameters = {
            "user_ids": [one.stale.user_id for one in batch],
            "ids": [one.stale.id for one in batch],
            "hashes": [one.stale.content_hash for one in batch],
            "embeddings": array(
                conn.halfvec_oid, (None if embedding is None else next(encoded) for embedding in embeddings)
            ),
            "norms": [None if embedding is None else embedding.norm for embedding in embeddings],
            "errors": [(one.error or NO_REASON) if one.embedding is None else None for one in batch],
            "model": model,
            "dimensions": standby.dimensions,
        }
        statement = STORE_WITH_BITS if sign_bits.kept_for(standby.dimensions) else STORE
        return conn.query(statement, parameters).rowcount


@contextmanager
def _standby_columns() -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UndefinedColumn as error:
        raise ReembeddingConflict("no move to another embedding model is under way; begin one") from error
