"""Policies for duplicates: what is stored, what becomes of the duplicate, and what the caller is told."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import numpy as np
import pytest

from db import delete, duplicate_lookup
from db.connection import Connection
from db.duplicate_decisions import InsertOutcome
from db.duplicates import Duplicate, Duplicates, Receipt
from db.errors import MemoryExists
from db.memory import NewMemory
from db.pool import Database
from db.vectors import normalize
from tests.fix_database import NewDatabase
from tests.storage.conftest import OpenDatabase
from tests.storage.duplicate_model import cosine
from tests.storage.sample_duplicates import POLICIES, REINFORCE, SKIP, SUPERSEDE, at, bring, live_ids, near
from tests.storage.sample_memories import LATER, NOW, PURGE_AT, new_memory, read, rows, soft_delete, store


def stored(database: Database, user_id: str, **fields: object) -> NewMemory:
    memory = new_memory(**fields)
    store(database, user_id, memory)
    return memory


def superseded_by(database: Database, user_id: str, memory_id: UUID) -> UUID | None:
    [[successor]] = rows(
        database, b"SELECT superseded_by FROM memory_entries WHERE user_id = %s AND id = %s", [user_id, memory_id]
    )
    found: UUID | None = successor
    return found


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy.value)
def test_what_is_new_is_stored(database: Database, user_id: str, policy: Duplicates) -> None:
    old = stored(database, user_id, content="old")
    new = new_memory(content="new", conversation_id="c", importance=7)
    [receipt] = bring(database, user_id, policy, new)
    assert receipt == Receipt(
        outcome=InsertOutcome.STORED,
        id=new.id,
        etag=read(database, user_id, new.id).etag,
        created_at=NOW,
        duplicate=None,
    )
    assert live_ids(database, user_id) == {old.id, new.id}
    assert read(database, user_id, new.id).conversation_id == "c"


def test_a_new_user_is_made(database: Database, user_id: str) -> None:
    memories = [new_memory(content=str(number), conversation_id=str(number % 2)) for number in range(4)]
    assert [receipt.id for receipt in bring(database, user_id, SKIP, *memories)] == [one.id for one in memories]
    assert len(live_ids(database, user_id)) == 4


def test_skip_stores_nothing_and_leaves_the_duplicate_alone(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="same", importance=3)
    before = read(database, user_id, old.id)
    [receipt] = bring(database, user_id, SKIP, new_memory(content="same", importance=9, conversation_id="new"))
    assert receipt == Receipt(
        outcome=InsertOutcome.SKIPPED,
        id=old.id,
        etag=before.etag,
        created_at=NOW,
        duplicate=Duplicate(old.id, 1.0, same_content=True),
    )
    assert live_ids(database, user_id) == {old.id}
    assert replace(read(database, user_id, old.id), embedding=before.embedding) == before
    assert rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id]) == []


@pytest.mark.parametrize(("new_importance", "changes"), [(9, True), (5, False), (3, False)])
def test_reinforce_counts_an_access_and_raises_importance(
    database: Database, user_id: str, new_importance: int, *, changes: bool
) -> None:
    old = stored(database, user_id, content="same", importance=5)
    before = read(database, user_id, old.id)
    [receipt] = bring(database, user_id, REINFORCE, new_memory(content="same", importance=new_importance))
    after = read(database, user_id, old.id)
    assert (after.access_count, after.last_accessed_at) == (1, LATER)
    assert after.importance == max(5, new_importance)
    assert (after.version, after.updated_at) == ((2, LATER) if changes else (1, NOW))
    assert (receipt.outcome, receipt.id, receipt.etag) == (InsertOutcome.REINFORCED, old.id, after.etag)
    assert (after.etag == before.etag) is not changes
    assert live_ids(database, user_id) == {old.id}

    bring(database, user_id, REINFORCE, new_memory(content="same"))
    assert read(database, user_id, old.id).access_count == 2


def test_supersede_stores_the_new_one_and_soft_deletes_the_old(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="same")
    new = new_memory(content="same", importance=2)
    [receipt] = bring(database, user_id, SUPERSEDE, new)
    assert receipt == Receipt(
        outcome=InsertOutcome.SUPERSEDED,
        id=new.id,
        etag=read(database, user_id, new.id).etag,
        created_at=NOW,
        duplicate=Duplicate(old.id, 1.0, same_content=True),
    )
    assert live_ids(database, user_id) == {new.id}
    gone = read(database, user_id, old.id)
    assert (gone.deleted_at, gone.purge_at, gone.updated_at, gone.version) == (LATER, PURGE_AT, LATER, 2)
    assert superseded_by(database, user_id, old.id) == new.id


def test_restoring_a_superseded_memory_clears_its_successor(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="same")
    [receipt] = bring(database, user_id, SUPERSEDE, new_memory(content="same"))
    restored = database.write(
        database.call(), lambda conn: delete.restore(conn, user_id, old.id, etag="", now=LATER), user_id=user_id
    )
    assert restored.superseded_by is None
    assert superseded_by(database, user_id, old.id) is None
    assert live_ids(database, user_id) == {old.id, receipt.id}


def test_of_several_the_oldest_is_met_and_supersede_replaces_all(database: Database, user_id: str) -> None:
    ids = sorted(uuid4() for _ in range(2))
    newer = stored(database, user_id, content="same", created_at=NOW + timedelta(seconds=1))
    store(database, user_id, *[new_memory(id=one, content="same") for one in reversed(ids)])
    other = stored(database, user_id, content="other")
    assert [receipt.id for receipt in bring(database, user_id, SKIP, new_memory(content="same"))] == [ids[0]]
    assert [receipt.id for receipt in bring(database, user_id, REINFORCE, new_memory(content="same"))] == [ids[0]]
    new = new_memory(content="same")
    [receipt] = bring(database, user_id, SUPERSEDE, new)
    assert receipt.duplicate == Duplicate(ids[0], 1.0, same_content=True)
    assert live_ids(database, user_id) == {new.id, other.id}
    assert {superseded_by(database, user_id, one) for one in [*ids, newer.id]} == {new.id}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy.value)
def test_what_is_no_duplicate(database: Database, user_id: str, policy: Duplicates) -> None:
    """Nothing, other texts, those deleted, and those of others."""
    stored(database, user_id, content="")
    stored(database, user_id, content="Same")
    stored(database, user_id, content="same ")
    deleted = stored(database, user_id, content="same")
    soft_delete(database, user_id, deleted.id)
    stored(database, f"{user_id}-2", content="same")
    memories = [new_memory(content="same"), new_memory(content=""), new_memory(content="")]
    receipts = bring(database, user_id, policy, *memories)
    assert [receipt.outcome for receipt in receipts] == [InsertOutcome.STORED] * 3
    assert len(live_ids(database, user_id)) == 6
    assert len(live_ids(database, f"{user_id}-2")) == 1


def test_contents_are_compared_not_only_hashes(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="one")

    def pretend(conn: Connection) -> list[tuple[object, ...]]:
        """Finds rows whose hash is the content's, whatever their content, as a collision would let it."""
        statement = duplicate_lookup.SAME_CONTENT.replace("hashtextextended(given.content, 0)", "content_hash")
        parameters = {"user_id": user_id, "contents": ["two", "one"], "limit": None}
        return conn.query(statement.encode(), parameters).fetchall()

    assert [(row[0], row[1]) for row in database.read(database.call(), pretend, user_id=user_id)] == [(2, old.id)]


@pytest.mark.parametrize(
    ("degrees", "min_similarity", "expected"),
    [
        (20, 0.9, InsertOutcome.SKIPPED),
        (30, 0.9, InsertOutcome.STORED),
        (0, 1.0, InsertOutcome.SKIPPED),
        (2, 1.0, InsertOutcome.STORED),
        (89, 0.01, InsertOutcome.SKIPPED),
        (91, 0.01, InsertOutcome.STORED),
    ],
)
@pytest.mark.parametrize("in_batch", [False, True])
def test_from_which_similarity_on(
    database: Database,
    user_id: str,
    degrees: float,
    min_similarity: float,
    expected: InsertOutcome,
    *,
    in_batch: bool,
) -> None:
    old, new = new_memory(content="old", embedding=at(0)), new_memory(content="new", embedding=at(degrees))
    policy = near(SKIP, min_similarity)
    if in_batch:
        receipt = bring(database, user_id, policy, old, new)[1]
    else:
        store(database, user_id, old)
        [receipt] = bring(database, user_id, policy, new)
    assert receipt.outcome is expected
    if expected is InsertOutcome.SKIPPED:
        assert receipt.duplicate is not None
        assert (receipt.id, receipt.duplicate.id, receipt.duplicate.same_content) == (old.id, old.id, False)
        assert receipt.duplicate.similarity == pytest.approx(cosine(old, new), abs=1e-6)


@pytest.mark.parametrize("in_batch", [False, True])
def test_the_nearest_is_met(database: Database, user_id: str, *, in_batch: bool) -> None:
    embeddings = [at(degrees) for degrees in (0, 35, 70, 105)]
    memories = [new_memory(content=str(number), embedding=one) for number, one in enumerate(embeddings)]
    new = new_memory(content="new", embedding=at(60))
    if in_batch:
        receipt = bring(database, user_id, near(SKIP), *memories, new)[-1]
    else:
        store(database, user_id, *memories)
        [receipt] = bring(database, user_id, near(SKIP), new)
    assert receipt.id == memories[2].id


def test_the_same_content_wins_over_a_nearer_one(database: Database, user_id: str) -> None:
    same = stored(database, user_id, content="same", embedding=at(80))
    stored(database, user_id, content="near", embedding=at(0))
    [receipt] = bring(database, user_id, near(SKIP), new_memory(content="same", embedding=at(0)))
    assert receipt.duplicate == Duplicate(same.id, 1.0, same_content=True)


def test_memories_without_content_may_be_near(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="", embedding=at(0))
    [receipt] = bring(database, user_id, near(SKIP), new_memory(content="", embedding=at(1)))
    assert (receipt.outcome, receipt.id) == (InsertOutcome.SKIPPED, old.id)


def test_supersede_of_near_ones_takes_the_nearest_alone(database: Database, user_id: str) -> None:
    nearest = stored(database, user_id, content="nearest", embedding=at(5))
    nearby = stored(database, user_id, content="nearby", embedding=at(-10))
    new = new_memory(content="new", embedding=at(0))
    [receipt] = bring(database, user_id, near(SUPERSEDE), new)
    assert receipt.outcome is InsertOutcome.SUPERSEDED
    assert live_ids(database, user_id) == {nearby.id, new.id}
    assert superseded_by(database, user_id, nearest.id) == new.id


def test_memories_that_wait_for_their_embedding_have_no_near_ones(database: Database, user_id: str) -> None:
    old = stored(database, user_id, content="same", embedding=None)
    receipts = bring(
        database, user_id, near(SKIP), new_memory(content="other"), new_memory(content="same", embedding=at(90))
    )
    assert [receipt.outcome for receipt in receipts] == [InsertOutcome.STORED, InsertOutcome.SKIPPED]
    assert receipts[1].id == old.id


@pytest.mark.parametrize("dimensions", [800, 3_000])
def test_near_ones_of_many_dimensions_are_found_exactly(
    new_database: NewDatabase, open_database: OpenDatabase, user_id: str, dimensions: int
) -> None:
    database = open_database(new_database(dimensions=dimensions))
    random = np.random.default_rng(7)
    centre = random.normal(size=dimensions)
    # By their signs alone these are hard to tell apart.
    embeddings = [normalize(centre + 0.3 * random.normal(size=dimensions)) for _ in range(300)]
    memories = [new_memory(content=str(number), embedding=one) for number, one in enumerate(embeddings)]
    store(database, user_id, *memories)
    new = new_memory(content="new", embedding=normalize(centre))
    [receipt] = bring(database, user_id, near(SKIP, 0.5), new)
    best = max(memories, key=lambda memory: cosine(memory, new))
    assert receipt.duplicate is not None
    assert (receipt.id, receipt.duplicate.id) == (best.id, best.id)
    assert receipt.duplicate.similarity == pytest.approx(cosine(best, new), abs=1e-5)


def test_the_same_content_is_found_by_its_index(database: Database, user_id: str) -> None:
    store(database, user_id, *[new_memory(content=f"content {number}") for number in range(2_000)])

    def plan(conn: Connection) -> str:
        conn.execute("ANALYZE memory_entries")
        with conn.transaction():
            conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
            conn.execute(b"PREPARE same (text[], text, bigint) AS " + statement)
            lines = conn.execute("EXPLAIN EXECUTE same (ARRAY['content 7'], 'nobody', 1)").fetchall()
            conn.execute("DEALLOCATE same")
        return "\n".join(row[0] for row in lines)

    names = {"contents": "$1", "user_id": "$2", "limit": "$3"}
    statement = (duplicate_lookup.SAME_CONTENT % names).encode()
    assert "Index Scan using memory_entries_content" in database.write(database.call(), plan, user_id=user_id)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy.value)
@pytest.mark.parametrize("deleted", [False, True])
def test_a_taken_id_comes_before_duplicates(
    database: Database, user_id: str, policy: Duplicates, *, deleted: bool
) -> None:
    taken = stored(database, user_id, content="same")
    other = stored(database, user_id, content="same")
    if deleted:
        soft_delete(database, user_id, taken.id)
    before = live_ids(database, user_id)
    with pytest.raises(MemoryExists, match=str(taken.id)):
        bring(database, user_id, policy, new_memory(id=taken.id, content="same"))
    batch = [new_memory(content="new"), new_memory(content="same"), new_memory(id=taken.id, content="same")]
    with pytest.raises(MemoryExists) as caught:
        bring(database, user_id, policy, *batch)
    assert caught.value.index == 2
    assert live_ids(database, user_id) == before
    assert read(database, user_id, other.id).access_count == 0
