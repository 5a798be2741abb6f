"""Embeddings that cost a provider call, kept by SHA-256 of model and text.

Holds no text and belongs to no user: knowing a text is the only way to ask for its embedding.

Entries expire when they have not been used for a while, and the least recently used go first where there are too many.
The moment of use is kept in `created_at`: a hit renews it, but only where it is some time old, so that most hits write
nothing. The order is as coarse as that time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from db.connection import Connection

Key = bytes


def cache_key(model: str, dimensions: int, text: str) -> Key:
    """Returns the key of a text embedded by a model: SHA-256, 32 bytes."""
    return hashlib.sha256(f"{model}\0{dimensions}\0{text}".encode()).digest()


@dataclass(frozen=True, slots=True)
class Found:
    """A cached embedding."""

    vector: NDArray[np.float32]
    """Shape (dimensions,), not normalized."""
    used_at: datetime
    """When its last use was noted."""


LOOK_UP = """/* embedding_cache.look_up */
SELECT key, embedding, created_at FROM embedding_cache WHERE key = ANY(%(keys)s) AND created_at > %(expired)s
"""


def look_up(conn: Connection, keys: Sequence[Key], *, expired: datetime) -> dict[Key, Found]:
    """Returns the cached ones of these embeddings, without those not used since `expired`."""
    rows = conn.query(LOOK_UP, {"keys": list(keys), "expired": expired}).fetchall()
    return {bytes(row[0]): Found(np.frombuffer(row[1], dtype="<f4"), row[2]) for row in rows}


# Entries that another process is renewing or deleting are left to it.
RENEW = """/* embedding_cache.renew */
UPDATE embedding_cache c SET created_at = %(now)s
FROM (
    SELECT key FROM embedding_cache WHERE key = ANY(%(keys)s) AND created_at < %(now)s
    FOR NO KEY UPDATE SKIP LOCKED
) used
WHERE c.key = used.key
"""


def renew(conn: Connection, keys: Sequence[Key], *, now: datetime) -> None:
    """Notes that these entries are used."""
    conn.query(RENEW, {"keys": list(keys), "now": now})


STORE = """/* embedding_cache.store */
INSERT INTO embedding_cache AS c (key, embedding, created_at)
SELECT key, embedding, %(now)s FROM unnest(%(keys)s::bytea[], %(embeddings)s::bytea[]) AS given (key, embedding)
ORDER BY key
ON CONFLICT (key) DO UPDATE SET embedding = EXCLUDED.embedding, created_at = EXCLUDED.created_at
    WHERE c.created_at <= %(expired)s
"""


def store(conn: Connection, embeddings: Mapping[Key, NDArray[np.float32]], *, now: datetime, expired: datetime) -> None:
    """Adds these embeddings, each of shape (dimensions,); they replace only those not used since `expired`."""
    conn.query(
        STORE,
        {
            "keys": list(embeddings),
            "embeddings": [vector.astype("<f4").tobytes() for vector in embeddings.values()],
            "now": now,
            "expired": expired,
        },
    )


EXCESS = """/* embedding_cache.excess */
SELECT created_at FROM embedding_cache ORDER BY created_at DESC OFFSET %(max_rows)s LIMIT 1
"""


def excess(conn: Connection, *, max_rows: int) -> datetime | None:
    """Returns up to which moment of use entries are too many; None where there are at most `max_rows`.

    A moment, not a number: processes that evict at the same time must not each delete as many. Entries of the same
    moment share their fate, so that fewer than `max_rows` may be left.
    """
    row = conn.query(EXCESS, {"max_rows": max_rows}).fetchone()
    return None if row is None else row[0]


EVICT = """/* embedding_cache.evict */
DELETE FROM embedding_cache c
USING (
    SELECT key FROM embedding_cache
    WHERE created_at <= %(used_until)s
    ORDER BY created_at
    LIMIT %(limit)s
    FOR UPDATE SKIP LOCKED
) unused
WHERE c.key = unused.key
"""


def evict(conn: Connection, *, used_until: datetime, limit: int) -> int:
    """Deletes up to `limit` entries not used after `used_until`; returns how many."""
    return conn.query(EVICT, {"used_until": used_until, "limit": limit}).rowcount
