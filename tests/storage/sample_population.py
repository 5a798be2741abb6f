"""A population to search: two users with much in common, whose nearest memories are known beyond doubt.

Every memory has one of a few vectors, so that many tie; the vectors' distances from the queries differ by far more
than float16 and float32 round, so that the order of all others is certain.
"""

from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.filters import Filter
from db.memory import NewMemory
from db.pool import Database
from db.search_statements import Metric
from db.vectors import normalize
from tests.storage.brute_force import Row, passes, stored_score
from tests.storage.condition_oracle import holds
from tests.storage.sample_memories import NOW, embedding_of, new_memory, soft_delete, store

OWNER = "owner"
NEIGHBOUR = "owner "  # sorts next to the owner in every index
ROWS = 240
# Scores of different vectors differ by this much at least; pgvector sums float16 products in float32.
LEAST_GAP = 1e-5


class Population:
    """Memories of two users in one database, and queries for them."""

    # No dataclass: Hypothesis would show megabytes of vectors.
    def __init__(
        self, database: Database, *, dimensions: int, rows: list[Row], queries: list[NDArray[np.float32]]
    ) -> None:
        self.database = database
        self.dimensions = dimensions
        self.rows = rows
        self.queries = queries

    def passing(self, filters: Filter, *, exclude: UUID | None = None, user_id: str = OWNER) -> list[Row]:
        """Returns the user's memories that a search has to consider."""
        return [
            row
            for row in self.rows
            if row.user_id == user_id
            and row.memory.id != exclude
            and passes(row, filters)
            and (filters.where is None or holds(filters.where, row.memory.metadata))
        ]


def nearest_first(rows: list[Row], metric: Metric, query: NDArray[np.float32]) -> list[tuple[float, UUID]]:
    """Returns the score and id of each, nearest first, ties by id."""
    wanted = normalize(query)
    scored = [(stored_score(metric, wanted, embedding_of(row.memory)), row.memory.id) for row in rows]
    return sorted(scored, key=lambda found: (-found[0], found[1]))


def populate(database: Database, *, dimensions: int, rows: int = ROWS, vectors: int = 32) -> Population:
    """Stores `rows` memories of the owner, and a third of them of the neighbour, and returns what they are."""
    random = np.random.default_rng(dimensions)
    pool = random.normal(size=(vectors, dimensions)).astype(np.float32)
    stored = []
    for user_id, every in ((OWNER, 1), (NEIGHBOUR, 3)):
        for index in range(0, rows, every):
            vector = pool[random.integers(vectors)]
            memory = _memory(index, user_id, vector, random)
            stored.append(Row(user_id, memory, vector, deleted=bool(random.random() < 0.1)))
        store(database, user_id, *[row.memory for row in stored if row.user_id == user_id])
    for row in stored:
        if row.deleted:
            soft_delete(database, row.user_id, row.memory.id)
    candidates = random.normal(size=(60, dimensions)).astype(np.float32)
    queries = [pool[0], *(query for query in candidates if _is_certain(query, pool))]
    return Population(database, dimensions=dimensions, rows=stored, queries=queries)


def _memory(index: int, user_id: str, vector: NDArray[np.float32], random: np.random.Generator) -> NewMemory:
    number: Any = [index % 7, str(index % 7), None, float(index % 7) + 0.5][index % 4]
    return new_memory(
        # The users' memories have the same ids.
        id=UUID(int=(index * 7919) % ROWS),
        content=f"{index} of {user_id}",
        conversation_id=[None, "a", "ab"][int(random.integers(3))],
        importance=int(random.integers(1, 11)),
        created_at=NOW + timedelta(seconds=int(random.integers(-2, 3))),
        metadata={"lang": ["en", "de", 1][index % 3], "from": {"app": ["chat", "mail"][index % 2], "n": number}},
        embedding=normalize(vector),
    )


def _is_certain(query: NDArray[np.float32], pool: NDArray[np.float32]) -> bool:
    embeddings = [normalize(vector) for vector in pool]
    return all(
        np.diff(sorted(stored_score(metric, normalize(query), embedding) for embedding in embeddings)).min()
        > LEAST_GAP * scale(metric, query)
        for metric in Metric
    )


def scale(metric: Metric, query: NDArray[np.float32]) -> float:
    """Returns the size of the numbers that scores are made of; stored vectors are about as long as the query."""
    length = float(np.linalg.norm(query))
    return {Metric.COSINE: 1.0, Metric.INNER_PRODUCT: length * length, Metric.L2: 2 * length}[metric]
