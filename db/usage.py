"""How much one user has stored, soft-deleted memories included: what quotas limit."""

from dataclasses import dataclass
from typing import Self

from db.connection import Connection

# halfvec
BYTES_PER_DIMENSION = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """An amount of memories and of the bytes they take: texts, metadata and embeddings."""

    memories: int = 0
    bytes: int = 0

    def __add__(self, other: Self) -> "Usage":
        return Usage(memories=self.memories + other.memories, bytes=self.bytes + other.bytes)

    def __sub__(self, other: Self) -> "Usage":
        return Usage(memories=self.memories - other.memories, bytes=self.bytes - other.bytes)


# Reads the index memory_entries_recent alone: 10,000 memories in a millisecond.
COUNT = """/* usage.count */
SELECT count(*), coalesce(sum(text_bytes), 0)::bigint FROM memory_entries WHERE user_id = %(user_id)s
"""


def count(conn: Connection, user_id: str, *, dimensions: int) -> Usage:
    """Returns what the user has stored; what waits for its embedding counts as if it had it."""
    row = conn.query(COUNT, {"user_id": user_id}).fetchone()
    memories, text_bytes = (0, 0) if row is None else row
    return Usage(memories=memories, bytes=text_bytes + memories * BYTES_PER_DIMENSION * dimensions)
