"""Gathering the candidates of a search: what either side has found, judged by both, and their neighbours."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

import numpy as np

from db import candidates
from db.candidates import Features, Neighbours
from db.connection import Connection
from db.search import Hit
from db.vectors import Embedding
from memory_service.messages.search_request import SearchDraft
from memory_service.ranking.candidate import Candidate

ScoreWords = Callable[[Sequence[UUID]], Mapping[UUID, float]]
"""Returns the BM25 of those of these memories that have any of the query's words."""


@dataclass(slots=True)
class CandidatePool:
    """The candidates of one search, as far as they are known."""

    conn: Connection
    draft: SearchDraft
    near: Embedding | None
    """What candidates are compared with by meaning; None in mode LEXICAL."""
    features: dict[UUID, Features] = field(default_factory=dict)
    bm25: dict[UUID, float] = field(default_factory=dict)
    dense_ranks: dict[UUID, int] = field(default_factory=dict)
    lexical_ranks: dict[UUID, int] = field(default_factory=dict)
    neighbours: dict[UUID, Neighbours] = field(default_factory=dict)

    def add_near(self, hits: Sequence[Hit]) -> None:
        """Takes what was found by meaning, nearest first."""
        self.dense_ranks = {hit.memory.id: rank for rank, hit in enumerate(hits, start=1)}
        if not self.draft.ranking.diversity.neutral:
            self._read(self.dense_ranks)
            return
        self.features |= {hit.memory.id: _features_of(hit) for hit in hits}

    def add_worded(self, scores: Mapping[UUID, float], *, limit: int) -> None:
        """Takes the BM25 of what was found by words, and of what else has them; `limit` of them were found at most."""
        best_first = sorted(scores, key=lambda memory_id: (-scores[memory_id], memory_id))
        self.lexical_ranks = {memory_id: rank for rank, memory_id in enumerate(best_first[:limit], start=1)}
        self.bm25 |= scores
        self._read(scores)

    def add_neighbours(self, score_words: ScoreWords | None) -> None:
        """Adds who stands beside a candidate in its conversation, if it passes the filter of the search."""
        inside = [known.id for known in self.features.values() if known.conversation_id is not None]
        self.neighbours = candidates.neighbours(self.conn, self.draft.user_id, inside)
        beside = {one for found in self.neighbours.values() for one in (*found.previous[:1], *found.next[:1])}
        added = sorted(beside - self.features.keys() - {self.draft.query.memory_id})
        self._read(added)
        if added and score_words is not None:
            self.bm25 |= score_words(added)

    def _read(self, ids: Iterable[UUID]) -> None:
        missing = [memory_id for memory_id in ids if memory_id not in self.features]
        if missing:
            self.features |= candidates.features(
                self.conn,
                self.draft.user_id,
                missing,
                filter=self.draft.filter,
                near=self.near,
                embeddings=not self.draft.ranking.diversity.neutral,
            )

    def forget(self, ids: Iterable[UUID]) -> None:
        """Takes candidates away that are there no more."""
        for memory_id in ids:
            del self.features[memory_id]

    def candidates(self) -> list[Candidate]:
        """Returns the candidates, in no particular order."""
        previous, following = self._links()
        return [
            Candidate(
                id=known.id,
                created_at=known.created_at,
                updated_at=known.updated_at,
                last_accessed_at=known.last_accessed_at,
                importance=known.importance,
                access_count=known.access_count,
                cosine=known.cosine,
                bm25=self.bm25.get(known.id, 0.0),
                dense_rank=self.dense_ranks.get(known.id),
                lexical_rank=self.lexical_ranks.get(known.id),
                conversation_id=known.conversation_id,
                previous_id=previous.get(known.id),
                next_id=following.get(known.id),
                embedding=None if known.embedding is None else known.embedding.unit.astype(np.float32),
            )
            for known in self.features.values()
        ]

    def _links(self) -> tuple[dict[UUID, UUID], dict[UUID, UUID]]:
        """Returns the candidate before and after each candidate, where these stand side by side."""
        previous: dict[UUID, UUID] = {}
        following: dict[UUID, UUID] = {}
        for memory_id, found in self.neighbours.items():
            row = [*reversed(found.previous), memory_id, *found.next]
            for earlier, later in pairwise(row):
                if earlier in self.features and later in self.features:
                    previous[later], following[earlier] = earlier, later
        return previous, following


def _features_of(hit: Hit) -> Features:
    memory = hit.memory
    return Features(
        id=memory.id,
        conversation_id=memory.conversation_id,
        importance=memory.importance,
        created_at=memory.created_at,
        updated_at=memory.updated_at,
        access_count=memory.access_count,
        last_accessed_at=memory.last_accessed_at,
        cosine=hit.score,
    )
