"""Strategies: conditions on metadata that have much in common with the metadata stored, and quite other ones."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import strategies as st

from db.conditions import AllOf, AnyOf, Compares, Condition, Exists, MemberOf, Negated, Operator, Path, Scalar

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)

NUMBERS: list[float] = [
    0, -0.0, 1, 9, 10, -1, 0.1, 0.2, 0.1 + 0.2, 0.3, 1 / 3, 2**53, 2**53 - 1, -(2**53), 9.007199254740994e15,
    1e15, 123456789012345680, 1e22, 1e300, -1e300, 1.7976931348623157e308, 5e-324, 2.2250738585072014e-308,
]  # fmt: skip
TIMES: list[str] = [
    "2026-11-21T12:00:00Z",
    "2026-11-21t12:00:00z",
    "2026-11-21 12:00:00Z",
    "2026-11-21T13:30:00+01:30",
    "2026-11-21T12:00:00-00:00",
    "2026-11-21T12:00:00.0Z",
    "2026-11-21T12:00:00.000001Z",
    "2026-11-21T12:00:00.0000009Z",
    "2026-11-21T12:00:00.000001999999999Z",
    "2026-11-21T11:59:59.999999999Z",
    "2026-11-21T11:59:60Z",
    "2026-11-20T23:59:59.9999999-12:00",
    "2026-11-21T12:00:00+15:59",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+14:00",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59.9999999-12:00",
    # No times, or none of RFC 3339.
    "2026-02-30T12:00:00Z",
    "2025-02-29T12:00:00Z",
    "2026-13-01T12:00:00Z",
    "2026-00-10T12:00:00Z",
    "0000-01-01T00:00:00Z",
    "2026-11-21T24:00:00Z",
    "2026-11-21T12:60:00Z",
    "2026-11-21T12:00:61Z",
    "2026-11-21T12:00:00+16:00",
    "2026-11-21T12:00:00+24:00",
    "2026-11-21T12:00:00+01:60",
    "2026-11-21T12:00:00",
    "2026-11-21",
    "2026-11-21T12:00Z",
    "2026-11-21T12:00:00.Z",
    "2026-11-21T12:00:00 Z",
    "2026-11-21T12:00:00+0100",
    "2026-11-21T12:00:00Z\n",
    " 2026-11-21T12:00:00Z",
    "+2026-11-21T12:00:00Z",
    "12026-11-21T12:00:00Z",
    "20261121T120000Z",
    "now",
    "today",
    "infinity",
    "epoch",
    "٢٠٢٦-11-21T12:00:00Z",
]
TEXTS: list[str] = [
    "", " ", "9", "10", "1e1", "NaN", "true", "null", "a", "A", "b", "ä", "z", "é", "e\u0301", "\uffff", "\U0001f600",
    "it's", '"quoted"', "back\\slash", "{}", "{a,b}", "%", "%s", "%(c0)s", "$1", "a\nb", "\x01", "\u200b",
]  # fmt: skip
KEYS: list[str] = [
    "k", "n", "", " ", "0", "-1", "a.b", "a", "b", "it's", '"', "\\", "{}", "{a}", "a,b", "%", "%s", "%(c0)s", "$1",
    "NULL", "ключ", "\U0001f511", "::text", "--", "/*",
]  # fmt: skip

scalars_stored = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TIMES),
    st.sampled_from(TEXTS),
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
)


def texts(max_size: int = 8) -> st.SearchStrategy[str]:
    """Any text that can be stored."""
    return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=max_size)


# Any number in a request is a double.
values_compared_with: st.SearchStrategy[Scalar] = st.one_of(
    st.booleans(),
    st.sampled_from(NUMBERS).map(float),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(TEXTS + TIMES),
    texts(),
    st.sampled_from([NOON, NOON + timedelta(microseconds=1), NOON - timedelta(microseconds=1)]),
    st.datetimes(timezones=st.just(UTC)),
)
keys = st.sampled_from(KEYS[:4]) | st.sampled_from(KEYS) | texts()
paths: st.SearchStrategy[Path] = st.lists(keys, min_size=1, max_size=3).map(tuple)
leaves: st.SearchStrategy[Condition] = st.one_of(
    st.builds(Compares, paths, st.sampled_from(Operator), values_compared_with),
    st.builds(MemberOf, paths, st.lists(values_compared_with, min_size=1, max_size=6).map(tuple)),
    st.builds(Exists, paths),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(AllOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Negated, inner),
    ),
    max_leaves=6,
)


def documents() -> list[dict[str, Any]]:
    """Returns metadata with every kind of value in every kind of place."""
    values: list[Any] = [None, True, False, *NUMBERS, *TIMES, *TEXTS, [], [9], ["0", {"k": 1}], {}, {"k": 9, "0": "z"}]
    return [
        {},
        *({"k": value} for value in values),
        *({"a": {"b": value, "0": value}} for value in values[::3]),
        *({"a": value, "n": index} for index, value in enumerate(values[::4])),
        *({key: key, "n": {key: {key: index}}} for index, key in enumerate(KEYS)),
    ]
