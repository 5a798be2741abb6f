"""BM25 in plain Python over the stems that the database stored: what searches by words are compared with."""

import math
from collections.abc import Iterable, Mapping
from uuid import UUID

from db.pool import Database

Stems = dict[str, int]
"""How often each stem occurs."""

STORED = """/* test.stems */
SELECT id, ARRAY(SELECT lexeme FROM unnest(lexemes)), ARRAY(SELECT cardinality(positions) FROM unnest(lexemes))
FROM memory_entries WHERE user_id = %(user_id)s AND deleted_at IS NULL
"""


def stored_stems(database: Database, user_id: str) -> dict[UUID, Stems]:
    """Returns the stems of each of the user's live memories."""
    rows = database.read(
        database.call(), lambda conn: conn.query(STORED, {"user_id": user_id}).fetchall(), user_id=user_id
    )
    return {memory_id: dict(zip(stems, counts, strict=True)) for memory_id, stems, counts in rows}


def bm25(
    memories: Mapping[UUID, Stems], query: Iterable[str], *, k1: float = 1.2, b: float = 0.75
) -> list[tuple[UUID, float]]:
    """Returns the memories with any of the stems and their scores, best first, equals by id."""
    terms = set(query)
    average = sum(len(stems) for stems in memories.values()) / len(memories) if memories else 0.0
    scores = {}
    for memory_id, stems in memories.items():
        found = terms & stems.keys()
        if found:
            scores[memory_id] = sum(
                idf(memories, term) * stems[term] * (k1 + 1) / (stems[term] + k1 * (1 - b + b * len(stems) / average))
                for term in sorted(found)
            )
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def idf(memories: Mapping[UUID, Stems], term: str) -> float:
    """Returns the inverse document frequency of a stem."""
    frequency = sum(term in stems for stems in memories.values())
    return math.log(1 + (len(memories) - frequency + 0.5) / (frequency + 0.5))
