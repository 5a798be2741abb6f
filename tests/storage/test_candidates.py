"""What ranking knows of memories, who stands beside them, and reading those that were chosen."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from db import candidates, delete, fetch, surroundings
from db.access import Accesses, write_accesses
from db.candidates import Features, Neighbours
from db.errors import ReplyTooLarge
from db.filters import Filter
from db.memory import Memory, View
from db.pool import Database
from db.surroundings import Surroundings
from db.vectors import Embedding, normalize
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, random_vector, read, store, stored, unit

EVERYTHING = Filter()


def features(
    database: Database,
    user_id: str,
    *ids: UUID,
    near: Embedding | None = None,
    embeddings: bool = False,
    **conditions: Any,
) -> dict[UUID, Features]:
    return database.read(
        database.call(),
        lambda conn: candidates.features(
            conn, user_id, ids, filter=Filter(**conditions), near=near, embeddings=embeddings
        ),
        user_id=user_id,
    )


def neighbours(database: Database, user_id: str, *ids: UUID) -> dict[UUID, Neighbours]:
    return database.read(database.call(), lambda conn: candidates.neighbours(conn, user_id, ids), user_id=user_id)


def around(
    database: Database,
    user_id: str,
    *ids: UUID,
    reach: int = 2,
    view: View = View.BASIC,
    max_text_bytes: int = 1_000_000,
) -> dict[UUID, Surroundings]:
    return database.read(
        database.call(),
        lambda conn: surroundings.around(conn, user_id, ids, reach=reach, view=view, max_text_bytes=max_text_bytes),
        user_id=user_id,
    )


def chosen(
    database: Database,
    user_id: str,
    *ids: UUID,
    view: View = View.BASIC,
    max_text_bytes: int = 1_000_000,
    **conditions: Any,
) -> dict[UUID, Memory]:
    return database.read(
        database.call(),
        lambda conn: fetch.fetch_chosen(
            conn, user_id, ids, filter=Filter(**conditions), view=view, max_text_bytes=max_text_bytes
        ),
        user_id=user_id,
    )


def soft_delete(database: Database, user_id: str, memory_id: UUID) -> None:
    database.write(
        database.call(),
        lambda conn: delete.soft_delete(conn, user_id, memory_id, etag="", now=LATER, purge_at=PURGE_AT),
        user_id=user_id,
    )


def converse(database: Database, user_id: str, count: int, conversation_id: str = "c") -> list[UUID]:
    """Stores a conversation, a second between its memories; returns their ids, oldest first."""
    memories = [
        new_memory(conversation_id=conversation_id, content=f"{number}", created_at=NOW + timedelta(seconds=number))
        for number in range(count)
    ]
    # Their order is that of their times, not of their storage or their ids.
    store(database, user_id, *reversed(memories))
    return [memory.id for memory in memories]


def test_features(database: Database, user_id: str) -> None:
    vector = normalize(random_vector(3))
    memory = new_memory(conversation_id="c", importance=9, embedding=vector, created_at=NOW - timedelta(days=1))
    store(database, user_id, memory)
    known = Features(
        id=memory.id,
        conversation_id="c",
        importance=9,
        created_at=memory.created_at,
        updated_at=NOW,
        access_count=0,
        last_accessed_at=None,
    )
    assert features(database, user_id, memory.id) == {memory.id: known}

    database.write(
        database.call(),
        lambda conn: write_accesses(conn, [((user_id, memory.id.int), Accesses(3, LATER))]),
        user_id=user_id,
    )
    found = features(database, user_id, memory.id, near=vector, embeddings=True)[memory.id]
    assert (found.access_count, found.last_accessed_at) == (3, LATER)
    assert found.cosine == pytest.approx(1.0, abs=1e-3)
    assert found.embedding is not None
    assert np.array_equal(found.embedding.unit, vector.unit)


def test_the_cosine_is_that_of_the_dense_plans(database: Database, user_id: str) -> None:
    memories = [new_memory(embedding=normalize(random_vector(seed))) for seed in range(5)]
    store(database, user_id, *memories)
    query = normalize(random_vector(99))
    found = features(database, user_id, *(memory.id for memory in memories), near=query)
    for memory in memories:
        assert memory.embedding is not None
        expected = float(memory.embedding.unit.astype(np.float64) @ query.unit.astype(np.float64))
        assert found[memory.id].cosine == pytest.approx(expected, abs=2e-3)


def test_a_memory_without_embedding_has_no_cosine(database: Database, user_id: str) -> None:
    waiting = stored(database, user_id, embedding=None)
    found = features(database, user_id, waiting, near=unit(), embeddings=True)[waiting]
    assert (found.cosine, found.embedding) == (None, None)


def test_features_of_nobody_else_s_memories(database: Database, user_id: str) -> None:
    other = f"other-{uuid4().hex}"
    hidden = stored(database, other)
    assert features(database, user_id, hidden, uuid4()) == {}
    assert chosen(database, user_id, hidden, uuid4()) == {}
    assert features(database, user_id) == {}


def test_what_fails_the_filter_meanwhile_is_left_out(database: Database, user_id: str) -> None:
    passing = stored(database, user_id, importance=9, metadata={"a": 1})
    failing = stored(database, user_id, importance=1, metadata={"a": 1})
    deleted = stored(database, user_id, importance=9, metadata={"a": 1})
    soft_delete(database, user_id, deleted)
    conditions: dict[str, Any] = {"min_importance": 5, "metadata_contains": {"a": 1}}
    ids = (passing, failing, deleted)
    assert features(database, user_id, *ids, **conditions).keys() == {passing}
    assert chosen(database, user_id, *ids, **conditions).keys() == {passing}


def test_chosen_memories_are_read_in_every_view(database: Database, user_id: str) -> None:
    ids = [stored(database, user_id, content=f"text {number}", metadata={"n": number}) for number in range(3)]
    for view in View:
        found = chosen(database, user_id, *ids, view=view)
        for memory_id in ids:
            assert comparable(found[memory_id]) == comparable(read(database, user_id, memory_id, view=view))


def comparable(memory: Memory) -> tuple[Any, ...]:
    """Returns a memory as what compares by value."""
    vector = None if memory.embedding is None else memory.embedding.unit.tobytes()
    return (memory.id, memory.content, memory.summary, memory.metadata, memory.etag, memory.language, vector)


def test_texts_that_exceed_the_reply_are_not_read(database: Database, user_id: str) -> None:
    ids = [stored(database, user_id, content="x" * 100, conversation_id="c") for _ in range(3)]
    with pytest.raises(ReplyTooLarge, match="3 results take"):
        chosen(database, user_id, *ids, max_text_bytes=250)
    assert len(chosen(database, user_id, *ids, view=View.HEAD, max_text_bytes=1)) == 3
    with pytest.raises(ReplyTooLarge):
        around(database, user_id, *ids, max_text_bytes=250)
    assert around(database, user_id, *ids, view=View.HEAD, max_text_bytes=1).keys() == set(ids)


def test_neighbours_stand_in_the_order_of_time(database: Database, user_id: str) -> None:
    ids = converse(database, user_id, 6)
    converse(database, user_id, 6, "another")
    alone = stored(database, user_id)
    found = neighbours(database, user_id, ids[0], ids[3], alone)
    assert found[ids[0]] == Neighbours((), (ids[1], ids[2]))
    assert found[ids[3]] == Neighbours((ids[2], ids[1]), (ids[4], ids[5]))
    assert found[alone] == Neighbours((), ())


def test_neighbours_of_the_same_time_stand_in_the_order_of_their_ids(database: Database, user_id: str) -> None:
    ids = sorted(stored(database, user_id, conversation_id="c") for _ in range(3))
    found = neighbours(database, user_id, *ids)
    assert found[ids[1]] == Neighbours((ids[0],), (ids[2],))


def test_deleted_memories_are_nobody_s_neighbours(database: Database, user_id: str) -> None:
    ids = converse(database, user_id, 4)
    soft_delete(database, user_id, ids[1])
    found = neighbours(database, user_id, ids[0], ids[1])
    assert found == {ids[0]: Neighbours((), (ids[2], ids[3]))}
    assert [memory.id for memory in around(database, user_id, ids[2])[ids[2]].before] == [ids[0]]


def test_another_user_s_conversation_of_the_same_name(database: Database, user_id: str) -> None:
    ids = converse(database, user_id, 1)
    other = f"other-{uuid4().hex}"
    theirs = converse(database, other, 5)
    assert neighbours(database, user_id, ids[0], *theirs) == {ids[0]: Neighbours((), ())}
    found = around(database, user_id, ids[0], *theirs)
    assert all(not one.before and not one.after for one in found.values())


def test_surroundings_are_told_oldest_first(database: Database, user_id: str) -> None:
    ids = converse(database, user_id, 8)
    found = around(database, user_id, ids[4], ids[0], reach=3)
    assert [memory.id for memory in found[ids[4]].before] == ids[1:4]
    assert [memory.id for memory in found[ids[4]].after] == ids[5:8]
    assert [memory.content for memory in found[ids[0]].after] == ["1", "2", "3"]
    assert found[ids[0]].before == []


def test_surroundings_without_a_conversation(database: Database, user_id: str) -> None:
    alone = stored(database, user_id)
    stored(database, user_id)
    assert around(database, user_id, alone) == {alone: Surroundings([], [])}
    assert around(database, user_id) == {}
