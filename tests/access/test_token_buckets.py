"""Token buckets: what they let through over time, whatever the order of the requests; a clock of the test's own."""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_service.access.token_buckets import TokenBuckets
from tests.clock import SecondsClock


@pytest.fixture
def clock() -> SecondsClock:
    """A clock that stands still."""
    return SecondsClock()


def test_a_rest_allows_a_burst_and_then_the_rate(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=10, burst_s=2, clock=clock)
    assert [buckets.take("a", 1) for _ in range(20)] == [0.0] * 20
    assert buckets.take("a", 1) == pytest.approx(0.1)
    clock.now += 0.1
    assert buckets.take("a", 1) == 0.0
    assert buckets.take("a", 1) == pytest.approx(0.1)
    clock.now += 3_600
    assert [buckets.take("a", 1) for _ in range(21)][-2:] == [0.0, pytest.approx(0.1)]


def test_names_have_buckets_of_their_own(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=1, burst_s=1, clock=clock)
    assert buckets.take("a", 1) == 0.0
    assert buckets.take("a", 1) > 0.0
    assert buckets.take("b", 1) == 0.0


def test_a_refusal_takes_nothing_and_tells_when_it_would_not_be_one(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=2, burst_s=5, clock=clock)
    assert buckets.take("a", 8) == 0.0
    for _ in range(50):
        assert buckets.take("a", 6) == pytest.approx(2.0)
    clock.now += 2.0
    assert buckets.take("a", 6) == 0.0


def test_more_than_a_bucket_holds_waits_for_a_full_one_and_is_paid_for(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=10, burst_s=1, clock=clock)
    assert buckets.take("a", 5) == 0.0
    assert buckets.take("a", 100) == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.take("a", 100) == 0.0
    assert buckets.take("a", 1) == pytest.approx(9.1)


def test_a_rate_below_one_a_burst_lets_single_ones_through(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=0.1, burst_s=1, clock=clock)
    assert buckets.take("a", 1) == 0.0
    assert buckets.take("a", 1) == pytest.approx(10.0)


def test_what_is_given_back_can_be_taken_again(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=1, burst_s=3, clock=clock)
    assert buckets.take("a", 3) == 0.0
    buckets.give_back("a", 2)
    buckets.give_back("nobody", 2)
    assert buckets.take("a", 2) == 0.0
    assert buckets.take("a", 1) > 0.0


def test_the_one_left_alone_longest_is_forgotten(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=1, burst_s=1, max_buckets=2, clock=clock)
    for name in ("a", "b", "c"):
        assert buckets.take(name, 1) == 0.0
    assert len(buckets) == 2
    assert buckets.take("b", 1) > 0.0
    assert buckets.take("a", 1) == 0.0


@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 30)), max_size=60),
    rate=st.floats(0.5, 50),
    burst_s=st.floats(0.5, 10),
)
def test_no_interval_gets_more_than_its_share(steps: list[tuple[float, int]], rate: float, burst_s: float) -> None:
    clock = SecondsClock()
    buckets = TokenBuckets(rate_per_s=rate, burst_s=burst_s, clock=clock)
    capacity = max(1.0, rate * burst_s)
    taken: list[tuple[float, int]] = []
    for pause_s, amount in steps:
        clock.now += pause_s
        wait_s = buckets.wait_s("a", amount)
        assert buckets.take("a", amount) == wait_s
        if wait_s == 0.0:
            taken.append((clock.now, amount))
    for start in range(len(taken)):
        # The last one may be more than the bucket holds: then it was full.
        before_last = sum(amount for _, amount in taken[start:-1])
        allowed = capacity + rate * (taken[-1][0] - taken[start][0])
        largest = max(amount for _, amount in taken[start:])
        assert before_last <= allowed + max(0.0, largest - capacity) + 1e-6
    assert all(earlier[0] <= later[0] for earlier, later in pairwise(taken))


def test_threads_get_no_more_together_than_one_alone(clock: SecondsClock) -> None:
    buckets = TokenBuckets(rate_per_s=100, burst_s=1, clock=clock)
    with ThreadPoolExecutor(8) as threads:
        waits = list(threads.map(lambda _: buckets.take("a", 1), range(400)))
    assert waits.count(0.0) == 100
