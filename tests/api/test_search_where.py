"""Typed conditions on metadata, through the service: what they find, and what is refused."""

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from memory_service.v1 import memory_pb2 as pb
from memory_service.v1.memory_pb2_grpc import MemoryServiceStub
from tests.api.calls import failure, send
from tests.api.messages import axis, insert_all, new_memory, struct, timestamp

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def path(*keys: str) -> pb.MetadataPath:
    return pb.MetadataPath(keys=keys)


def compares(operator: str, value: Any, *keys: str) -> pb.Condition:
    code = pb.ComparisonOperator.Value(f"COMPARISON_OPERATOR_{operator}")
    return pb.Condition(comparison=pb.Comparison(path=path(*keys or ("v",)), operator=code, value=scalar(value)))


def scalar(value: Any) -> pb.Scalar:
    match value:
        case bool():
            return pb.Scalar(flag=value)
        case str():
            return pb.Scalar(text=value)
        case datetime():
            return pb.Scalar(time=timestamp(value))
        case None:
            return pb.Scalar()
        case _:
            return pb.Scalar(number=value)


def member_of(*values: Any) -> pb.Condition:
    return pb.Condition(member_of=pb.Membership(path=path("v"), values=map(scalar, values)))


def negated(condition: pb.Condition) -> pb.Condition:
    return pb.Condition(negated=condition)


def all_of(*conditions: pb.Condition) -> pb.Condition:
    return pb.Condition(all_of=pb.ConditionList(conditions=conditions))


def any_of(*conditions: pb.Condition) -> pb.Condition:
    return pb.Condition(any_of=pb.ConditionList(conditions=conditions))


def exists(*keys: str) -> pb.Condition:
    return pb.Condition(exists=path(*keys))


VALUES: dict[str, Any] = {
    "nine": {"v": 9},
    "ten": {"v": 10},
    "half": {"v": 0.1},
    "huge": {"v": 1e300},
    "most exact": {"v": 2**53},
    "'9'": {"v": "9"},
    "'10'": {"v": "10"},
    "text": {"v": "b"},
    "noon": {"v": "2026-11-21T13:30:00+01:30"},
    "later": {"v": "2026-11-21t12:00:00.000001z"},
    "no day": {"v": "2026-02-30T12:00:00Z"},
    "true": {"v": True},
    "false": {"v": False},
    "null": {"v": None},
    "list": {"v": [9, "9"]},
    "object": {"v": {"w": 9}},
    "missing": {"other": 9},
}

EVERYTHING = set(VALUES)

FOUND: list[tuple[str, pb.Condition, set[str]]] = [
    ("at least 10", compares("GREATER_OR_EQUAL", 10), {"ten", "huge", "most exact"}),
    ("less than 10", compares("LESS", 10), {"nine", "half"}),
    ("9", compares("EQUAL", 9), {"nine"}),
    ("'9'", compares("EQUAL", "9"), {"'9'"}),
    ("not 9", compares("NOT_EQUAL", 9), {"ten", "half", "huge", "most exact"}),
    ("not: 9", negated(compares("EQUAL", 9)), EVERYTHING - {"nine"}),
    ("0.1", compares("EQUAL", 0.1), {"half"}),
    ("1e300", compares("EQUAL", 1e300), {"huge"}),
    ("2^53", compares("EQUAL", 2.0**53), {"most exact"}),
    ("beyond 2^53 - 1", compares("GREATER", 2.0**53 - 1), {"most exact", "huge"}),
    ("texts from '9'", compares("GREATER_OR_EQUAL", "9"), {"'9'", "text"}),
    ("noon", compares("EQUAL", NOON), {"noon"}),
    ("after noon", compares("GREATER", NOON), {"later"}),
    ("until noon", compares("LESS_OR_EQUAL", NOON), {"noon"}),
    ("true", compares("EQUAL", value=True), {"true"}),
    ("not true", compares("NOT_EQUAL", value=True), {"false"}),
    ("one of several types", member_of(9, "9", True, NOON, "b"), {"nine", "'9'", "true", "noon", "text"}),
    ("exists", exists("v"), EVERYTHING - {"missing"}),
    ("nested", compares("EQUAL", 9, "v", "w"), {"object"}),
    ("no element", exists("v", "0"), set()),
    ("both", all_of(compares("GREATER", 9), compares("LESS", 11)), {"ten"}),
    ("either", any_of(compares("EQUAL", 9), compares("EQUAL", value=False)), {"nine", "false"}),
    ("neither", all_of(exists("v"), negated(any_of(exists("v"), exists("other")))), set()),
]


@pytest.fixture(scope="module")
def owner(stub: MemoryServiceStub) -> str:
    """A user with a memory of every value; the content is its name."""
    owner = "owner-of-values"
    insert_all(stub, owner, [new_memory(name, metadata=metadata) for name, metadata in VALUES.items()])
    return owner


@pytest.mark.parametrize(("condition", "expected"), [one[1:] for one in FOUND], ids=[one[0] for one in FOUND])
def test_searches_and_lists_find_what_the_condition_says(
    stub: MemoryServiceStub, owner: str, condition: pb.Condition, expected: set[str]
) -> None:
    filter_ = pb.MemoryFilter(where=condition)
    for exact in (False, True):
        request = pb.SearchSimilarRequest(user_id=owner, embedding=axis(0), limit=100, filter=filter_, exact=exact)
        assert {result.memory.content for result in send(stub, request).results} == expected
    listed = send(stub, pb.GetRecentRequest(user_id=owner, page_size=100, filter=filter_))
    assert {memory.content for memory in listed.memories} == expected


def test_conditions_join_the_other_filters(stub: MemoryServiceStub, user_id: str) -> None:
    memories = [
        new_memory(
            f"{row}",
            importance=1 + row % 10,
            conversation_id=f"c{row % 2}",
            metadata={"row": row, "even": row % 2 == 0},
        )
        for row in range(40)
    ]
    insert_all(stub, user_id, memories)
    filter_ = pb.MemoryFilter(
        conversation_id="c0",
        min_importance=5,
        metadata_contains=struct({"even": True}),
        where=compares("GREATER", 20, "row"),
    )
    request = pb.SearchSimilarRequest(user_id=user_id, embedding=axis(0), limit=100, filter=filter_)
    expected = {f"{row}" for row in range(21, 40) if row % 2 == 0 and 1 + row % 10 >= 5}
    assert {result.memory.content for result in send(stub, request).results} == expected


def nested(levels: int) -> pb.Condition:
    condition = exists("v")
    for _ in range(levels - 1):
        condition = negated(condition)
    return condition


REFUSED: list[tuple[str, pb.Condition, str, str]] = [
    ("an order of flags", compares("LESS", value=True), "comparison.value", "flag"),
    ("NaN", compares("LESS", math.nan), "comparison.value.number", "NaN"),
    ("infinity", member_of(1, math.inf), "member_of.values[1].number", "infinite"),
    ("no value", compares("LESS", None), "comparison.value", "empty"),
    ("no operator", compares("UNSPECIFIED", 1), "comparison.operator", "required"),
    ("no kind", pb.Condition(), "", "empty"),
    ("nothing in all_of", all_of(), "all_of.conditions", "at least one"),
    ("no key", exists(), "exists.keys", "1 to 8"),
    ("nine keys", exists(*"abcdefghi"), "exists.keys", "1 to 8"),
    ("NUL in a key", exists("a\0"), "exists.keys[0]", "NUL"),
    ("NUL in a text", compares("EQUAL", "a\0"), "comparison.value.text", "NUL"),
    ("no values", member_of(), "member_of.values", "1 to 1000"),
    ("1,001 values", member_of(*range(1_001)), "member_of.values", "1 to 1000"),
    ("nine levels", nested(9), ".".join(["negated"] * 8), "8 levels"),
    ("65 conditions", any_of(*[exists("a")] * 64), "any_of.conditions[63]", "64 conditions"),
]

Ask = Callable[[MemoryServiceStub, pb.MemoryFilter], object]


def by_search(stub: MemoryServiceStub, filter_: pb.MemoryFilter) -> object:
    return send(stub, pb.SearchSimilarRequest(user_id="u", embedding=axis(0), filter=filter_))


def by_list(stub: MemoryServiceStub, filter_: pb.MemoryFilter) -> object:
    return send(stub, pb.GetRecentRequest(user_id="u", filter=filter_))


@pytest.mark.parametrize("ask", [by_search, by_list])
@pytest.mark.parametrize(("condition", "field", "words"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_a_condition_that_makes_no_sense_is_refused(
    stub: MemoryServiceStub, ask: Ask, condition: pb.Condition, field: str, words: str
) -> None:
    refused = failure(lambda: ask(stub, pb.MemoryFilter(where=condition)))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
    where = f"filter.where.{field}".removesuffix(".")
    assert list(refused.violations) == [where]
    assert words in refused.violations[where]


def test_the_limits_are_those_of_the_server(stub: MemoryServiceStub) -> None:
    limits = send(stub, pb.GetServerInfoRequest()).limits
    assert (limits.max_filter_depth, limits.max_filter_conditions, limits.max_filter_values) == (8, 64, 1_000)
    largest = all_of(nested(7), *[member_of(*range(1_000))] * 5, *[exists(*["k"] * 8)] * 51)
    by_search(stub, pb.MemoryFilter(where=largest))


def test_a_page_token_belongs_to_its_condition(stub: MemoryServiceStub, owner: str) -> None:
    request = pb.GetRecentRequest(user_id=owner, page_size=1, filter=pb.MemoryFilter(where=exists("v")))
    request.page_token = send(stub, request).next_page_token
    assert len(send(stub, request).memories) == 1
    request.filter.where.CopyFrom(exists("other"))
    refused = failure(lambda: send(stub, request))
    assert (refused.code.name, refused.reason) == ("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID")
