"""A memory that may become a result, and all that a ranking goes by."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One memory found by either side of a search, judged by both; times are aware of their zone."""

    id: UUID
    created_at: datetime
    updated_at: datetime
    last_accessed_at: datetime | None
    importance: int
    """1 to 10."""
    access_count: int
    cosine: float | None = None
    """Similarity to the query, -1 to 1; None where the memory has no embedding, or the search no dense side."""
    bm25: float = 0.0
    """0 where the memory has no word of the query."""
    dense_rank: int | None = None
    """From 1; None where it is not among the dense side's candidates."""
    lexical_rank: int | None = None
    """From 1; None where it is not among the lexical side's candidates."""
    conversation_id: str | None = None
    previous_id: UUID | None = None
    """The memory before it in its conversation; counts if it is a candidate too."""
    next_id: UUID | None = None
    """The memory after it in its conversation; counts if it is a candidate too."""
    embedding: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    """Shape (dimensions,), unit length; needed by diversity alone."""
