"""What a text asks for: phrases, prefixes, and that nothing in a text is an error."""

import re
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from db.languages import LANGUAGES
from db.lexical_query import MAX_PHRASES, Sample, all_find, choose_finders, prefix_of, read, stem_of, tsquery
from db.lexical_terms import Bounds
from db.pool import Database
from tests.storage.lexical_calls import search, words
from tests.storage.sample_memories import new_memory, store

CONTENTS = {
    "frozen": "The harbour froze in January.",
    "reversed": "In January the ship left; what froze was the harbour.",
    "university": "Universities of the north",
    "universal": "A universal joint",
    "happy": "A happy end",
    "quoted": r"It's a back\slash: 'quoted' & (bracketed) | piped !",
}


@pytest.fixture(scope="module")
def ids(database: Database) -> dict[str, UUID]:
    """The memories of "reader", by name."""
    memories = {name: new_memory(content=content) for name, content in CONTENTS.items()}
    store(database, "reader", *memories.values())
    return {name: memory.id for name, memory in memories.items()}


def found(database: Database, ids: dict[str, UUID], text: str, **changes: object) -> set[str]:
    """Returns the names of the memories found."""
    names = {memory_id: name for name, memory_id in ids.items()}
    return {names[memory_id] for memory_id in search(database, "reader", words(text, **changes)).scores}


def test_phrases_and_prefixes_are_told_apart_from_words() -> None:
    query = read('a "b c" d "e f g" uni* fo*bar x* "h*" "')
    assert query.phrases == ("b c", "e f g", "h*")
    assert query.prefixes == ("uni", "fo")
    assert query.words.split() == ["a", "d", "bar", "x*", '"', "b", "c", "e", "f", "g", "h*"]


def test_phrases_count_up_to_a_bound() -> None:
    query = read(" ".join(f'"a{number}"' for number in range(100)))
    assert len(query.phrases) == MAX_PHRASES
    assert len(query.words.split()) == 100


def test_a_long_phrase_is_cut_between_words() -> None:
    [phrase] = read('"' + "abcdefg " * 1_000 + '"').phrases
    assert phrase == " ".join(["abcdefg"] * 500)
    assert read('"' + "a" * 4_001 + '"').phrases == ()
    assert read('"  "').phrases == ()


def test_a_phrase_must_stand_in_what_is_found(database: Database, ids: dict[str, UUID]) -> None:
    assert found(database, ids, "harbour froze") == {"frozen", "reversed"}
    assert found(database, ids, '"harbour froze"') == {"frozen"}
    assert found(database, ids, '"froze in january"') == {"frozen"}
    assert found(database, ids, '"what froze" "the ship"') == {"reversed"}
    assert found(database, ids, '"harbour froze" "the ship"') == set()
    assert found(database, ids, 'universal "harbour froze"') == {"frozen"}
    assert found(database, ids, 'joint "the of"') == {"universal"}
    assert found(database, ids, '"harbour froze') == {"frozen", "reversed"}


def test_words_of_a_phrase_score_like_others(database: Database, ids: dict[str, UUID]) -> None:
    phrase = search(database, "reader", '"harbour froze"')
    plain = search(database, "reader", "harbour froze")
    assert phrase.terms == plain.terms
    assert phrase.scores[ids["frozen"]] == plain.scores[ids["frozen"]]


def test_a_prefix_finds_all_stems_that_begin_so(database: Database, ids: dict[str, UUID]) -> None:
    assert found(database, ids, "univ*") == {"university", "universal"}
    assert found(database, ids, "UNIV*") == {"university", "universal"}
    assert found(database, ids, "happy*") == {"happy"}
    assert found(database, ids, "the*") == set()
    [term] = search(database, "reader", "univ* Univ*").terms
    assert (term.lexeme, term.document_frequency) == ("univ*", 2)


def test_a_prefixs_occurrences_add_up(database: Database, user_id: str) -> None:
    one, both = new_memory(content="iceberg iceberg"), new_memory(content="iceberg icebox")
    store(database, user_id, one, both)
    answer = search(database, user_id, "iceb*")
    # Same tf, and `both` is longer.
    assert answer.scores[one.id] > answer.scores[both.id] > 0
    plain = search(database, user_id, words("iceb*", b=0.0))
    assert plain.scores[one.id] == plain.scores[both.id]


def test_operators_are_plain_characters(database: Database, ids: dict[str, UUID]) -> None:
    assert found(database, ids, "universal & harbour") == {"university", "universal", "frozen", "reversed"}
    assert found(database, ids, "!happy <-> (joint | \\ ' :*") == {"happy", "universal"}
    assert found(database, ids, r"'quoted' back\slash") == {"quoted"}
    assert found(database, ids, "'; DROP TABLE memory_entries; --") == set()


STRANGE = ['"', "*", "&", "|", "!", "<->", "(", ")", ":", "\\", "'", ":*", "a", "harb*", "%", "%s", "{", "}", "🙂", "ß"]
strange_texts = st.one_of(
    st.lists(st.sampled_from(STRANGE), max_size=20).map("".join),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60),
)
TINY = Bounds(exact_rows=1, min_sample=4, max_sample=4, min_found=2, max_found=2)


@given(strange_texts, st.sampled_from(LANGUAGES), st.booleans())
@example('"', "english", True)
@example("'\\", "simple", True)
@example("a\\b'c http://x.y/a'b\\c?d=*e ab* \"a'b\\c\"", "simple", True)
def test_any_text_gets_an_answer(
    database: Database,
    ids: dict[str, UUID],
    text: str,
    language: str,
    large: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    bounds = TINY if large else Bounds()
    answer = search(database, "reader", words(text, language=language), bounds=bounds, limit=3, also=list(ids.values()))
    assert all(score > 0 for score in answer.scores.values())
    assert answer.scores.keys() <= set(ids.values())


LONG = {
    "one word": "x" * 65_536,
    "many words": " ".join(f"word{number}" for number in range(10_000)),
    "many letters": "a " * 32_768,
    "a long phrase": '"' + " ".join(f"w{number}" for number in range(10_000)) + '"',
    "many phrases": '"a b" ' * 10_000,
    "many distinct phrases": " ".join(f'"h{number} i"' for number in range(5_000)),
    "many prefixes": " ".join(f"ha{number}*" for number in range(8_000)),
    "hyphens": "a-" * 32_768,
    "dots": "a." * 32_768,
    "quotes": '"' * 65_536,
    "stars": "*" * 65_536,
    "slashes": "/a" * 32_768,
    "a path": "http://a.b/" + "c/" * 30_000,
    "long words": " ".join("y" * length + "'\\" for length in range(1_990, 2_020)),
    "tags": "<a b='c'>" * 6_000,
}


@pytest.mark.parametrize("name", sorted(LONG))
@pytest.mark.parametrize("bounds", [Bounds(), TINY], ids=["small", "large"])
def test_a_long_text_gets_an_answer(database: Database, ids: dict[str, UUID], name: str, bounds: Bounds) -> None:
    assert ids
    answer = search(database, "reader", LONG[name], bounds=bounds)
    assert len(answer.terms) <= 32


def test_a_word_as_long_as_a_lexeme_may_be_does_not_hinder_others(database: Database, user_id: str) -> None:
    memory = new_memory(content="harbour " + "z" * 2_040)
    store(database, user_id, memory)
    assert list(search(database, user_id, f"{'z' * 2_040} harbour").scores) == [memory.id]
    assert list(search(database, user_id, '"harbour ' + "z" * 2_040 + '"').scores) == [memory.id]


def test_finders_are_the_rarest_and_pairs_of_the_others() -> None:
    rare, half, third, every = (stem_of(name) for name in ("rare", "half", "third", "every"))
    hits = [(0, "rare")]
    hits += [(row, "half") for row in range(0, 60, 2)] + [(row, "third") for row in range(0, 60, 3)]
    hits += [(row, "every") for row in range(60)]
    sample = Sample(60, hits)

    def chosen(*terms: object, share: float) -> list[tuple[str, ...]]:
        finders = choose_finders(
            [term for term in (rare, half, third, every) if term in terms], sample, most_share=share
        )
        return [tuple(term.name for term in clause) for clause in finders.clauses]

    assert chosen(rare, half, third, every, share=1.0) == [("rare",), ("third",), ("half",), ("every",)]
    assert chosen(rare, half, third, every, share=0.2) == [("rare",), ("third", "half")]
    assert chosen(rare, half, third, every, share=0.05) == [("rare",)]
    assert chosen(half, every, share=0.1) == [("half", "every")]
    assert chosen(every, share=0.1) == [("every",)]


def test_a_tsquery_quotes_what_its_syntax_would_take_for_something_else() -> None:
    terms = [stem_of(r"a'b\c"), prefix_of("he", "h'e"), prefix_of("the", None)]
    text = tsquery(all_find(terms).clauses, "f0")
    assert text == r"(('f0:a''b\\c')) | (('f0:h''e' | 'f0:he':*)) | (('f0:the':*))"
    assert re.fullmatch(r"[^|]*\|[^|]*\|[^|]*\|[^|]*", text)
