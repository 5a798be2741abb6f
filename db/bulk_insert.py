"""Storing many memories in one statement: their columns as arrays in binary, which PostgreSQL takes apart again.

Not by COPY, which PostgreSQL refuses into a table with row-level security; docs/adr/0014-row-level-security.md has the
figures of both.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import numpy as np
from psycopg.types.json import Jsonb

from db import sign_bits
from db.connection import Connection, EncodedArray
from db.memory import NewMemory
from db.vectors import Embedding

_ROWS = """/* bulk_insert.rows */
INSERT INTO memory_entries (
    user_id, id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model,
    importance, version, created_at, updated_at, language{bits})
SELECT
    %(user_id)s, id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model,
    importance, 1, created_at, %(now)s, language{signs}
FROM unnest(
    %(ids)b::uuid[], %(conversation_ids)b::text[], %(contents)b::text[], %(summaries)b::text[], %(metadata)b::jsonb[],
    %(embeddings)b::halfvec[], %(norms)b::float8[], %(models)b::text[], %(importances)b::int2[],
    %(times)b::timestamptz[], %(languages)b::text[]
) AS given (
    id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model,
    importance, created_at, language)
"""
ROWS = _ROWS.format(bits="", signs="")
ROWS_WITH_BITS = _ROWS.format(bits=", bits", signs=", binary_quantize(embedding)")


def insert_rows(conn: Connection, user_id: str, memories: Sequence[NewMemory], *, now: datetime) -> None:
    """Stores memories of a user who exists, like their conversations; generated columns fill themselves.

    Raises:
        psycopg.errors.UniqueViolation: When an id is taken; nothing is stored then.
    """
    embeddings = [memory.embedding for memory in memories]
    present = [embedding for embedding in embeddings if embedding is not None]
    encoded = halfvecs(present)
    conn.bulk(
        ROWS_WITH_BITS if sign_bits.kept_beside(present) else ROWS,
        {
            "user_id": user_id,
            "ids": [memory.id for memory in memories],
            "conversation_ids": [memory.conversation_id for memory in memories],
            "contents": [memory.content for memory in memories],
            "summaries": [memory.summary for memory in memories],
            "metadata": [Jsonb(memory.metadata) for memory in memories],
            "embeddings": array(
                conn.halfvec_oid, (None if embedding is None else next(encoded) for embedding in embeddings)
            ),
            "norms": [None if embedding is None else embedding.norm for embedding in embeddings],
            "models": [memory.embedding_model for memory in memories],
            "importances": [memory.importance for memory in memories],
            "times": [memory.created_at for memory in memories],
            "languages": [memory.language for memory in memories],
            "now": now,
        },
    )


def halfvecs(embeddings: Sequence[Embedding]) -> Iterator[bytes]:
    """Yields the unit vectors, all of the same dimensions, in pgvector's binary form of a halfvec.

    That is two 16-bit integers, the dimensions and 0, then the components as binary16, all big-endian (halfvec_send
    in pgvector). Swapped in one go they take 1 µs a vector of 1,536 dimensions, through HalfVector 10 µs.
    """
    if not embeddings:
        return iter(())
    units = np.stack([embedding.unit for embedding in embeddings])
    encoded = np.empty((len(units), 2 + units.shape[1]), dtype=">u2")
    encoded[:, 0] = units.shape[1]
    encoded[:, 1] = 0
    encoded[:, 2:] = units.view(np.uint16)
    return (row.tobytes() for row in encoded)


_HEAD = struct.Struct("!iiIii")  # dimensions, whether there are nulls, the elements' type, how many, the first's number
_LENGTH = struct.Struct("!i")
_NULL = _LENGTH.pack(-1)


def array(element_oid: int, elements: Iterable[bytes | None]) -> EncodedArray:
    """Returns elements in binary as an array of one dimension (array_send in PostgreSQL)."""
    parts = [_NULL if element is None else _LENGTH.pack(len(element)) + element for element in elements]
    return EncodedArray(_HEAD.pack(1, _NULL in parts, element_oid, len(parts), 1) + b"".join(parts))
