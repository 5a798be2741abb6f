"""Deciding what becomes of new memories that duplicate others: the rules, without the database.

Memories are decided one after another; one that is stored counts for those after it as if it had been there before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol
from uuid import UUID

from db.batch_similarity import BatchSimilarity
from db.memory import NewMemory


class DuplicatePolicy(Enum):
    """What to do with a new memory that duplicates another one."""

    SKIP = "skip"
    """Store nothing."""
    REINFORCE = "reinforce"
    """Store nothing; count an access of the other one, and raise its importance."""
    SUPERSEDE = "supersede"
    """Store it, and soft-delete the other one."""


class InsertOutcome(Enum):
    """What became of a new memory."""

    STORED = "stored"
    SKIPPED = "skipped"
    REINFORCED = "reinforced"
    SUPERSEDED = "superseded"


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A live memory that new ones may duplicate, and what the decisions do to it."""

    id: UUID
    importance: int
    version: int
    created_at: datetime
    updated_at: datetime
    stored_before: bool = True
    """Whether it was there before, not earlier in the same batch."""
    reinforcements: int = 0
    raised_importance: int = 0
    """The importance of the most important memory that reinforces it."""
    superseded_by: UUID | None = None

    @property
    def changes(self) -> bool:
        """Whether it gets a new version. Accesses do not count."""
        return self.superseded_by is not None or self.raised_importance > self.importance


@dataclass(frozen=True, slots=True)
class Match:
    """The duplicate that a new memory met."""

    candidate: Candidate
    similarity: float
    same_content: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a new memory."""

    outcome: InsertOutcome
    memory: Candidate
    """The memory itself where it is stored, else the one it duplicates."""
    match: Match | None
    superseded: tuple[Candidate, ...] = ()

    @property
    def stored(self) -> bool:
        """Whether the memory itself is stored."""
        return self.outcome in {InsertOutcome.STORED, InsertOutcome.SUPERSEDED}


class FindNearest(Protocol):
    """Returns memories stored before that are similar enough, the nearest first, with their cosine similarities."""

    def __call__(self, memory: NewMemory, *, limit: int) -> Sequence[tuple[Candidate, float]]: ...  # noqa: D102 - see the class


class Decisions:
    """Decides memory after memory of one batch."""

    def __init__(
        self,
        policy: DuplicatePolicy,
        memories: Sequence[NewMemory],
        *,
        same_content: Mapping[str, Sequence[Candidate]],
        nearest: FindNearest | None,
        min_similarity: float | None,
    ) -> None:
        """Begins with what was stored before: `same_content` by content, each the oldest first.

        `memories` are those to be decided; `nearest` and `min_similarity` are None where only the same content counts.
        """
        self._policy = policy
        self._same_content = {content: list(candidates) for content, candidates in same_content.items()}
        self._by_id = {found.id: found for candidates in same_content.values() for found in candidates}
        self._nearest = nearest
        self._min_similarity = min_similarity
        self._superseded_before = 0
        self._batch = BatchSimilarity([] if min_similarity is None else memories)

    def decide(self, memory: NewMemory, *, now: datetime) -> Decision:
        """Decides what becomes of the next memory."""
        same = self._same(memory)
        match = Match(same[0], 1.0, same_content=True) if same else self._near(memory)
        if match is None:
            return Decision(InsertOutcome.STORED, self._store(memory, now), None)
        duplicate = match.candidate
        if self._policy is DuplicatePolicy.SKIP:
            return Decision(InsertOutcome.SKIPPED, duplicate, match)
        if self._policy is DuplicatePolicy.REINFORCE:
            duplicate.reinforcements += 1
            duplicate.raised_importance = max(duplicate.raised_importance, memory.importance)
            return Decision(InsertOutcome.REINFORCED, duplicate, match)
        superseded = tuple(same) or (duplicate,)
        for candidate in superseded:
            candidate.superseded_by = memory.id
            self._superseded_before += candidate.stored_before
            self._batch.remove(candidate.id)
        return Decision(InsertOutcome.SUPERSEDED, self._store(memory, now), match, superseded)

    def _same(self, memory: NewMemory) -> list[Candidate]:
        """Returns the live memories with the same content, oldest first."""
        return [found for found in self._same_content.get(memory.content, []) if found.superseded_by is None]

    def _near(self, memory: NewMemory) -> Match | None:
        """Returns the nearest live memory that is similar enough; of equally near ones, one stored before."""
        if self._nearest is None or self._min_similarity is None or memory.embedding is None:
            return None
        found = self._nearest_before(self._nearest, memory)
        if (nearest := self._batch.nearest(memory.id)) is not None:
            memory_id, similarity = nearest
            found.append((self._by_id[memory_id], similarity))
        candidate, similarity = max(found, key=lambda near: near[1], default=(None, -1.0))
        if candidate is None or similarity < self._min_similarity:
            return None
        return Match(candidate, similarity, same_content=False)

    def _nearest_before(self, nearest: FindNearest, memory: NewMemory) -> list[tuple[Candidate, float]]:
        limit = 1
        while True:
            found = nearest(memory, limit=limit)
            known = [(self._by_id.setdefault(one.id, one), similarity) for one, similarity in found]
            live = [near for near in known if near[0].superseded_by is None]
            if live or len(found) < limit or limit > self._superseded_before:
                return live[:1]
            # The database does not know yet which ones this batch supersedes.
            limit = self._superseded_before + 1

    def _store(self, memory: NewMemory, now: datetime) -> Candidate:
        stored = Candidate(
            id=memory.id,
            importance=memory.importance,
            version=1,
            created_at=memory.created_at,
            updated_at=now,
            stored_before=False,
        )
        if memory.content:
            self._same_content.setdefault(memory.content, []).append(stored)
        self._by_id[memory.id] = stored
        self._batch.add(memory.id)
        return stored
