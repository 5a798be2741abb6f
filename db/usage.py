"""How much one user has stored, soft-deleted memories included, and how much it may: what quotas compare."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a user has stored and may store."""

    used: Usage
    """Nothing where any amount is allowed: then it was not counted."""
    allowed: Usage
    """0 stands for any amount."""


# Reads the index memory_entries_recent alone, 10,000 memories in a millisecond, and that only for users with a limit.
COUNT = """/* usage.count */
WITH allowed AS (
    SELECT coalesce(max(memories), %(memories)s::bigint) AS memories, coalesce(max(bytes), %(bytes)s::bigint) AS bytes
    FROM user_quotas
    WHERE user_id = %(user_id)s
)
SELECT used.memories, used.text_bytes, allowed.memories, allowed.bytes
FROM allowed
CROSS JOIN LATERAL (
    SELECT count(*) AS memories, coalesce(sum(text_bytes), 0)::bigint AS text_bytes
    FROM memory_entries
    WHERE user_id = %(user_id)s AND (allowed.memories > 0 OR allowed.bytes > 0)
) used
"""


def count(conn: Connection, user_id: str, *, of_all: Usage, dimensions: int) -> Account:
    """Returns the user's account, `of_all` being what users without a quota of their own may store.

    What waits for its embedding counts as if it had it.
    """
    parameters = {"user_id": user_id, "memories": of_all.memories, "bytes": of_all.bytes}
    row = conn.query(COUNT, parameters).fetchone()
    assert row is not None  # noqa: S101 - aggregates return one
    memories, text_bytes, allowed_memories, allowed_bytes = row
    return Account(
        used=Usage(memories=memories, bytes=text_bytes + memories * BYTES_PER_DIMENSION * dimensions),
        allowed=Usage(memories=allowed_memories, bytes=allowed_bytes),
    )
