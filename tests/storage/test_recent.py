"""Listing by pages: all pages together are the whole list, whatever others do in between."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import recent
from db.filters import Filter
from db.memory import NewMemory, View
from db.pool import Database
from db.recent import Page, Position
from tests.storage import sample_filters
from tests.storage.brute_force import Row, passing
from tests.storage.sample_memories import NOW, hard_delete, new_memory, random_vector, read, soft_delete, store

UNLIMITED = 2**40


def page(database: Database, user_id: str, *, after: Position | None = None, **wanted: Any) -> Page:
    options: dict[str, Any] = {
        "filter": Filter(),
        "page_size": 3,
        "view": View.HEAD,
        "max_text_bytes": UNLIMITED,
        **wanted,
    }
    return database.read(
        database.call(), lambda conn: recent.recent(conn, user_id, after=after, **options), user_id=user_id
    )


def pages(database: Database, user_id: str, **wanted: Any) -> list[list[UUID]]:
    """Returns the ids on every page, from the first to the last."""
    found, after = [], None
    while True:
        one = page(database, user_id, after=after, **wanted)
        found.append([memory.id for memory in one.memories])
        assert {memory.user_id for memory in one.memories} <= {user_id}
        if one.end is None:
            return found
        assert one.memories, "a page without memories that is not the last"
        assert one.end != after, "paging does not advance"
        assert one.end == Position(one.memories[-1].created_at, one.memories[-1].id)
        after = one.end


def newest_first(memories: list[NewMemory]) -> list[UUID]:
    return [memory.id for memory in sorted(memories, key=lambda memory: (memory.created_at, memory.id), reverse=True)]


def flat(lists: list[list[UUID]]) -> list[UUID]:
    return [id_ for ids in lists for id_ in ids]


@st.composite
def histories(draw: st.DrawFn) -> tuple[str, list[Row]]:
    """A user, and memories of this and other users, many of the same moment and with the same ids."""
    owner = uuid4().hex
    owners = st.sets(st.sampled_from([owner, owner + "x", owner[:-1]]), min_size=1)
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 12))):
        memory = new_memory(
            conversation_id=draw(sample_filters.conversations),
            metadata=draw(sample_filters.metadata),
            importance=draw(sample_filters.importances),
            created_at=draw(sample_filters.moments),
        )
        deleted = draw(st.sampled_from([False, False, True]))
        rows.extend(Row(user_id, memory, random_vector(0), deleted) for user_id in sorted(draw(owners)))
    return owner, rows


@given(
    history=histories(),
    filters=st.lists(sample_filters.filters, min_size=3, max_size=3),
    page_size=st.integers(1, 13),
)
def test_pages_together_are_the_list(
    database: Database, history: tuple[str, list[Row]], filters: list[Filter], page_size: int
) -> None:
    user_id, rows = history
    for owner in {row.user_id for row in rows}:
        store(database, owner, *[row.memory for row in rows if row.user_id == owner])
    for row in rows:
        if row.deleted:
            soft_delete(database, row.user_id, row.memory.id)
    for filter_ in [Filter(), *filters]:
        expected = newest_first([row.memory for row in passing(rows, user_id, filter_).values()])
        found = pages(database, user_id, filter=filter_, page_size=page_size)
        assert flat(found) == expected
        assert all(len(ids) == page_size for ids in found[:-1])
        # The end is known with the last memory: no empty page follows.
        assert len(found[-1]) > 0 or len(found) == 1


@given(
    ages=st.lists(st.integers(0, 4), min_size=1, max_size=12),
    page_size=st.integers(1, 4),
    disturbances=st.lists(st.tuples(st.sampled_from(["insert", "delete", "hide"]), st.integers(0, 11)), max_size=12),
)
def test_pages_stay_stable_while_others_write(
    database: Database, ages: list[int], page_size: int, disturbances: list[tuple[str, int]]
) -> None:
    user_id = uuid4().hex
    memories = [new_memory(created_at=NOW - timedelta(seconds=age)) for age in ages]
    store(database, user_id, *memories)
    gone: set[UUID] = set()
    seen: list[UUID] = []
    after: Position | None = None
    while True:
        one = page(database, user_id, after=after, page_size=page_size)
        seen.extend(memory.id for memory in one.memories)
        assert after is None or one.end != after, "paging does not advance"
        after = one.end
        if after is None:
            break
        if disturbances:
            what, number = disturbances.pop()
            victim = memories[number % len(memories)].id
            if what == "insert":
                store(database, user_id, new_memory(created_at=NOW - timedelta(seconds=number / 2)))
            elif victim not in gone:
                gone.add(victim)
                (hard_delete if what == "delete" else soft_delete)(database, user_id, victim)

    assert len(set(seen)) == len(seen)
    present_throughout = [id_ for id_ in newest_first(memories) if id_ not in gone]
    assert [id_ for id_ in seen if id_ in set(present_throughout)] == present_throughout


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8), budget=st.integers(1, 100), page_size=st.integers(1, 9)
)
def test_pages_end_where_the_text_would_not_fit(
    database: Database, sizes: list[int], budget: int, page_size: int
) -> None:
    user_id = uuid4().hex
    memories = [new_memory(content="é" * size) for size in sizes]
    store(database, user_id, *memories)
    found = pages(database, user_id, page_size=page_size, max_text_bytes=budget)
    assert flat(found) == newest_first(memories)
    text_bytes = {memory.id: 2 * len(memory.content) + len("{}") for memory in memories}
    for ids, following in zip(found, [*found[1:], []], strict=True):
        size = sum(text_bytes[id_] for id_ in ids)
        assert size <= budget or len(ids) == 1
        if following and len(ids) < page_size:
            assert size + text_bytes[following[0]] > budget, "a memory more would have fitted"


@pytest.mark.parametrize("view", View)
def test_views(database: Database, user_id: str, view: View) -> None:
    memory = new_memory(content="text", metadata={"a": 1}, conversation_id="c")
    store(database, user_id, memory)
    [found] = page(database, user_id, view=view).memories
    whole = read(database, user_id, memory.id, view=view)
    assert (found.id, found.content, found.metadata, found.etag) == (
        whole.id,
        whole.content,
        whole.metadata,
        whole.etag,
    )
    assert (found.embedding is None) is (view is not View.FULL)


def test_nobody_s_list_is_empty(database: Database, user_id: str) -> None:
    assert page(database, user_id) == Page([], None)
    assert page(database, user_id, after=Position(NOW, UUID(int=0))) == Page([], None)


def test_pages_can_begin_at_any_position(database: Database, user_id: str) -> None:
    store(database, user_id, *[new_memory(id=UUID(int=number), created_at=NOW) for number in (1, 3, 5)])
    found = page(database, user_id, after=Position(NOW, UUID(int=4)))
    assert [memory.id.int for memory in found.memories] == [3, 1]
