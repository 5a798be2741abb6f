"""The floor: the same search by plain psycopg in the caller's own process, with nothing in between.

Exact, over the same rows in the same layout, prepared, with binary parameters and results, reading the columns that
the service returns. What the service adds to it (a second process, gRPC, validation, access counters, errors,
deadlines) is what the ratio shows.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import numpy as np
import psycopg
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from benchmarks.question import CONTENT, LIMIT, Answer, Question
from db import sign_bits

COLUMNS = "id, conversation_id, content, summary, metadata, importance, version, created_at, updated_at"

# "+ 0" keeps the planner from ordering by an ANN index: the floor is exact.
SEARCH = f"""/* floor.search */
SELECT {COLUMNS}, embedding <=> %(vector)s AS distance
FROM memory_entries
WHERE user_id = %(user)s AND deleted_at IS NULL
ORDER BY (embedding <=> %(vector)s) + 0
LIMIT {LIMIT}
"""  # noqa: S608 - constants only


_INSERT = """/* floor.insert */
INSERT INTO memory_entries (
    user_id, id, content, summary, metadata, embedding, embedding_norm, embedding_model, importance, version,
    created_at, updated_at{bits})
VALUES (
    %(user)s, %(id)s, %(content)s, '', %(metadata)s, %(vector)s, %(norm)s, 'caller', 5, 1, %(now)s, %(now)s{signs})
"""
INSERT = _INSERT.format(bits="", signs="")
INSERT_WITH_BITS = _INSERT.format(bits=", bits", signs=", binary_quantize(%(vector)s)")


@dataclass(frozen=True, slots=True)
class FloorSource:
    """The database to ask."""

    url: str
    index_only: bool = True
    """False: read the heap even where an index covers the query."""

    def connect(self) -> "FloorAsker":
        """Returns an asker with a connection of its own."""
        connection = psycopg.connect(self.url, autocommit=True)
        register_vector(connection)
        connection.execute("SET jit = off")
        if not self.index_only:
            connection.execute("SET enable_indexonlyscan = off")
        return FloorAsker(connection)


class FloorAsker:
    """One caller."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def ask(self, question: Question) -> Answer:
        """Runs the statement; converts the query from float32 and decodes every column."""
        with self._connection.cursor(binary=True) as cursor:
            parameters = {"vector": HalfVector(question.vector), "user": question.user}
            rows = cursor.execute(SEARCH, parameters, prepare=True).fetchall()
        return Answer([str(row[0]) for row in rows], "floor")

    def plan(self, question: Question) -> Any:
        """Returns how PostgreSQL runs the statement: the output of EXPLAIN (ANALYZE, BUFFERS)."""
        parameters = {"vector": HalfVector(question.vector), "user": question.user}
        rows = self._connection.execute("EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) " + SEARCH, parameters).fetchall()
        return [row[0] for row in rows]

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


class FloorInserter:
    """Stores single memories of users who are there."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        register_vector(self._connection)

    def insert(self, question: Question) -> None:
        """Stores a question's vector among the user's memories, at unit length, and waits until it is durable."""
        norm = float(np.linalg.norm(question.vector))
        with self._connection.cursor(binary=True) as cursor:
            cursor.execute(
                INSERT_WITH_BITS if sign_bits.kept_for(len(question.vector)) else INSERT,
                {
                    "user": question.user,
                    "id": uuid4(),
                    "content": CONTENT,
                    "metadata": Jsonb({}),
                    "vector": HalfVector(question.vector / norm),
                    "norm": norm,
                    "now": datetime.now(UTC),
                },
                prepare=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()
