"""Conditions on metadata, in the database against a reference in Python: typed, total, and never an error."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import product
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from db.conditions import (
    AllOf,
    AnyOf,
    Compares,
    Condition,
    Exists,
    MemberOf,
    Negated,
    Operator,
    Scalar,
    compile_condition,
)
from db.connection import Connection
from db.filters import Filter
from db.memory import View
from db.pool import Database
from db.recent import Page, recent
from db.search import Hit, Means, Nearest, search
from db.search_plan import Coarse, SearchTuning
from db.search_statements import Metric
from db.wall import ACROSS_USERS
from tests.storage import sample_conditions
from tests.storage.condition_oracle import holds
from tests.storage.sample_conditions import KEYS, NOON, NUMBERS, TEXTS, TIMES
from tests.storage.sample_memories import new_memory, store, unit

USER = "user-of-conditions"
DOCUMENTS = sample_conditions.documents()
ONE_OF_EACH_TYPE: tuple[Scalar, ...] = (1.0, "a", True, NOON)
NOTHINGS: tuple[Scalar, ...] = (0.0, "", "null", False, NOON)

Matching = Callable[[Condition], set[int]]
"""Returns which documents the database finds by a condition."""


@pytest.fixture(scope="module")
def connection(database: Database, module_database_url: str) -> Iterator[psycopg.Connection]:
    """A session of the module's database, which holds the documents."""
    memories = [new_memory(id=UUID(int=index), metadata=document) for index, document in enumerate(DOCUMENTS)]
    store(database, USER, *memories)
    with psycopg.connect(module_database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def matching(connection: psycopg.Connection) -> Matching:
    def find(condition: Condition) -> set[int]:
        where, parameters = compile_condition(condition)
        query = b"SELECT id FROM memory_entries WHERE user_id = %(user_id)s AND " + where.as_bytes(None)
        return {row[0].int for row in connection.execute(query, parameters | {"user_id": USER})}

    return find


def expected(condition: Condition) -> set[int]:
    return {index for index, document in enumerate(DOCUMENTS) if holds(condition, document)}


def shown(found: set[int]) -> list[dict[str, Any]]:
    return [DOCUMENTS[index] for index in sorted(found)]


@given(condition=sample_conditions.conditions)
@settings(max_examples=300)
@pytest.mark.long
def test_a_condition_finds_what_it_says(matching: Matching, condition: Condition) -> None:
    assert shown(matching(condition)) == shown(expected(condition))


ALL_VALUES: list[Scalar] = [
    True,
    False,
    *map(float, NUMBERS),
    *TEXTS,
    "2026-11-21T12:00:00Z",
    NOON,
    NOON.replace(microsecond=1),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
]


@pytest.mark.parametrize("operator", Operator)
def test_every_operator_with_every_type(matching: Matching, operator: Operator) -> None:
    for value in ALL_VALUES:
        condition = Compares(("k",), operator, value)
        assert shown(matching(condition)) == shown(expected(condition)), repr(value)


def test_nine_is_less_than_ten_and_its_digits_are_neither(matching: Matching) -> None:
    less, more = (matching(Compares(("k",), operator, 10.0)) for operator in (Operator.LESS, Operator.GREATER))
    assert DOCUMENTS.index({"k": 9}) in less
    assert DOCUMENTS.index({"k": "9"}) not in less | more


@pytest.mark.parametrize("value", [0.1, 0.1 + 0.2, 2.0**53, 2.0**53 - 1, 123456789012345680.0, 1e300, 5e-324])
def test_numbers_are_compared_to_their_last_digit(matching: Matching, value: float) -> None:
    # A double that PostgreSQL casts to numeric keeps 15 digits: 2^53 would not equal itself.
    equal = matching(Compares(("k",), Operator.EQUAL, value))
    assert [float(document["k"]) for document in shown(equal)] == [value]
    assert equal == matching(MemberOf(("k",), (value,)))
    between = AllOf(
        (Compares(("k",), Operator.GREATER_OR_EQUAL, value), Compares(("k",), Operator.LESS_OR_EQUAL, value))
    )
    assert equal == matching(between)


@pytest.mark.parametrize("time", TIMES)
def test_times_are_compared_as_times(matching: Matching, time: str) -> None:
    document = DOCUMENTS.index({"k": time})
    for operator in Operator:
        condition = Compares(("k",), operator, NOON)
        assert (document in matching(condition)) is holds(condition, DOCUMENTS[document]), operator
    assert document in matching(Compares(("k",), Operator.EQUAL, time))  # as the text that it is as well


def test_a_missing_value_matches_negations_only(matching: Matching) -> None:
    everything = set(range(len(DOCUMENTS)))
    leaves: list[Condition] = [
        *(Compares(("absent",), operator, value) for operator, value in product(Operator, ONE_OF_EACH_TYPE)),
        MemberOf(("absent",), ONE_OF_EACH_TYPE),
        Exists(("absent",)),
    ]
    for leaf in leaves:
        assert matching(leaf) == set()
        assert matching(Negated(leaf)) == everything
        assert matching(Negated(Negated(leaf))) == set()


def test_null_exists_and_compares_with_nothing(matching: Matching) -> None:
    null = DOCUMENTS.index({"k": None})
    assert null in matching(Exists(("k",)))
    for operator, value in product(Operator, NOTHINGS):
        assert null not in matching(Compares(("k",), operator, value))
    assert null not in matching(MemberOf(("k",), NOTHINGS))


def test_elements_of_arrays_cannot_be_named(matching: Matching) -> None:
    for path in (("k", "0"), ("k", "-1"), ("k", "1", "k")):
        assert shown(matching(Exists(path))) == [document for document in DOCUMENTS if holds(Exists(path), document)]
    assert DOCUMENTS.index({"k": ["0", {"k": 1}]}) not in matching(Exists(("k", "0")))
    assert DOCUMENTS.index({"k": {"k": 9, "0": "z"}}) in matching(Exists(("k", "0")))


@pytest.mark.parametrize("key", KEYS)
def test_any_key_can_be_named(matching: Matching, key: str) -> None:
    condition = AnyOf((Compares((key,), Operator.EQUAL, key), Exists(("n", key, key))))
    assert {"n", key} <= {name for document in shown(matching(condition)) for name in document}
    assert shown(matching(condition)) == shown(expected(condition))


def test_membership_takes_values_of_all_types_at_once(matching: Matching) -> None:
    mixed = MemberOf(("k",), (9.0, "9", True, NOON, "2026-02-30T12:00:00Z", 1e300))
    assert shown(matching(mixed)) == shown(expected(mixed))
    assert len(matching(mixed)) > 6


def test_a_thousand_values_of_every_type(matching: Matching) -> None:
    times = tuple(NOON.replace(microsecond=index) for index in range(1_000))
    numbers = tuple(float(index) for index in range(1_000))
    texts = tuple(str(index) for index in range(1_000))
    mixed: tuple[Scalar, ...] = (*times[:400], *numbers[:300], *texts[:300])
    for values in (times, numbers, texts, mixed):
        condition = MemberOf(("k",), values)
        assert shown(matching(condition)) == shown(expected(condition))


@given(condition=sample_conditions.conditions)
def test_searches_and_lists_consider_what_matches(database: Database, matching: Matching, condition: Condition) -> None:
    filter_ = Filter(where=condition, min_importance=1)
    means = Means(coarse=Coarse.EMBEDDING, ann=None, user_rows=None, tuning=SearchTuning())
    nearest = Nearest(embedding=unit(), metric=Metric.COSINE, limit=1_000, filter=filter_, view=View.HEAD)

    def both(conn: Connection) -> tuple[list[Hit], Page]:
        page = recent(conn, USER, filter=filter_, after=None, page_size=1_000, view=View.HEAD, max_text_bytes=1_000_000)
        return search(conn, USER, nearest, means).hits, page

    hits, page = database.read(database.call(), both, user_id=ACROSS_USERS)
    assert {hit.memory.id.int for hit in hits} == {memory.id.int for memory in page.memories} == matching(condition)


def test_the_largest_tree_allowed(matching: Matching) -> None:
    # 64 conditions and 8 levels, each with as many parameters as there can be.
    values = tuple(NOON.replace(microsecond=index) for index in range(500)) + tuple(map(float, range(500)))
    path = ("a", "b", "c", "d", "e", "f", "g", "h")
    deep: Condition = AnyOf(tuple(MemberOf(path, values) for _ in range(56)))
    for level in range(6):
        deep = AllOf((deep,)) if level % 2 else Negated(deep)
    # No document has this path, and there are three negations.
    assert matching(deep) == set(range(len(DOCUMENTS)))


@given(condition=sample_conditions.conditions)
@settings(max_examples=150)
def test_trees_of_one_shape_make_one_text_without_values(condition: Condition) -> None:
    statement, parameters = compile_condition(condition)
    renamed, others = compile_condition(with_other_values(condition))
    assert statement.as_string(None) == renamed.as_string(None)
    assert [type(value) for value in parameters.values()] == [type(value) for value in others.values()]


def with_other_values(condition: Condition) -> Condition:
    """Returns a tree of the same shape with other keys and values of the same types."""
    match condition:
        case AllOf(conditions):
            return AllOf(tuple(map(with_other_values, conditions)))
        case AnyOf(conditions):
            return AnyOf(tuple(map(with_other_values, conditions)))
        case Negated(inner):
            return Negated(with_other_values(inner))
        case Compares(path, operator, value):
            return Compares(other_path(path), operator, other(value))
        case MemberOf(path, values):
            return MemberOf(other_path(path), tuple(map(other, values)))
        case Exists(path):
            return Exists(other_path(path))


def other_path(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"other {key}" for key in path)


def other(value: Scalar) -> Scalar:
    match value:
        case bool():
            return not value
        case str():
            return f"{value}'; DROP TABLE users; --"
        case datetime():
            return NOON.replace(year=2000)
        case _:
            return 42.5


@given(
    document=st.recursive(
        sample_conditions.scalars_stored,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(sample_conditions.keys, inner, max_size=3),
        max_leaves=8,
    ).map(lambda value: value if isinstance(value, dict) else {"k": value}),
    condition=sample_conditions.conditions,
)
@settings(max_examples=300)
@pytest.mark.long
def test_any_condition_on_any_metadata(
    connection: psycopg.Connection, document: dict[str, Any], condition: Condition
) -> None:
    statement, parameters = compile_condition(condition)
    query = b"SELECT " + statement.as_bytes(None) + b" FROM (SELECT %(document)s AS metadata) AS memory_entries"
    row = connection.execute(query, {**parameters, "document": psycopg.types.json.Jsonb(document)}).fetchone()
    assert row == (holds(condition, document),)
