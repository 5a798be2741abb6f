"""Policies for duplicates, memory after memory: within a batch, and over many of them against a model."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import duplicate_lookup
from db.duplicate_decisions import InsertOutcome
from db.duplicates import Duplicates
from db.memory import Memory
from db.pool import Database
from db.vectors import normalize
from tests.storage.duplicate_model import Model
from tests.storage.sample_duplicates import POLICIES, REINFORCE, SKIP, SUPERSEDE, at, bring, live_ids, near
from tests.storage.sample_memories import DIMENSIONS, LATER, NOW, new_memory, read, rows, soft_delete, store


@pytest.fixture(scope="module", params=[1, 1_000_000], ids=["scanned", "searched"], autouse=True)
def comparing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both ways to compare embeddings: all together, and one by one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicate_lookup, "SCANNED_FROM", request.param)
        yield


def test_an_earlier_memory_of_the_batch_counts_as_stored(database: Database, user_id: str) -> None:
    memories = [new_memory(content=content) for content in ("a", "b", "a", "", "", "b", "a")]
    receipts = bring(database, user_id, SKIP, *memories)
    kept = [memories[index].id for index in (0, 1, 0, 3, 4, 1, 0)]
    assert [receipt.id for receipt in receipts] == kept
    assert [receipt.outcome is InsertOutcome.STORED for receipt in receipts] == [
        True,
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert live_ids(database, user_id) == set(kept)


def test_a_batch_may_reinforce_its_own_memories(database: Database, user_id: str) -> None:
    memories = [new_memory(content="a", importance=importance) for importance in (3, 9, 6)]
    receipts = bring(database, user_id, REINFORCE, *memories)
    [kept] = live_ids(database, user_id)
    after = read(database, user_id, kept)
    assert (after.id, after.importance, after.access_count, after.version) == (memories[0].id, 9, 2, 2)
    assert {receipt.etag for receipt in receipts} == {after.etag}


def test_a_batch_may_supersede_its_own_memories(database: Database, user_id: str) -> None:
    memories = [new_memory(content="a") for _ in range(3)]
    receipts = bring(database, user_id, SUPERSEDE, *memories)
    assert [receipt.id for receipt in receipts] == [memory.id for memory in memories]
    assert live_ids(database, user_id) == {memories[2].id}
    for memory, receipt in zip(memories, receipts, strict=True):
        assert receipt.etag == read(database, user_id, memory.id).etag
    met = [receipt.duplicate.id for receipt in receipts if receipt.duplicate is not None]
    assert met == [memories[0].id, memories[1].id]


def test_superseded_memories_are_not_met_again(database: Database, user_id: str) -> None:
    old = [new_memory(content=f"old {degrees}", embedding=at(degrees)) for degrees in (0, 1, 2)]
    store(database, user_id, *old)
    # Each lies near the old ones and far from one another: it takes the nearest that is left.
    new = [
        new_memory(content="first", embedding=at(-20)),
        new_memory(content="second", embedding=at(24)),
        new_memory(content="old 1", embedding=at(180)),
    ]
    receipts = bring(database, user_id, near(SUPERSEDE), *new)
    met = [receipt.duplicate.id for receipt in receipts if receipt.duplicate is not None]
    assert met == [old[0].id, old[2].id, old[1].id]
    assert live_ids(database, user_id) == {memory.id for memory in new}


def test_a_batch_may_supersede_all_that_are_near_to_each_of_it(database: Database, user_id: str) -> None:
    old = [new_memory(content=f"old {number}", embedding=at(number / 10)) for number in range(14)]
    store(database, user_id, *old)
    # 25 degrees from the old ones, each in a direction of its own: 34 degrees or more from one another.
    cos, sin = np.cos(np.radians(25)), np.sin(np.radians(25))
    directions = [sign * np.eye(DIMENSIONS)[axis] for axis in range(1, DIMENSIONS) for sign in (1, -1)]
    embeddings = [normalize(cos * np.eye(DIMENSIONS)[0] + sin * direction) for direction in directions]
    new = [new_memory(content=f"new {number}", embedding=one) for number, one in enumerate(embeddings)]
    receipts = bring(database, user_id, near(SUPERSEDE, 0.88), *new)
    assert {receipt.outcome for receipt in receipts} == {InsertOutcome.SUPERSEDED}
    met = [receipt.duplicate.id for receipt in receipts if receipt.duplicate is not None]
    assert sorted(met) == sorted(memory.id for memory in old)
    assert live_ids(database, user_id) == {memory.id for memory in new}


@pytest.mark.parametrize("min_similarity", [None, 1.0])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.policy.value)
def test_a_large_batch_of_duplicates(
    database: Database, user_id: str, policy: Duplicates, min_similarity: float | None
) -> None:
    old = [new_memory(content=f"content {number}", embedding=at(number / 2)) for number in range(300)]
    store(database, user_id, *old)
    new = [new_memory(content=f"content {number}", embedding=at(number / 2)) for number in range(200, 500)]
    receipts = bring(database, user_id, near(policy, min_similarity), *reversed(new))
    assert sum(receipt.outcome is InsertOutcome.STORED for receipt in receipts) == 200
    assert len(live_ids(database, user_id)) == 500


THRESHOLDS = (None, 0.7, 0.85, 0.95)

MEMORIES = st.fixed_dictionaries(
    {
        "content": st.sampled_from(["", "a", "b", "c", "d"]),
        "importance": st.integers(1, 10),
        "age": st.integers(0, 2),
    }
)
STEPS = st.one_of(
    st.tuples(
        st.sampled_from([None, *POLICIES]), st.sampled_from(THRESHOLDS), st.lists(MEMORIES, min_size=1, max_size=10)
    ),
    st.tuples(st.just("delete"), st.integers(0, 5)),
)


@given(steps=st.lists(STEPS, min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_whatever_comes_is_decided_as_the_model_does(database: Database, steps: list[Any], seed: int) -> None:
    user_id, model, random = str(uuid4()), Model(), np.random.default_rng(seed)
    # No two of them are as near to a third as float32 could take for the same.
    angles = iter(random.permutation(60) * 2.9 + random.random(60))
    for step in steps:
        if step[0] == "delete":
            if live := model.live():
                gone = live[step[1] % len(live)]
                soft_delete(database, user_id, gone.new.id)
                gone.live, gone.version = False, gone.version + 1
            continue
        policy, threshold, drawn = step
        memories = [
            new_memory(
                id=UUID(bytes=random.bytes(16)),
                content=one["content"],
                embedding=at(next(angles)),
                importance=one["importance"],
                created_at=NOW - timedelta(days=one["age"]),
            )
            for one in drawn
        ]
        if policy is None:
            store(database, user_id, *memories)
            model.allow(memories)
            continue
        duplicates = near(policy, threshold)
        expected = [model.store(memory, duplicates) for memory in memories]
        receipts = bring(database, user_id, duplicates, *memories)
        assert [
            (
                receipt.outcome,
                receipt.id,
                receipt.duplicate and receipt.duplicate.id,
                receipt.duplicate is not None and receipt.duplicate.same_content,
            )
            for receipt in receipts
        ] == expected
        for receipt in receipts:
            assert receipt.etag == read(database, user_id, receipt.id).etag
    check(database, user_id, model)


def check(database: Database, user_id: str, model: Model) -> None:
    """Compares what is stored with the model."""
    statement = b"SELECT id, superseded_by FROM memory_entries WHERE user_id = %s"
    successors = dict(rows(database, statement, [user_id]))
    assert successors == {memory_id: memory.superseded_by for memory_id, memory in model.memories.items()}
    for memory_id, expected in model.memories.items():
        found: Memory = read(database, user_id, memory_id)
        assert (found.deleted_at is None, found.importance) == (expected.live, expected.importance)
        assert found.access_count == expected.accesses
        assert found.last_accessed_at == (LATER if expected.accesses else None)
