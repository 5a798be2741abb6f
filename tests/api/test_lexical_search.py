"""Searching by words, without any embedder: what is found, in which order, and whatever the words are."""

from typing import Any

import grpc
import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, get, insert, insert_all, new_memory
from tests.api.searches import check_scores, ids_of, search
from tests.api.waiting import eventually

LEXICAL = pb.SEARCH_MODE_LEXICAL


def lexemes_of(reply: pb.SearchSimilarResponse) -> list[str]:
    return [term.lexeme for term in reply.terms]


@pytest.fixture
def stored(stub: MemoryServiceStub, user_id: str) -> list[str]:
    """Memories about a harbour and other things; returns their ids."""
    texts = [
        "The harbour freezes in January",
        "Ships wait outside the harbours until the ice melts and the pilots return from their winter leave",
        "January was cold",
        "A cello stands in the corner",
    ]
    return insert_all(stub, user_id, [new_memory(text) for text in texts])


@pytest.mark.parametrize("mode", [pb.SEARCH_MODE_UNSPECIFIED, LEXICAL])
def test_words_are_found_without_an_embedder(
    stub: MemoryServiceStub, user_id: str, stored: list[str], mode: pb.SearchMode.ValueType
) -> None:
    reply = search(stub, user_id, text="frozen harbour in January", mode=mode)

    assert (reply.mode, reply.plan, reply.formula) == (LEXICAL, pb.SEARCH_PLAN_LEXICAL, "lexical-1")
    # Two words count for more than one, a short memory for more than a long one; the cello has none.
    assert ids_of(reply) == [stored[0], stored[2], stored[1]]
    check_scores(reply)
    assert reply.results[0].score == 1.0
    best = reply.results[0].explanation.bm25
    for rank, result in enumerate(reply.results, start=1):
        one = result.explanation
        assert one.lexical == pytest.approx(one.bm25 / best)
        assert one.lexical_rank == rank
        assert not one.HasField("cosine")
        assert not one.HasField("dense")
    assert set(lexemes_of(reply)) == {"frozen", "harbour", "januari"}
    assert reply.candidates_considered == 3


def test_a_word_that_nobody_has_finds_nobody(stub: MemoryServiceStub, user_id: str, stored: list[str]) -> None:
    assert stored
    reply = search(stub, user_id, text="zeppelin", mode=LEXICAL)
    assert not reply.results
    assert [(term.lexeme, term.document_frequency) for term in reply.terms] == [("zeppelin", 0)]


def test_rare_words_count_for_more(stub: MemoryServiceStub, user_id: str) -> None:
    rare = insert(stub, user_id, "zeppelin").id
    insert_all(stub, user_id, [new_memory("harbour") for _ in range(20)])
    reply = search(stub, user_id, text="harbour zeppelin", mode=LEXICAL)
    assert ids_of(reply)[0] == rare
    assert lexemes_of(reply) == ["zeppelin", "harbour"]
    assert reply.terms[0].idf > reply.terms[1].idf


def test_phrases_and_prefixes(stub: MemoryServiceStub, user_id: str, stored: list[str]) -> None:
    assert ids_of(search(stub, user_id, text='"freezes in January"', mode=LEXICAL)) == [stored[0]]
    assert ids_of(search(stub, user_id, text='"January freezes"', mode=LEXICAL)) == []
    assert ids_of(search(stub, user_id, text="cel*", mode=LEXICAL)) == [stored[3]]


def test_words_are_stemmed_in_the_language_of_each_memory(stub: MemoryServiceStub, user_id: str) -> None:
    german = insert(stub, user_id, "Die Katzen schlafen", language="german")
    plain = insert(stub, user_id, "Katzen", language="simple")
    assert (german.language, plain.language) == ("german", "simple")
    assert get(stub, user_id, german.id).language == "german"

    def found(text: str, language: str) -> list[str]:
        options = pb.LexicalOptions(language=language)
        return ids_of(search(stub, user_id, text=text, mode=LEXICAL, lexical=options))

    assert found("Katze", "german") == [german.id]
    assert found("Katzen", "simple") == [plain.id]


def test_the_language_can_be_changed(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "Die Katzen schlafen")
    assert memory.language == "english"
    changed = pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=pb.Memory(language="german"))
    changed.update_mask.paths.append("language")
    assert send(stub, changed).memory.language == "german"
    options = pb.LexicalOptions(language="german")
    assert ids_of(search(stub, user_id, text="Katze", mode=LEXICAL, lexical=options)) == [memory.id]
    # The text is the same, and so is its embedding.
    assert get(stub, user_id, memory.id, view=pb.MEMORY_VIEW_FULL).embedding.floats.values[0] == 1.0

    changed.memory.language = "klingon"
    refused = failure(lambda: send(stub, changed))
    assert list(refused.violations) == ["memory.language"]


def test_a_new_content_is_found_by_its_own_words(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "the harbour")
    changed = pb.Memory(content="the cello", embedding=axis(1))
    send(stub, pb.UpdateVectorRequest(user_id=user_id, id=memory.id, memory=changed))
    assert not search(stub, user_id, text="harbour", mode=LEXICAL).results
    assert ids_of(search(stub, user_id, text="cello", mode=LEXICAL)) == [memory.id]


def test_summaries_are_searched_too(stub: MemoryServiceStub, user_id: str) -> None:
    memory = insert(stub, user_id, "it was cold", summary="harbour")
    assert ids_of(search(stub, user_id, text="harbour", mode=LEXICAL)) == [memory.id]


def test_k1_and_b_change_what_counts(stub: MemoryServiceStub, user_id: str) -> None:
    often = insert(stub, user_id, "harbour harbour and a good deal about other matters of many kinds").id
    short = insert(stub, user_id, "harbour").id
    insert(stub, user_id, "something else entirely")

    def best(options: pb.LexicalOptions) -> str:
        return ids_of(search(stub, user_id, text="harbour", mode=LEXICAL, lexical=options))[0]

    assert best(pb.LexicalOptions(k1=10.0, b=0.0)) == often
    assert best(pb.LexicalOptions(b=1.0)) == short
    # With k1 = 0 a word is there or not: ties by id.
    assert best(pb.LexicalOptions(k1=0.0)) == min(often, short)


def test_filters_and_limits_hold(stub: MemoryServiceStub, user_id: str, other_user_id: str) -> None:
    insert(stub, other_user_id, "harbour")
    stored = insert_all(stub, user_id, [new_memory("harbour", importance=n + 1) for n in range(9)])
    reply = search(stub, user_id, text="harbour", mode=LEXICAL, filter=pb.MemoryFilter(min_importance=5), limit=3)
    assert ids_of(reply) == sorted(stored[4:])[:3]
    send(stub, pb.DeleteVectorRequest(user_id=user_id, id=stored[8]))
    assert len(search(stub, user_id, text="harbour", mode=LEXICAL).results) == 8


ODD_TEXTS = [
    "the and of a to",
    "🙂👩‍🚀🎻",
    "'; DROP TABLE memory_entries; --",
    "harbour & | ! <-> ( ) :* 'x'",
    "!!! harbour",
    '"',
    '"" "unbalanced',
    "*",
    "a* b* \\ \\' %s %(user_id)s {} {0}",
    "\x01\x7f",
    "日本語 كتاب ελληνικά",
    "x" * 65_536,
    "<b>harbour</b> http://example.com/a?b=c user@example.com 3.14 -5",
    '"' * 1_000,
    "<-> " * 1_000,
    "harbour:A harbour:* harbour:ABCD*",
]


@pytest.mark.parametrize("text", ODD_TEXTS, ids=lambda text: text[:20])
def test_any_text_gets_an_answer(stub: MemoryServiceStub, user_id: str, stored: list[str], text: str) -> None:
    for fields in ({"mode": LEXICAL}, {"embedding": axis(0)}):
        reply = search(stub, user_id, text=text, **fields)
        assert set(ids_of(reply)) <= set(stored)
        assert ("harbour" in lexemes_of(reply)) == ("harbour" in text)
        # Beside meaning, words without meaning take nothing away.
        assert len(reply.results) == 4 or fields == {"mode": LEXICAL}


def test_a_query_of_ten_thousand_words(stub: MemoryServiceStub, user_id: str, stored: list[str]) -> None:
    limits = send(stub, pb.GetServerInfoRequest()).limits
    text = " ".join(f"w{number}" for number in range(10_000)) + " cello cello cello"
    reply = search(stub, user_id, text=text, mode=LEXICAL)
    assert ids_of(reply) == [stored[3]]
    assert len(reply.terms) <= limits.max_query_terms == 32


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"text": " "}, "text"),
        ({"text": "\0"}, "text"),
        ({"text": "x" * 65_537}, "text"),
        ({"memory_id": "01a1fd79-007b-70dd-85b2-53c3784ade11"}, "text"),
        ({"text": "x", "memory_id": "01a1fd79-007b-70dd-85b2-53c3784ade11"}, "memory_id"),
        ({"text": "x", "lexical": pb.LexicalOptions(language="klingon")}, "lexical.language"),
        ({"text": "x", "lexical": pb.LexicalOptions(k1=10.5)}, "lexical.k1"),
        ({"text": "x", "lexical": pb.LexicalOptions(k1=float("nan"))}, "lexical.k1"),
        ({"text": "x", "lexical": pb.LexicalOptions(b=-0.1)}, "lexical.b"),
        ({"text": "x", "metric": pb.METRIC_INNER_PRODUCT}, "metric"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named(stub: MemoryServiceStub, user_id: str, fields: dict[str, Any], wrong: str) -> None:
    refused = failure(lambda: search(stub, user_id, mode=LEXICAL, **fields))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(refused.violations) == [wrong]


def test_an_unknown_language_is_told_with_the_one_meant(stub: MemoryServiceStub, user_id: str) -> None:
    memory = new_memory("x", language="englisch")
    refused = failure(lambda: send(stub, pb.InsertVectorRequest(user_id=user_id, memory=memory)))
    assert "did you mean english?" in refused.violations["memory.language"]


def test_results_count_as_accesses(stub: MemoryServiceStub, user_id: str, stored: list[str]) -> None:
    search(stub, user_id, text="cello", mode=LEXICAL, skip_access_recording=False)
    eventually(lambda: get(stub, user_id, stored[3]).access_count == 1)
    assert get(stub, user_id, stored[0]).access_count == 0
