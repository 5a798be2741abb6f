"""Search by words of a large user in a conversation or a time: by the filter's keys, and as by words."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import lexical_statements
from db.conditions import Compares, Operator
from db.connection import Connection, Statement, name_of
from db.filters import Filter
from db.lexical import LexicalAnswer
from db.lexical_statements import Shape
from db.memory import NewMemory
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.bm25_oracle import Stems, stored_stems
from tests.storage.lexical_calls import SMALL, planned, search, words
from tests.storage.sample_memories import NOW, new_memory, soft_delete, store

ROWS = 300


def moment(number: int) -> datetime:
    """Returns when a memory of `timed` was created."""
    return NOW + timedelta(minutes=number)


@pytest.fixture(scope="module")
def timed(database: Database) -> dict[UUID, NewMemory]:
    """Live memories of "timed", one a minute: all with "harbour", half with "ice"; in conversations of 60 and of 5."""
    memories = []
    for number in range(ROWS):
        words = ["harbour", f"own{number}"]
        words += ["ice"] * (1 + number % 3) * (number % 2 == 0) + ["boat"] * (number % 3 == 0)
        memories.append(
            new_memory(
                content=" ".join(words),
                conversation_id="long" if number < 60 else f"c{number // 5}",
                importance=1 + number % 10,
                metadata={"n": number},
                embedding=None if number % 7 == 0 else new_memory().embedding,
                created_at=moment(number),
            )
        )
    store(database, "timed", *memories)
    store(database, "at the same time", *[new_memory(content="ice boat", created_at=moment(n)) for n in range(ROWS)])
    for memory in memories[::11]:
        soft_delete(database, "timed", memory.id)
    database.write(database.call(), lambda conn: conn.execute(b"ANALYZE memory_entries"), user_id=ACROSS_USERS)
    return {memory.id: memory for number, memory in enumerate(memories) if number % 11}


@pytest.fixture(scope="module")
def stems(database: Database, timed: dict[UUID, NewMemory]) -> dict[UUID, Stems]:
    """The stems of each."""
    assert timed
    return stored_stems(database, "timed")


def passes(memory: NewMemory, wanted: Mapping[str, Any]) -> bool:
    """Tells whether a memory passes a filter of these fields."""
    return (
        wanted.get("conversation_id") in {None, memory.conversation_id}
        and wanted.get("created_after", memory.created_at) <= memory.created_at
        and memory.created_at < wanted.get("created_before", moment(ROWS))
        and wanted.get("min_importance", 1) <= memory.importance
        and ("where" not in wanted or memory.metadata["n"] < 150)
    )


starts = st.integers(0, ROWS)
keys = st.fixed_dictionaries({"conversation_id": st.sampled_from(["long", "c20", "c41", "nowhere"])}) | st.builds(
    lambda start, minutes: {"created_after": moment(start), "created_before": moment(start + minutes)},
    starts,
    st.integers(0, 80),
)
filters = st.builds(
    lambda first, second, more: first | second | more,
    keys,
    st.just({}) | keys,
    st.fixed_dictionaries(
        {},
        optional={
            "min_importance": st.integers(1, 10),
            "where": st.just(Compares(("n",), Operator.LESS, 150.0)),
            "show_deleted": st.just(value=True),  # which finds none by words
        },
    ),
)


def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has all searches find by words."""
    monkeypatch.setattr(Shape, "has_keys", property(lambda _: False))


@given(filters, st.lists(st.sampled_from(["harbour", "ice", "boat", "own61", "own1*", '"ice boat"']), min_size=1))
def test_finding_by_the_filters_keys_finds_and_scores_what_finding_by_words_does(
    database: Database,
    timed: dict[UUID, NewMemory],
    stems: dict[UUID, Stems],
    wanted: dict[str, Any],
    query: list[str],
) -> None:
    text = " ".join(query)
    options: dict[str, Any] = {"bounds": SMALL, "limit": 90, "filter": Filter(**wanted), "also": list(timed)[:40]}
    answer = search(database, "timed", text, **options)
    with pytest.MonkeyPatch.context() as monkeypatch:
        without_keys(monkeypatch)
        by_words = search(database, "timed", text, **options)

    assert answer.scores == pytest.approx(by_words.scores, rel=1e-12)
    assert (answer.terms, answer.maybe_incomplete) == (by_words.terms, by_words.maybe_incomplete)
    assert not answer.maybe_incomplete
    found = found_by(answer, stems, phrase="ice boat" if '"' in text else "")
    assert set(answer.scores) == {one for one in found if passes(timed[one], wanted)}


def found_by(answer: LexicalAnswer, memories: Mapping[UUID, Stems], *, phrase: str) -> set[UUID]:
    """Returns which memories have any of the terms looked for, and all words of a phrase."""
    terms = [term.lexeme for term in answer.terms]
    return {
        memory_id
        for memory_id, stems in memories.items()
        if any(stem == term or (term.endswith("*") and stem.startswith(term[:-1])) for stem in stems for term in terms)
        and set(phrase.split()) <= stems.keys()
    }


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"conversation_id": "c20"}, ["lexical.search", "lexical.search_keyed"]),
        ({"created_after": moment(ROWS - 20)}, ["lexical.search", "lexical.search_keyed"]),
        ({"created_before": moment(20), "min_importance": 10}, ["lexical.search", "lexical.search_keyed"]),
        # Too many: an index tells, and words find.
        (
            {"created_after": moment(90), "min_importance": 10},
            ["lexical.search", "lexical.search_keyed", "lexical.search"],
        ),
        # No index leads to these.
        ({"min_importance": 10}, ["lexical.search", "lexical.search"]),
        ({"metadata_contains": {"n": 1}}, ["lexical.search", "lexical.search"]),
    ],
)
def test_a_filters_keys_find_where_they_select_few(
    database: Database,
    timed: dict[UUID, NewMemory],
    monkeypatch: pytest.MonkeyPatch,
    wanted: dict[str, Any],
    names: list[str],
) -> None:
    assert timed
    ran = noted(monkeypatch)
    answer = search(database, "timed", "harbour ice boat", bounds=SMALL, limit=30, filter=Filter(**wanted))
    assert ran == ["lexical.terms", *names]
    assert answer.scores
    assert not answer.maybe_incomplete


@pytest.mark.parametrize("wanted", [{"conversation_id": "c20"}, {"min_importance": 10}], ids=["by keys", "by words"])
def test_a_common_word_does_not_look_rare_where_a_filter_leaves_few(
    database: Database, timed: dict[UUID, NewMemory], wanted: dict[str, Any]
) -> None:
    assert timed
    asked = words("harbour ice boat", max_terms=2)
    answer = search(database, "timed", asked, bounds=SMALL, limit=30, filter=Filter(**wanted))
    assert [term.lexeme for term in answer.terms] == ["boat", "ice"]


@pytest.mark.parametrize(("phrase", "keyed"), [("own61 harbour", False), ("harbour ice", True)])
def test_a_phrase_is_looked_for_in_a_conversation_unless_it_is_rare(
    database: Database, timed: dict[UUID, NewMemory], monkeypatch: pytest.MonkeyPatch, phrase: str, *, keyed: bool
) -> None:
    assert timed
    ran = noted(monkeypatch)
    search(database, "timed", f'"{phrase}"', bounds=SMALL, limit=10, filter=Filter(conversation_id="c12"))
    assert ran == ["lexical.terms", "lexical.search_keyed" if keyed else "lexical.search"]


def noted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Returns a list to which the names of statements are added as they run."""
    ran: list[str] = []
    query = Connection.query

    def noting(self: Connection, statement: Statement, *rest: Any, **options: Any) -> object:
        ran.append(name_of(statement))
        return query(self, statement, *rest, **options)

    monkeypatch.setattr(Connection, "query", noting)
    return ran


@pytest.mark.parametrize(
    ("names", "index"),
    [
        ({"conversation_id"}, "memory_entries_conversation"),
        ({"conversation_id", "created_after", "created_before", "min_importance"}, "memory_entries_conversation"),
        ({"created_after"}, "memory_entries_recent"),
        ({"created_after", "created_before", "metadata_contains"}, "memory_entries_recent"),
    ],
)
def test_a_filters_keys_are_looked_up_in_their_index_alone(
    database: Database, timed: dict[UUID, NewMemory], names: set[str], index: str
) -> None:
    assert timed
    shape = Shape(frozenset(names), None, exclude=True, phrases=True, prefixes=True)
    lines = planned(database, lexical_statements.search_keyed(shape), user_id="timed")

    scans = [line.strip() for line in lines if "memory_entries" in line and " Scan " in line]
    assert any(f"Index Only Scan using {index} " in line for line in scans), lines
    assert any("One-Time Filter" in line for line in lines), lines
    assert all(index in line or "pkey" in line or "Bitmap Heap Scan" in line for line in scans), scans
