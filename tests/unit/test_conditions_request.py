"""Reading a filter's condition: what is refused, with which path, and what the rest becomes."""

import math
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from db.conditions import AllOf, AnyOf, Compares, Condition, Exists, MemberOf, Negated, Operator
from memory_service import config
from memory_service.limits import Limits, limits_of
from memory_service.messages import conditions_request
from memory_service.messages.fields import FieldReader
from memory_service.messages.violations import Violations
from memory_service.v1 import memory_pb2 as pb
from tests.unit.noted import noted

WHERE = "filter.where"
LIMITS = limits_of(config.load(embedder="none", embedding_dimensions=4))


def path(*keys: str) -> pb.MetadataPath:
    return pb.MetadataPath(keys=keys)


def number(value: float) -> pb.Scalar:
    return pb.Scalar(number=value)


def exists(*keys: str) -> pb.Condition:
    return pb.Condition(exists=path(*keys))


def all_of(*conditions: pb.Condition) -> pb.Condition:
    return pb.Condition(all_of=pb.ConditionList(conditions=conditions))


def any_of(*conditions: pb.Condition) -> pb.Condition:
    return pb.Condition(any_of=pb.ConditionList(conditions=conditions))


def negated(condition: pb.Condition) -> pb.Condition:
    return pb.Condition(negated=condition)


def compares(
    value: pb.Scalar,
    operator: pb.ComparisonOperator.ValueType = pb.COMPARISON_OPERATOR_EQUAL,
    *keys: str,
) -> pb.Condition:
    return pb.Condition(comparison=pb.Comparison(path=path(*keys or ("k",)), operator=operator, value=value))


def member_of(*values: pb.Scalar) -> pb.Condition:
    return pb.Condition(member_of=pb.Membership(path=path("k"), values=values))


def read(fields: FieldReader, message: pb.Condition) -> Condition:
    """Returns the condition read; asserts that nothing is wrong with it."""
    condition = conditions_request.read(fields, message, WHERE)
    assert noted(fields) == {}
    return condition


def refused(fields: FieldReader, message: pb.Condition) -> dict[str, str]:
    """Returns what is wrong, by path from the condition."""
    conditions_request.read(fields, message, WHERE)
    found = noted(fields)
    assert found
    assert all(path_.startswith(WHERE) for path_ in found)
    return {path_.removeprefix(WHERE): description for path_, description in found.items()}


def test_every_kind_is_read(fields: FieldReader) -> None:
    noon = Timestamp(seconds=1_763_726_400, nanos=1_999)
    message = all_of(
        any_of(compares(number(1.5), pb.COMPARISON_OPERATOR_LESS, "a", "b"), compares(pb.Scalar(text=""))),
        negated(compares(pb.Scalar(flag=False), pb.COMPARISON_OPERATOR_NOT_EQUAL)),
        member_of(number(-0.0), pb.Scalar(text="x"), pb.Scalar(flag=True), pb.Scalar(time=noon)),
        exists("", "0", "\U0001f511", "a.b"),
    )
    assert read(fields, message) == AllOf(
        (
            AnyOf((Compares(("a", "b"), Operator.LESS, 1.5), Compares(("k",), Operator.EQUAL, ""))),
            Negated(Compares(("k",), Operator.NOT_EQUAL, value=False)),
            MemberOf(("k",), (-0.0, "x", True, datetime(2025, 11, 21, 12, 0, 0, 1, tzinfo=UTC))),
            Exists(("", "0", "\U0001f511", "a.b")),
        )
    )


@pytest.mark.parametrize("operator", Operator)
def test_every_operator_is_read(fields: FieldReader, operator: Operator) -> None:
    value = pb.ComparisonOperator.Value(f"COMPARISON_OPERATOR_{operator.name}")
    assert read(fields, compares(number(1), value)) == Compares(("k",), operator, 1.0)


EMPTY = "is empty"
FAULTS: dict[str, tuple[pb.Condition, str, str]] = {
    "no kind": (pb.Condition(), "", EMPTY),
    "no kind inside": (negated(all_of(exists("a"), pb.Condition())), ".negated.all_of.conditions[1]", EMPTY),
    "an empty all_of": (all_of(), ".all_of.conditions", EMPTY),
    "an empty any_of": (any_of(), ".any_of.conditions", EMPTY),
    "an empty negation": (pb.Condition(negated=pb.Condition()), ".negated", EMPTY),
    "no value": (compares(pb.Scalar()), ".comparison.value", EMPTY),
    "NaN": (compares(number(math.nan)), ".comparison.value.number", "NaN"),
    "infinity": (compares(number(-math.inf)), ".comparison.value.number", "infinite"),
    "a NUL in a text": (compares(pb.Scalar(text="a\0b")), ".comparison.value.text", "NUL"),
    "a long text": (compares(pb.Scalar(text="é" * 8_193)), ".comparison.value.text", "16386"),
    "a time beyond the calendar": (
        compares(pb.Scalar(time=Timestamp(seconds=253_402_300_800))),
        ".comparison.value.time",
        "9999",
    ),
    "a time of odd nanoseconds": (compares(pb.Scalar(time=Timestamp(nanos=-1))), ".comparison.value.time", "-1"),
    "no operator": (
        compares(number(1), pb.COMPARISON_OPERATOR_UNSPECIFIED),
        ".comparison.operator",
        "is required",
    ),
    "an operator to come": (compares(number(1), 99), ".comparison.operator", "99"),  # type: ignore[arg-type]  # what a newer client may send
    "no path": (
        pb.Condition(comparison=pb.Comparison(operator=pb.COMPARISON_OPERATOR_EQUAL, value=number(1))),
        ".comparison.path.keys",
        "is 0, expected 1 to 8",
    ),
    "a path of nine keys": (exists(*"abcdefghi"), ".exists.keys", "is 9, expected 1 to 8"),
    "a NUL in a key": (exists("a", "b\0"), ".exists.keys[1]", "NUL"),
    "a long key": (exists("k" * 16_385), ".exists.keys[0]", "16385"),
    "no values": (member_of(), ".member_of.values", "is 0, expected 1 to 1000"),
    "1,001 values": (member_of(*[number(1)] * 1_001), ".member_of.values", "is 1001, expected 1 to 1000"),
    "an empty value among others": (member_of(number(1), pb.Scalar()), ".member_of.values[1]", EMPTY),
    "NaN among others": (member_of(number(1), number(math.nan)), ".member_of.values[1].number", "NaN"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_noted_where_it_is(fields: FieldReader, fault: str) -> None:
    message, where, words = FAULTS[fault]
    found = refused(fields, message)
    assert list(found) == [where]
    assert words in found[where]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_deep_inside_has_the_whole_path(fields: FieldReader, fault: str) -> None:
    message, where, _ = FAULTS[fault]
    assert list(refused(fields, any_of(exists("a"), negated(message)))) == [f".any_of.conditions[1].negated{where}"]


@pytest.mark.parametrize(
    "operator",
    [
        pb.COMPARISON_OPERATOR_LESS,
        pb.COMPARISON_OPERATOR_LESS_OR_EQUAL,
        pb.COMPARISON_OPERATOR_GREATER,
        pb.COMPARISON_OPERATOR_GREATER_OR_EQUAL,
    ],
)
def test_flags_have_no_order(fields: FieldReader, operator: pb.ComparisonOperator.ValueType) -> None:
    assert list(refused(fields, compares(pb.Scalar(flag=True), operator))) == [".comparison.value"]


def nested(levels: int) -> pb.Condition:
    """Returns a condition that is so many levels deep."""
    wrappers: tuple[Callable[[pb.Condition], pb.Condition], ...] = (negated, all_of, any_of)
    condition = exists("a")
    for level in range(levels - 1):
        condition = wrappers[level % 3](condition)
    return condition


def test_depth_is_limited(fields: FieldReader, limits: Limits) -> None:
    read(fields, nested(limits.max_filter_depth))
    found = refused(fields, nested(limits.max_filter_depth + 1))
    [(where, description)] = found.items()
    assert where.count(".negated") + where.count("conditions[0]") == limits.max_filter_depth
    assert f"more than {limits.max_filter_depth} levels" in description


def test_a_depth_that_protobuf_just_allows_is_refused_as_well(fields: FieldReader, limits: Limits) -> None:
    assert len(refused(fields, nested(40))) == 1
    assert limits.max_filter_depth < 40


def test_the_number_of_conditions_is_limited(fields: FieldReader, limits: Limits) -> None:
    most = limits.max_filter_conditions
    read(fields, all_of(*[exists("a")] * (most - 1)))
    found = refused(fields, all_of(*[exists("a")] * most))
    assert found == {f".all_of.conditions[{most - 1}]": f"makes more than {most} conditions"}


def test_too_many_conditions_are_told_of_once(fields: FieldReader, limits: Limits) -> None:
    many = all_of(*[any_of(*[exists("a")] * 30)] * 30)
    assert len(refused(fields, many)) == 1
    assert limits.max_filter_conditions < 900


def test_the_largest_values_are_read(fields: FieldReader, limits: Limits) -> None:
    values = [number(one) for one in range(limits.max_filter_values)]
    assert len(getattr(read(fields, member_of(*values)), "values", ())) == limits.max_filter_values
    text = "x" * limits.max_metadata_bytes
    read(fields, compares(pb.Scalar(text=text), pb.COMPARISON_OPERATOR_EQUAL, *["k" * limits.max_metadata_bytes] * 8))


scalars = st.one_of(
    st.builds(pb.Scalar, number=st.floats()),
    st.builds(pb.Scalar, text=st.text(st.characters(exclude_categories=["Cs"]))),
    st.builds(pb.Scalar, flag=st.booleans()),
    st.builds(
        pb.Scalar, time=st.builds(Timestamp, seconds=st.integers(-(2**63), 2**63 - 1), nanos=st.integers(-1, 2**31 - 1))
    ),
    st.just(pb.Scalar()),
)
keys = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=10)
messages: st.SearchStrategy[pb.Condition] = st.recursive(
    st.one_of(
        st.just(pb.Condition()),
        keys.map(lambda names: exists(*names)),
        st.builds(lambda value, operator, names: compares(value, operator, *names), scalars, st.integers(-1, 8), keys),
        st.lists(scalars, max_size=4).map(lambda values: member_of(*values)),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda conditions: all_of(*conditions)),
        st.lists(inner, max_size=4).map(lambda conditions: any_of(*conditions)),
        inner.map(negated),
    ),
    max_leaves=12,
)


@given(message=messages)
def test_any_message_is_read_or_refused(message: pb.Condition) -> None:
    violations = Violations()
    fields = FieldReader(LIMITS, 4, can_embed=False, violations=violations)
    condition = conditions_request.read(fields, message, WHERE)
    assert all(violation.field.startswith(WHERE) for violation in violations.found)
    if not violations.found:
        assert not is_empty(condition)


def is_empty(condition: Condition) -> bool:
    """Tells whether the tree holds what no statement can be made of."""
    match condition:
        case AllOf(conditions) | AnyOf(conditions):
            return not conditions or any(map(is_empty, conditions))
        case Negated(inner):
            return is_empty(inner)
        case Compares(path=keys_) | Exists(path=keys_):
            return not keys_
        case MemberOf(path=keys_, values=values):
            return not (keys_ and values)
