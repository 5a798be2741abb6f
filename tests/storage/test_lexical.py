"""Search by words of a user small enough for all words to find: exactly BM25."""

import random
from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from db import delete, update
from db.conditions import Compares, Operator
from db.filters import Filter
from db.lexical import LexicalAnswer
from db.pool import Database
from db.update import Changes
from tests.storage.bm25_oracle import bm25, idf, stored_stems
from tests.storage.lexical_calls import rescore, search, words
from tests.storage.sample_memories import LATER, NOW, new_memory, soft_delete, store, stored

VOCABULARY = ["harbour", "harbours", "January", "ice", "icy", "frozen", "boat", "boats", "the", "of", "two", "naïve"]


def write(database: Database, user_id: str, *contents: str) -> list[UUID]:
    """Stores memories with these contents and returns their ids."""
    memories = [new_memory(content=content) for content in contents]
    store(database, user_id, *memories)
    return [memory.id for memory in memories]


def near(answer: LexicalAnswer, expected: Sequence[tuple[UUID, float]]) -> bool:
    """Returns whether scores agree to 1e-9; where they differ by less than that, either may come first."""
    found = list(answer.scores.items())
    return (
        dict(found).keys() == dict(expected).keys()
        and [score for _, score in found] == pytest.approx([score for _, score in expected], rel=1e-9)
        and all(score == pytest.approx(dict(expected)[memory_id], rel=1e-9) for memory_id, score in found)
    )


contents = st.lists(st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=12).map(" ".join), max_size=12)
queries = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=5)


@given(contents, queries, st.floats(0, 10), st.floats(0, 1))
def test_scores_are_those_of_bm25(database: Database, texts: list[str], query: list[str], k1: float, b: float) -> None:
    user_id = f"user-{uuid4().hex}"
    write(database, user_id, *texts)
    stems = {"harbours": "harbour", "January": "januari", "icy": "ici", "boats": "boat", "naïve": "naïv"}
    wanted = {stems.get(word, word) for word in query} - {"the", "of"}
    memories = stored_stems(database, user_id)

    answer = search(database, user_id, words(" ".join(query), k1=k1, b=b))

    assert near(answer, bm25(memories, wanted, k1=k1, b=b))
    assert {term.lexeme for term in answer.terms} == wanted
    for term in answer.terms:
        assert term.document_frequency == sum(term.lexeme in found for found in memories.values())
        assert term.idf == pytest.approx(idf(memories, term.lexeme), rel=1e-9)
        assert not term.too_frequent
    assert [term.document_frequency for term in answer.terms] == sorted(
        term.document_frequency for term in answer.terms
    )
    assert not answer.maybe_incomplete


def test_equal_memories_have_equal_scores_and_come_by_id(database: Database, user_id: str) -> None:
    choose = random.Random(4)  # noqa: S311 - a fixed order
    text = " ".join(choose.choices(VOCABULARY, k=30))
    shuffled = text.split()
    choose.shuffle(shuffled)
    ids = write(database, user_id, *([text, " ".join(shuffled)] * 30), "another harbour")

    answer = search(database, user_id, " ".join(VOCABULARY))

    best = list(answer.scores)[:60]
    assert best == sorted(best)
    assert set(best) == set(ids[:60])
    assert len({answer.scores[memory_id] for memory_id in best}) == 1


def test_limit_takes_the_best_and_also_adds_others(database: Database, user_id: str) -> None:
    ids = write(database, user_id, "ice ice ice", "ice and a boat", "ice on the harbour of the town", "a boat")
    every = search(database, user_id, "ice")

    answer = search(database, user_id, "ice", limit=1, also=[ids[2], ids[3], ids[0], uuid4()])

    assert list(every.scores) == ids[:3]
    assert list(answer.scores.items()) == [(ids[0], every.scores[ids[0]]), (ids[2], every.scores[ids[2]])]


@pytest.mark.parametrize("text", ["ice harbour", "boat*", '"ice and" harb*', "the of", "zeppelin"])
def test_other_memories_are_scored_as_the_search_scored(database: Database, user_id: str, text: str) -> None:
    contents = ["ice ice ice", "ice and a boat", "ice on the harbour of the town", "boats", "a cello", "ice and boats"]
    ids = write(database, user_id, *contents)
    unimportant = stored(database, user_id, content="ice and a boat in the harbour", importance=1)
    deleted = stored(database, user_id, content="ice and a boat in the harbour")
    soft_delete(database, user_id, deleted)
    options: dict[str, Any] = {"filter": Filter(min_importance=2), "exclude": ids[5]}
    every = search(database, user_id, text, **options)

    answer = search(database, user_id, text, limit=1, **options)
    others = rescore(database, answer, [*ids, unimportant, deleted, uuid4(), ids[0]])

    assert others == pytest.approx(every.scores, rel=1e-12)
    assert rescore(database, answer, []) == {}
    for memory_id in ids:
        assert rescore(database, answer, [memory_id]).keys() == {memory_id} & every.scores.keys()


def test_another_users_memories_do_not_matter(database: Database, user_id: str) -> None:
    ids = write(database, user_id, "ice in the harbour", "a boat")
    before = search(database, user_id, "ice boat")
    write(database, f"{user_id}-other", *["ice boat"] * 50)

    after = search(database, user_id, "ice boat")

    assert before == after
    assert set(after.scores) == set(ids)
    assert not search(database, f"{user_id}-nobody", "ice").scores


def test_deleted_memories_neither_match_nor_count_and_restored_ones_do(database: Database, user_id: str) -> None:
    ids = write(database, user_id, "ice in the harbour", "ice", "a boat")
    before = search(database, user_id, "ice")

    soft_delete(database, user_id, ids[1])
    without = search(database, user_id, "ice", also=ids, filter=Filter(show_deleted=True))
    database.write(
        database.call(),
        lambda conn: delete.restore(conn, user_id, ids[1], etag="", now=LATER + timedelta(hours=1)),
        user_id=user_id,
    )

    assert set(without.scores) == {ids[0]}
    assert without.terms[0].document_frequency == 1
    assert search(database, user_id, "ice") == before


def test_an_updated_memory_is_found_by_its_new_words(database: Database, user_id: str) -> None:
    [memory_id] = write(database, user_id, "ice in the harbour")
    changes = Changes(content="boats", summary="They sail.")
    database.write(
        database.call(),
        lambda conn: update.update(
            conn, user_id, memory_id, changes, etag="", now=LATER, check_metadata=lambda _: None
        ),
        user_id=user_id,
    )

    assert not search(database, user_id, "ice").scores
    assert list(search(database, user_id, "boat").scores) == [memory_id]
    assert list(search(database, user_id, "sailing").scores) == [memory_id]


FILTERED = {
    "conversation": Filter(conversation_id="harbour"),
    "importance": Filter(min_importance=7, max_importance=9),
    "metadata": Filter(metadata_contains={"k": 1}),
    "where": Filter(where=Compares(("k",), Operator.EQUAL, 1)),
    "time": Filter(created_after=NOW + timedelta(hours=1), created_before=NOW + timedelta(hours=2)),
}


@pytest.mark.parametrize("name", sorted(FILTERED))
def test_filters_narrow_what_is_found_and_not_what_words_weigh(database: Database, user_id: str, name: str) -> None:
    passing = new_memory(
        content="ice in the harbour",
        conversation_id="harbour",
        importance=8,
        metadata={"k": 1},
        created_at=NOW + timedelta(hours=1),
    )
    store(database, user_id, passing)
    ids = write(database, user_id, "ice", "a boat")
    everything = search(database, user_id, "ice boat")

    answer = search(database, user_id, "ice boat", filter=FILTERED[name], also=ids)

    assert answer.scores == {passing.id: everything.scores[passing.id]}
    assert answer.terms == everything.terms


def test_the_excluded_one_is_left_out(database: Database, user_id: str) -> None:
    ids = write(database, user_id, "ice", "ice and boats")
    everything = search(database, user_id, "ice")

    answer = search(database, user_id, "ice", exclude=ids[0], also=ids)

    assert answer.scores == {ids[1]: everything.scores[ids[1]]}
    assert answer.terms == everything.terms


def test_words_of_the_summary_are_found(database: Database, user_id: str) -> None:
    memory_id = stored(database, user_id, content="It froze.", summary="January in the harbour")
    assert list(search(database, user_id, "harbours").scores) == [memory_id]


def test_the_querys_language_stems_its_words(database: Database, user_id: str) -> None:
    german = stored(database, user_id, content="Die Häuser am Hafen", language="german")
    simple = stored(database, user_id, content="Die Häuser am Hafen", language="simple")

    assert list(search(database, user_id, words("Haus", language="german")).scores) == [german]
    assert list(search(database, user_id, words("hausierte HÄFEN", language="german")).scores) == [german]
    assert list(search(database, user_id, words("HÄUSER", language="simple")).scores) == [simple]
    assert set(search(database, user_id, words("die", language="simple")).scores) == {simple}
    assert not search(database, user_id, words("die", language="german")).terms


def test_a_query_without_words_finds_nothing(database: Database, user_id: str) -> None:
    write(database, user_id, "the of", "ice")
    for text in ("", "the of", "!? --", '"the of"'):
        answer = search(database, user_id, text)
        assert (answer.scores, answer.terms, answer.maybe_incomplete) == ({}, [], False)


def test_of_a_long_text_the_rarest_words_count(database: Database, user_id: str) -> None:
    write(database, user_id, *[f"ice word{number}" for number in range(6)])

    answer = search(database, user_id, words("ice " + " ".join(f"word{n}" for n in range(6)), max_terms=3))

    assert [term.lexeme for term in answer.terms] == ["word0", "word1", "word2"]
    assert len(answer.scores) == 3


@pytest.mark.parametrize("rows", [None, 0, 10, 1_000_000])
def test_a_wrong_number_of_rows_does_no_harm_to_a_small_user(
    database: Database, user_id: str, rows: int | None
) -> None:
    write(database, user_id, "ice", "a boat")
    assert search(database, user_id, "ice", user_rows=rows) == search(database, user_id, "ice", user_rows=2)
