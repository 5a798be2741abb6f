"""How similar memories of one batch are to one another, computed by numpy some hundred of them at a time."""

from collections.abc import Sequence
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from db.memory import NewMemory

# As many rows are compared with the whole batch at once: one by one, 5,000 of 1,536 dimensions would read 150 GB.
BLOCK_ROWS = 256


def cosines(some: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the cosine similarities, of shape (some, others), of rows of halves, whose lengths are 1 only roughly.

    The sums are exact, whatever their order: products of two halves are multiples of 2^-48, and 53 bits hold their
    sums. So the similarity of equal embeddings is 1.
    """
    lengths = np.sqrt(np.multiply.outer(np.vecdot(some, some), np.vecdot(others, others)))
    found: NDArray[np.float64] = np.minimum(some @ others.T / lengths, 1.0)
    return found


class BatchSimilarity:
    """Tells which one of those added so far is nearest to another one of the batch."""

    def __init__(self, memories: Sequence[NewMemory]) -> None:
        embeddings = {memory.id: memory.embedding for memory in memories if memory.embedding is not None}
        self._ids = list(embeddings)
        self._positions = {memory_id: position for position, memory_id in enumerate(self._ids)}
        self._units = np.array([one.unit for one in embeddings.values()], dtype=np.float64)
        self._added = np.zeros(len(self._ids), dtype=bool)
        self._block = np.empty((0, 0))
        self._block_number = -1

    def add(self, memory_id: UUID) -> None:
        """Lets a memory be found."""
        self._mark(memory_id, added=True)

    def remove(self, memory_id: UUID) -> None:
        """Lets a memory, or one that is not of the batch, be found no more."""
        self._mark(memory_id, added=False)

    def _mark(self, memory_id: UUID, *, added: bool) -> None:
        if (position := self._positions.get(memory_id)) is not None:
            self._added[position] = added

    def nearest(self, memory_id: UUID) -> tuple[UUID, float] | None:
        """Returns the nearest one of those added and its similarity, the earliest of equally near ones."""
        if not self._added.any():
            return None
        similarities = np.where(self._added, self._row(self._positions[memory_id]), -np.inf)
        best = int(similarities.argmax())
        return self._ids[best], float(similarities[best])

    def _row(self, position: int) -> NDArray[np.float64]:
        number, row = divmod(position, BLOCK_ROWS)
        if number != self._block_number:
            rows = self._units[number * BLOCK_ROWS : (number + 1) * BLOCK_ROWS]
            self._block, self._block_number = cosines(rows, self._units), number
        found: NDArray[np.float64] = self._block[row]
        return found
