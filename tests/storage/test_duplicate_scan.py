"""Comparing a batch with everything in one pass: the same as comparing pair by pair, whatever the size of a block."""

from uuid import UUID

import numpy as np
import pytest

from db import duplicate_scan
from db.pool import Database
from db.vectors import Embedding, normalize
from tests.storage.duplicate_model import cosine
from tests.storage.sample_memories import new_memory, random_vector, soft_delete, store


def scan(
    database: Database, user_id: str, embeddings: list[Embedding], *, min_similarity: float, limit: int
) -> list[list[duplicate_scan.Similar]]:
    return database.read(
        database.call(),
        lambda conn: duplicate_scan.scan(conn, user_id, embeddings, min_similarity=min_similarity, limit=limit),
        user_id=user_id,
    )


@pytest.mark.parametrize("block_numbers", [1, 8 * 7, 8 * 60, 4_000_000])
def test_blocks_of_any_size(
    database: Database, user_id: str, monkeypatch: pytest.MonkeyPatch, block_numbers: int
) -> None:
    monkeypatch.setattr(duplicate_scan, "BLOCK_NUMBERS", block_numbers)
    ids = [UUID(int=0), UUID(int=2**128 - 1), *[UUID(bytes=np.random.default_rng(n).bytes(16)) for n in range(58)]]
    old = [new_memory(id=one, embedding=normalize(random_vector(n))) for n, one in enumerate(ids)]
    store(database, user_id, *old)
    soft_delete(database, user_id, old[7].id)
    store(database, user_id, new_memory(embedding=None))
    new = [new_memory(embedding=normalize(random_vector(100 + n))) for n in range(9)]
    found = scan(database, user_id, [one.embedding for one in new if one.embedding], min_similarity=0.3, limit=3)
    live = old[:7] + old[8:]
    for memory, similar in zip(new, found, strict=True):
        expected = sorted((-cosine(memory, one), one.id) for one in live if cosine(memory, one) >= 0.3)
        assert [one for one, _ in similar] == [one for _, one in expected[:3]]
        assert [similarity for _, similarity in similar] == pytest.approx([-score for score, _ in expected[:3]])


def test_equal_embeddings_have_similarity_1_and_the_lowest_ids_come_first(database: Database, user_id: str) -> None:
    vectors = [random_vector(n, dimensions=8) for n in range(20)]
    old = [new_memory(embedding=normalize(vector)) for vector in vectors for _ in range(3)]
    store(database, user_id, *old)
    found = scan(database, user_id, [normalize(vector * 2) for vector in vectors], min_similarity=1.0, limit=2)
    for number, similar in enumerate(found):
        ids = sorted(memory.id for memory in old[3 * number : 3 * number + 3])
        assert similar == [(one, 1.0) for one in ids[:2]]


def test_a_user_without_memories_has_none_alike(database: Database, user_id: str) -> None:
    assert scan(database, user_id, [normalize(random_vector(1))], min_similarity=0.1, limit=1) == [[]]
