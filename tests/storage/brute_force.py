"""What a search has to find, worked out in numpy and plain Python over all memories of a user."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.filters import Filter
from db.memory import NewMemory
from db.search_statements import Metric
from db.vectors import Embedding

Vector = NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """A memory as it lies in the database."""

    user_id: str
    memory: NewMemory
    original: NDArray[np.float32]
    """The embedding as the caller sent it."""
    deleted: bool


def stored_score(metric: Metric, query: Embedding, stored: Embedding) -> float:
    """Returns the score of directions in float16 and exact lengths, which is what the database has."""
    direction, other = query.unit.astype(np.float64), stored.unit.astype(np.float64)
    lengths = query.norm * stored.norm
    match metric:
        case Metric.COSINE:
            return score(metric, direction, other)
        case Metric.INNER_PRODUCT:
            return lengths * float(direction @ other)
        case Metric.L2:
            apart = direction - other
            return -float(np.sqrt((query.norm - stored.norm) ** 2 + lengths * float(apart @ apart)))


def score(metric: Metric, query: Vector, vector: Vector) -> float:
    """Returns the score of the contract for two vectors of any length."""
    query, vector = query.astype(np.float64), vector.astype(np.float64)
    match metric:
        case Metric.COSINE:
            return float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))
        case Metric.INNER_PRODUCT:
            return float(query @ vector)
        case Metric.L2:
            return -float(np.linalg.norm(query - vector))


def passing(rows: Iterable[Row], user_id: str, filters: Filter) -> dict[UUID, Row]:
    """Returns the user's memories that the filter lets through, by id."""
    return {row.memory.id: row for row in rows if row.user_id == user_id and passes(row, filters)}


def passes(row: Row, filters: Filter) -> bool:
    """Tells whether the filter lets a memory through."""
    memory = row.memory
    conditions: list[tuple[object, Callable[[Any], bool]]] = [
        (filters.conversation_id, lambda wanted: memory.conversation_id == wanted),
        (filters.min_importance, lambda least: memory.importance >= least),
        (filters.max_importance, lambda most: memory.importance <= most),
        (filters.metadata_contains, lambda wanted: contains(memory.metadata, wanted)),
        (filters.created_after, lambda first: memory.created_at >= first),
        (filters.created_before, lambda end: memory.created_at < end),
    ]
    if row.deleted and not filters.show_deleted:
        return False
    return all(condition(value) for value, condition in conditions if value is not None)


def contains(stored: Any, wanted: Any) -> bool:
    """PostgreSQL's @> on jsonb (documentation, 8.14.3)."""
    if isinstance(wanted, dict):
        return isinstance(stored, dict) and all(key in stored and contains(stored[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        return isinstance(stored, list) and all(any(contains(item, one) for item in stored) for one in wanted)
    return type(stored) is type(wanted) and bool(stored == wanted)
