"""Embeddings like those of texts, for tests of approximate indexes, and the shortest ways to store and search them.

Random directions of 64 dimensions have no neighbourhoods; these lie in clusters of a space of 12.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb

from db.ann_catalog import IndexInfo, list_indexes, name_of
from db.ann_indexes import Blueprint, IndexOptions
from db.ann_registry import AnnIndex, want
from db.ann_session import AnnSession
from db.connection import Connection
from db.filters import Filter
from db.pool import Database
from db.search import Answer, Means, Nearest, search
from db.search_plan import Coarse, SearchTuning
from db.search_statements import Metric
from db.vectors import normalize

DIMENSIONS = 64
NOW = datetime(2026, 5, 4, tzinfo=UTC)
LIMIT = 10

COPY = """
COPY memory_entries (
    user_id, id, content, summary, metadata, embedding, embedding_norm, embedding_model, importance, version,
    created_at, updated_at
) FROM STDIN (FORMAT BINARY)
"""
TYPES = ("text", "uuid", "text", "text", "jsonb", "halfvec", "float8", "text", "int2", "int8", "timestamptz")

Vectors = NDArray[np.float32]


def clustered(count: int, *, seed: int = 1) -> Vectors:
    """Returns unit vectors of shape (count, 64); those of one seed and of another lie in the same clusters."""
    space = np.random.default_rng(0)
    basis = space.standard_normal((12, DIMENSIONS))
    centres = space.standard_normal((20, 12))
    rng = np.random.default_rng(seed)
    points = centres[rng.integers(0, len(centres), count)] + 0.5 * rng.standard_normal((count, 12))
    vectors = points @ basis + 0.1 * rng.standard_normal((count, DIMENSIONS))
    units: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return units


def store(url: str, user_id: str, vectors: Vectors, *, first: int = 0) -> None:
    """Stores vectors of a user; the one in row i gets the number n = `first` + i, which is its id.

    Its importance is n modulo 10, plus 1; its metadata hold n modulo 100 and n modulo 1,000.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        register_vector(connection)
        connection.execute("INSERT INTO users VALUES (%s, %s) ON CONFLICT DO NOTHING", [user_id, NOW])
        with connection.cursor() as cursor, cursor.copy(COPY.encode()) as copy:
            copy.set_types([*TYPES, "timestamptz"])
            for number, vector in enumerate(vectors, first):
                metadata = Jsonb({"hundredth": number % 100, "thousandth": number % 1_000})
                row = [user_id, UUID(int=number), "text", "", metadata, HalfVector(vector)]
                copy.write_row([*row, 1.0, "test-model", number % 10 + 1, 1, NOW, NOW])


def analyze(url: str) -> None:
    """Lets the planner know what was stored."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE memory_entries")


def wish(url: str, *users: str) -> None:
    """Enters users among those who are to have an index."""
    with Connection.connect(url, autocommit=True) as connection:
        for user_id in users:
            want(connection, user_id, name_of(user_id), now=NOW)


def blueprint(user_id: str | None, *, name: str | None = None, rows: int = 0, **options: Any) -> Blueprint:
    """Returns the plan of an index, of the user's own name unless another is given."""
    assert name or user_id
    return Blueprint(name=name or name_of(str(user_id)), user_id=user_id, rows=rows, options=IndexOptions(**options))


def indexes_of(url: str) -> dict[str, IndexInfo]:
    """Returns the approximate indexes by name."""
    with AnnSession(url) as session:
        return {index.name: index for index in session.query(list_indexes)}


@dataclass(frozen=True, slots=True)
class Searcher:
    """Searches the memories of one user by their approximate index, and knows the right answers."""

    database: Database
    user_id: str
    vectors: dict[int, NDArray[np.float32]]
    """Live memories by the number that is their id."""
    method: str | None = "hnsw"
    """Of the approximate index that searches know of, None for none."""
    lists: int = 10
    """Of an IVFFlat index."""
    ef_search: int = 100

    def answer(self, query: Vectors, filter_: Filter | None = None) -> Answer:
        """Returns what a search finds."""
        nearest = Nearest(
            embedding=normalize(query),
            metric=Metric.COSINE,
            limit=LIMIT,
            filter=filter_ or Filter(),
            ef_search=self.ef_search,
        )
        means = Means(
            coarse=Coarse.EMBEDDING,
            ann=None if self.method is None else AnnIndex(name_of(self.user_id), self.method, self.lists),
            user_rows=len(self.vectors),
            tuning=SearchTuning(),
        )
        return self.database.read(
            self.database.call(), lambda conn: search(conn, self.user_id, nearest, means), user_id=self.user_id
        )

    def recall(
        self, queries: Vectors, filter_: Filter | None = None, passes: Callable[[int], bool] = lambda _: True
    ) -> float:
        """Returns the mean share of the nearest that searches find; fails where fewer are found than there are."""
        numbers = [number for number in self.vectors if passes(number)]
        matrix = np.stack([self.vectors[number] for number in numbers])
        shares = []
        for query in queries:
            order = np.argsort(-(matrix @ query))[:LIMIT]
            right = {UUID(int=numbers[position]) for position in order}
            found = {hit.memory.id for hit in self.answer(query, filter_).hits}
            assert len(found) == len(right)
            shares.append(len(found & right) / len(right))
        return float(np.mean(shares))


def numbered(vectors: Vectors, *, first: int = 0) -> dict[int, NDArray[np.float32]]:
    """Returns vectors by the numbers that `store` gives them."""
    return dict(enumerate(vectors, first))


def erase(url: str, user_id: str, numbers: Sequence[int]) -> None:
    """Deletes memories for good."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "DELETE FROM memory_entries WHERE user_id = %s AND id = ANY(%s)",
            [user_id, [UUID(int=number) for number in numbers]],
        )
