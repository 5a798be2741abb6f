"""Changing a memory: which fields, under which etag, and who wins."""

from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import update
from db.connection import Connection
from db.errors import Conflict, EtagMismatch, InvalidValue, MemoryDeleted, MemoryNotFound
from db.memory import Memory, Metadata
from db.pool import Database
from db.update import Changes, merge_patch
from db.vectors import normalize
from tests.storage.concurrency import at_once
from tests.storage.sample_memories import (
    LATER,
    NOW,
    embedding_of,
    hard_delete,
    new_memory,
    random_vector,
    read,
    rows,
    soft_delete,
    store,
    stored,
)


def accept(_: Metadata) -> None:
    """Finds any metadata small enough."""


def apply(
    database: Database, user_id: str, memory_id: UUID, *, etag: str = "", now: datetime = LATER, **changes: Any
) -> Memory:
    def change(conn: Connection) -> Memory:
        return update.update(conn, user_id, memory_id, Changes(**changes), etag=etag, now=now, check_metadata=accept)

    return database.write(database.call(), change, user_id=user_id)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"content": "new"}, {"content": "new"}),
        ({"content": ""}, {"content": ""}),
        ({"summary": "new"}, {"summary": "new"}),
        ({"importance": 9}, {"importance": 9}),
        ({"conversation_id": "c-2"}, {"conversation_id": "c-2"}),
        ({"conversation_id": None}, {"conversation_id": None}),
        ({"metadata": {"a": None, "b": {"c": 2}}}, {"metadata": {"b": {"c": 2}, "k": [1]}}),
        ({"metadata": {"b": 1}, "merge_metadata": False}, {"metadata": {"b": 1}}),
        ({"metadata": {}, "merge_metadata": False}, {"metadata": {}}),
        ({"metadata": {}}, {}),
        ({}, {}),
    ],
    ids=str,
)
def test_named_fields_change_and_the_others_stay(
    database: Database, user_id: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = new_memory(content="old", summary="old", metadata={"a": 1, "k": [1]}, conversation_id="c-1", importance=2)
    store(database, user_id, before)
    returned = apply(database, user_id, before.id, **changes)
    found = read(database, user_id, before.id)
    for name in ("content", "summary", "metadata", "importance", "conversation_id"):
        assert getattr(found, name) == expected.get(name, getattr(before, name))
        assert getattr(returned, name) == getattr(found, name)
    assert (found.version, found.created_at, found.updated_at) == (2, NOW, LATER)
    assert returned.etag == found.etag
    assert found.embedding is not None
    assert found.embedding.unit.tolist() == embedding_of(before).unit.tolist()
    assert found.embedding_model == "test-model"


def test_embedding_changes_with_its_norm_and_model(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    embedding = normalize(random_vector(5))
    returned = apply(database, user_id, memory_id, embedding=embedding, embedding_model="other", content="new")
    found = read(database, user_id, memory_id)
    assert found.embedding is not None
    assert found.embedding.unit.tolist() == embedding.unit.tolist()
    assert found.embedding.norm == embedding.norm
    assert (found.embedding_model, found.content) == ("other", "new")
    assert returned.embedding is None
    assert returned.embedding_model == "other"


def test_memories_that_cannot_be_changed(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, content="old")
    with pytest.raises(MemoryNotFound):
        apply(database, user_id + "2", memory_id, content="new")
    with pytest.raises(MemoryNotFound):
        apply(database, user_id, uuid4(), content="new")
    soft_delete(database, user_id, memory_id)
    with pytest.raises(MemoryDeleted, match="restore it first"):
        apply(database, user_id, memory_id, content="new")
    assert read(database, user_id, memory_id).content == "old"


def test_etag_of_an_earlier_version_is_refused(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id)
    first = read(database, user_id, memory_id).etag
    second = apply(database, user_id, memory_id, etag=first, content="second").etag
    with pytest.raises(EtagMismatch, match=f"its etag is now {second}$"):
        apply(database, user_id, memory_id, etag=first, content="third")
    assert apply(database, user_id, memory_id, etag=second, content="third").version == 3


def test_etag_does_not_outlive_its_memory(database: Database, user_id: str) -> None:
    memory = new_memory()
    store(database, user_id, memory)
    old = read(database, user_id, memory.id).etag
    hard_delete(database, user_id, memory.id)
    store(database, user_id, memory, now=LATER)
    with pytest.raises(EtagMismatch):
        apply(database, user_id, memory.id, etag=old, content="new")


def test_one_of_concurrent_updates_with_the_same_etag_wins(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, metadata={})
    etag = read(database, user_id, memory_id).etag
    ends = at_once([partial(apply, database, user_id, memory_id, etag=etag, metadata={str(i): i}) for i in range(8)])
    winners = [end.result() for end in ends if end.exception() is None]
    assert {type(end.exception()) for end in ends} == {type(None), EtagMismatch}
    assert len(winners) == 1
    found = read(database, user_id, memory_id)
    assert (found.version, found.metadata) == (2, winners[0].metadata)


def test_concurrent_merges_without_etag_lose_nothing(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, metadata={"kept": True})
    for end in at_once([partial(apply, database, user_id, memory_id, metadata={str(i): i}) for i in range(8)]):
        end.result()
    found = read(database, user_id, memory_id)
    assert found.metadata == {"kept": True} | {str(i): i for i in range(8)}
    assert found.version == 9


def test_refused_metadata_writes_nothing(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, metadata={"a": 1})
    seen: list[Metadata] = []

    def refuse(metadata: Metadata) -> None:
        seen.append(metadata)
        raise ValueError("too large")

    def change(conn: Connection) -> Memory:
        changes = Changes(metadata={"b": 2}, content="new", conversation_id="c-new")
        return update.update(conn, user_id, memory_id, changes, etag="", now=LATER, check_metadata=refuse)

    with pytest.raises(ValueError, match="too large"):
        database.write(database.call(), change, user_id=user_id)
    assert seen == [{"a": 1, "b": 2}]
    found = read(database, user_id, memory_id)
    assert (found.version, found.metadata) == (1, {"a": 1})
    assert rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id]) == []


@pytest.mark.parametrize("wrong", [{"content": "\0"}, {"metadata": {"a": "\0"}}, {"importance": 0}], ids=str)
def test_refused_value_writes_nothing(database: Database, user_id: str, wrong: dict[str, Any]) -> None:
    memory_id = stored(database, user_id)
    with pytest.raises(InvalidValue):
        apply(database, user_id, memory_id, conversation_id="c-new", **wrong)
    assert read(database, user_id, memory_id).version == 1
    assert rows(database, b"SELECT FROM conversations WHERE user_id = %s", [user_id]) == []


def test_embedding_of_content_that_has_changed_is_refused(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, content="now")
    embedding = normalize(random_vector(6))
    with pytest.raises(Conflict, match="changed meanwhile"):
        apply(database, user_id, memory_id, embedding=embedding, expected_content="then")
    assert read(database, user_id, memory_id).version == 1
    apply(database, user_id, memory_id, embedding=embedding, expected_content="now")
    assert read(database, user_id, memory_id).version == 2


# RFC 7396, appendix A: original, patch, result.
APPENDIX = [
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
]


@pytest.mark.parametrize(("original", "patch", "result"), APPENDIX, ids=str)
def test_merge_patch_follows_the_rfc(original: Any, patch: Any, result: Any) -> None:
    # Metadata is an object always; whatever else the appendix patches can be the value of a key.
    assert merge_patch({"k": original}, {"k": patch}) == ({} if patch is None else {"k": result})
    if isinstance(original, dict) and isinstance(patch, dict):
        assert merge_patch(original, patch) == result


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.sampled_from("abc"), json_values, max_size=3)


def patched(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, line by line."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            if name in target:
                target = {key: kept for key, kept in target.items() if key != name}
        else:
            target = {**target, name: patched(target.get(name), value)}
    return target


@given(objects, objects)
def test_merge_patch_is_the_rfc_s_procedure(target: Metadata, patch: Metadata) -> None:
    before = repr((target, patch))
    assert merge_patch(target, patch) == patched(target, patch)
    assert repr((target, patch)) == before
