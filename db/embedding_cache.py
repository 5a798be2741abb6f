"""Embeddings that cost a provider call, kept by SHA-256 of model and text.

Holds no text and belongs to no user: knowing a text is the only way to ask for its embedding.
"""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from db.connection import Connection

Key = bytes


def cache_key(model: str, dimensions: int, text: str) -> Key:
    """Returns the key of a text embedded by a model: SHA-256, 32 bytes."""
    return hashlib.sha256(f"{model}\0{dimensions}\0{text}".encode()).digest()


LOOK_UP = """/* embedding_cache.look_up */
SELECT key, embedding FROM embedding_cache WHERE key = ANY(%(keys)s)
"""


def look_up(conn: Connection, keys: Sequence[Key]) -> dict[Key, NDArray[np.float32]]:
    """Returns the cached ones of these embeddings, each of shape (dimensions,)."""
    rows = conn.query(LOOK_UP, {"keys": list(keys)}).fetchall()
    return {bytes(row[0]): np.frombuffer(row[1], dtype="<f4") for row in rows}


STORE = """/* embedding_cache.store */
INSERT INTO embedding_cache (key, embedding, created_at)
SELECT key, embedding, %(now)s FROM unnest(%(keys)s::bytea[], %(embeddings)s::bytea[]) AS given (key, embedding)
ORDER BY key
ON CONFLICT (key) DO NOTHING
"""


def store(conn: Connection, embeddings: Mapping[Key, NDArray[np.float32]], *, now: datetime) -> None:
    """Adds these embeddings, each of shape (dimensions,)."""
    conn.query(
        STORE,
        {
            "keys": list(embeddings),
            "embeddings": [vector.astype("<f4").tobytes() for vector in embeddings.values()],
            "now": now,
        },
    )
