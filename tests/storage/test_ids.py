"""UUIDs version 7: their bits, and that they sort by time."""

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122

from hypothesis import given
from hypothesis import strategies as st

from db.ids import uuid7_sequence

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

times = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - see timezones


@given(times, st.integers(1, 500))
def test_bits_and_order(now: datetime, count: int) -> None:
    ids = uuid7_sequence(now, count)
    assert len(set(ids)) == count
    assert ids == sorted(ids)
    assert {made.version for made in ids} == {7}
    assert {made.variant for made in ids} == {RFC_4122}
    assert {made.int >> 80 for made in ids} == {(now - EPOCH) // timedelta(milliseconds=1)}


@given(times, st.integers(1, 10**9))
def test_they_sort_by_the_microsecond(now: datetime, microseconds: int) -> None:
    earlier = uuid7_sequence(now, 500)
    later = uuid7_sequence(now + timedelta(microseconds=microseconds), 500)
    assert max(earlier) < min(later)


def test_ids_of_one_moment_differ() -> None:
    now = datetime(2026, 5, 4, tzinfo=UTC)
    ids = [made for _ in range(100) for made in uuid7_sequence(now, 10)]
    assert len(set(ids)) == 1_000


def test_none_wanted() -> None:
    assert uuid7_sequence(datetime(2026, 5, 4, tzinfo=UTC), 0) == []
