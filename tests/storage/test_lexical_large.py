"""Search by words of a large user: common words find nobody by themselves, and the work is bounded."""

from uuid import UUID, uuid4

import pytest

from db import lexical_statements
from db.filters import Filter
from db.lexical_statements import Shape
from db.pool import Database
from db.wall import ACROSS_USERS
from tests.storage.bm25_oracle import bm25, stored_stems
from tests.storage.lexical_calls import SMALL, planned, rescore, search
from tests.storage.sample_memories import new_memory, store

ROWS = 300


@pytest.fixture(scope="module")
def large(database: Database) -> tuple[str, list[UUID]]:
    """A user of 300 memories: all with "harbour", half with "ice", a third with "boat", one in sixty with "whale"."""
    memories = []
    for number in range(ROWS):
        words = ["harbour", f"own{number}"]
        words += ["ice"] * (number % 2 == 0) + ["boat"] * (number % 3 == 0) + ["whale"] * (number % 60 == 7)
        memories.append(
            new_memory(content=" ".join(words), conversation_id=f"c{number % 60}", importance=1 + number % 10)
        )
    store(database, "large", *memories)
    store(database, "other", *[new_memory(content="whale ice boat harbour") for _ in range(ROWS)])
    database.write(database.call(), lambda conn: conn.execute(b"ANALYZE memory_entries"), user_id=ACROSS_USERS)
    return "large", [memory.id for memory in memories]


Large = tuple[str, list[UUID]]


def test_common_words_find_nobody_and_add_to_what_rare_ones_found(database: Database, large: Large) -> None:
    user_id, ids = large
    answer = search(database, user_id, "whale ice harbour", bounds=SMALL, limit=10)

    common = {term.lexeme for term in answer.terms if term.too_frequent}
    assert common == {"ice", "harbour"}
    assert set(answer.scores) == {ids[number] for number in range(7, ROWS, 60)}
    [whale] = [term for term in answer.terms if term.lexeme == "whale"]
    assert answer.terms[0] == whale
    assert whale.document_frequency == 5
    assert answer.maybe_incomplete
    assert not search(database, user_id, "whale ice harbour", bounds=SMALL, limit=5).maybe_incomplete


def test_estimates_are_near_and_rank_as_bm25_does(database: Database, large: Large) -> None:
    user_id, _ = large
    exact = bm25(stored_stems(database, user_id), ["whale", "ice", "harbour", "boat"])

    answer = search(database, user_id, "whale ice boat harbour", bounds=SMALL, limit=5)

    frequencies = {term.lexeme: term.document_frequency for term in answer.terms}
    assert frequencies["harbour"] == ROWS
    assert 100 <= frequencies["ice"] <= 200
    assert 50 <= frequencies["boat"] <= 150
    assert set(answer.scores) == {memory_id for memory_id, _ in exact[:5]}
    for memory_id, score in exact[:5]:
        assert answer.scores[memory_id] == pytest.approx(score, rel=0.15)
    assert answer == search(database, user_id, "whale ice boat harbour", bounds=SMALL, limit=5)


def test_a_word_that_no_sampled_memory_has_is_found(database: Database, large: Large) -> None:
    user_id, ids = large
    for number in (0, 123, 299):
        assert list(search(database, user_id, f"harbour own{number} ice", bounds=SMALL, limit=10).scores) == [
            ids[number]
        ]


def test_where_all_words_are_common_those_with_most_of_them_are_found(database: Database, large: Large) -> None:
    user_id, ids = large
    together = {ids[number] for number in range(0, ROWS, 6)}

    answer = search(database, user_id, "harbour ice boat", bounds=SMALL, limit=15)

    assert len(answer.scores) == 15
    assert set(answer.scores) <= together
    assert all(term.too_frequent for term in answer.terms)


def test_a_single_common_word_is_looked_for_within_bounds(database: Database, large: Large) -> None:
    user_id, _ = large
    answer = search(database, user_id, "harbour", bounds=SMALL, limit=10)

    assert len(answer.scores) == 10
    assert answer.terms[0].document_frequency == ROWS
    # Twice what may be found, and no more, is looked at.
    assert len(search(database, user_id, "harbour", bounds=SMALL, limit=45).scores) == 45
    looked_at = search(database, user_id, "harbour", bounds=SMALL, limit=25, also=[])
    assert len(looked_at.scores) == 25


def test_a_filter_never_hides_memories_with_common_words(database: Database, large: Large) -> None:
    user_id, ids = large
    passing = {ids[number] for number in range(2, ROWS, 60)}

    answer = search(database, user_id, "harbour whale", bounds=SMALL, filter=Filter(conversation_id="c2"))

    assert set(answer.scores) == passing
    assert not answer.maybe_incomplete


def test_also_scores_memories_that_have_common_words_only(database: Database, large: Large) -> None:
    user_id, ids = large
    answer = search(database, user_id, "whale harbour", bounds=SMALL, limit=5, also=[ids[8], ids[7], ids[8]])

    assert list(answer.scores)[5:] == [ids[8]]
    assert 0 < answer.scores[ids[8]] < min(list(answer.scores.values())[:5])


def test_also_keeps_to_the_filter(database: Database, large: Large) -> None:
    user_id, ids = large
    restriction = Filter(min_importance=10)
    answer = search(database, user_id, "whale harbour", bounds=SMALL, limit=1, filter=restriction, also=ids[:30])

    importances = {memory_id: 1 + number % 10 for number, memory_id in enumerate(ids)}
    best, *_ = answer.scores
    assert set(answer.scores) == {best, ids[9], ids[19], ids[29]}
    assert importances[best] == 10


@pytest.mark.parametrize("text", ["whale harbour", "harbour ice boat", "harbour", '"harbour own4" ice', "har* ice"])
@pytest.mark.parametrize("restriction", [Filter(), Filter(min_importance=3), Filter(conversation_id="c2")])
def test_other_memories_are_scored_as_if_asked_for_at_once(
    database: Database, large: Large, text: str, restriction: Filter
) -> None:
    user_id, ids = large
    at_once = search(database, user_id, text, bounds=SMALL, limit=5, filter=restriction, also=ids)

    later = rescore(
        database, search(database, user_id, text, bounds=SMALL, limit=5, filter=restriction), [*ids, uuid4()]
    )

    assert later == pytest.approx(at_once.scores, rel=1e-12)


def test_a_phrase_is_found_however_common_its_words(database: Database, large: Large) -> None:
    user_id, ids = large
    answer = search(database, user_id, '"own12 ice" harbour', bounds=SMALL)
    assert list(answer.scores) == [ids[12]]
    assert list(search(database, user_id, '"ice boat"', bounds=SMALL, limit=10, also=[ids[1]]).scores)
    every = search(database, user_id, '"ice boat"', bounds=SMALL, limit=100)
    assert set(every.scores) == {ids[number] for number in range(0, ROWS, 6)}


def test_a_prefix_is_one_term_of_a_large_user_too(database: Database, large: Large) -> None:
    user_id, ids = large
    answer = search(database, user_id, "own29* harbour", bounds=SMALL)
    assert set(answer.scores) == {ids[29], *(ids[number] for number in range(290, 300))}
    terms = {term.lexeme: term for term in answer.terms}
    assert terms["own29*"].document_frequency == 11
    assert not terms["own29*"].too_frequent
    common = search(database, user_id, "own* whale", bounds=SMALL)
    assert {term.lexeme: term.too_frequent for term in common.terms} == {"whale": False, "own*": True}


@pytest.mark.parametrize("narrowed", [False, True])
@pytest.mark.parametrize("names", [frozenset(), frozenset({"conversation_id", "created_after", "min_importance"})])
def test_words_are_found_through_their_index_alone(
    database: Database, large: Large, names: frozenset[str], *, narrowed: bool
) -> None:
    assert large
    shape = Shape(names, None, exclude=True, phrases=True, prefixes=True)
    statement = lexical_statements.search(shape, all_found=False, narrowed=narrowed)
    lines = planned(database, statement, user_id=ACROSS_USERS)

    scans = [line.strip() for line in lines if " on memory_entries" in line]
    assert any("Bitmap Index Scan on memory_entries_words" in line for line in scans), lines
    assert all("memory_entries_words" in line or "pkey" in line or "Bitmap Heap Scan" in line for line in scans), scans
