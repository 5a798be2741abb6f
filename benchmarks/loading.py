"""Stores a collection by COPY BINARY, in random order, and leaves the table as autovacuum would."""

import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from benchmarks.collection import Collection, id_of
from benchmarks.progress import Progress
from db import sign_bits
from harness.instance import settle

BEGUN_AT = datetime(2026, 1, 1, tzinfo=UTC)

OWNERS = """/* benchmark.owners */
INSERT INTO users (user_id, created_at) SELECT unnest(%(users)s::text[]), %(now)s ON CONFLICT DO NOTHING
"""

CONVERSATIONS = """/* benchmark.conversations */
INSERT INTO conversations (user_id, conversation_id, created_at)
SELECT u, c, %(now)s FROM unnest(%(users)s::text[], %(conversations)s::text[]) AS given (u, c) ON CONFLICT DO NOTHING
"""

COPY = """COPY memory_entries (
    user_id, id, conversation_id, content, summary, metadata, embedding, embedding_norm, embedding_model,
    importance, version, created_at, updated_at{bits}) FROM STDIN (FORMAT BINARY)"""
COPY_TYPES = (
    "text", "uuid", "text", "text", "text", "jsonb", "halfvec", "float8", "text", "int2", "int8", "timestamptz",
    "timestamptz",
)  # fmt: skip


def connect(url: str) -> psycopg.Connection:
    """Returns a connection that knows vectors."""
    connection = psycopg.connect(url, autocommit=True)
    register_vector(connection)
    return connection


def store(url: str, collection: Collection, *, rows: NDArray[np.int64] | None = None) -> None:
    """Stores rows of a collection (all of them unless told), owners first, then vacuums and makes it durable."""
    stored = collection.storage_order if rows is None else rows
    with connect(url) as connection:
        store_owners(connection, collection, stored)
        copy(connection, collection, stored, progress=Progress(f"storing {len(stored):,} memories", len(stored)))
    settle(url)


def store_owners(connection: psycopg.Connection, collection: Collection, rows: NDArray[np.int64]) -> None:
    """Stores the users and conversations that rows belong to."""
    pairs = np.unique(np.stack([collection.owners[rows], collection.conversations[rows]]), axis=1)
    names = [collection.users[owner].name for owner in pairs[0]]
    connection.execute(OWNERS, {"users": list(dict.fromkeys(names)), "now": BEGUN_AT})
    conversations = [conversation_id(conversation) for conversation in pairs[1]]
    connection.execute(CONVERSATIONS, {"users": names, "conversations": conversations, "now": BEGUN_AT})


def copy(
    connection: psycopg.Connection,
    collection: Collection,
    rows: Iterable[np.int64],
    *,
    progress: Progress | None = None,
) -> None:
    """Copies rows in the order given, in one COPY."""
    has_bits = sign_bits.kept_for(collection.dimensions)
    command = COPY.format(bits=", bits" if has_bits else "")
    with connection.cursor() as cursor, cursor.copy(command) as stream:
        stream.set_types((*COPY_TYPES, "bytea") if has_bits else COPY_TYPES)
        for number in rows:
            row = int(number)
            at = created_at(row)
            stream.write_row((
                collection.users[collection.owners[row]].name,
                id_of(row),
                conversation_id(collection.conversations[row]),
                collection.content(row),
                "",
                Jsonb(collection.metadata(row)),
                HalfVector(collection.vectors[row]),
                1.0,
                "caller",
                int(collection.importances[row]),
                1,
                at,
                at,
                *((signs_of(collection.vectors[row]),) if has_bits else ()),
            ))  # fmt: skip
            if progress is not None:
                progress.advance()


def signs_of(vector: NDArray[np.float32]) -> bytes:
    """Returns what pgvector's binary_quantize makes of a vector as COPY takes it: how many bits, then the bits."""
    return struct.pack("!i", len(vector)) + np.packbits(vector.astype(np.float16) > 0).tobytes()


def conversation_id(conversation: np.int64) -> str:
    """Returns the id of a conversation."""
    return f"conversation-{conversation:02d}"


def created_at(row: int) -> datetime:
    """Returns when a row's memory happened."""
    return BEGUN_AT + timedelta(seconds=row)
