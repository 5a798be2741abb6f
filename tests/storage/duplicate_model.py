"""What storing under a policy for duplicates should do, written down anew: memory after memory, in plain Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from db.duplicate_decisions import DuplicatePolicy, InsertOutcome
from db.duplicates import Duplicates
from db.memory import NewMemory


@dataclass(slots=True)
class Modelled:
    """A memory as the model has it."""

    new: NewMemory
    importance: int
    accesses: int = 0
    version: int = 1
    superseded_by: UUID | None = None
    live: bool = True


def cosine(one: NewMemory, other: NewMemory) -> float:
    """Returns the similarity of two embeddings as they are stored."""
    assert one.embedding is not None
    assert other.embedding is not None
    a, b = one.embedding.unit.astype(np.float64), other.embedding.unit.astype(np.float64)
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


class Model:
    """All memories of one user."""

    def __init__(self) -> None:
        self.memories: dict[UUID, Modelled] = {}

    def live(self) -> list[Modelled]:
        """Returns the live ones, oldest first."""
        found = [memory for memory in self.memories.values() if memory.live]
        return sorted(found, key=lambda memory: (memory.new.created_at, memory.new.id))

    def allow(self, memories: Sequence[NewMemory]) -> None:
        """Stores all of them."""
        for new in memories:
            self.memories[new.id] = Modelled(new, new.importance)

    def store(self, new: NewMemory, duplicates: Duplicates) -> tuple[InsertOutcome, UUID, UUID | None, bool]:
        """Stores one; returns the outcome, the id replied, the duplicate's id and whether it has the same content."""
        same = [memory for memory in self.live() if new.content and memory.new.content == new.content]
        met = same[:1] or self._nearest(new, duplicates.min_similarity)
        if not met:
            self.allow([new])
            return InsertOutcome.STORED, new.id, None, False
        [duplicate] = met
        facts = (duplicate.new.id, bool(same))
        match duplicates.policy:
            case DuplicatePolicy.SKIP:
                return InsertOutcome.SKIPPED, duplicate.new.id, *facts
            case DuplicatePolicy.REINFORCE:
                duplicate.accesses += 1
                duplicate.importance = max(duplicate.importance, new.importance)
                return InsertOutcome.REINFORCED, duplicate.new.id, *facts
            case DuplicatePolicy.SUPERSEDE:
                for superseded in same or met:
                    superseded.live, superseded.superseded_by = False, new.id
                self.allow([new])
                return InsertOutcome.SUPERSEDED, new.id, *facts

    def _nearest(self, new: NewMemory, min_similarity: float | None) -> list[Modelled]:
        if min_similarity is None:
            return []
        near = [memory for memory in self.live() if cosine(memory.new, new) >= min_similarity]
        return sorted(near, key=lambda memory: -cosine(memory.new, new))[:1]
