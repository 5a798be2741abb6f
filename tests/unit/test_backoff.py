"""Exponential back-off: doubling, bounded, and never without its certain half."""

import pytest

from memory_service.backoff import Backoff


@pytest.mark.parametrize(
    ("attempts", "longest_s"), [(1, 1), (2, 2), (3, 4), (10, 512), (11, 600), (60, 600), (100_000, 600)]
)
def test_delays_double_up_to_the_longest(attempts: int, longest_s: float) -> None:
    for drawn, share in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        backoff = Backoff(first_s=1, longest_s=600, draw=lambda drawn=drawn: drawn)  # type: ignore[misc]
        assert backoff.delay_s(attempts) == longest_s * share


def test_those_that_failed_together_do_not_come_back_together() -> None:
    backoff = Backoff(first_s=1, longest_s=600)
    delays = {backoff.delay_s(5) for _ in range(100)}
    assert len(delays) > 90
    assert all(8 <= delay <= 16 for delay in delays)
