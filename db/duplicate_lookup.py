"""Finding the live memories that new ones duplicate, and keeping them as they are until they were dealt with."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from psycopg.rows import TupleRow

from db import duplicate_scan, search
from db.connection import Connection
from db.duplicate_decisions import Candidate
from db.filters import Filter
from db.memory import NewMemory, View
from db.search import Means
from db.search_plan import SearchTuning, coarse_of
from db.search_statements import Metric
from db.vectors import Embedding

# The inner OFFSET 0 keeps the planner from walking the user's memories by created_at for an ORDER BY with a LIMIT.
SAME_CONTENT = """/* duplicates.same_content */
SELECT given.position, found.id, found.importance, found.version, found.created_at, found.updated_at
FROM unnest(%(contents)s::text[]) WITH ORDINALITY AS given (content, position)
CROSS JOIN LATERAL (
    SELECT * FROM (
        SELECT id, importance, version, created_at, updated_at
        FROM memory_entries
        WHERE user_id = %(user_id)s AND deleted_at IS NULL
            AND content_hash = hashtextextended(given.content, 0) AND content = given.content
        OFFSET 0
    ) same
    ORDER BY created_at, id
    LIMIT %(limit)s
) found
ORDER BY given.position, found.created_at, found.id
"""


def same_content(
    conn: Connection, user_id: str, memories: Iterable[NewMemory], *, limit: int | None
) -> dict[str, list[Candidate]]:
    """Returns the live memories with the same content as one of these, by content, at most `limit` of each.

    The oldest come first. Nothing has the content of a memory without any.
    """
    contents = list(dict.fromkeys(memory.content for memory in memories if memory.content))
    if not contents:
        return {}
    parameters = {"user_id": user_id, "contents": contents, "limit": limit}
    found: dict[str, list[Candidate]] = {}
    for position, *row in conn.query(SAME_CONTENT, parameters):
        found.setdefault(contents[position - 1], []).append(_candidate(tuple(row)))
    return found


BY_ID = """/* duplicates.by_id */
SELECT id, importance, version, created_at, updated_at FROM memory_entries
WHERE user_id = %(user_id)s AND id = ANY(%(ids)s) AND deleted_at IS NULL
"""

# From so many memories on they are compared in one pass, which finds so many near ones of each.
SCANNED_FROM = 16
SCANNED_EACH = 4


class Nearest:
    """Finds the memories nearest to those of a batch, among those stored before: exactly, whatever the batch's size."""

    def __init__(self, conn: Connection, user_id: str, memories: Sequence[NewMemory], *, min_similarity: float) -> None:
        """Compares already, where there are so many memories that comparing them together is cheaper."""
        self._conn = conn
        self._user_id = user_id
        self._min_similarity = min_similarity
        self._scanned: dict[UUID, list[tuple[Candidate, float]]] = {}
        compared = [(memory.id, memory.embedding) for memory in memories if memory.embedding is not None]
        if len(compared) >= SCANNED_FROM:
            self._scan([memory_id for memory_id, _ in compared], [embedding for _, embedding in compared])

    def _scan(self, memory_ids: Sequence[UUID], embeddings: Sequence[Embedding]) -> None:
        similar = duplicate_scan.scan(
            self._conn, self._user_id, embeddings, min_similarity=self._min_similarity, limit=SCANNED_EACH
        )
        ids = {found_id for found in similar for found_id, _ in found}
        candidates = {row[0]: _candidate(row) for row in self._conn.query(BY_ID, self._parameters(ids))}
        for memory_id, found in zip(memory_ids, similar, strict=True):
            if all(found_id in candidates for found_id, _ in found):  # else one was deleted since
                self._scanned[memory_id] = [(candidates[found_id], similarity) for found_id, similarity in found]

    def _parameters(self, ids: Iterable[UUID]) -> dict[str, Any]:
        return {"user_id": self._user_id, "ids": list(ids)}

    def __call__(self, memory: NewMemory, *, limit: int) -> Sequence[tuple[Candidate, float]]:
        """Returns up to `limit` live memories of at least this similarity, nearest first, with their similarities."""
        scanned = self._scanned.get(memory.id)
        if scanned is not None and (limit <= len(scanned) or len(scanned) < SCANNED_EACH):
            return scanned[:limit]
        return [] if memory.embedding is None else self._search(memory.embedding, limit)

    def _search(self, embedding: Embedding, limit: int) -> list[tuple[Candidate, float]]:
        wanted = search.Nearest(
            embedding=embedding,
            metric=Metric.COSINE,
            limit=limit,
            filter=Filter(),
            min_score=self._min_similarity,
            view=View.HEAD,
            exact=True,
        )
        means = Means(coarse=coarse_of(len(embedding.unit)), ann=None, user_rows=None, tuning=SearchTuning())
        hits = search.search(self._conn, self._user_id, wanted, means).hits
        return [
            (
                Candidate(
                    id=hit.memory.id,
                    importance=hit.memory.importance,
                    version=hit.memory.version,
                    created_at=hit.memory.created_at,
                    updated_at=hit.memory.updated_at,
                ),
                hit.score,
            )
            for hit in hits
        ]


def _candidate(row: TupleRow) -> Candidate:
    memory_id, importance, version, created_at, updated_at = row
    return Candidate(id=memory_id, importance=importance, version=version, created_at=created_at, updated_at=updated_at)


# Waits for who is changing one of them. In the order in which embedding_jobs.embed locks memories.
HOLD = """/* duplicates.hold */
SELECT id, version FROM memory_entries
WHERE user_id = %(user_id)s AND id = ANY(%(ids)s) AND deleted_at IS NULL
ORDER BY id
FOR NO KEY UPDATE
"""


def hold(conn: Connection, user_id: str, candidates: Sequence[Candidate]) -> bool:
    """Keeps others from changing these memories until the transaction ends; tells whether they are still as found."""
    if not candidates:
        return True
    found: dict[UUID, int] = {candidate.id: candidate.version for candidate in candidates}
    return dict(conn.query(HOLD, {"user_id": user_id, "ids": list(found)}).fetchall()) == found
