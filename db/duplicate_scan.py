"""Comparing many new memories with all live ones of a user in one pass, where a search for each would read them anew.

500 memories against 18,000 took 52 s one by one; docs/adr/0012-duplicates.md has the figures.
"""

from collections.abc import Iterator, Sequence
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.batch_similarity import cosines
from db.connection import Connection
from db.vectors import Embedding

# Numbers of a block of rows, and of its similarities: 32 MB of float64.
BLOCK_NUMBERS = 4_000_000

BLOCK = """/* duplicates.block */
SELECT id, halfvec_send(embedding) FROM memory_entries
WHERE user_id = %(user_id)s AND id >= %(first)s AND deleted_at IS NULL AND embedding IS NOT NULL
ORDER BY id
LIMIT %(rows)s
"""

LAST_ID = 2**128 - 1

Similar = tuple[UUID, float]
"""A memory and its cosine similarity."""


def scan(
    conn: Connection, user_id: str, embeddings: Sequence[Embedding], *, min_similarity: float, limit: int
) -> list[list[Similar]]:
    """Returns for each embedding the memories of at least this similarity, nearest first, equal ones by id.

    At most `limit` of each.
    """
    wanted = np.stack([embedding.unit for embedding in embeddings]).astype(np.float64)
    found: list[list[Similar]] = [[] for _ in embeddings]
    rows = max(1, BLOCK_NUMBERS // max(wanted.shape))
    for ids, units in _blocks(conn, user_id, rows):
        similarities = cosines(wanted, units)
        for _ in range(min(limit, len(ids))):
            # Of equally near ones the first, which has the lowest id.
            best = similarities.argmax(axis=1)
            nearest = similarities[np.arange(len(best)), best]
            for index in np.nonzero(nearest >= min_similarity)[0].tolist():
                found[index].append((ids[best[index]], float(nearest[index])))
            similarities[np.arange(len(best)), best] = -np.inf
    return [sorted(similar, key=lambda one: (-one[1], one[0]))[:limit] for similar in found]


def _blocks(conn: Connection, user_id: str, rows: int) -> Iterator[tuple[list[UUID], NDArray[np.float64]]]:
    """Yields the ids and units of all live memories that have an embedding, by id, so many at a time."""
    first = UUID(int=0)
    while True:
        found = conn.query(BLOCK, {"user_id": user_id, "first": first, "rows": rows}).fetchall()
        if not found:
            return
        yield [row[0] for row in found], _units([row[1] for row in found])
        last: UUID = found[-1][0]
        if len(found) < rows or last.int == LAST_ID:
            return
        first = UUID(int=last.int + 1)


def _units(halfvecs: Sequence[bytes]) -> NDArray[np.float64]:
    """Reads pgvector's binary form of halfvecs, which db.bulk_insert describes."""
    words = np.frombuffer(b"".join(halfvecs), dtype=">u2").reshape(len(halfvecs), -1)
    return words[:, 2:].astype(np.uint16).view(np.float16).astype(np.float64)
