"""What a move to another embedding model would have to embed: counted before it begins, for the operator to decide."""

from dataclasses import dataclass

from db.connection import Connection


@dataclass(frozen=True, slots=True)
class Estimate:
    """Of all users, soft-deleted memories included."""

    memories: int
    text_bytes: int
    """Of what is to be embedded, in UTF-8."""
    blank: int
    """Memories without anything to embed."""
    brought: int
    """Memories whose embedding the caller brought, which their content is to replace."""


# Reads the whole table however large it is, and not by an index.
UNLIMITED = "SET LOCAL statement_timeout = 0"
IN_ORDER = "SET LOCAL enable_seqscan = on"

# What waits in the queue may have a text of its own to embed.
ESTIMATE = """/* reembedding_estimate.estimate */
SELECT count(*), coalesce(sum(octet_length(coalesce(j.embed_text, m.content))), 0),
    count(*) FILTER (WHERE coalesce(j.embed_text, m.content) !~ '[^[:space:]]'),
    count(*) FILTER (WHERE m.embedding IS NOT NULL AND m.embedding_model = %(caller)s)
FROM memory_entries m
LEFT JOIN embedding_jobs j ON j.user_id = m.user_id AND j.id = m.id
"""


def estimate(conn: Connection, *, caller_model: str) -> Estimate:
    """Returns the estimate, for which it reads the whole table; `caller_model` is recorded of embeddings brought."""
    with conn.transaction():
        conn.execute(UNLIMITED)
        conn.execute(IN_ORDER)
        row = conn.query(ESTIMATE, {"caller": caller_model}).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has a row
    memories, text_bytes, blank, brought = row
    return Estimate(memories=memories, text_bytes=int(text_bytes), blank=blank, brought=brought)
